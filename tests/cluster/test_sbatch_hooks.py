"""The batch script's two words where Slurm's commands are missing, refuse, or have cancelled the job."""

from __future__ import annotations

from pathlib import Path

import pytest

from marc_dist.cluster import sbatch_hooks
from marc_dist.cluster.preset import SlurmPreset
from marc_dist.cluster.sbatch_hooks import main
from marc_dist.run.attempts import attempts
from marc_dist.run.job import State, ended, new_job, note_cancel, read_job, write_job
from marc_dist.run.rank_ends import end_path, note_end


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder on a compute node of job 7 without Slurm's commands."""
    folder = tmp_path / "run"
    preset = SlurmPreset(preflight=False).model_dump(mode="json")
    write_job(folder, new_job("slurm", ["-m", "x", str(folder)], id="7", preset=preset))
    (folder / "logs").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sbatch_hooks, "WAIT_S", 0.0)
    env = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-4]", "SLURMD_NODENAME": "n1", "SLURM_RESTART_COUNT": "0"}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return folder


def program(run: Path, name: str, text: str) -> None:
    path = run.parent / "bin" / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def stop(run: Path) -> None:
    """The rank has saved and stopped."""
    note_end(end_path(run / "logs", 0), 85, 1.0, read_job(run).attempt(0))


def test_a_node_without_scontrol_trains_all_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["begin", str(run)]) == 0
    assert attempts(run)[0].hosts == ["n[1-4]"]
    assert "start 1 of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (None, "scontrol requeue 7: scontrol: No such file or directory on n1"),
        ("echo 'Requested operation is presently disabled' >&2; exit 1", "Requested operation is presently disabled"),
    ],
)
def test_a_requeue_that_cannot_be_asked_for_is_told(
    run: Path, script: str | None, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["begin", str(run)])
    stop(run)
    if script is not None:
        program(run, "scontrol", script)
    assert main(["end", str(run), "0"]) == 85
    (only,) = attempts(run)
    assert not only.again and "it cannot be requeued" in only.why and told in only.why
    assert f"marc-jobs resume {run} starts it again" in only.why and only.why in capsys.readouterr().out
    assert ended(read_job(run), run) == State("stopped", only.why)


def test_one_that_was_cancelled_does_not_start_again(run: Path) -> None:
    for name in ("scontrol", "scancel"):
        program(run, name, f'echo "{name} $*" >> "{run}/asked"')
    main(["begin", str(run)])
    stop(run)
    note_cancel(read_job(run), run)
    main(["end", str(run), "0"])
    assert set((run / "asked").read_text().splitlines()) == {"scontrol show hostnames n[1-4]", "scancel 7"}
    (only,) = attempts(run)
    assert (only.code, only.again, only.why) == (85, False, "cancelled")
    assert ended(read_job(run), run) == State("cancelled", "after step 0")


def test_one_that_was_cancelled_before_it_began_does_not_begin(run: Path) -> None:
    note_cancel(read_job(run), run)
    assert main(["begin", str(run)]) == 1
    assert ended(read_job(run), run) == State("cancelled", "after step 0")
