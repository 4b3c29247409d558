"""What the batch script's two words count as this job's own, when clocks differ and stragglers still write."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from marc_dist.cluster import sbatch_hooks
from marc_dist.cluster.preset import SlurmPreset
from marc_dist.cluster.slurm import script_parts
from marc_dist.run.attempt_id import NUMBER, TOKEN
from marc_dist.run.attempts import attempts
from marc_dist.run.job import Job, attempts_of_job, new_job, write_job
from marc_dist.run.rank_ends import end_path

SCONTROL = '#!/bin/sh\n[ "$1" = show ] && echo n1\nexit 0\n'


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder; ``scontrol`` answers for one node, and obeys."""
    (tmp_path / "scontrol").write_text(SCONTROL)
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(sbatch_hooks, "WAIT_S", 0.0)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "logs").mkdir()
    return tmp_path / "run"


def _job(run: Path, ahead_s: float, **preset: int) -> Job:
    job = new_job("slurm", ["-m", "x", str(run)], id="7", preset=SlurmPreset(**preset).model_dump(mode="json"))
    job = job.model_copy(update={"submitted_at": job.submitted_at + ahead_s})
    write_job(run, job)
    return job


def _start(job: Job, run: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """The batch script's first word, in the environment that the script makes."""
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))
    for name, value in job.attempt(number).variables().items():
        monkeypatch.setenv(name, value)
    return sbatch_hooks.main(["begin", str(run)])


@pytest.mark.parametrize("ahead_s", [-600.0, 0.0, 600.0])
def test_the_limits_hold_whatever_the_login_nodes_clock_says(
    ahead_s: float, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = _job(run, ahead_s, max_restarts=1)
    assert [_start(job, run, number, monkeypatch) for number in range(3)] == [0, 0, 1]
    assert "cluster.max_restarts=1 used up" in capsys.readouterr().out
    job = _job(run, ahead_s, max_stalls=1)  # resumed: a job of its own, whose count begins anew
    for number in range(2):
        assert _start(job, run, number, monkeypatch) == 0
        sbatch_hooks.main(["end", str(run), "137"])
    assert [one.again for one in attempts_of_job(job, run)] == [True, False]
    assert "no newer checkpoint in 2 attempts in a row" in attempts(run)[-1].why


def test_what_a_straggler_notes_is_no_end_of_the_next_attempt(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = _job(run, 0.0)
    _start(job, run, 0, monkeypatch)
    _start(job, run, 1, monkeypatch)
    late = {"time": 1.0, "error": "peer closed", "code": 1, "host": "n1", **job.attempt(0).record()}
    end_path(run / "logs", 0).write_text(json.dumps(late))  # its node comes back, after the next attempt has begun
    sbatch_hooks.main(["end", str(run), "137"])
    first, second = attempts_of_job(job, run)
    assert first.ended_at is None and second.code == 137
    assert second.error == "rank 0 of 1 vanished without a word (srun: 137)"


def test_a_job_whose_folder_is_another_ones_now_does_not_start(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = _job(run, 0.0)
    new = _job(run, 0.0)
    assert _start(old, run, 1, monkeypatch) == 2
    assert f"error: {run}: belongs to a later job, slurm 7; this one does not go on" in capsys.readouterr().out
    assert attempts(run) == [] and _start(new, run, 0, monkeypatch) == 0


@pytest.mark.parametrize(("count", "number"), [(None, "0"), ("3", "3")])
def test_the_script_tells_ranks_which_attempt_they_are_of(count: str | None, number: str, run: Path) -> None:
    job = _job(run, 0.0)
    _, params = script_parts(job, SlurmPreset(), run)
    lines = [line for line in params["setup"] if line.startswith("export ")]
    env = {} if count is None else {"SLURM_RESTART_COUNT": count}
    script = "\n".join([*lines, f'echo "${TOKEN} ${NUMBER}"'])
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, env=env, check=True)
    assert done.stdout == f"{job.token} {number}\n"
