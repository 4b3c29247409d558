"""What the simulator of a job's life found about jobs of which Slurm, or ``job.json``, says nothing just now."""

from __future__ import annotations

from pathlib import Path

import pytest

from marc_dist.cluster import backends, sbatch_hooks, slurm, slurm_cancel
from marc_dist.config import LaunchError
from marc_dist.run.attempts import begin_attempt, end_attempt
from marc_dist.run.job import Job, Word, new_job, read_job, write_job

BUSY = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
FORGOTTEN = "slurm_load_jobs error: Invalid job id specified"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = new_job("slurm", ["-m", "x", str(tmp_path)], id="7")
    write_job(tmp_path, job)
    return job


def _slurm_says(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's commands that fail, saying so."""
    (folder / "bin").mkdir()
    for name in ("squeue", "scontrol", "sacct", "scancel"):
        program = folder / "bin" / name
        program.write_text(f"#!/bin/sh\necho '{text}' >&2\nexit 1\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")


def test_a_job_of_which_slurm_says_nothing_may_live(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _slurm_says(BUSY, tmp_path, monkeypatch)
    found = slurm.state(job, tmp_path)
    assert (found.word, found.silent) == ("unknown", True) and "Unable to contact" in found.detail
    with pytest.raises(LaunchError, match="slurm job 7 of this run may wait or run: Slurm does not answer"):
        backends.refuse_second(tmp_path, new_job("slurm", ["-m", "x"]).attempt(0))


def test_a_job_that_slurm_has_forgotten_does_not(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _slurm_says(FORGOTTEN, tmp_path, monkeypatch)
    found = slurm.state(job, tmp_path)
    assert (found.word, found.silent, found.detail) == ("unknown", False, "Slurm has forgotten the job")
    backends.refuse_second(tmp_path, new_job("slurm", ["-m", "x"]).attempt(0))


def test_the_batch_script_writes_its_id_down_when_its_launch_could_not(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_job(tmp_path, job.model_copy(update={"id": None}))
    with pytest.raises(LaunchError, match="its launch was broken off before its id was written down"):
        backends.cancel(read_job(tmp_path), tmp_path)
    _slurm_says(FORGOTTEN, tmp_path, monkeypatch)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")
    assert sbatch_hooks.main(["begin", str(tmp_path)]) == 0
    assert read_job(tmp_path).id == "7"


def test_a_launch_that_another_one_overtook_ends_its_own_job(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where locks do not reach across machines, both used to end: each found the other's ``job.json``."""
    _slurm_says(FORGOTTEN, tmp_path, monkeypatch)
    other = new_job("slurm", ["-m", "x", str(tmp_path)], id="8")
    with pytest.raises(LaunchError, match="this one, slurm 8, was ended"):
        backends._name(other, tmp_path)
    assert read_job(tmp_path) == job


def test_an_element_writes_the_array_s_id_down_when_its_launch_could_not(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "seed-0", tmp_path / "seed-1"]
    array = job.model_copy(update={"id": None, "run_dirs": list(map(str, folders))})
    write_job(tmp_path, array)
    for folder in folders:
        write_job(folder, array.model_copy(update={"run_dirs": []}))
    with pytest.raises(LaunchError, match=f"squeue --me --name marc-{tmp_path.name} whether it waits"):
        backends.cancel(array, tmp_path)
    _slurm_says(FORGOTTEN, tmp_path, monkeypatch)
    for name, text in {"JOB_ID": "9", "ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "1", "JOB_NODELIST": "n1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", text)
    assert sbatch_hooks.main(["begin", str(tmp_path)]) == 0
    assert [read_job(folder).id for folder in (tmp_path, *folders)] == ["7", None, "7_1"]


@pytest.mark.parametrize(
    ("words", "array", "saves", "told"),
    [
        (["running"], False, True, "is asked to save and stop"),
        (["running"], False, False, "is ended without time to save (cluster.stop_grace_s=0)"),
        (["pending"], False, False, "is taken back before it starts"),
        ([], False, False, "is about to end"),
        (
            ["running", "pending", "pending", "done"],
            True,
            True,
            "of its elements, 1 is asked to save and stop, 2 are taken back before they start",
        ),
        (["done"], True, False, "has no element that waits or runs"),
    ],
)
def test_what_a_cancel_says(words: list[Word], array: bool, saves: bool, told: str) -> None:
    assert slurm_cancel._what_becomes(words, array, saves) == told


def test_an_array_of_which_slurm_has_forgotten_an_element_is_not_done(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm knew the elements that ended last, and both were done; the first had been lost with its node."""
    folders = [tmp_path / f"seed-{number}" for number in range(2)]
    array = job.model_copy(update={"run_dirs": list(map(str, folders))})
    for number, folder in enumerate(folders):
        folder.mkdir()
        write_job(folder, array.model_copy(update={"run_dirs": [], "id": f"7_{number}"}))
    attempt = array.attempt(0)
    begin_attempt(folders[1], attempt, ["n1"])
    end_attempt(folders[1], attempt, 0, None, again=False, why="done")
    _slurm_says("", tmp_path, monkeypatch)
    (tmp_path / "bin" / "squeue").write_text(
        "#!/bin/sh\ncase \" $* \" in\n*' 7 '*) echo 'COMPLETED|None|n1' ;;\n"
        f"*) echo '{FORGOTTEN}' >&2; exit 1 ;;\nesac\n"
    )
    for name in ("scontrol", "sacct"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\necho '{FORGOTTEN}' >&2\nexit 1\n")
    assert slurm.state(array, tmp_path).word == "done"
    found = backends.state(array, tmp_path)
    assert found.word == "unknown" and "1 done, 1 unknown; Slurm has forgotten the job" in found.detail
