"""Jobs shared out between this process and its helpers: each once, follow-ups too; the first failure ends it all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from marc_dist.config import DataError
from marc_dist.packing.worker_pool import PoolTask, work


def square(number: int) -> tuple[int, int]:
    time.sleep(0.002)
    return number * number, os.getpid()


def leave_word(folder: str, number: int) -> None:
    if number == 3:
        raise DataError("job 3")
    (Path(folder) / str(number)).touch()
    time.sleep(0.01)


def die_in_helper(parent: int) -> None:
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_job_and_every_follow_up_once(workers: int) -> None:
    found: list[int] = []
    places: set[int] = set()

    def done(job: PoolTask, result: Any) -> list[PoolTask]:
        found.append(result[0])
        places.add(result[1])
        number = job[1][0]
        return [(square, (number + 1000,))] if number < 1000 else []

    work([(square, (number,)) for number in range(600)], done, workers)
    assert sorted(found) == sorted([n * n for n in range(600)] + [(n + 1000) ** 2 for n in range(600)])
    assert os.getpid() in places and (len(places) > 1) == (workers > 1)


def test_nothing_to_do() -> None:
    work([], lambda job, result: [], 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_failure_ends_the_rest(tmp_path: Path, workers: int) -> None:
    jobs: list[PoolTask] = [(leave_word, (str(tmp_path), number)) for number in range(500)]
    with pytest.raises(DataError, match="job 3"):
        work(jobs, lambda job, result: [], workers)
    assert len(list(tmp_path.iterdir())) < 400


def test_a_killed_helper_is_told() -> None:
    jobs: list[PoolTask] = [(die_in_helper, (os.getpid(),)) for _ in range(100)]
    with pytest.raises(DataError, match="a packing process was killed; out of memory"):
        work(jobs, lambda job, result: [], 2)


def test_a_packing_helper_starts_light() -> None:
    """Its start must not take longer than its share of a small data set: no schema, no numpy, no pyarrow."""
    heavy = {"pydantic", "numpy", "pyarrow", "yaml"}
    code = f"import sys, marc_dist.packing.shard_records; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "\n"
