"""How jobs end on a real cluster: cancelled, with longer to save than Slurm's KillWait; held; without their script."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from marc_dist.cluster import backends
from marc_dist.cluster.preset import SlurmPreset
from marc_dist.run.attempts import attempts
from marc_dist.run.job import Job, State, new_job, read_job
from tests.cluster.slurm_cluster import SlurmCluster

pytestmark = pytest.mark.slow
SAVE_S = 5.0  # KillWait of the cluster is 3 s
RANK = f"""
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def save(number, frame):
    time.sleep({SAVE_S})
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints/step-00000007.pt").touch()
    sys.exit(85)
signal.signal(signal.SIGUSR2, save)
(folder / "up").touch()
time.sleep(600)
"""


@pytest.fixture
def here(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    """The cluster, with this process as a user of it."""
    monkeypatch.setenv("SLURM_CONF", slurm.env["SLURM_CONF"])
    monkeypatch.setenv("PATH", slurm.env["PATH"])
    return slurm


def submitted(run: Path, *folders: Path, script: str = RANK, **values: object) -> Job:
    preset = SlurmPreset(preflight=False, **values)  # type: ignore[arg-type]
    for folder in (run, *folders):
        folder.mkdir()
    job = new_job(
        "slurm", ["-c", script, str(run)], run_dirs=list(map(str, folders)), preset=preset.model_dump(mode="json")
    )
    return backends.submit(job, run)


def until(condition: Callable[[], object], limit_s: float = 180) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def what_it_said(run: Path) -> str:
    return "\n".join(path.read_text() for path in run.glob("slurm/*.out")) + (run / "attempts.jsonl").read_text()


def test_running_elements_save_and_waiting_ones_are_taken_back(here: SlurmCluster, tmp_path: Path) -> None:
    run = tmp_path / "seeds"
    folders = [run / str(number) for number in range(3)]
    job = submitted(run, *folders, array={"parallel": 2})
    until(lambda: sum((folder / "up").exists() for folder in folders) == 2)
    begun = time.monotonic()
    backends.cancel(job, run)
    backends.end_cancelled(job, run)
    assert SAVE_S < time.monotonic() - begun < 60
    until(lambda: not here.job_processes(), 20)
    for number, folder in enumerate(folders):
        mine = read_job(folder)
        assert here.wait_for(f"{job.id}_{number}", limit_s=20) == "CANCELLED", what_it_said(run)
        word, detail, _ = backends.state(mine, folder)
        if (folder / "up").exists():
            (only,) = attempts(folder)
            assert (only.code, only.again, only.why, only.last_step) == (85, False, "cancelled", 7), only
            assert (word, detail) == ("cancelled", "CANCELLED after step 7")
        else:
            assert word == "cancelled" and not attempts(folder) and mine.cancelled_at is not None
    assert not here.sh("squeue", "-h")


def test_one_that_does_not_save_is_ended_in_time(here: SlurmCluster, tmp_path: Path) -> None:
    """And one element of an array is ended alone."""
    run = tmp_path / "seeds"
    folders = [run / "0", run / "1"]
    deaf = RANK.replace(f"time.sleep({SAVE_S})", "return")
    job = submitted(run, *folders, script=deaf, stop_grace_s=2)
    until(lambda: all((folder / "up").exists() for folder in folders))
    backends.cancel(read_job(folders[1]), folders[1])
    backends.end_cancelled(read_job(folders[1]), folders[1])
    assert here.wait_for(f"{job.id}_1", limit_s=30) == "CANCELLED"
    assert backends.state(read_job(folders[1]), folders[1]) == State("cancelled", "CANCELLED after step 0")
    assert here.state(f"{job.id}_0") == "RUNNING"
    backends.cancel(job, run)
    backends.end_cancelled(job, run)
    assert here.wait_for(f"{job.id}_0", limit_s=30) == "CANCELLED"
    assert json.loads((run / "job.json").read_text())["cancelled_at"] is not None


def test_a_waiting_element_is_taken_back_alone(here: SlurmCluster, tmp_path: Path) -> None:
    here.sh("scontrol", "update", "PartitionName=main", "State=DOWN")
    run = tmp_path / "seeds"
    folders = [run / str(number) for number in range(4)]
    job = submitted(run, *folders)
    backends.cancel(read_job(folders[1]), folders[1])
    backends.end_cancelled(read_job(folders[1]), folders[1])
    pending = here.sh("squeue", "-h", "-r", "-t", "PENDING", "-j", str(job.id), "-o", "%K").split()
    assert sorted(pending) == ["0", "2", "3"]
    backends.cancel(job, run)
    backends.end_cancelled(job, run)
    assert not here.sh("squeue", "-h")
    assert all(read_job(folder).cancelled_at is not None for folder in folders)


def test_a_killed_batch_script_is_told_and_the_job_starts_again(here: SlurmCluster, tmp_path: Path) -> None:
    """Slurm itself would end it as JobLaunchFailure, --requeue or not."""
    run = tmp_path / "run"
    quick = RANK.replace(f"time.sleep({SAVE_S})", "pass").replace("SIGUSR2", "SIGTERM")
    job = submitted(run, script=quick)
    until((run / "up").exists)
    here.wait_for(str(job.id), "RUNNING")
    kill_batch_scripts(here, str(job.id))
    until(lambda: len(attempts(run)) == 2)
    assert attempts(run)[0].code == 85 and attempts(run)[0].again and attempts(run)[1].first_step == 7
    backends.cancel(job, run)
    backends.end_cancelled(job, run)

    deaf = tmp_path / "deaf"
    job = submitted(deaf, script="import signal, time; signal.signal(signal.SIGTERM, lambda *_: 0); time.sleep(600)")
    until(lambda: attempts(deaf))
    here.wait_for(str(job.id), "RUNNING")
    kill_batch_scripts(here, str(job.id))
    assert here.wait_for(str(job.id), limit_s=30) == "FAILED"
    word, detail, _ = backends.state(job, deaf)
    assert word == "failed" and "the batch script was killed" in detail and f"marc-jobs resume {deaf} goes on" in detail


def kill_batch_scripts(here: SlurmCluster, job_id: str) -> None:
    for pid in here.job_processes():
        with suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_text()
            if f"job{job_id}/slurm_script" in command:
                os.kill(pid, signal.SIGKILL)


def test_a_held_job_says_how_to_release_it(here: SlurmCluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submitted(run, sbatch={"hold": True})
    told = str(backends.state(job, run))
    assert told.startswith("pending (") and told.endswith(f"scontrol release {job.id})")
    backends.cancel(job, run)
    backends.end_cancelled(job, run)
    assert backends.state(job, run).word == "cancelled"
