"""A job with a copy of the code runs the copy, whatever happens to the original between two starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from marc_dist.cluster.code_snapshot import PACKAGE, copy_code
from marc_dist.cluster.preset import SlurmPreset
from marc_dist.cluster.slurm import render
from marc_dist.run.attempts import attempts
from marc_dist.run.job import Job, new_job, write_job

SRUN = f'while [ "$1" != "{sys.executable}" ]; do shift; done; SLURM_PROCID=0 exec "$@"'


def start(job: Job, run: Path, preset: SlurmPreset, bin_dir: Path, source: Path) -> int:
    """The batch script, as Slurm runs it."""
    script = run / "script.sh"
    script.write_text(render(job, preset, run))
    env = {**os.environ, "PATH": f"{bin_dir}:{os.environ['PATH']}", "PYTHONPATH": str(source), "SLURM_JOB_ID": "7"}
    return subprocess.run(["bash", str(script)], cwd=source, env=env, capture_output=True, timeout=120).returncode


@pytest.mark.parametrize("snapshot", [True, False])
def test_a_second_start_runs_the_code_that_was_submitted(tmp_path: Path, snapshot: bool) -> None:
    run, source, bin_dir = tmp_path / "my run", tmp_path / "source", tmp_path / "bin"
    bin_dir.mkdir()
    for name, text in {"srun": SRUN, "scontrol": "echo n1"}.items():
        (bin_dir / name).write_text(f"#!/bin/bash\n{text}\n")
        (bin_dir / name).chmod(0o755)
    shutil.copytree(PACKAGE, source / "marc_dist", ignore=shutil.ignore_patterns("__pycache__"))
    preset = SlurmPreset(preflight=False, snapshot=snapshot)
    code = "import marc_dist, sys; open(sys.argv[1] + '/from', 'a').write(marc_dist.__file__ + '\\n')"
    job = new_job("slurm", ["-c", code, str(run)], id="7", preset=preset.model_dump(mode="json"))
    job = job.model_copy(update={"cwd": str(source)})
    write_job(run, job)
    if snapshot:
        copy_code(run)
    assert start(job, run, preset, bin_dir, source) == 0
    (source / "marc_dist/__init__.py").write_text("raise RuntimeError('edited')\n")
    code = start(job, run, preset, bin_dir, source)
    where = (run / "from").read_text().splitlines()
    if snapshot:
        assert code == 0 and where == [str(run / "code/marc_dist/__init__.py")] * 2
        assert [attempt.code for attempt in attempts(run)] == [0, 0]
    else:
        assert code != 0 and where == [str(source / "marc_dist/__init__.py")]


def test_a_new_copy_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    old = tmp_path / "code/marc_dist/old.py"
    old.parent.mkdir(parents=True)
    old.touch()
    copied = copy_code(tmp_path)
    assert not old.exists() and [path.name for path in tmp_path.iterdir()] == ["code"]
    assert (copied / "marc_dist/cluster/slurm.py").is_file() and not list(copied.rglob("__pycache__"))
    env = {**os.environ, "PYTHONPATH": str(copied)}
    said = "from marc_dist.config import find_preset; print(find_preset('launchers', 'slurm'))"
    found = subprocess.run([sys.executable, "-c", said], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert found.stdout.startswith(str(copied))
