"""The first commands that anybody types, on a machine without data and without Slurm: what to type next is the end."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from marc_dist.cli import launch, shard

UNCONFIGURED = "#!/bin/sh\necho 'sinfo: fatal: Could not establish a configuration source' >&2; exit 1\n"


def told(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The message and the command to type next: two lines, nothing else."""
    message, command = capsys.readouterr().err.splitlines()
    return message, command


@pytest.fixture(params=["installed", "missing"])
def no_slurm(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Slurm's programs as a distribution installs them, without a cluster; or none."""
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "srun", "sinfo") if request.param == "installed" else ():
        (tmp_path / "bin" / name).write_text(UNCONFIGURED)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return str(request.param)


def test_a_data_set_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shard.main(["--dataset", "whdld"]) == 2
    message, command = told(capsys)
    assert message.startswith("marc-shard: error: WHDLD") and "get it from sites.google.com" in message
    assert command == "marc-shard --dataset sample" and not list(tmp_path.iterdir())
    assert shard.main(shlex.split(command)[1:]) == 0
    assert (tmp_path / "data/sample/dataset.json").is_file()


def test_slurm_where_there_is_none(no_slurm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It left runs/default behind, with a job that never was."""
    assert launch.main(["--nodes", "4", "slurm"]) == 2
    message, command = told(capsys)
    what = "Slurm is installed here but not configured" if no_slurm == "installed" else "sbatch: not found on PATH"
    assert message.startswith(f"marc-launch: error: {what}") and "fatal" not in message
    assert command == "marc-launch --nodes 4 --dry-run slurm" and not list((tmp_path / "here").iterdir())
    assert launch.main(shlex.split(command)[1:]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --nodes=4" in script and not list((tmp_path / "here").iterdir())


def test_a_search_on_slurm_where_there_is_none(
    no_slurm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["--nodes", "4", "slurm", "tune", "macl", "train.epochs=3"]) == 2
    message, command = told(capsys)
    assert "sinfo" not in message and command == "marc-launch --nodes 4 --dry-run slurm tune macl train.epochs=3"
    assert not list((tmp_path / "here").iterdir())
    assert no_slurm in ("installed", "missing")


@pytest.mark.parametrize("words", [["shard", "--dataset", "whdld"], ["launch", "--nodes", "4", "slurm"]])
def test_the_answer_comes_without_torch(no_slurm: str, words: list[str]) -> None:
    command, *rest = words
    code = f"""
import sys
from marc_dist.cli.{command} import main
code = main({rest!r})
heavy = {{"torch", "faiss", "ray", "timm", "submitit", "matplotlib", "scipy", "imagehash", "optuna", "sklearn"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
sys.exit(code)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("marc-") and no_slurm
