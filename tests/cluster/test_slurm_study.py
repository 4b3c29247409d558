"""A study as an array of a real Slurm cluster: elements share the cells, one that is killed is made good."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marc_dist.run.job import read_job
from tests.cluster.slurm_cluster import SlurmCluster
from tests.study.studies import command, records, run, tables, tiny_study, write_study

pytestmark = pytest.mark.slow


def soon(true: Callable[[], Any], seconds: float = 200.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(true())


def test_an_array_does_all_cells_and_a_killed_element_loses_none(
    slurm: SlurmCluster, tiny_dir: Path, tmp_path: Path
) -> None:
    path = write_study(tmp_path, tiny_study(tiny_dir, seeds=6))
    out = tmp_path / "out"
    env = slurm.env | {"OMP_NUM_THREADS": "1"}
    words = command(path, out, "--on", "slurm", "--jobs", "2")
    said = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr
    job = read_job(out / "jobs")
    assert job.what == "study" and f"slurm job {job.id}: 2 workers" in said.stdout
    second = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300)
    assert second.returncode == 2 and "of this run is" in second.stderr
    assert soon(lambda: any((out / "tiny").glob("head/*/seed-0/checkpoints/*")))
    working = [pid for pid in slurm.job_processes() if _is_worker(pid)]
    os.kill(working[0], signal.SIGKILL)
    assert job.id is not None
    assert soon(lambda: sum('"done"' in file.read_text() for file in records(out)) == 15), _logs(out)
    assert run(path, out, "--report").returncode == 0
    here = run(path, tmp_path / "here")
    assert here.returncode == 0, here.stderr
    assert tables(out) == tables(tmp_path / "here")


def _is_worker(pid: int) -> bool:
    try:
        return b"marc_dist.study.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _logs(out: Path) -> str:
    return "\n".join(path.read_text()[-2000:] for path in [*out.glob("jobs/slurm/*"), *out.glob("jobs/*/logs/*.log")])
