"""The audit of a study: planted leaks and wrong labels are found, and scores without leaks are those of the others."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import marc_dist
from marc_dist.cli.study import main
from marc_dist.data.dataset import Dataset
from marc_dist.run.evaluations import read, read_queries, read_summary
from marc_dist.study.audit.label_suspects import LEAST, doubtful, neighbour_share, probe_probabilities
from marc_dist.study.audit.leaks import Pair, neighbour_pairs, put_together, scenes_shared
from marc_dist.study.audit.rescored import asked_rows
from tests.retrieval.runs import pack_tiny
from tests.study.studies import tiny_study, write_study


def noisy(num: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Features in which six labels show, two of them nearly always together; labels as they are, and with 5 % wrong."""
    rng = np.random.default_rng(seed)
    true = rng.random((num, 6)) < np.array([0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
    true[:, 5] = true[:, 0] ^ (rng.random(num) < 0.03)  # goes with the first, and cannot be seen
    centres = rng.normal(size=(6, 40))
    centres[5] = 0.0
    features = true @ centres + 0.9 * rng.normal(size=(num, 40))
    return features, true, true ^ (rng.random(true.shape) < 0.05)


def test_planted_wrong_labels_are_found() -> None:
    features, true, given = noisy()
    wrong = true ^ given
    found = doubtful(given, probe_probabilities(features, given))
    num = int(wrong.sum())
    top = sum(wrong[doubt.row, doubt.label] for doubt in found[:num])
    assert top >= 0.65 * num  # recall among as many doubts as labels are wrong; 0.71 when this was written
    assert top >= 0.85 * min(len(found), num)  # and few of them are right
    for doubt in found:
        assert doubt.missing == (not given[doubt.row, doubt.label]) and 0.5 < doubt.score <= 1.0
    assert [doubt.score for doubt in found] == sorted((doubt.score for doubt in found), reverse=True)


def test_a_label_that_cannot_be_seen_is_judged_by_those_it_goes_with() -> None:
    features, true, given = noisy()
    wrong = (true ^ given)[:, 5]
    found = {doubt.row for doubt in doubtful(given, probe_probabilities(features, given)) if doubt.label == 5}
    assert len(found & set(np.flatnonzero(wrong).tolist())) >= 0.7 * wrong.sum()
    alone = probe_probabilities(features[:, :3], given[:, [5]])  # without the others nobody knows
    assert abs(float(alone[given[:, 5], 0].mean() - alone[~given[:, 5], 0].mean())) < 0.5


def test_doubts_are_those_of_confident_learning() -> None:
    """Against the rule written out as a loop (Northcutt et al. 2021, two classes)."""
    rng = np.random.default_rng(3)
    p, given = rng.random((80, 2)), rng.random((80, 2)) < 0.4
    wanted = set()
    for label in range(2):
        there = [p[row, label] for row in range(80) if given[row, label]]
        away = [1 - p[row, label] for row in range(80) if not given[row, label]]
        sure = {True: sum(there) / len(there), False: sum(away) / len(away)}
        for row in range(80):
            chance = {True: p[row, label], False: 1 - p[row, label]}
            confident = [side for side in (True, False) if chance[side] >= sure[side]]
            if not confident:
                continue
            guess = max(confident, key=lambda side: chance[side])
            if guess != given[row, label] and chance[guess] > 0.5:
                wanted.add((row, label, guess))
    assert {(doubt.row, doubt.label, doubt.missing) for doubt in doubtful(given, p)} == wanted and wanted


def test_labels_with_too_few_pictures_are_not_judged() -> None:
    features, _, given = noisy(num=60)
    given[:, 4] = False
    given[: LEAST - 1, 4] = True
    p = probe_probabilities(features, given)
    assert np.isnan(p[:, 4]).all() and not np.isnan(p[:, 0]).any()
    assert not any(doubt.label == 4 for doubt in doubtful(given, p))


def test_the_share_of_neighbours_is_a_count() -> None:
    features, _, given = noisy(num=50)
    shares = neighbour_share(features, given, [4, 7], k=5)
    centred = features - features.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    for at, row in enumerate((4, 7)):
        order = [one for one in np.argsort(-(unit @ unit[row])) if one != row][:5]
        np.testing.assert_allclose(shares[at], given[order].mean(axis=0))


def test_neighbours_are_suspects_from_the_bound_of_the_mirror_images_on(tiny: Dataset) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(len(tiny), 32)) + 1.0
    test, train = tiny.rows("test"), tiny.rows("train")
    features[test[2]] = features[train[5]] + 0.05 * rng.normal(size=32)
    rows = np.arange(20, dtype=np.int64)
    mirrored = features[rows] + 0.3 * rng.normal(size=(20, 32))
    pairs, bound = neighbour_pairs(tiny, features, (rows, mirrored), "test")
    cosines = sorted(
        float(features[row] @ mirrored[at] / np.linalg.norm(features[row]) / np.linalg.norm(mirrored[at]))
        for at, row in enumerate(rows.tolist())
    )
    assert cosines[0] <= bound <= cosines[1]
    assert [(pair.kind, pair.row, pair.other) for pair in pairs] == [("neighbour", test[2], train[5])]
    both = put_together(tiny, [Pair("equal", 0.0, int(train[5]), int(test[2]))], pairs, bound)
    assert [pair.kind for pair in both.pairs] == ["equal"]  # a pair is listed once


def test_scenes_that_lie_in_two_splits(tiny: Dataset, tmp_path: Path) -> None:
    assert scenes_shared(tiny) is None
    scenes = tuple("a" if at in (2, 3) else f"s{at}" if at % 2 else "" for at in range(40))
    shared = scenes_shared(pack_tiny(tmp_path / "data", scenes=scenes))
    assert shared is not None and np.flatnonzero(shared).tolist() == [2, 3]  # one of train, one of test


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study of two losses and two seeds on data with a planted leak: file and folder; read it, never write there."""
    folder = tmp_path_factory.mktemp("audit")
    data = pack_tiny(
        folder / "data", twins=((3, 8), (7, 12)), scenes=tuple(f"s{at // 4}" for at in range(36)) + ("",) * 4
    )
    study: dict[str, Any] = tiny_study(
        data.root, tune=None, seeds=2, statistics={"tests": False}, floors=["pretrained"]
    )
    study["settings"]["train.epochs"] = 2
    study["evaluations"] = {"count": {"eval.ks": [3], "metrics": ["nDCG@3", "label_mAP"]}}
    path = write_study(folder, study)
    assert main([str(path), "--out", str(folder / "out"), "--jobs", "1"]) == 0
    return path, folder / "out"


def lines(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


@pytest.mark.slow
def test_an_audit_lists_leaks_and_scores_without_them(done: tuple[Path, Path]) -> None:
    path, out = done
    before = {file: file.read_bytes() for file in (out / "tiny").rglob("*") if file.is_file()}
    assert main([str(path), "--out", str(out), "--audit"]) == 0
    assert {file: file.read_bytes() for file in (out / "tiny").rglob("*") if file.is_file()} == before
    report = out / "report"
    pairs = [row for row in lines(report / "audit-leaks.csv") if row["alike"] != "neighbour"]
    named = {frozenset((row["picture"], row["other_picture"])) for row in pairs}
    assert {frozenset(("<b>3</b>", "<b>8</b>")), frozenset(("<b>7</b>", "<b>12</b>"))} == named
    leaked = {"<b>3</b>", "<b>7</b>"}
    scores = {
        (row["loss"], row["metric"]): row for row in lines(report / "audit-scores.csv") if row["rule"] == "pixels"
    }
    assert set(scores) == {(loss, m) for loss in ("macl", "mulsupcon", "pretrained") for m in ("nDCG@3", "label_mAP")}
    every, without, labels = [], [], []
    for seed in (0, 1):
        folder = out / f"tiny/head/macl/seed-{seed}/eval/test_vs_train-count"
        _, rows = read(folder)
        every += [row["nDCG@3"] for row in rows]
        without += [row["nDCG@3"] for row in rows if row["key"] not in leaked]
        queries = read_queries(folder, read_summary(folder))
        assert queries.label_ap is not None
        kept = [ap for key, ap in zip(queries.keys, queries.label_ap, strict=True) if key not in leaked]
        labels.append(np.nanmean([np.nanmean(c) for c in np.array(kept).T if not np.isnan(c).all()]))
    mine = scores["macl", "nDCG@3"]
    assert (mine["queries"], mine["leaked"], mine["seeds"]) == ("10", "2", "2")
    assert float(mine["mean"]) == pytest.approx(np.mean(every)) and float(mine["without"]) == pytest.approx(
        np.mean(without)
    )
    assert float(mine["difference"]) == pytest.approx(np.mean(without) - np.mean(every))
    assert float(mine["without_low"]) <= float(mine["without"]) <= float(mine["without_high"])
    assert float(scores["macl", "label_mAP"]["without"]) == pytest.approx(np.mean(labels))
    page = (report / "audit.md").read_text()
    assert "2 equal" in page and "| pixels | 2 |" in page and "| scene in another split | 9 |" in page
    assert "<script>" not in page
    assert {row["label"] for row in lines(report / "audit-classes.csv")} >= {"green", "never"}
    assert list(csv.reader(io.StringIO((report / "audit-labels-tiny.csv").read_text())))[0][:6] == [
        "rank", "picture", "split", "labels", "doubt", "label"
    ]  # fmt: skip
    files = {name: (report / name).read_bytes() for name in ("audit.md", "audit-scores.csv", "audit-leaks.csv")}
    assert main([str(path), "--out", str(out), "--audit"]) == 0
    assert {name: (report / name).read_bytes() for name in files} == files


@pytest.mark.slow
def test_the_best_encoder_of_a_study_is_exported(done: tuple[Path, Path], tmp_path: Path) -> None:
    path, out = done
    assert main([str(path), "--out", str(out), "--export", str(tmp_path / "shared")]) == 0
    (folder,) = (tmp_path / "shared").iterdir()
    means = {(row["loss"], row["metric"]): float(row["mean"]) for row in lines(out / "report/scores.csv")}
    best = max(("macl", "mulsupcon"), key=lambda loss: means[loss, "nDCG@3"])
    assert folder.name == f"tiny-head-{best}"
    values = sorted(
        (float(row["value"]), row["seed"])
        for row in lines(out / "report/seeds.csv")
        if (row["loss"], row["metric"]) == (best, "nDCG@3")
    )
    cell = out / f"tiny/head/{best}/seed-{values[0][1]}"  # of two, the lower one
    ours, theirs = marc_dist.load_encoder(folder), marc_dist.load_encoder(cell)
    data = marc_dist.open_dataset(json.loads((out / "report/MANIFEST.json").read_text())["data"]["tiny"]["dir"], "test")
    assert np.array_equal(marc_dist.embed(ours, data, batch=4), marc_dist.embed(theirs, data, batch=4))
    card = (folder / "README.md").read_text()
    assert "no seed was picked for its score" in card and "2 seeds" in card
    assert f"| nDCG@3 | {means[best, 'nDCG@3']:.4f} |" in card and f"| nDCG@3 | {values[0][0]:.4f} |" in card


@pytest.mark.slow
def test_a_named_cell_is_exported_and_wrong_names_are_one_line(
    done: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = done
    words = [str(path), "--out", str(out), "--export", str(tmp_path / "s")]
    assert main([*words, "--cell", "tiny/head/macl/seed-1"]) == 0
    assert "Chosen by hand: the cell tiny/head/macl/seed-1" in (tmp_path / "s/tiny-head-macl" / "README.md").read_text()
    assert main([*words, "--cell", "tiny/head/macl/seed-9"]) == 2
    assert main([str(path), "--out", str(out), "--onnx"]) == 2
    assert main([str(path), "--out", str(tmp_path / "nothing"), "--export", str(tmp_path / "t")]) == 2
    (out / "tiny/head/macl/seed-1/encoder.json").rename(tmp_path / "encoder.json")
    try:
        assert main([*words, "--cell", "tiny/head/macl/seed-1"]) == 2
    finally:
        (tmp_path / "encoder.json").rename(out / "tiny/head/macl/seed-1/encoder.json")
    told = capsys.readouterr().err.splitlines()
    assert "--cell: tiny/head/macl/seed-9: no such cell" in told[0] and "--onnx: belongs to an export" in told[1]
    assert "no cell is done, so there is nothing to export" in told[2]
    assert "its encoder was not kept" in told[3] and "marc-eval runs/again --export DIR" in told[3]
    assert len(told) == 4


def test_queries_that_the_data_has_not(tiny: Dataset, tmp_path: Path) -> None:
    assert asked_rows(tiny, "test", ["<b>3</b>"], tmp_path).tolist() == [3]
    with pytest.raises(marc_dist.DataError, match="asks with other, which .* has not in test"):
        asked_rows(tiny, "test", ["other"], tmp_path)
