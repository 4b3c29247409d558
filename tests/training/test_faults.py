"""Faults that must not cost a run: samples that cannot be read, ranks that stop answering."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from marc_dist.config import Config, ConfigError, DataError, build
from marc_dist.data.dataset import open_dataset
from marc_dist.run.folder import checkpoints
from marc_dist.training import trainer
from marc_dist.training.checkpoint import load_checkpoint
from marc_dist.training.signals import StopFlag
from tests.cli.test_launch import _Job
from tests.cli.test_train import SMALL
from tests.training.test_trainer import VARYING, _difference, _ids, _metrics, _state, _train, _words
from tests.worlds import WorldError, fork_server, run_in_world

BAD = (3, 17, 40)  # ids, whatever their place in the epoch


@pytest.fixture
def damaged(small_dir: Path, tmp_path: Path) -> Path:
    """A shard folder with three pictures whose bytes have changed since they were packed."""
    shutil.copytree(small_dir, tmp_path / "damaged")
    dataset = open_dataset(tmp_path / "damaged")
    for row in BAD:
        with (dataset.root / dataset.shards[dataset.shard[row]]).open("r+b") as file:
            file.seek(int(dataset.offset[row]) + 40)
            file.write(b"\x00damaged\x00")
    return tmp_path / "damaged"


def test_bad_samples_are_left_out_listed_and_counted_the_same_at_any_size(damaged: Path, tmp_path: Path) -> None:
    """Six steps of 13 of 53 samples go round once: each bad sample is met, some twice."""
    options = {"data.on_error": "skip", "data.retries": 0, "train.max_steps": 6}
    runs = {}
    for world in (1, 2, 3):
        options |= {"data.cache": "none"} if world < 3 else {"data.cache_dir": str(tmp_path / "cache")}
        run = runs[world] = tmp_path / f"run-{world}"
        results = run_in_world(_train, world, _words(damaged, run) | options)
        assert not set(BAD) & {sample for ids in _ids(results).values() for sample in ids}
        assert any(f"left out: {damaged}" in line for line in results[0]["said"])
        assert any("expected CRC-32" in line for line in results[0]["said"])
    for world in (2, 3):
        assert _difference(_state(runs[1], 6), _state(runs[world], 6)) < 1e-9
        assert (runs[world] / "bad_samples.jsonl").read_text() == (runs[1] / "bad_samples.jsonl").read_text()
        one, other = ([{k: line[k] for k in line.keys() - VARYING} for line in _metrics(runs[w])] for w in (1, world))
        assert other == [pytest.approx(line, rel=1e-7) for line in one]
    listed = [json.loads(line) for line in (runs[1] / "bad_samples.jsonl").read_text().splitlines()]
    assert {line["id"] for line in listed} == set(BAD)
    assert _metrics(runs[1])[-1]["bad_samples"] == len(BAD)
    run_in_world(
        _train, 2, _words(damaged, runs[2]) | options | {"train.max_steps": 8}
    )  # the count outlives the process
    assert load_checkpoint(checkpoints(runs[2])[-1])["bad"] == sorted(BAD)


def test_too_many_bad_samples_end_the_run_on_all_ranks(damaged: Path, tmp_path: Path) -> None:
    options = {"data.on_error": "skip", "data.retries": 0, "data.max_bad": 2, "data.cache": "none"}
    with pytest.raises(WorldError, match=r"DataError: .*3 samples cannot be read, more than data.max_bad=2; the list"):
        run_in_world(_train, 2, _words(damaged, tmp_path / "run") | options)


def test_a_bad_sample_ends_the_run_by_default_and_is_named(damaged: Path, tmp_path: Path) -> None:
    dataset = open_dataset(damaged)
    with pytest.raises(DataError, match=rf"{dataset.root}/train-\d+.tar: .* at byte \d+: expected CRC-32"):
        trainer.train(build(Config, _words(damaged, tmp_path / "run", data__retries=0, data__cache="none")))


def test_the_policy_may_change_when_a_run_goes_on(damaged: Path, tmp_path: Path) -> None:
    words = _words(damaged, tmp_path / "run", data__retries=0, data__cache="none", train__checkpoint_every=1)
    with pytest.raises(DataError):
        trainer.train(build(Config, words))
    trainer.train(build(Config, words | {"data.on_error": "skip"}))
    with pytest.raises(ConfigError, match="begun with other settings: train.seed"):
        trainer.train(build(Config, words | {"train.seed": 1}))
    assert torch.is_tensor(load_checkpoint(checkpoints(tmp_path / "run")[-1])["model"]["head.0.weight"])


@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks through /proc")
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_and_the_job_ends(stopped: int, sample_dir: Path, tmp_path: Path) -> None:
    """SIGSTOP, as a frozen machine: nothing is closed, so no peer notices by itself."""
    run = tmp_path / "run"
    words = [f"data.dir={sample_dir}", f"train.run_dir={run}", "train.checkpoint_every=2", "train.timeout_s=8", *SMALL]
    job = _Job(run, "train", "train.epochs=1000", *words)
    job.wait_for_steps(4)
    ranks = job.ranks()
    os.kill(ranks[stopped], signal.SIGSTOP)
    start = time.monotonic()
    code, _, err = job.end()
    assert time.monotonic() - start < 40
    assert code == 1
    assert f"rank {1 - stopped} of 2 failed first (exit code 75)" in err
    assert f"rank {stopped} (" in err and f"process {ranks[stopped]}) stopped answering" in err
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)


@pytest.mark.skipif(sys.platform != "linux", reason="stops a rank")
def test_a_rank_that_never_comes_is_named(sample_dir: Path, tmp_path: Path) -> None:
    """Frozen while it starts: the others have not even met it."""
    run = tmp_path / "run"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    world = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = [f"data.dir={sample_dir}", f"train.run_dir={run}", "train.timeout_s=3", *SMALL]
    command = [sys.executable, "-m", "marc_dist.cli.train", *words]
    done = subprocess.run(command, env=os.environ | world, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 75, done.stderr
    assert "rank 0 waited" in done.stderr and "rank 1 never started" in done.stderr


class _Freezing(StopFlag):
    """Stops this process's loader workers in the third step, as a hanging disk does."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.before, self.stopped = {worker.pid for worker in active_children()}, list[int]()

    def __bool__(self) -> bool:
        self.asked += 1
        if self.asked == 3:
            self.stopped = [worker.pid or 0 for worker in active_children() if worker.pid not in self.before]
            for worker in self.stopped:
                os.kill(worker, signal.SIGSTOP)
        return False


def test_a_frozen_loader_of_a_run_without_others_is_told_and_ends(small_dir: Path, tmp_path: Path) -> None:
    """Here the end of the process is an entry in a list; the main thread then learns that its worker was killed."""
    warm = fork_server().Process(target=int)  # the server imports torch, which may take longer than the limit below
    warm.start()
    warm.join()
    words = _words(small_dir, tmp_path / "run", data__num_workers=1, train__max_steps=None, train__timeout_s=4.0)
    told: list[str] = []
    stop = _Freezing()
    with pytest.raises(DataError, match=r"loader process \d+ \(exit code -9\) ended by itself"):
        trainer.run_rank(build(Config, words), stop=stop, give_up=told.append)
    place = rf"{tmp_path}/run: no progress for \d+ s, loading in step \d+ \(process {os.getpid()} on .*\): no batch"
    assert re.match(place, told[0])
    assert "a loader process is frozen" in told[0] and "or raise train.timeout_s" in told[0]
    assert len(stop.stopped) == 1 and not Path(f"/proc/{stop.stopped[0]}").exists()
