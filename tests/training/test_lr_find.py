"""``marc-train --lr-find``: the same figures at any world size, an end in time, and a run folder left alone."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from marc_dist.cli import train
from marc_dist.config import Config, build
from marc_dist.training.measure import lr_find
from marc_dist.training.measure.lr_find import HIGHEST, LOWEST, lr_find_rank, smooth, steepest
from tests.cli.test_train import SMALL
from tests.training.conftest import ROWS
from tests.training.test_trainer import BATCH, _words
from tests.worlds import run_in_world


def _find(words: dict[str, Any], num_steps: int) -> dict[str, Any]:
    return lr_find_rank(build(Config, words), num_steps).__dict__


def test_worlds_agree_and_the_run_is_left_alone(small_dir: Path, tmp_path: Path) -> None:
    found = [_find_in_world(world, small_dir, tmp_path / f"run-{world}") for world in (1, 2)]
    for one in found:
        assert one["rates"] == pytest.approx(np.geomspace(LOWEST, HIGHEST, 12), rel=1e-12)
        assert one["losses"] == pytest.approx(found[0]["losses"], rel=1e-9)
        records = [json.loads(line) for line in (one["folder"] / "lr_find.jsonl").read_text().splitlines()]
        assert [(r["step"], r["lr"], r["loss"]) for r in records] == [
            (step, rate, loss) for step, (rate, loss) in enumerate(zip(one["rates"], one["losses"], strict=True), 1)
        ]
    assert len(set(found[0]["losses"])) == 12 and found[0]["ended"] == "the highest rate"


def _find_in_world(world: int, sample: Path, run: Path) -> dict[str, Any]:
    results = run_in_world(_find, world, _words(sample, run), 12)
    for result in results[1:]:
        assert {**result, "folder": None} == {**results[0], "folder": None}
    assert [path.name for path in run.iterdir()] == ["lr_find"]
    return dict(results[0])


def test_every_step_has_a_whole_batch(small_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a smaller batch is lower: fewer candidates. More samples than there are make one batch of all."""
    sizes: list[int] = []
    endless = lr_find.endless_batches

    def watched(*args: Any, **kwargs: Any) -> Any:
        for batch in endless(*args, **kwargs):
            sizes.append(batch.global_size)
            yield batch

    monkeypatch.setattr(lr_find, "endless_batches", watched)
    for batch, size in ((BATCH, BATCH), (64, ROWS)):
        _find(_words(small_dir, tmp_path / str(batch), train__global_batch=batch), 10)
        assert sizes == [size] * 10
        sizes.clear()


def test_it_ends_when_the_loss_is_lost(small_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = _words(small_dir, tmp_path / "run", optim__clip_norm=None)
    monkeypatch.setattr(lr_find, "WORSE", 1.02)
    found = _find(words, 30)
    assert found["ended"] == "a loss 1.02 times its best"
    means = [math.fsum(found["losses"][end - 3 : end]) / 3 for end in range(3, len(found["losses"]) + 1)]
    assert means[-1] > 1.02 * min(means) and all(a <= 1.02 * min(means[: i + 1]) for i, a in enumerate(means[:-1]))
    monkeypatch.setattr(lr_find, "WORSE", math.inf)
    monkeypatch.setattr(lr_find, "HIGHEST", 1e200)
    found = _find(words, 20)
    assert found["ended"] == "a loss that is not finite" and len(found["losses"]) < 20
    assert not math.isfinite(found["losses"][-1]) and found["smoothed"][-1] is None
    assert '"loss": null' in (tmp_path / "run/lr_find/lr_find.jsonl").read_text()


def test_the_steepest_fall() -> None:
    rates = np.geomspace(1e-6, 10, 101).tolist()
    curve = [5 - 2 / (1 + math.exp(-6 * (math.log10(rate) + 3))) for rate in rates]  # falls most at 1e-3
    then = [value + 40 * max(0.0, math.log10(rate)) ** 2 for rate, value in zip(rates, curve, strict=True)]
    noise = 0.1 * np.random.default_rng(0).standard_normal(101)
    found = steepest(rates, smooth((np.array(then) + noise).tolist(), 10), 10)
    assert found == pytest.approx(1e-3, rel=0.5)
    assert steepest(rates, list(range(101)), 10) is None  # type: ignore[arg-type]  # never falls
    assert steepest(rates[:5], [None] * 5, 10) is None
    assert smooth([1.0, 2.0, 6.0, math.nan], 3) == [None, 3.0, None, None]


def test_a_person_gets_a_table_a_picture_and_a_hint(
    sample_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "a"
    words = [f"data.dir={sample_dir}", f"train.run_dir={run}", "model.freeze=backbone", *SMALL]
    words[words.index("train.global_batch=4")] = "train.global_batch=150"
    assert train.main([*words, "--lr-find", "40"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("40 of 40 steps from 1e-06 to 10, ended by the highest rate\n")
    assert f"picture: {run}/lr_find/lr_find.png\nsuggestion: optim.lr=" in out
    with Image.open(run / "lr_find/lr_find.png") as picture:
        assert min(picture.size) > 300 and len(picture.convert("RGB").getcolors(1 << 20) or []) > 20
    assert [path.name for path in run.iterdir()] == ["lr_find"]
    assert {path.name for path in (run / "lr_find").iterdir()} == {"lr_find.jsonl", "lr_find.png"}
    assert {path.name for path in run.parent.iterdir()} == {"a", "features"}


@pytest.mark.parametrize("number", ["9", "-3", "100001", "1.5", "1e3"])
def test_a_bad_number_is_one_line(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--lr-find", number]) == 2
    assert capsys.readouterr().err == (
        "marc-train: error: --lr-find: expected a whole number of 10 to 100000 steps in digits, "
        f"got {number}; leave it out for 100 steps\n"
    )


def test_one_thing_is_measured_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    words = {"--profile": ["--profile", "3"], "--lr-find": ["--lr-find", "20"], "--check": ["--check"]}
    for one, other in itertools.combinations(words, 2):
        with pytest.raises(SystemExit) as caught:
            train.main([*words[one], *words[other]])
        assert caught.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last == f"marc-train: error: argument {other}: not allowed with argument {one}"


def test_the_number_may_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--lr-find", "none.yaml"], ["none.yaml", "--lr-find"], ["--lr-find", "20", "none.yaml"]):
        assert train.main(words) == 2
        assert capsys.readouterr().err == "marc-train: error: none.yaml: no such file\n"
