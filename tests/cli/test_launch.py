"""``marc-launch local``: mistakes before anything starts, and real jobs that are killed, stopped and go on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from marc_dist.cli import launch
from marc_dist.cli.launch.run import check_data
from marc_dist.config import Config, DataError, build
from marc_dist.run.attempts import attempts
from marc_dist.run.folder import checkpoints
from tests.cli.test_train import SMALL

COMMAND = [sys.executable, "-m", "marc_dist.cli.launch"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "4", "local"], "--nodes: the local preset is this one machine, got 4; use --procs-per-node"),
        (["--nodes", "0", "local"], "--nodes: expected at least 1"),
        (["--procs-per-node", "0", "local"], "--procs-per-node: expected at least 1 process, got 0"),
        (["local", "cluster.procs_per_node=0"], "procs_per_node: expected greater than or equal to 1, got 0"),
        (["local", "cluster.nodes=3"], "cluster.nodes: unknown key"),
        (["slurmy"], "no preset named 'slurmy'"),
        (["local", "train", "loss.tau=99"], "loss.tau: expected less than or equal to 10"),
        (["local", "loss.tua=1"], "did you mean loss.tau?"),
        (["local", "none.yaml"], "none.yaml: no such file"),
        (["local", "scrach"], "scrach: no such run folder, run file or recipe; did you mean scratch?"),
        (["local", "data.dir=nowhere"], "nowhere"),
        (["local", "eval", "train.run_dir=none"], "none: no such run folder"),
        (["local", "eval", "loss.tua=1"], "did you mean loss.tau?"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert launch.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("marc-launch: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_print_shows_preset_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["local", "train", "loss.tau=0.07", "cluster.stop_grace_s=7", "--print"]) == 0
    out = capsys.readouterr().out
    assert "stop_grace_s: 7.0" in out
    assert "tau: 0.07" in out


def test_dry_run_shows_every_process_and_starts_none(
    tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--dry-run", "--procs-per-node", "2", "local", "train.run_dir=runs/a", "cluster.env.NAME=a b"]
    assert launch.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for rank, line in enumerate(lines):
        assert line.startswith(f"RANK={rank} WORLD_SIZE=2 LOCAL_RANK={rank} MASTER_ADDR=127.0.0.1 ")
        assert "NAME='a b'" in line
        run = f"{tmp_path}/runs/a"
        assert line.endswith(f"-m marc_dist.cli.train {run} >> {run}/logs/rank-{rank}.log")
    assert launch.main(["--dry-run", "local", "eval", "train.run_dir=runs/a", "eval.batch=3"]) == 0
    assert "-m marc_dist.cli.eval train.run_dir=runs/a eval.batch=3" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_streamed_tars_need_not_be_in_the_folder(sample_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    for name in ("dataset.json", "index.parquet"):
        shutil.copy(sample_dir / name, tmp_path / "meta" / name)
    indexed = {"data.dir": str(tmp_path / "meta")}
    with pytest.raises(DataError, match="no such file"):
        check_data(build(Config, indexed))
    check_data(build(Config, indexed | {"data.reader": "streamed"}))


def test_a_dead_place_for_the_run_is_told_before_anything_starts(sample_dir: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("")
    assert launch.main(["local", f"data.dir={sample_dir}", f"train.run_dir={tmp_path}/file/run"]) == 2
    assert "cannot be written" in capsys.readouterr().err


class _Job:
    """A launcher in a process of its own."""

    def __init__(self, run: Path, *words: str) -> None:
        self.run = run
        self.process = subprocess.Popen(
            [*COMMAND, "--procs-per-node", "2", "local", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def wait_for_steps(self, count: int) -> None:
        metrics, deadline = self.run / "metrics.jsonl", time.monotonic() + 90
        while not (metrics.exists() and metrics.read_text().count("\n") >= count):
            assert time.monotonic() < deadline
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)

    def ranks(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(word) for word in children.split()]

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks through /proc")
def test_killed_then_resumed_then_stopped(sample_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [f"data.dir={sample_dir}", f"train.run_dir={run}", "train.checkpoint_every=2", *SMALL]
    job = _Job(run, "train", "train.epochs=1000", *words)
    job.wait_for_steps(4)
    ranks = job.ranks()
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    killed = time.monotonic()
    code, out, err = job.end()
    assert time.monotonic() - killed < 30
    assert code == 1
    assert f"rank 1 of 2 failed first (killed by SIGKILL); log: {run}/logs/rank-1.log" in err
    assert "step 1/" in out
    assert "rank 1 of 2 failed first (killed by SIGKILL)" in str(attempts(run)[-1].error)
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    done = int(checkpoints(run)[-1].stem.removeprefix("step-"))
    assert done >= 2

    job = _Job(run, str(run))
    job.wait_for_steps(done + 2)
    job.process.send_signal(signal.SIGTERM)
    code, out, err = job.end()
    assert code == 85, err
    assert f"going on after step {done}" in out
    stopped = re.search(r"asked to stop \(SIGTERM\): saved after step (\d+)", out)
    assert stopped
    step = int(stopped[1])
    assert checkpoints(run)[-1].name == f"step-{step:08d}.pt"
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, step + 1))


def test_without_data_the_sample_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was refused with a command that makes another data set."""
    monkeypatch.chdir(tmp_path)
    check_data(Config())
    assert "packing the built-in sample into data/sample" in capsys.readouterr().out
    check_data(Config())
    assert "packing" not in capsys.readouterr().out
    with pytest.raises(DataError, match=r"mine: no such shard folder"):
        check_data(build(Config, {"data.dir": "mine"}))
