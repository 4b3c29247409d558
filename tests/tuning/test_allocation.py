"""``marc-launch slurm tune`` on a real Slurm cluster of virtual nodes: Ray comes up in the job, tunes, and goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from marc_dist.cluster.job import attempts, newest_step, read_job
from marc_dist.tuning.driver import open_search
from marc_dist.tuning.journal import Journal
from tests.cluster.ray_cluster import pids_that_name
from tests.cluster.slurm_cluster import SlurmCluster, missing_programs
from tests.tuning.searches import events, run_file


def launch(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "marc_dist.cli.launch", *words]
    return subprocess.run(command, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=120)


def test_the_script_can_be_read_without_slurm(tiny_dir: Path, tmp_path: Path) -> None:
    run, folder = run_file(tmp_path, tiny_dir), tmp_path / "search"
    preset = ["--nodes", "3", "--procs-per-node", "4", "--dry-run", "slurm"]
    shown = launch(*preset, "tune", "smoke", str(run), "--trials", "9", "--out", str(folder), "cluster.cpus_per_proc=2")
    assert shown.returncode == 0, shown.stderr
    assert "#SBATCH --nodes=3" in shown.stdout and "#SBATCH --ntasks-per-node=1" in shown.stdout
    assert "--cpus-per-task=8" in shown.stdout
    assert not folder.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["slurm", "tune", "smoke", "RUN", "--trials", "0"], "--trials: expected 1 or more, got 0"),
        (["slurm", "tune", "smok", "RUN"], "no preset named 'smok'; did you mean smoke?"),
        (["slurm", "tune", "smoke", "RUN", "--address", "auto"], "--address, --executor, --report and --print are"),
        (["slurm", "tune", "smoke", "RUN", "cluster.partitio=x"], "did you mean partition"),
        (["local", "tune", "smoke", "RUN"], "tune: expected a slurm preset, got kind local; use marc-tune itself"),
        (["ray", "tune", "smoke", "RUN"], "use marc-tune --address HOST:PORT"),
        (["slurm", "tune", "smoke", "RUN", "cluster.array.seeds=[1]"], "tune: runs without containers and arrays"),
    ],
)
def test_mistakes_are_told_before_anything_is_queued(
    words: list[str], message: str, tiny_dir: Path, tmp_path: Path
) -> None:
    run = str(run_file(tmp_path, tiny_dir))
    done = launch(*(run if word == "RUN" else word for word in words))
    assert done.returncode == 2 and message in done.stderr, done.stderr


@pytest.mark.slow
def test_a_search_on_two_nodes(tiny_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    run, folder = run_file(tmp_path, tiny_dir, **{"train.epochs": 3}), tmp_path / "search"
    if (missing := missing_programs()) and not os.environ.get("CI"):
        pytest.skip(f"needs Slurm: {', '.join(missing)}")
    with SlurmCluster(nodes=2) as cluster:
        words = ["--nodes", "2", "slurm", "tune", "smoke", str(run), "--trials", "3", "--out", str(folder)]
        said = launch(*words, env=cluster.env)
        assert said.returncode == 0, said.stderr
        job_id = read_job(folder).id
        assert job_id is not None
        end = time.monotonic() + 240
        while not (attempts(folder) and attempts(folder)[-1].ended_at is not None):
            assert time.monotonic() < end, _logs(folder)
            time.sleep(0.5)
        (only,) = attempts(folder)
        assert (only.code, only.error) == (0, None), _logs(folder)
        assert newest_step(folder) == len(events(folder))
        status = [sys.executable, "-m", "marc_dist.cli.jobs", "status", "--json", str(folder)]
        told = json.loads(subprocess.run(status, env=cluster.env, capture_output=True, check=True).stdout)
        assert (told["kind"], told["what"], told["state"]) == ("slurm", "tune", "done")
    found = open_search(folder, Journal(folder))
    assert found.over and len(found.runs) == 3 and (folder / "best.yaml").is_file()
    assert (folder / "logs/ray-1.log").is_file()  # the second node took part
    assert "marc-train" in (folder / "logs/rank-0.log").read_text()
    deadline = time.monotonic() + 20
    while (left := pids_that_name(f"marc-ray-{os.getuid()}-{job_id}")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
    assert not list((folder / "logs").glob("*.token"))


def _logs(folder: Path) -> str:
    paths = [*folder.glob("slurm/*.out"), *folder.glob("logs/*.log")]
    return "\n".join(f"== {path}\n{path.read_text(errors='replace')[-2500:]}" for path in paths)
