"""``marc-launch slurm tune`` on a real Slurm cluster of virtual nodes: Ray comes up in the job, tunes, and goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir

import pytest

from marc_dist.run.attempts import attempts, newest_step
from marc_dist.run.exit_codes import EXIT_REQUEUE
from marc_dist.run.job import read_job
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
def test_a_search_on_two_nodes_comes_back(tiny_dir: Path, tmp_path: Path) -> None:
    """Requeued in its midst, as by a preemption: it goes on from its journal, repeats nothing and leaves nothing."""
    pytest.importorskip("ray")
    run, folder = run_file(tmp_path, tiny_dir, **{"train.epochs": 3}), tmp_path / "search"
    if (missing := missing_programs()) and not os.environ.get("CI"):
        pytest.skip(f"needs Slurm: {', '.join(missing)}")
    with SlurmCluster(nodes=2) as cluster:
        words = [
            "--nodes",
            "2",
            "slurm",
            "tune",
            "smoke",
            str(run),
            "--trials",
            "3",
            "--concurrent",
            "2",
            "--out",
            str(folder),
        ]
        said = launch(*words, env=cluster.env)
        assert said.returncode == 0, said.stderr
        job_id = read_job(folder).id
        assert job_id is not None
        _until(lambda: "end" in _kinds(folder) and _kinds(folder)[-1] == "row", folder)
        before = events(folder)
        cluster.sh("scontrol", "requeue", job_id)
        _until(lambda: len(attempts(folder)) == 2, folder)
        started = attempts(folder)[1].started_at
        assert not [pid for pid in _rays(job_id) if _age_s(pid) > time.time() - started + 1], _logs(folder)
        _until(lambda: attempts(folder)[1].ended_at is not None, folder)
        first, last = attempts(folder)
        assert (last.code, last.error) == (0, None) and first.code in (None, EXIT_REQUEUE), _logs(folder)
        assert last.first_step >= len(before) and newest_step(folder) == len(events(folder))
        status = [sys.executable, "-m", "marc_dist.cli.jobs", "status", "--json", str(folder)]
        told = json.loads(subprocess.run(status, env=cluster.env, capture_output=True, check=True).stdout)
        assert (told["kind"], told["what"], told["state"]) == ("slurm", "tune", "done")
    found, lines = open_search(folder, Journal(folder)), events(folder)
    assert found.over and len(found.runs) == 3 and (folder / "best.yaml").is_file()
    assert lines[: len(before)] == before
    reported = [(e["number"], e["row"]["epoch"]) for e in lines if e["event"] == "row"]
    assert len(set(reported)) == len(reported)  # no epoch twice
    assert sorted(e["number"] for e in lines if e["event"] == "end") == [0, 1, 2]
    assert not any(run.faults for run in found.runs.values())  # a requeue is nobody's fault
    assert (folder / "logs/ray-1.log").is_file()  # the second node took part
    assert "marc-train" in (folder / "logs/rank-0.log").read_text()
    deadline = time.monotonic() + 20
    while (left := _rays(job_id)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
    assert not list((folder / "logs").glob("*.token")) and not list(Path(gettempdir()).glob(f"marc-ray-*-{job_id}-*"))


@pytest.mark.slow
def test_a_search_on_one_node_needs_no_ray(tiny_dir: Path, tmp_path: Path) -> None:
    """Trials are processes of the node, as many as its CPUs; requeued in its midst, it goes on at once."""
    run, folder = run_file(tmp_path, tiny_dir, **{"train.epochs": 4}), tmp_path / "search"
    if (missing := missing_programs()) and not os.environ.get("CI"):
        pytest.skip(f"needs Slurm: {', '.join(missing)}")
    with SlurmCluster(nodes=1) as cluster:
        words = ["slurm", "tune", "smoke", str(run), "--trials", "8", "--out", str(folder), "cluster.cpus_per_proc=1"]
        said = launch("--nodes", "1", *words, env=cluster.env)
        assert said.returncode == 0, said.stderr
        job_id = read_job(folder).id
        assert job_id is not None
        _until(lambda: "end" in _kinds(folder) and _kinds(folder)[-1] == "row", folder)
        before = events(folder)
        cluster.sh("scontrol", "requeue", job_id)
        _until(lambda: len(attempts(folder)) == 2 and attempts(folder)[1].ended_at is not None, folder)
        assert [attempts(folder)[-1].code, attempts(folder)[-1].error] == [0, None], _logs(folder)
        _until(lambda: not cluster.job_processes(), folder, 20)
    found, lines = open_search(folder, Journal(folder)), events(folder)
    assert found.over and len(found.runs) == 8 and lines[: len(before)] == before
    reported = [(e["number"], e["row"]["epoch"]) for e in lines if e["event"] == "row"]
    assert len(set(reported)) == len(reported)  # no epoch twice
    assert not any(run.faults for run in found.runs.values())  # a requeue is nobody's fault
    assert "1 at a time on processes of this machine" in (folder / "logs/rank-0.log").read_text()
    assert not list((folder / "logs").glob("*ray-*"))
    tokens = {read_job(folder).token}
    assert all(json.loads(path.read_text())["token"] in tokens for path in folder.glob("trials/*/logs/.end-0.json"))
    assert not any("was in use by" in path.read_text() for path in folder.glob("trials/*/logs/rank-0.log"))


def _until(true: Callable[[], bool], folder: Path, limit_s: float = 240) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, _logs(folder)
        time.sleep(0.2)


def _kinds(folder: Path) -> list[str]:
    return [event["event"] for event in events(folder)] if (folder / "trials.jsonl").exists() else []


def _rays(job_id: str) -> list[int]:
    """Processes of the job's Rays, of whatever start."""
    return pids_that_name(f"marc-ray-{os.getuid()}-{job_id}")


def _age_s(pid: int) -> float:
    with suppress(OSError):
        return time.time() - Path(f"/proc/{pid}").stat().st_ctime
    return 0.0


def _logs(folder: Path) -> str:
    paths = [*folder.glob("slurm/*.out"), *folder.glob("logs/*.log")]
    return "\n".join(f"== {path}\n{path.read_text(errors='replace')[-2500:]}" for path in paths)
