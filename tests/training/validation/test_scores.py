"""Validation samples: who they are, that nothing trains on them, and that scoring them changes nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from marc_dist import comm
from marc_dist.augment.views import IMAGENET
from marc_dist.config import Config, ConfigError, DataError, build
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.data.loader import TrainLoader, iter_eval
from marc_dist.data.plan import held_out
from marc_dist.encoder.published import resolve_scale
from marc_dist.retrieval import exact
from marc_dist.run.folder import checkpoints
from marc_dist.training.signals import StopFlag
from marc_dist.training.trainer import train
from marc_dist.training.validation import scores
from marc_dist.training.validation.scores import METRICS, validate
from marc_dist.training.watchdog import Watchdog
from tests.tuning.searches import SMALL
from tests.worlds import run_in_world


def config_of(data: Path, run: Path, **words: Any) -> Config:
    values = {"data.dir": str(data), "train.run_dir": str(run), "train.precision": "float64", "train.epochs": 3}
    return build(Config, {**SMALL, **values, **words})


def lines(run: Path, name: str = "validation.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def figures(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in ("time", "seconds", "rule")} for line in lines(run)]


def test_the_draw_depends_on_seed_and_key_alone() -> None:
    keys = [f"tile_{at}" for at in range(200)]
    chosen = held_out(keys, 0.2, 0)
    assert chosen.sum() == 40 and chosen.dtype == bool
    order = np.random.default_rng(0).permutation(200)
    assert (held_out([keys[at] for at in order], 0.2, 0) == chosen[order]).all()
    assert 0.1 < (held_out(keys, 0.2, 1) & chosen).sum() / 40 < 0.4
    assert (held_out(keys, 0.5, 0) >= chosen).all()  # a larger share holds the smaller
    assert not held_out(keys, 0.0, 0).any()
    golden = {"tile_50", "tile_110", "tile_129", "tile_155", "tile_157"}
    assert {keys[at] for at in np.flatnonzero(held_out(keys, 0.025, 7))} == golden


def test_training_never_sees_them(tiny_dir: Path, tmp_path: Path) -> None:
    dataset = open_dataset(tiny_dir)
    config = config_of(tiny_dir, tmp_path)
    kept, trained = dataset.validation_rows(config.data), dataset.train_rows(config.data)
    assert len(kept) == 9 and not set(kept) & set(trained)
    assert sorted([*kept, *trained]) == dataset.rows("train").tolist()
    for sampler in ("uniform", "label_aware"):
        loader = TrainLoader(dataset, config_of(tiny_dir, tmp_path, **{"data.sampler": sampler}), 0, 1, IMAGENET)
        seen = {int(sample) for epoch in range(3) for batch in loader.epoch(epoch) for sample in batch.ids}
        loader.close()
        assert seen == set(trained.tolist())
    assert dataset.label_counts(trained).tolist() == dataset.labels[trained].sum(axis=0).tolist()
    assert len(dataset.validation_rows(build(Config, {}).data)) == 0


def test_none_are_kept_unless_asked(tiny_dir: Path, tmp_path: Path) -> None:
    config = config_of(tiny_dir, tmp_path / "run", **{"data.validation_share": 0.0})
    train(config)
    assert not (tmp_path / "run/validation.jsonl").exists()
    assert Config().data.validation_share == 0 and "data.validation_share" not in Config().unread()


def test_scores_are_those_of_the_definition(tiny_dir: Path, tmp_path: Path) -> None:
    """mAP, nDCG's companion P@10 and label mAP of the exported encoder's projection, by hand from float64 cosines."""
    config = config_of(tiny_dir, tmp_path / "run")
    train(config)
    from marc_dist.encoder.export import load_encoder

    encoder, _ = load_encoder(tmp_path / "run")
    dataset = open_dataset(tiny_dir)
    ids = dataset.rows("train")
    with torch.inference_mode():
        pictures = torch.cat([images for images, _ in iter_eval(dataset, ids, 32, resolve_scale(config), 8, 0)])
        features = encoder(pictures.to(next(encoder.parameters()).dtype))[1].double().numpy()
    unit = dict(zip(ids.tolist(), features / np.linalg.norm(features, axis=1, keepdims=True), strict=True))
    queries, archive = dataset.validation_rows(config.data), dataset.train_rows(config.data)
    mean_ap, first, labels = [], [], {label: [] for label in range(len(dataset.classes))}  # type: ignore[var-annotated]
    for query in queries.tolist():
        order = sorted(archive.tolist(), key=lambda one: -float(unit[query] @ unit[one]))
        hit = [bool((dataset.labels[query] & dataset.labels[one]).any()) for one in order]
        precision = [sum(hit[: at + 1]) / (at + 1) for at in range(len(hit)) if hit[at]]
        mean_ap.append(np.mean(precision) if precision else 0.0)
        first.append(np.mean(hit[:10]))
        for label in np.flatnonzero(dataset.labels[query]):
            carries = [bool(dataset.labels[one, label]) for one in order]
            own = [sum(carries[: at + 1]) / (at + 1) for at in range(len(carries)) if carries[at]]
            if own:
                labels[int(label)].append(np.mean(own))
    last = figures(tmp_path / "run")[-1]
    assert last["mAP"] == pytest.approx(np.mean(mean_ap), abs=1e-6)
    assert last["P@10"] == pytest.approx(np.mean(first), abs=1e-6)
    per_label = {label: np.mean(values) for label, values in labels.items() if values}
    assert last["label_mAP"] == pytest.approx(np.mean(list(per_label.values())), abs=1e-6)
    counts = dataset.label_counts(archive)
    rare = sorted(range(len(counts)), key=lambda label: (counts[label], label))[:2]
    assert last["rare_mAP"] == pytest.approx(
        np.mean([per_label[label] for label in rare if label in per_label]), abs=1e-6
    )
    assert set(last) - {"step", "epoch"} <= set(METRICS)


def test_scoring_leaves_the_training_alone(tiny_dir: Path, tmp_path: Path) -> None:
    """The same weights with scores after every epoch, every second one, and without any."""
    weights = []
    for name, hook, every in (("every", validate, 1), ("second", validate, 2), ("never", None, 1)):
        train(config_of(tiny_dir, tmp_path / name, **{"train.validate_every": every}), validate=hook)
        weights.append(torch.load(checkpoints(tmp_path / name)[-1], weights_only=True)["model"])
    for other in weights[1:]:
        assert all(torch.equal(weights[0][key], other[key]) for key in weights[0])
    assert [line["epoch"] for line in lines(tmp_path / "every")] == [1, 2, 3]
    assert [line["epoch"] for line in lines(tmp_path / "second")] == [2, 3]  # and at the end
    assert not (tmp_path / "never/validation.jsonl").exists()


@pytest.mark.parametrize("steps", [6, 12, 15])
def test_an_interrupted_run_has_every_score_once(tiny_dir: Path, tmp_path: Path, steps: int) -> None:
    """Stopped at the end of an epoch (between checkpoint and scores), or within one, and gone on with."""
    train(config_of(tiny_dir, tmp_path / "whole"))
    config = config_of(tiny_dir, tmp_path / "run")
    stop = StopFlag()

    def stopping(*arguments: Any) -> dict[str, float]:
        return validate(*arguments)

    real = stop.__class__.__bool__
    count = {"asked": 0}

    class Counting(StopFlag):
        def __bool__(self) -> bool:
            count["asked"] += 1
            return count["asked"] >= steps or real(self)

    assert train(config, stop=Counting(), validate=stopping).interrupted
    train(config)
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")


def _scored(data: str, run: str) -> dict[str, float]:
    encoder_config = config_of(Path(data), Path(run), **{"eval.batch": 4})
    from marc_dist.encoder.model import build_encoder

    encoder = build_encoder(encoder_config.model, 3, 32).double().eval()
    ticks: list[int] = []
    found = validate(encoder, open_dataset(Path(data)), encoder_config, lambda: ticks.append(1))
    assert ticks
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks_scores_alike(tiny_dir: Path, tmp_path: Path, world: int) -> None:
    alone = _scored(str(tiny_dir), str(tmp_path))
    for found in run_in_world(_scored, world, str(tiny_dir), str(tmp_path)):
        assert found == alone


@pytest.mark.parametrize("most", [1, 4, 1000])
def test_the_size_of_a_block_changes_no_bit(
    tiny_dir: Path, tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _scored(str(tiny_dir), str(tmp_path))
    monkeypatch.setattr(scores, "BLOCK", most)
    monkeypatch.setattr(scores, "LEAST", 1)
    monkeypatch.setattr(exact, "LEAST_ROWS", 5)
    monkeypatch.setattr(exact, "SCORED_AT_ONCE", 1)
    assert _scored(str(tiny_dir), str(tmp_path)) == before


def _patiently(data: str, run: str) -> tuple[int, int, list[str]]:
    """A run on a slow machine whose validation takes longer than ``train.timeout_s``; what the watchdog said of it."""
    ranking = exact.full_ranking

    def slow(*given: Any) -> Any:
        time.sleep(0.5)
        return ranking(*given)

    exact.full_ranking, scores.BLOCK, scores.LEAST = slow, 1, 1
    config = config_of(Path(data), Path(run), **{"train.timeout_s": 2.0, "train.max_steps": 1})
    said: list[str] = []
    watchdog = Watchdog(Path(run), comm.rank(), comm.world(), config.train.timeout_s, said.append)
    watchdog.start()
    blocks: list[int] = []

    def counting(encoder: Any, dataset: Any, config: Any, tick: Any, kept: Any) -> dict[str, float]:
        def told() -> None:
            blocks.append(1)
            tick()

        assert len(checkpoints(Path(run))) == 1 or comm.rank()  # saved before
        return validate(encoder, dataset, config, told, kept)

    train(config, watchdog=watchdog, validate=counting)
    watchdog.stop()
    return len(blocks), len(lines(Path(run))) if comm.rank() == 0 else 1, said


def test_a_long_validation_is_progress_on_every_rank(tiny_dir: Path, tmp_path: Path) -> None:
    """Nine queries, half a second each, on two ranks: 2.5 s, where a rank is given up after 2 s without a word."""
    for blocks, written, said in run_in_world(_patiently, 2, str(tiny_dir), str(tmp_path)):
        assert said == [] and written == 1
        assert blocks >= 5


def test_vectors_are_gathered_a_block_at_a_time(tiny_dir: Path, tmp_path: Path) -> None:
    for most, same in run_in_world(_gathers, 3):
        assert same and most <= 2 * 3


def _gathers() -> tuple[int, bool]:
    """Rows of the largest block that was exchanged, and whether all came together as in one exchange."""
    rows = torch.arange(7.0 * comm.rank()).reshape(-1, 1).expand(-1, 5).contiguous()  # 0, 7 and 14 rows
    whole, largest, gather = comm.gather_rows_plain(rows), [0], comm.gather_rows_plain

    def watched(x: torch.Tensor, counts: list[int] | None = None) -> torch.Tensor:
        out = gather(x, counts)
        largest.append(len(out))
        return out

    comm.gather_rows_plain, comm.HOST_BLOCK = watched, 2 * 5 * 4 + 3
    return max(largest), torch.equal(comm.gather_to_host(rows, torch.device("cpu")), whole)


def test_features_that_are_not_finite_score_nothing(tiny_dir: Path, tmp_path: Path) -> None:
    from marc_dist.encoder.model import build_encoder

    config = config_of(tiny_dir, tmp_path)
    encoder = build_encoder(config.model, 3, 32).double().eval()
    with torch.no_grad():
        next(encoder.parameters()).fill_(float("nan"))
    found = validate(encoder, open_dataset(tiny_dir), config, lambda: None)
    assert found == {**dict.fromkeys(METRICS, 0.0), "diverged": 1.0}


def test_mistakes(tiny_dir: Path, tmp_path: Path) -> None:
    dataset: Dataset = open_dataset(tiny_dir)
    few = config_of(tiny_dir, tmp_path, **{"data.validation_share": 0.01})
    with pytest.raises(DataError, match=r"split 'train' has 30 samples, too few for data.validation_share=0.01"):
        dataset.train_rows(few.data)
    with pytest.raises(ConfigError, match=r"data.validation_share keeps samples.*use data.reader=indexed"):
        config_of(tiny_dir, tmp_path, **{"data.reader": "streamed"})
    train(config_of(tiny_dir, tmp_path / "run", **{"train.epochs": 1}))
    with pytest.raises(ConfigError, match=r"data.validation_share was 0.3, now 0.2"):
        train(config_of(tiny_dir, tmp_path / "run", **{"train.epochs": 1, "data.validation_share": 0.2}))
