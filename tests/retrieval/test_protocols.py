"""Who asks and who answers, for each protocol."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from marc_dist.config import ConfigError, DataError, EvalConfig
from marc_dist.data.dataset import Dataset
from marc_dist.retrieval.label_map import NOTHING, LabelMap, groups, map_of
from marc_dist.retrieval.protocols import choose, common_classes, labels_over
from tests.retrieval.runs import OTHERS, pack_tiny


def test_test_vs_train(tiny: Dataset) -> None:
    chosen = choose(tiny, EvalConfig())
    assert chosen.queries.ids.tolist() == list(range(3, 40, 4))
    assert chosen.archive.ids.tolist() == [i for i in range(40) if i % 4 != 3]
    assert (chosen.self_positions(chosen.own_ids()) == -1).all()
    assert chosen.one_dataset and chosen.classes == tiny.classes and np.array_equal(chosen.archive.labels, tiny.labels)


def test_leave_one_out_knows_each_query_in_the_archive(tiny: Dataset) -> None:
    chosen = choose(tiny, EvalConfig(protocol="leave_one_out"))
    assert np.array_equal(chosen.queries.ids, chosen.archive.ids)
    assert chosen.self_positions(chosen.own_ids()).tolist() == list(range(10))


def test_oml_is_a_fifth_drawn_by_seed_and_key(tiny: Dataset) -> None:
    config = EvalConfig(protocol="oml", query_split="train")
    chosen = choose(tiny, config)
    queries, archive = chosen.queries.ids, chosen.archive.ids
    assert len(queries) == 6 and len(archive) == 24
    assert sorted([*queries, *archive]) == tiny.rows("train").tolist()
    assert queries.tolist() == [6, 13, 17, 25, 28, 37]  # fixed for good: another numpy must not change it
    assert choose(tiny, config.model_copy(update={"seed": 25})).queries.ids.tolist() != queries.tolist()
    turned = dataclasses.replace(tiny, keys=tiny.keys[::-1], split=tiny.split[::-1])  # another packing, same keys
    again = choose(turned, config)
    assert sorted(turned.keys[again.queries.ids]) == sorted(tiny.keys[queries])


@pytest.mark.parametrize("protocol", ["oml", "leave_one_out"])
def test_a_split_of_one_image_is_refused(tiny: Dataset, protocol: str) -> None:
    split = tiny.split.copy()
    split[0] = "lonely"
    config = EvalConfig(protocol=protocol, query_split="lonely")
    with pytest.raises(DataError, match="'lonely' has 1 image"):
        choose(dataclasses.replace(tiny, split=split), config)


def test_unknown_split_is_told(tiny: Dataset) -> None:
    with pytest.raises(DataError, match="no split named 'val'; it has test, train"):
        choose(tiny, EvalConfig(archive_split="val"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return pack_tiny(tmp_path_factory.mktemp("other") / "data", 24, 3, OTHERS, "other")


def test_common_classes_look_past_case_separators_and_plural() -> None:
    ours, theirs = ("bare soil", "Cars", "sea", "tree", "trees"), ("CAR", "Bare-Soil", "tree", "lake")
    assert common_classes(ours, theirs) == [("bare soil", "Bare-Soil"), ("Cars", "CAR")]  # two trees are no tree
    assert common_classes(("b", "a"), ("a", "b"), ("A", "c", "B_")) == [("b", "b", "B_"), ("a", "a", "A")]
    assert common_classes(("a",), ("b",)) == []
    assert common_classes(("forest", "水", "!"), ("Forest", "火", "?")) == [("forest", "Forest")]
    assert common_classes(("Fläche 1", "水"), ("fläche-1", "水")) == [("Fläche 1", "fläche-1"), ("水", "水")]


def test_labels_over_the_classes_of_an_evaluation(tiny: Dataset, other: Dataset) -> None:
    assert labels_over(tiny, tiny.classes) is tiny.labels  # also classes that common_classes would not join
    columns = labels_over(other, ("red & blue", "green"))
    assert np.array_equal(columns, other.labels[:, [OTHERS.index("Red_&_Blue"), OTHERS.index("Greens")]])


def test_transfer_asks_one_set_and_searches_another(tiny: Dataset, other: Dataset) -> None:
    known = ("red & blue", "green", "dark'\"", "sky")
    chosen = choose(tiny, EvalConfig(protocol="transfer"), archive=other, known=known)
    assert chosen.classes == ("red & blue", "green") and not chosen.one_dataset
    at, there = [tiny.classes.index(name) for name in chosen.classes], [2, 0]
    kept = [i for i in tiny.rows("test").tolist() if tiny.labels[i, at].any()]
    assert chosen.queries.ids.tolist() == kept and len(kept) < 10
    assert chosen.archive.ids.tolist() == other.rows("train").tolist()
    assert np.array_equal(chosen.queries.labels, tiny.labels[:, at]) and chosen.queries.dataset is tiny
    assert np.array_equal(chosen.archive.labels, other.labels[:, there]) and chosen.archive.dataset is other
    assert (chosen.own_ids() == -1).all() and len(chosen.own_ids()) == len(kept)
    assert f"{10 - len(kept)} images carry none of them" in chosen.sentence and "2 labels" in chosen.sentence


def test_transfer_within_one_set_leaves_labels_out(tiny: Dataset) -> None:
    chosen = choose(tiny, EvalConfig(protocol="transfer", archive_split="test"), known=("Green",))
    assert chosen.one_dataset and chosen.classes == ("Green",)
    assert (chosen.self_positions(chosen.own_ids()) >= 0).all()  # a query does not find itself


def test_transfer_without_a_common_label_is_refused(tiny: Dataset, other: Dataset) -> None:
    with pytest.raises(DataError, match="no class that the encoder's training data and both sides know.*knows lake"):
        choose(tiny, EvalConfig(protocol="transfer"), archive=other, known=("lake",))
    split = tiny.split.copy()
    split[3] = "bare"  # the image without labels
    with pytest.raises(DataError, match="no image of 'bare' carries a label"):
        choose(
            dataclasses.replace(tiny, split=split), EvalConfig(protocol="transfer", query_split="bare"), archive=other
        )


def test_an_archive_of_other_classes_or_for_another_protocol(tiny: Dataset, other: Dataset) -> None:
    with pytest.raises(DataError, match="other classes than those of the queries.*--protocol transfer"):
        choose(tiny, EvalConfig(), archive=other)
    with pytest.raises(DataError, match="eval.protocol=oml splits one data set"):
        choose(tiny, EvalConfig(protocol="oml"), archive=tiny)


def mapped(folder: Path, text: str) -> EvalConfig:
    (folder / "map.yaml").write_text(text)
    return EvalConfig(protocol="transfer", label_map=str(folder / "map.yaml"))


def test_a_map_joins_labels_that_differ_and_many_become_one(tiny: Dataset, other: Dataset, tmp_path: Path) -> None:
    """``sea`` and ``sky`` of the other data are ``dark'"``; its ``none`` is ``never``, its ``Greens`` read alike."""
    text = "labels: {SEA: dark'\", sky: dark'\"}\ndatasets: {tiny: {}, nobody: {x: y}}\n"
    plain = choose(tiny, EvalConfig(protocol="transfer"), archive=other, known=tiny.classes, known_name=tiny.name)
    assert plain.classes == ("red & blue", "green")
    found = choose(tiny, mapped(tmp_path, text), archive=other, known=tiny.classes, known_name=tiny.name)
    assert found.classes == ("red & blue", "green", "dark'\"") and "names mapped by" in found.sentence
    for row in range(len(other)):
        greens, sea, red_blue, sky, _ = other.labels[row].tolist()
        assert found.archive.labels[row].tolist() == [red_blue, greens, sea or sky]
    assert np.array_equal(found.queries.labels, tiny.labels[:, [0, 2, 3]])
    assert np.array_equal(labels_over(other, found.classes, found.label_map), found.archive.labels)
    again = map_of(found.label_map.plain())  # as metrics.json keeps it
    assert np.array_equal(labels_over(other, found.classes, again), found.archive.labels)


def test_a_map_gives_labels_new_names_and_of_one_data_set_alone(
    tiny: Dataset, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    classes = ("red & blue", "lawn", "meadow", "sea", "never")
    away = dataclasses.replace(tiny, classes=classes, name="away", fingerprint="1" * 64)
    text = "labels: {green: grass, lawn: grass}\ndatasets: {away: {meadow: grass, never: nought}}\n"
    found = choose(tiny, mapped(tmp_path, text), archive=away, known=tiny.classes, known_name=tiny.name)
    assert found.classes == ("red & blue", "grass")  # tiny's never is not away's nought
    assert np.array_equal(found.archive.labels[:, 1], tiny.labels[:, 1] | tiny.labels[:, 2])
    assert np.array_equal(found.queries.labels[:, 1], tiny.labels[:, 2])


def test_classes_that_read_alike_join_nothing_unless_the_map_names_them() -> None:
    classes = ("car", "Cars", "tree")
    assert set(groups(classes, "", NOTHING)) == {"tree"}
    named = LabelMap("", {"lorry": "car"}, {"a": {"tree": "car"}})
    assert set(groups(("lorry", "car", "tree"), "b", named)) == {"car", "tree"}
    assert groups(("lorry", "car", "tree"), "a", named) == {"car": ("car", [0, 1, 2])}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels: {gren: sea}", r"map.yaml: labels.gren: none of the data sets has this label.*did you mean green"),
        ("datasets: {tiny: {sky: green}}", r"map.yaml: datasets.tiny.sky: the data set has no such label"),
        ("label: {green: sea}", r"map.yaml: label: unknown key.*labels"),
        ("labels: [green]", r"map.yaml: labels: expected a mapping of labels, got \['green'\]"),
        ("labels: {green: 3}", r"map.yaml: labels: expected names, got 'green': 3"),
        ("labels: {green: sea, Greens: sky}", r"map.yaml: labels: green and Greens are one label"),
        ("labels: {}", r"map.yaml: maps no label; expected labels: \{from: to\}"),
    ],
)
def test_maps_that_cannot_be_right_are_one_line(
    tiny: Dataset, other: Dataset, tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        choose(tiny, mapped(tmp_path, text), archive=other, known=tiny.classes, known_name=tiny.name)
    assert "\n" not in str(error.value)
    missing = EvalConfig(protocol="transfer", label_map=str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match=r"none.yaml: no such file"):
        choose(tiny, missing, archive=other, known=tiny.classes)
