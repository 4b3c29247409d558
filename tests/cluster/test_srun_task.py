"""The task between srun and a rank."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from marc_dist.cluster.preset import SlurmPreset
from marc_dist.cluster.rank_process import FORWARDED
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


def test_a_signal_while_the_rank_is_being_started_is_no_failure_of_the_rank(tmp_path: Path, own_signals: None) -> None:
    """Found by the simulator (``tests/simulation``): the rank that srun ended was named as the one that failed first."""
    job = new_job("slurm", ["-c", "import time; time.sleep(60)"])
    task = _RankTask(job, SlurmPreset(), tmp_path, 0, 2)
    task.asked = signal.SIGTERM  # as the handler does before there is a rank
    assert task.run() == 128 + signal.SIGTERM
    end = read_end(tmp_path / "logs", 0, attempt_from_env(os.environ))
    assert end is not None and end.asked and not failed(end)
