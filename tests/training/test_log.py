"""The log of a run: every step once, valid JSON, one voice, a bar on a terminal and lines elsewhere."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from marc_dist.config import LaunchError
from marc_dist.training.log import RunLog


def _record(step: int, loss: float = 1.25) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": 0,
        "loss": loss,
        "lr": 1e-3,
        "images_per_s": 812.4,
        "loader_wait": 0.031,
        "time": 1.0,
    }


def _scores(step: int, value: float) -> dict[str, Any]:
    return {"step": step, "epoch": 1, "nDCG@10": value, "seconds": 2.0, "time": 7.0}


def test_lines_for_people_and_for_machines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, 0, 20, speaks=True)
    log.metrics(_record(1))
    log.metrics(_record(2, float("nan")))
    log.say("[bold] is no markup")
    log.close()
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [1.25, None]
    err = capfd.readouterr().err
    assert "step 1/20  epoch 0  loss 1.2500  lr 1.00e-03  812 images/s  wait 3 %  left 0:00:0" in err
    assert "loss -" in err
    assert "[bold] is no markup" in err
    assert list(tmp_path.glob("events.*"))


def test_a_resumed_log_goes_on_at_its_step(tmp_path: Path) -> None:
    first = RunLog(tmp_path, 0, 20, speaks=True)
    for step in (1, 2, 3):
        first.metrics(_record(step))
    first.append("skipped.jsonl", {"step": 3})
    first.validation(_scores(2, 0.5))
    first.validation(_scores(3, 0.6))
    first.close()
    time.sleep(1.1)  # TensorBoard reads its files in the order of their names, which begin with the second
    second = RunLog(tmp_path, 2, 20, speaks=True)
    second.metrics(_record(3, 9.0))
    second.validation(_scores(3, 0.75))
    second.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.25), (2, 1.25), (3, 9.0)]
    assert (tmp_path / "skipped.jsonl").read_text() == ""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in read.Scalars("train/loss")] == [(1, 1.25), (2, 1.25), (3, 9.0)]
    assert [name for name in read.Tags()["scalars"] if name.startswith("validation/")] == ["validation/nDCG@10"]
    events = read.Scalars("validation/nDCG@10")
    assert [(event.step, event.value, event.wall_time) for event in events] == [(2, 0.5, 7.0), (3, 0.75, 7.0)]
    scores = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert scores == [_scores(2, 0.5), _scores(3, 0.75)]


def test_other_ranks_are_mute(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, 0, 20, speaks=False)
    log.metrics(_record(1))
    log.say("hello")
    log.append("x.jsonl", {"step": 1})
    log.validation(_scores(1, 0.5))
    log.advance(2)
    log.close()
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Console, "is_terminal", property(lambda self: True))
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm")
    log = RunLog(tmp_path, 0, 20, speaks=True)
    log.metrics(_record(7))
    log.advance(8)
    log.close()
    err = capfd.readouterr().err
    assert "8/20" in err
    assert "812 images/s" in err


def test_a_folder_that_has_gone_is_one_line(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0, 20, speaks=True)
    log.run_dir = tmp_path / "gone"
    with pytest.raises(LaunchError, match=r"gone/metrics.jsonl: cannot be written"):
        log.metrics(_record(1))
    log.close()
