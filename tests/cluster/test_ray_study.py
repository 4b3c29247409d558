"""A study on a real Ray cluster of two nodes: workers on both take the cells, and one that is killed is made good."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from marc_dist.config import list_presets
from marc_dist.config.presets import find_preset
from marc_dist.run.job import read_job
from tests.cluster.ray_cluster import RayCluster, pids_that_name
from tests.study.studies import records, run, tables, tiny_study, write_study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds the workers through /proc"),
]


def soon(true: Callable[[], Any], seconds: float = 240.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(true())


def test_two_nodes_share_the_cells(tiny_dir: Path, tmp_path: Path) -> None:
    assert "ray" in list_presets("launchers")
    path, out = write_study(tmp_path, tiny_study(tiny_dir)), tmp_path / "out"
    with RayCluster() as cluster:
        preset = yaml.safe_load(find_preset("launchers", "ray").read_text())
        launcher = tmp_path / "two.yaml"
        launcher.write_text(yaml.safe_dump({**preset, "nodes": 2, "address": cluster.address}))
        said = run(path, out, "--on", str(launcher), "--jobs", "2")
        assert said.returncode == 0, said.stderr
        job = read_job(out / "jobs")
        assert (job.what, job.world) == ("study", 2) and f"ray job {job.id}: 2 workers" in said.stdout
        assert soon(lambda: any((out / "tiny").glob("head/*/seed-0/checkpoints/*")))
        working = [pid for pid in pids_that_name(str(out / "jobs")) if _is_worker(pid)]
        assert len(working) == 2
        os.kill(working[0], signal.SIGKILL)
        assert soon(lambda: sum('"done"' in file.read_text() for file in records(out)) == 15), _logs(out)
        assert soon(lambda: not pids_that_name(str(out / "jobs")))
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
    return "\n".join(path.read_text()[-2000:] for path in (out / "jobs").rglob("*.log"))
