"""Trials as processes of this machine: ordinary run folders, several ranks, failures, kills, and nothing left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from marc_dist.cli import tune
from marc_dist.config import ConfigError, load_config
from marc_dist.run.folder import read_lines
from marc_dist.tuning.driver import open_search
from marc_dist.tuning.journal import Journal
from marc_dist.tuning.local_executor import Size, _Gpus, local_size, termination_as_interrupt
from marc_dist.tuning.state import Search
from tests.cluster.ray_cluster import is_running, pids_that_name
from tests.tuning.searches import events, kill_elsewhere, run_file

pytestmark = pytest.mark.slow


def searched(folder: Path, run: Path, *words: str) -> Search:
    arguments = ["smoke", str(run), "--executor", "local", "--out", str(folder), *words]
    assert tune.main(arguments) == 0
    return open_search(folder, Journal(folder))


def test_a_trial_is_an_ordinary_run(tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two ranks score as one does; its folder is a run folder; best.yaml trains, on all samples."""
    run = run_file(tmp_path, tiny_dir, **{"train.precision": "float64", "train.epochs": 3})
    one = searched(tmp_path / "one", run, "--trials", "1", "--seeds", "2", "--no-early-stop", "--epochs", "2")
    two = searched(tmp_path / "two", run, "--trials", "1", "--procs-per-trial", "2", "--no-early-stop", "--epochs", "2")
    for epoch, row in one.runs[0, 0].rows.items():
        other = two.runs[0, 0].rows[epoch]
        assert {key: other[key] for key in row if key not in ("time", "seconds")} == pytest.approx(
            {key: row[key] for key in row if key not in ("time", "seconds")}, abs=1e-9
        )
    assert sorted(one.runs) == [(0, 0), (0, 1)]
    folders = [tmp_path / "one/trials" / name for name in ("0000", "0000-seed1")]
    configs = [load_config(folder / "config.yaml") for folder in folders]
    assert [config.train.seed for config in configs] == [0, 1]
    assert {config.data.validation_share for config in configs} == {0.3}
    assert configs[0].loss.tau == configs[1].loss.tau == one.points[0]["loss.tau"]
    for folder in folders:
        assert (folder / "encoder.safetensors").is_file() and (folder / "metrics.jsonl").is_file()
        assert [line["epoch"] for line in read_lines(folder / "validation.jsonl")] == [1, 2]
    best = load_config(tmp_path / "one/best.yaml")
    assert (best.data.validation_share, best.train.epochs, best.train.run_dir) == (0.0, 3, str(tmp_path / "one/best"))
    assert best.loss.tau == one.points[one.finished()[0]]["loss.tau"]
    told = capsys.readouterr().out
    assert f"marc-train {tmp_path}/one/best.yaml" in told.splitlines()
    assert told.splitlines()[-1] == f"marc-train {tmp_path}/two/best.yaml"
    subprocess.run(
        [sys.executable, "-m", "marc_dist.cli.train", str(tmp_path / "one/best.yaml")], check=True, capture_output=True
    )
    assert (tmp_path / "one/best/encoder.safetensors").is_file()


def test_trials_that_fail_are_recorded_with_their_reason(tiny_dir: Path, tmp_path: Path) -> None:
    """A mistake that only the training sees fails once, with its words; the rest of the search goes on."""
    space, run, folder = (
        tmp_path / "space.yaml",
        run_file(tmp_path, tiny_dir, **{"train.epochs": 1}),
        tmp_path / "search",
    )
    space.write_text("search: grid\nparameters:\n  model.backbone: {choice: [no_such_model, test_resnet]}\n")
    assert tune.main([str(space), str(run), "--executor", "local", "--out", str(folder)]) == 0
    found = open_search(folder, Journal(folder))
    broken, whole = found.runs[0, 0], found.runs[1, 0]
    assert (broken.state, broken.faults, whole.state) == ("failed", 1, "done")
    assert "no_such_model" in broken.reason and "rank-0.log" in broken.reason


def _soon(true: Any, seconds: float = 240.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(true())


def test_a_killed_driver_leaves_nothing_and_goes_on(tiny_dir: Path, tmp_path: Path) -> None:
    run, folder = run_file(tmp_path, tiny_dir, **{"train.epochs": 8}), tmp_path / "search"
    words = ["smoke", str(run), "--executor", "local", "--trials", "2", "--concurrent", "2", "--out", str(folder)]
    command = [sys.executable, "-m", "marc_dist.cli.tune"]
    driver = subprocess.Popen([*command, *words], stdout=subprocess.DEVNULL)
    lines = folder / "trials.jsonl"
    assert _soon(lambda: lines.exists() and lines.read_text().count('"row"') > 2)
    second = subprocess.run([*command, "--resume", str(folder)], capture_output=True, text=True)
    assert second.returncode == 2 and "another marc-tune searches here" in second.stderr
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert _soon(lambda: not pids_that_name(str(folder / "trials")))
    before = events(folder)
    done = subprocess.run(
        [*command, "--resume", str(folder), "--executor", "local", "--trials", "3"], capture_output=True
    )
    assert done.returncode == 0, done.stderr
    found = open_search(folder, Journal(folder))
    assert events(folder)[: len(before)] == before and found.over and len(found.runs) == 3
    assert all(run.faults == 0 for run in found.runs.values())  # the driver's death is no fault of a trial
    keys = [(e["number"], e["row"]["epoch"]) for e in events(folder) if e["event"] == "row"]
    assert len(set(keys)) == len(keys)
    logs = (folder / "trials/0000/logs/rank-0.log").read_text()
    assert "going on after step" in logs or found.runs[0, 0].starts == 1


def test_a_trial_that_moves_starts_at_once(tiny_dir: Path, tmp_path: Path) -> None:
    """The driver's own token tells that the earlier holder is gone; without one it is watched for 15 s."""
    run, folder = run_file(tmp_path, tiny_dir, **{"train.epochs": 12}), tmp_path / "search"
    words = ["smoke", str(run), "--executor", "local", "--trials", "1", "--out", str(folder)]
    driver = subprocess.Popen([sys.executable, "-m", "marc_dist.cli.tune", *words], stdout=subprocess.DEVNULL)
    trial = folder / "trials/0000"
    try:
        assert _soon(lambda: (trial / "validation.jsonl").exists())
        pid = json.loads((trial / ".run.lock").read_text())["pid"]
        assert kill_elsewhere(trial, pid, driver.pid, lambda: not is_running(pid))
        assert driver.wait(timeout=240) == 0
    finally:
        driver.kill()
        driver.wait()
    (only,) = open_search(folder, Journal(folder)).runs.values()
    assert (only.state, only.starts, only.faults) == ("done", 2, 1)
    log = (trial / "logs/rank-0.log").read_text()
    assert "going on after step" in log and "was in use by" not in log


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_search_under_nohup_outlives_its_terminal(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with termination_as_interrupt():
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_IGN
        signal.signal(number, signal.SIG_DFL)
        with pytest.raises(KeyboardInterrupt), termination_as_interrupt():
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_how_many_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Size(1, 1).fitting(8, 0) == 8
    assert Size(2, 2).fitting(8, 0) == 2
    assert Size(1, 1, 0.5).fitting(64, 4) == 8
    assert Size(2, 1, 1.0).fitting(64, 4) == 2
    assert Size(1, 1, 2.0).fitting(64, 4) == 2
    assert Size(1, 1, 1.0).fitting(1, 4) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=r"--gpus-per-proc 1: expected at most 0 GPUs"):
        local_size(Size(1, 1, 1.0))


def test_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    gpus = _Gpus()
    half = [gpus.take(0.5) for _ in range(4)]
    assert half == [["4"], ["4"], ["7"], ["7"]]
    gpus.give(half[0], 0.5)
    assert gpus.take(0.5) == ["4"]
    for names in half:
        gpus.give(names, 0.5)
    assert gpus.take(2.0) == ["4", "7"]
