"""From a run folder to scores: against loops over everything, on one rank and on several, full and cut rankings."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import marc_dist.files
from marc_dist.augment.views import PixelScale
from marc_dist.config import Config, ConfigError, DataError, LaunchError, ModelConfig
from marc_dist.data.dataset import Dataset
from marc_dist.encoder.export import load_encoder
from marc_dist.encoder.model import build_encoder
from marc_dist.retrieval import evaluate as ev
from marc_dist.retrieval import exact, results
from marc_dist.retrieval.evaluate import evaluate
from marc_dist.run import evaluations
from tests.retrieval.runs import CLASSES, OTHERS, make_run, pack_tiny
from tests.worlds import run_in_world


def run(config: Config, folder: Path, at_once: int | None = None) -> dict[str, Any]:
    """``at_once``: bytes of whole rankings."""
    if at_once is not None:
        exact.RANKED_AT_ONCE = at_once
    return evaluate(config, folder, lambda line: None)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "eval").glob("[a-z]*/*"))}


SCALE = PixelScale((0.5,) * 3, (0.5,) * 3, "bilinear")  # timm's of test_resnet


def unit_vectors(dataset: Dataset, encoder: torch.nn.Module, samples: set[int] | list[int]) -> dict[int, np.ndarray]:
    from marc_dist.augment.views import eval_transform
    from marc_dist.data.reader import IndexedReader

    reader = IndexedReader(dataset)
    encoder.eval()
    unit = {}
    with torch.inference_mode():
        for sample in samples:
            x = encoder(eval_transform(reader.image(sample), 32, SCALE)[None])[0][0].double().numpy()
            unit[sample] = x / np.linalg.norm(x)
    return unit


def naive_lists(dataset: Dataset, encoder: torch.nn.Module, queries: list[int], archive: list[int]) -> list[list[int]]:
    unit = unit_vectors(dataset, encoder, {*queries, *archive})
    return [sorted((i for i in archive if i != q), key=lambda i: -float(unit[q] @ unit[i])) for q in queries]


def test_scores_against_loops(evaluated: Path, tiny: Dataset) -> None:
    summary, rows = evaluations.read(evaluated / "eval" / "test_vs_train")
    queries, archive = tiny.rows("test").tolist(), tiny.rows("train").tolist()
    assert summary["num_queries"] == 10 and summary["num_archive"] == 30
    empty = [q for q in queries if not (tiny.labels[q] & tiny.labels[archive]).any()]
    assert 3 in empty and summary["queries_without_relevant"] == len(empty)
    trained, info = load_encoder(evaluated)
    model = ModelConfig(backbone="test_resnet", pretrained=False, head_hidden=8, head_dim=6)
    encoders = {"trained": trained, "untrained": build_encoder(model, info["seed"], 32)}
    for name, encoder in encoders.items():
        lists = naive_lists(tiny, encoder, queries, archive)
        told = {row["id"]: row for row in rows if row["encoder"] == name}
        aps, by_label = [], {label: [] for label in range(len(CLASSES))}
        for query, order in zip(queries, lists, strict=True):
            assert told[query]["top"] == order[:10]
            hits = [bool((tiny.labels[query] & tiny.labels[i]).any()) for i in order]
            found = [at for at, hit in enumerate(hits) if hit]
            ap = sum((n + 1) / (at + 1) for n, at in enumerate(found)) / len(found) if found else 0.0
            assert told[query]["mAP"] == pytest.approx(ap)
            assert told[query]["P@3"] == pytest.approx(sum(hits[:3]) / 3)
            aps.append(ap)
            for label in np.flatnonzero(tiny.labels[query]):
                at = [n for n, i in enumerate(order) if tiny.labels[i, label]]
                by_label[label].append(sum((n + 1) / (place + 1) for n, place in enumerate(at)) / len(at))
        assert summary["scores"][name]["mAP"] == pytest.approx(np.mean(aps))
        for label, values in by_label.items():
            ap = summary["per_label"][label]["ap"][name]
            assert (ap is None and not values) or ap == pytest.approx(np.mean(values))
        known = [row["ap"][name] for row in summary["per_label"] if row["ap"][name] is not None]
        assert summary["thirds"][name]["all"] == {"mAP": pytest.approx(np.mean(known)), "num_labels": len(known)}
    assert summary["scores"]["trained"] != summary["scores"]["untrained"]


def test_files_agree(evaluated: Path, tiny: Dataset) -> None:
    summary = json.loads((evaluated / "eval" / "test_vs_train" / "metrics.json").read_text())
    with (evaluated / "eval" / "test_vs_train" / "per_label.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["label"] for line in lines] == list(CLASSES)
    assert lines[-1]["ap_trained"] == "" and lines[-1]["third"] == "rare" and lines[-1]["archive_count"] == "0"
    assert float(lines[0]["ap_trained"]) == summary["per_label"][0]["ap"]["trained"]
    assert summary["per_label"][0]["archive_count"] == int(tiny.label_counts("train")[0])


@pytest.mark.parametrize(("protocol", "worlds"), [("test_vs_train", (3,)), ("leave_one_out", (2,)), ("transfer", (3,))])
def test_ranks_write_the_same_bytes(tiny: Dataset, tmp_path: Path, protocol: str, worlds: tuple[int, ...]) -> None:
    words = {}
    if protocol == "transfer":
        words["eval__archive_dir"] = str(pack_tiny(tmp_path / "other", 24, 3, OTHERS, "other").root)
    config = make_run(tmp_path / "run", tiny, eval__protocol=protocol, eval__extra=True, **words)
    run(config, tmp_path / "run")
    alone = files(tmp_path / "run")
    assert set(alone) == {"metrics.json", "per_label.csv", "per_query.parquet", "map.parquet"}
    for world in worlds:
        run_in_world(run, world, config, tmp_path / "run")
        assert files(tmp_path / "run") == alone


def test_transfer_against_loops(tiny: Dataset, tmp_path: Path) -> None:
    """Ids, keys and labels of two data sets that write and order their classes differently."""
    other = pack_tiny(tmp_path / "other", 24, 3, OTHERS, "other")
    words = {"eval__protocol": "transfer", "eval__archive_dir": str(other.root), "eval__baseline": False}
    config = make_run(tmp_path / "run", tiny, **words)
    summary = run(config, tmp_path / "run")
    assert summary["classes"] == ["red & blue", "green"] and [row["label"] for row in summary["per_label"]] == [
        "red & blue",
        "green",
    ]
    ours, theirs = tiny.labels[:, [0, 2]], other.labels[:, [2, 0]]
    queries = [q for q in tiny.rows("test").tolist() if ours[q].any()]
    archive = other.rows("train").tolist()
    assert summary["queries"]["fingerprint"] == tiny.fingerprint and summary["archive"]["split"] == "train"
    assert summary["archive"]["fingerprint"] == other.fingerprint
    assert [row["archive_count"] for row in summary["per_label"]] == theirs[archive].sum(axis=0).tolist()
    encoder = load_encoder(tmp_path / "run")[0]
    asked, there = unit_vectors(tiny, encoder, queries), unit_vectors(other, encoder, archive)
    rows = evaluations.read(tmp_path / "run" / "eval" / "transfer")[1]
    assert [(row["id"], row["key"]) for row in rows] == [(q, tiny.keys[q]) for q in queries]
    for row, query in zip(rows, queries, strict=True):
        order = sorted(archive, key=lambda i: -float(asked[query] @ there[i]))
        assert row["top"] == order[:10]
        hits = [bool((ours[query] & theirs[i]).any()) for i in order]
        assert row["P@3"] == pytest.approx(np.mean(hits[:3])) and row["num_relevant"] == sum(hits)


def test_rankings_cut_by_an_approximate_index_agree_with_full_ones(tiny: Dataset, tmp_path: Path) -> None:
    """An index that proposes everything; what both know must be equal."""
    words = {"eval__protocol": "leave_one_out", "eval__query_split": "train"}
    full = run(make_run(tmp_path / "run", tiny, **words), tmp_path / "run")
    tops = [row["top"] for row in evaluations.read(tmp_path / "run" / "eval" / "leave_one_out")[1]]
    config = make_run(tmp_path / "run", tiny, **words, eval__index="IVF1,Flat")
    for summary in [*run_in_world(run, 3, config, tmp_path / "run")]:
        assert not summary["full_ranking"] and "mAP" not in summary["scores"]["trained"]
        assert set(summary["index_recall"].values()) == {1.0}
        for name, scores in summary["scores"].items():
            assert scores == {key: value for key, value in full["scores"][name].items() if key != "mAP"}
    assert [row["top"] for row in evaluations.read(tmp_path / "run" / "eval" / "leave_one_out")[1]] == tops


def test_an_archive_too_large_for_a_block_of_rankings_is_evaluated_alike(tiny: Dataset, tmp_path: Path) -> None:
    """Whole rankings of three queries at a time, on one rank and on two: the files of a small archive."""
    config = make_run(tmp_path / "run", tiny, eval__extra=True)
    run(config, tmp_path / "run")
    alone = files(tmp_path / "run")
    for world in (1, 2):
        run_in_world(run, world, config, tmp_path / "run", 3 * 8 * 30)
        assert files(tmp_path / "run") == alone


def test_every_archive_goes_through_the_index(tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones too: an index that orders answers wrongly is noticed, not printed."""
    config = make_run(tmp_path / "run", tiny, eval__baseline=False)
    found = ev.top_k

    def swapped(*args: Any, **how: Any) -> tuple[np.ndarray, np.ndarray]:
        scores, ids = found(*args, **how)
        return scores, ids[:, [1, 0, *range(2, ids.shape[1])]]

    monkeypatch.setattr(ev, "top_k", swapped)
    with pytest.raises(RuntimeError, match="order an archive differently"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "eval" / "test_vs_train").exists()


def test_lists_longer_than_the_archive(tiny: Dataset, tmp_path: Path) -> None:
    words = {"eval__protocol": "leave_one_out", "eval__ks": [3, 100], "eval__baseline": False}
    config = make_run(tmp_path / "run", tiny, **words)
    run(config, tmp_path / "run")
    tops = [row["top"] for row in evaluations.read(tmp_path / "run" / "eval" / "leave_one_out")[1]]
    ids = tiny.rows("test").tolist()
    for query, top in zip(ids, tops, strict=True):
        assert sorted(top[:9]) == sorted(set(ids) - {query}) and top[9:] == [-1]


def test_a_failure_midway_leaves_the_old_files(tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    config = make_run(folder, tiny)
    run(config, folder)
    before = files(folder)
    other = make_run(folder, tiny, eval__gain="jaccard", eval__relevance=0.6)
    with monkeypatch.context() as patch:
        patch.setattr(ev, "build_encoder", lambda *_, **__: (_ for _ in ()).throw(DataError("the second encoder")))
        with pytest.raises(DataError, match="the second encoder"):
            run(other, folder)
    assert files(folder) == before
    with monkeypatch.context() as patch:
        patch.setattr(results, "_csv", lambda _: (_ for _ in ()).throw(ValueError("no text")))
        with pytest.raises(ValueError, match="no text"):
            run(other, folder)
    assert files(folder) == before


def test_files_of_two_evaluations_never_mix(tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up after the first file; then somebody copies one."""
    folder = tmp_path / "run"
    run(make_run(folder, tiny), folder)
    other = make_run(folder, tiny, eval__gain="jaccard")
    before, written = evaluations.read(folder / "eval" / "test_vs_train"), marc_dist.files.write_atomic

    def full(path: Path, data: bytes) -> None:
        if "per_query.parquet" not in path.name:
            raise LaunchError("no space")
        written(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(marc_dist.files, "write_atomic", full)
        with pytest.raises(LaunchError):
            run(other, folder)
    assert evaluations.read(folder / "eval" / "test_vs_train") == before
    kept = (folder / "eval" / "test_vs_train" / "per_query.parquet").read_bytes()
    run(other, folder)
    assert not list((folder / "eval" / "test_vs_train").glob(".*"))
    (folder / "eval" / "test_vs_train" / "per_query.parquet").write_bytes(kept)
    with pytest.raises(DataError, match="different evaluations; evaluate again"):
        evaluations.read(folder / "eval" / "test_vs_train")
    run(other, folder)
    summary = evaluations.read(folder / "eval" / "test_vs_train")[0]
    assert summary.pop("gain") == "jaccard" and summary.pop("sha256")
    (folder / "eval" / "test_vs_train" / "metrics.json").write_text(
        json.dumps(summary)
    )  # as written before there were checksums
    with pytest.raises(DataError, match="evaluate again"):
        evaluations.read(folder / "eval" / "test_vs_train")


def test_where_the_untrained_weights_come_from(evaluated: Path) -> None:
    assert evaluations.read(evaluated / "eval" / "test_vs_train")[0]["untrained_weights"] == "random, seed 0"


def test_projection_and_no_baseline(tiny: Dataset, evaluated: Path, tmp_path: Path) -> None:
    config = make_run(tmp_path / "run", tiny, eval__features="projection", eval__baseline=False)
    summary = run(config, tmp_path / "run")
    assert list(summary["scores"]) == ["trained"]
    both = json.loads((evaluated / "eval" / "test_vs_train" / "metrics.json").read_text())
    assert summary["scores"]["trained"] != both["scores"]["trained"]


@pytest.mark.parametrize("features", ["hidden", "projection", "concat"])
def test_what_is_searched_is_what_it_says(tiny: Dataset, evaluated: Path, tmp_path: Path, features: str) -> None:
    """The trained encoder's vector by hand; the untrained one, whose head is random, by its backbone alone."""
    config, said = make_run(tmp_path / "run", tiny, eval__features=features), list[str]()
    summary = evaluate(config, tmp_path / "run", said.append)
    assert any(f"(eval.features={features}); of the untrained encoder the backbone's features" in line for line in said)
    assert (
        summary["scores"]["untrained"]
        == evaluations.read(evaluated / "eval" / "test_vs_train")[0]["scores"]["untrained"]
    )
    encoder, head = load_encoder(tmp_path / "run")[0], load_encoder(tmp_path / "run")[0].head

    class By(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
            backbone = encoder.backbone(images)
            hidden = torch.relu(backbone @ head[0].weight.T + head[0].bias)
            parts = [backbone, hidden, hidden @ head[2].weight.T + head[2].bias]
            if features == "concat":
                return torch.cat([part / part.norm(dim=1, keepdim=True) for part in parts], dim=1), None
            return parts[1 if features == "hidden" else 2], None

    queries, archive = tiny.rows("test").tolist(), tiny.rows("train").tolist()
    told = {
        row["id"]: row["top"]
        for row in evaluations.read(tmp_path / "run" / "eval" / "test_vs_train")[1]
        if row["encoder"] == "trained"
    }
    unit = unit_vectors(tiny, By(), {*queries, *archive})
    for (
        query
    ) in queries:  # this small head sees some pictures alike: lists may differ where scores do in rounding alone
        scores = {i: float(unit[query] @ unit[i]) for i in archive}
        found = [scores[i] for i in told[query]]
        assert np.allclose(found, sorted(scores.values(), reverse=True)[: len(found)], rtol=0, atol=1e-6)


def test_an_encoder_alone_is_enough(tiny: Dataset, evaluated: Path, tmp_path: Path) -> None:
    config = make_run(tmp_path / "run", tiny)
    (tmp_path / "run" / "config.yaml").unlink()
    other = config.model_copy(update={"model": Config().model})  # resnet18: must not be built
    assert run(other, tmp_path / "run")["scores"] == run(config, evaluated)["scores"]


def test_other_classes_are_refused(tiny: Dataset, tmp_path: Path) -> None:
    config = make_run(tmp_path / "run", tiny)
    info = json.loads((tmp_path / "run" / "encoder.json").read_text())
    info["classes"][2] = "purple"
    (tmp_path / "run" / "encoder.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"5 classes.*differing: purple.*--data"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "eval" / "test_vs_train").exists()


def test_diverged_weights_are_told_with_the_image(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_run(tmp_path / "run", tiny)
    trained, info = load_encoder(tmp_path / "run")
    with torch.no_grad():
        next(trained.parameters()).fill_(float("nan"))
    monkeypatch.setattr(ev, "load_encoder", lambda folder: (trained, info))
    with pytest.raises(DataError, match=r"trained encoder: features of .*all.tar: <b>3</b>.* and 7 more"):
        run(config, tmp_path / "run")


def test_evaluation_that_is_missing_or_foreign(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no evaluation; make one with marc-eval"):
        evaluations.read(tmp_path / "eval")


def test_a_second_evaluation_embeds_nothing(tiny: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    said: list[str] = []
    evaluate(make_run(folder, tiny), folder, said.append)
    assert sum("images/s" in line for line in said) == 2
    before = files(folder)
    said.clear()
    evaluate(make_run(folder, tiny), folder, said.append)
    assert sum("vectors of 40 images from" in line for line in said) == 2 and not any("images/s" in x for x in said)
    assert files(folder) == before
    said.clear()
    (store,) = (folder / "embeddings").glob("trained-*/store.json")  # what a hand or another version wrote there
    store.write_text(json.dumps(json.loads(store.read_text()) | {"dim": 7}))
    evaluate(make_run(folder, tiny), folder, said.append)
    assert sum("images/s" in line for line in said) == 1 and files(folder) == before
    said.clear()
    evaluate(make_run(folder, tiny, eval__protocol="oml", eval__index="sign", eval__ks=[5]), folder, said.append)
    assert not any("images/s" in line for line in said)


@pytest.mark.parametrize("word", ["itq8", "IVF6,Flat:nprobe=1"])
def test_other_indexes_are_evaluated_the_same_on_any_ranks(tiny: Dataset, tmp_path: Path, word: str) -> None:
    """Codes give full rankings, ties by id; an approximate index gives lists, and says what it missed."""
    folder = tmp_path / "run"
    config = make_run(folder, tiny, eval__index=word, eval__ks=[3])
    summary = run(config, folder)
    alone = files(folder)
    run_in_world(run, 3, config, folder)
    assert files(folder) == alone
    assert summary["index"] == word and summary["full_ranking"] == (word == "itq8")
    assert ("mAP" in summary["scores"]["trained"]) == (word == "itq8")
    assert (0.05 if word == "itq8" else 0.3) < summary["index_recall"]["trained"] < 1.0


def test_an_index_that_cannot_be_is_told_before_embedding(tiny: Dataset, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(ConfigError, match="eval.index=PQ7: FAISS refuses it"):
        evaluate(make_run(tmp_path / "run", tiny, eval__index="PQ7"), tmp_path / "run", said.append)
    assert not (tmp_path / "run" / "embeddings").exists()
