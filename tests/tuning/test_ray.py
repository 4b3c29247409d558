"""Searches on a real Ray cluster of two nodes: nothing is lost, nothing is repeated, nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from marc_dist.tuning.driver import open_search
from marc_dist.tuning.journal import Journal
from marc_dist.tuning.state import Search
from tests.cluster.ray_cluster import RayCluster, is_running, pids_that_name
from tests.tuning.searches import events, kill_elsewhere, run_file, story, taken_over

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds the trials through /proc"),
]
PATIENT = ("--connect-timeout", "300")
"""On a machine with other work the cluster takes longer than the usual 20 s to answer."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster() as cluster:
        yield cluster


def _start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """A search as a person starts it; its output in ``out.txt``."""
    with (folder.parent / "out.txt").open("ab") as out:
        command = [sys.executable, "-m", "marc_dist.cli.tune", *words]
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=folder.parent)


def _told(folder: Path) -> str:
    return (folder.parent / "out.txt").read_text()[-3000:]


def _soon(true: Callable[[], Any], seconds: float = 480.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(true())


def _trials(folder: Path) -> dict[str, int]:
    """Processes of trainings under way, by run."""
    found = {}
    for pid in pids_that_name(str(folder / "trials")):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") if Path(f"/proc/{pid}").exists() else []
        if b"marc_dist.cli.train" in command:
            found[Path(command[-2].decode()).name] = pid
    return found


def _read(folder: Path) -> Search:
    return open_search(folder, Journal(folder))


def _rows(folder: Path) -> int:
    return sum(event["event"] == "row" for event in events(folder)) if (folder / "trials.jsonl").exists() else 0


def _ended(folder: Path) -> int:
    return sum(event["event"] == "end" for event in events(folder)) if (folder / "trials.jsonl").exists() else 0


def _end(process: subprocess.Popen[bytes], number: signal.Signals, folder: Path) -> None:
    """Kill a driver, and see that its trials go with it."""
    process.send_signal(number)
    process.wait(timeout=180)
    assert _soon(lambda: not _trials(folder)), _trials(folder)


def _kill_a_trial(folder: Path, driver: int) -> str:
    """Kill one of the first trials, which no rule of early stopping ends; its name."""
    deadline = time.monotonic() + 120.0
    while time.monotonic() < deadline:
        for name, pid in _trials(folder).items():
            first = name in ("0000", "0001", "0002", "0003")
            if first and kill_elsewhere(folder / "trials" / name, pid, driver, lambda pid=pid: not is_running(pid)):
                return name
        time.sleep(0.05)
    raise AssertionError(f"no trial could be killed: {_told(folder)}")


def test_kills_of_every_kind(cluster: RayCluster, tiny_dir: Path, tmp_path: Path) -> None:
    """8 trials over two nodes; a trial, the driver and a node are killed; the record is that of a quiet search."""
    run, folder = run_file(tmp_path, tiny_dir, **{"train.epochs": 6}), tmp_path / "search"
    words = [
        "smoke",
        str(run),
        "--trials",
        "8",
        "--concurrent",
        "4",
        "--address",
        cluster.address,
        *PATIENT,
        "--out",
        str(folder),
    ]
    driver = _start(folder, *words)
    try:
        assert _soon(lambda: _rows(folder) > 3), _told(folder)
        name = _kill_a_trial(folder, driver.pid)
        assert _soon(lambda: any(e["event"] == "fault" for e in events(folder))), _told(folder)
        assert _soon(lambda: taken_over(folder / "trials" / name)), _told(folder)  # by a start with the same token
        assert _soon(lambda: _ended(folder) >= 2), _told(folder)
        _end(driver, signal.SIGKILL, folder)  # the driver
        assert not (folder / "best.yaml").exists() or _read(folder).finished()
        before = events(folder)

        driver = _start(folder, *words, "--resume")
        assert _soon(lambda: _ended(folder) >= 4 and _trials(folder)), _told(folder)
        cluster.kill_node()  # a node
        try:
            ended = _ended(folder)
            assert _soon(lambda: _ended(folder) > ended), _told(folder)  # it goes on with what is left
            _end(driver, signal.SIGTERM, folder)
        finally:
            cluster.add_node()
        assert driver.returncode == 130
        assert f"go on with: marc-tune --resume {folder}" in (tmp_path / "out.txt").read_text()

        driver = _start(folder, "--resume", str(folder), "--address", cluster.address, *PATIENT)
        assert driver.wait(timeout=480) == 0, _told(folder)
    finally:
        driver.kill()
        driver.wait()
    assert _soon(lambda: not _trials(folder))
    found, lines = _read(folder), events(folder)
    assert lines[: len(before)] == before
    assert found.over
    assert sorted(found.runs) == [(number, 0) for number in range(8)]
    assert {run.state for run in found.runs.values()} <= {"done", "stopped"}
    assert sum(run.state == "done" for run in found.runs.values()) >= 3
    reported = [(e["number"], e["row"]["epoch"]) for e in lines if e["event"] == "row"]
    assert len(set(reported)) == len(reported)
    assert sum(e["event"] == "end" for e in lines) == 8
    killed = found.runs[int(name), 0]
    assert killed.faults == 1 and killed.starts >= 2
    assert "killed by SIGKILL" in next(e["reason"] for e in lines if e["event"] == "fault" and e["number"] == int(name))
    assert {e["row"]["host"] for e in lines if e["event"] == "row"} == {"one", "two"}
    assert "was in use by" not in (folder / "trials" / name / "logs/rank-0.log").read_text()  # known to be its own
    assert (folder / "report.html").is_file() and not (folder / ".ray").exists()

    other = tmp_path / "quiet"  # a search of 4 is the beginning of one of 8
    quiet = ["smoke", str(run), "--trials", "4", "--concurrent", "4", "--executor", "local", "--out", str(other)]
    driver = _start(other, *quiet)
    assert driver.wait(timeout=480) == 0, _told(other)
    points, runs = story(found)
    assert story(_read(other)) == [points[:4], runs[:4]]


def test_ranks_on_two_nodes_score_as_one_process(cluster: RayCluster, tiny_dir: Path, tmp_path: Path) -> None:
    """A trial of two ranks, each with all cores of a node; a rank's actor is killed on the way."""
    run = run_file(tmp_path, tiny_dir, **{"train.epochs": 4, "train.precision": "float64"})
    alone, folder = tmp_path / "alone", tmp_path / "spread"
    words = ["smoke", str(run), "--trials", "1", "--no-early-stop"]
    driver = _start(alone, *words, "--executor", "local", "--out", str(alone))
    assert driver.wait(timeout=300) == 0, _told(alone)
    size = ["--procs-per-trial", "2", "--cpus-per-proc", "2"]
    driver = _start(folder, *words, *size, "--address", cluster.address, *PATIENT, "--out", str(folder))
    try:
        assert _soon(lambda: _rows(folder) >= 1), _told(folder)
        os.kill(cluster.actors("Rank")[0], signal.SIGKILL)
        assert driver.wait(timeout=300) == 0, _told(folder)
    finally:
        driver.kill()
        driver.wait()
    (one,), (two,) = _read(alone).runs.values(), _read(folder).runs.values()
    assert (two.state, two.faults, two.starts) == ("done", 1, 2)
    assert one.rows.keys() == two.rows.keys()
    for epoch, row in one.rows.items():
        assert two.rows[epoch]["mAP"] == pytest.approx(row["mAP"], abs=1e-9)
        assert two.rows[epoch]["label_mAP"] == pytest.approx(row["label_mAP"], abs=1e-9)
    assert len(list((folder / "trials/0000/logs").glob("rank-*.log"))) == 2
    assert _soon(lambda: not _trials(folder))
