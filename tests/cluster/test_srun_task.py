"""The task between srun and a rank."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from marc_dist.cluster.preset import SlurmPreset
from marc_dist.cluster.rank_process import FORWARDED, SETTLE_S, RankProcess
from marc_dist.cluster.srun_task import _RankTask
from marc_dist.run.attempt_id import attempt_from_env
from marc_dist.run.job import new_job
from marc_dist.run.rank_ends import failed, read_end


@pytest.fixture
def own_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in FORWARDED}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_while_the_rank_is_being_started_is_no_failure_of_the_rank(
    tmp_path: Path, own_signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the simulator (``tests/simulation``): the rank that srun ended was named as the first that failed."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    job = new_job("slurm", ["-c", "import time; time.sleep(60)"])
    task = _RankTask(job, SlurmPreset(), tmp_path, 0, 2)
    task.asked = signal.SIGTERM  # as the handler does before there is a rank
    assert task.run() == 128 + signal.SIGTERM
    end = read_end(tmp_path / "logs", 0, attempt_from_env(os.environ))
    assert end is not None and end.asked and not failed(end)


def test_a_rank_that_was_killed_failed_before_its_peers_hear_of_it(tmp_path: Path) -> None:
    """Found by the simulator: a peer's closed connection was noted sooner than the death that had closed it."""
    rank = RankProcess(1, [sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, dict(os.environ))
    assert not rank.poll()
    rank.send(signal.SIGKILL)
    os.waitid(os.P_PID, rank.process.pid, os.WEXITED | os.WNOWAIT)
    heard = time.time()
    time.sleep(0.05)  # until the next look
    while not rank.poll():
        time.sleep(0.01)
    assert rank.end().code == -signal.SIGKILL
    assert rank.end().time < heard


def test_the_task_of_a_failed_rank_gives_the_others_time_to_note_how_they_ended(
    tmp_path: Path, own_signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the simulator: srun ends all tasks at once when one of them fails."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    job = new_job("slurm", ["-c", "raise SystemExit(1)"])
    assert _RankTask(job, SlurmPreset(), tmp_path, 0, 2).run() == 1
    assert slept[-1] == SETTLE_S
    job = new_job("slurm", ["-c", "raise SystemExit(85)"])
    assert _RankTask(job, SlurmPreset(), tmp_path, 0, 2).run() == 0
    assert slept[-1] != SETTLE_S
