"""Batches are a function of the plan alone: not of workers, world size, or where an epoch was entered."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch

from marc_dist.augment.views import IMAGENET
from marc_dist.config import Config, DataError, build
from marc_dist.data.batches import Batch
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.data.loader import TrainLoader, iter_eval
from marc_dist.data.loader_pool import STOP_SIGNALS
from tests.worlds import fork_server

SETTINGS = {"data.image_size": 32, "train.global_batch": 150, "train.seed": 5}


def config(sample_dir: Path, workers: int = 0, **more: object) -> Config:
    return build(Config, {**SETTINGS, "data.dir": str(sample_dir), "data.num_workers": workers, **more})


def epoch(
    dataset: Dataset, settings: Config, number: int, rank: int = 0, world: int = 1, start: int = 0
) -> list[Batch]:
    loader = TrainLoader(dataset, settings, rank, world, IMAGENET)
    try:
        return list(loader.epoch(number, start))
    finally:
        loader.close()


def by_id(batches: list[Batch]) -> dict[int, torch.Tensor]:
    """(V, 3, S, S) views of each sample."""
    views: dict[int, torch.Tensor] = {}
    for batch in batches:
        shaped = batch.images.unflatten(0, (-1, len(batch.ids))) if len(batch.ids) else batch.images[None]
        for place, sample in enumerate(batch.ids.tolist()):
            views[sample] = shaped[:, place]
    return views


@pytest.fixture(scope="module")
def dataset(sample_dir: Path) -> Dataset:
    return open_dataset(sample_dir)


@pytest.fixture(scope="module")
def reference(dataset: Dataset, sample_dir: Path) -> list[Batch]:
    return epoch(dataset, config(sample_dir), 1)


def test_shape_and_content(dataset: Dataset, reference: list[Batch]) -> None:
    rows = dataset.rows("train")
    assert sorted(i for batch in reference for i in batch.ids.tolist()) == rows.tolist()
    assert [batch.step for batch in reference] == list(range(len(reference)))
    assert [batch.global_size for batch in reference] == [150] * (len(rows) // 150) + [len(rows) % 150] * (
        len(rows) % 150 > 0
    )
    for batch in reference:
        assert batch.images.shape == (2 * len(batch.ids), 3, 32, 32) and batch.images.dtype == torch.float32
        assert np.array_equal(batch.labels.numpy(), dataset.labels[batch.ids.numpy()])
        one, two = batch.images.chunk(2)
        assert not torch.equal(one, two)


def test_epochs_differ(dataset: Dataset, sample_dir: Path, reference: list[Batch]) -> None:
    other = epoch(dataset, config(sample_dir), 0)
    assert other[0].ids.tolist() != reference[0].ids.tolist()
    sample = int(reference[0].ids[0])
    assert not torch.equal(by_id(other)[sample], by_id(reference)[sample])


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_a_bit(dataset: Dataset, sample_dir: Path, reference: list[Batch], workers: int) -> None:
    loader = TrainLoader(dataset, config(sample_dir, workers), 0, 1, IMAGENET)
    next(loader.epoch(0))  # left after one batch
    batches = list(loader.epoch(1))  # the second pass of workers that stayed alive
    loader.close()
    assert len(batches) == len(reference)
    for batch, expected in zip(batches, reference, strict=True):
        assert torch.equal(batch.images, expected.images) and torch.equal(batch.ids, expected.ids)
        assert torch.equal(batch.labels, expected.labels)


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_ranks_join_to_the_same_global_steps(
    dataset: Dataset, sample_dir: Path, reference: list[Batch], world: int, workers: int
) -> None:
    """Ids and augmented pictures, to the bit; entered late by every other rank, as after a resume."""
    ranks = [epoch(dataset, config(sample_dir, workers), 1, rank, world, start=rank % 2) for rank in range(world)]
    for step, expected in enumerate(reference[1:], start=1):
        parts = [next(batch for batch in batches if batch.step == step) for batches in ranks]
        assert torch.cat([part.ids for part in parts]).tolist() == expected.ids.tolist()
        images = [part.images.unflatten(0, (2, -1)) for part in parts]
        assert torch.equal(torch.cat(images, dim=1).flatten(0, 1), expected.images)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("cache", ["auto", "none"])
def test_the_device_that_trains_augments_to_the_same_bits(
    dataset: Dataset, sample_dir: Path, reference: list[Batch], cache: str, workers: int
) -> None:
    """Pictures held where they are augmented, or sent there step by step; on a CPU also the bits are the same."""
    settings = config(sample_dir, workers, **{"data.augment_on": "device", "data.cache": cache})
    loader = TrainLoader(dataset, settings, 0, 1, IMAGENET)
    assert loader.notes[1].startswith("augmented on cpu, batch by batch")
    for batch, expected in zip(loader.epoch(1), reference, strict=True):
        assert torch.equal(batch.images, expected.images) and torch.equal(batch.ids, expected.ids)
        assert torch.equal(batch.labels, expected.labels) and batch.global_size == expected.global_size
        assert set(batch.seconds) == {"augment"} if cache == "auto" else {"read", "decode", "augment"}
    loader.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("cache", ["auto", "none"])
def test_a_gpu_augments_what_the_workers_would(
    dataset: Dataset, sample_dir: Path, reference: list[Batch], cache: str
) -> None:
    loader = TrainLoader(
        dataset, config(sample_dir, 1, **{"data.cache": cache}), 0, 1, IMAGENET, device=torch.device("cuda")
    )
    for batch, expected in zip(loader.epoch(1), reference, strict=True):
        assert batch.images.is_cuda and batch.ids.tolist() == expected.ids.tolist()
        torch.testing.assert_close(batch.images.cpu(), expected.images, rtol=0, atol=1e-4)
    loader.close()


def test_a_rank_without_rows_gets_an_empty_batch(dataset: Dataset, sample_dir: Path) -> None:
    num = len(dataset.rows("train"))
    settings = config(sample_dir, **{"train.global_batch": num - 1})
    last = epoch(dataset, settings, 0, rank=1, world=2)[-1]
    assert last.images.shape == (0, 3, 32, 32) and last.labels.shape == (0, len(dataset.classes))
    assert last.global_size == 1


def test_entering_an_epoch_late_gives_its_remaining_batches(
    dataset: Dataset, sample_dir: Path, reference: list[Batch]
) -> None:
    late = epoch(dataset, config(sample_dir, 1), 1, start=1)
    assert [batch.step for batch in late] == [batch.step for batch in reference[1:]]
    assert all(torch.equal(a.images, b.images) for a, b in zip(late, reference[1:], strict=True))


def test_threads_do_not_change_a_bit_and_their_number_is_put_back(
    dataset: Dataset, sample_dir: Path, reference: list[Batch]
) -> None:
    torch.set_num_threads(3)
    try:
        first = next(TrainLoader(dataset, config(sample_dir), 0, 1, IMAGENET).epoch(1))
        assert torch.get_num_threads() == 3
        next(iter_eval(dataset, dataset.rows("test"), 16, IMAGENET, 4, 0))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert torch.equal(first.images, reference[0].images)


def test_the_run_s_generator_is_left_alone(dataset: Dataset, sample_dir: Path) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    epoch(dataset, config(sample_dir, 1), 0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_sample_is_one_clear_error(sample_dir: Path, tmp_path: Path, workers: int) -> None:
    shutil.copytree(sample_dir, tmp_path / "copy")
    damaged = open_dataset(tmp_path / "copy")
    first = int(damaged.rows("train")[0])
    with (tmp_path / "copy" / damaged.shards[damaged.shard[first]]).open("r+b") as file:
        file.seek(int(damaged.offset[first]) + 30)
        file.write(b"\0\0\0\0\0\0")
    with pytest.raises(DataError) as caught:
        epoch(damaged, config(tmp_path / "copy", workers, **{"data.cache": "none"}), 0)
    assert str(damaged.keys[first]) in str(caught.value) and "\n" not in str(caught.value)


def test_workers_ignore_stop_signals_and_end_with_their_loader(dataset: Dataset, sample_dir: Path) -> None:
    before = {child.pid for child in multiprocessing.active_children()}
    loader = TrainLoader(dataset, config(sample_dir, 2), 0, 1, IMAGENET)
    batches = loader.epoch(0)
    next(batches)
    workers = [child for child in multiprocessing.active_children() if child.pid not in before]
    assert len(workers) == 2
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    for number in STOP_SIGNALS:
        os.kill(server, number)
        for worker in workers:
            status = Path(f"/proc/{worker.pid}/status").read_text()
            ignored = int(next(line for line in status.splitlines() if line.startswith("SigIgn")).split()[1], 16)
            assert ignored >> (number - 1) & 1
            os.kill(worker.pid, number)  # type: ignore[arg-type]
    assert len(list(batches)) == loader.steps_per_epoch - 1
    assert all(worker.is_alive() for worker in workers)
    loader.close()
    deadline = time.monotonic() + 10
    while any(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize("wait_s", [0.0, 1.0])
def test_a_worker_that_dies_is_one_clear_error(dataset: Dataset, sample_dir: Path, wait_s: float) -> None:
    """At work, or with batches handed over whose memory it has still to pass on: found, "Connection refused"."""
    loader = TrainLoader(dataset, config(sample_dir, 1, **{"train.global_batch": 32}), 0, 1, IMAGENET)
    before = {child.pid for child in multiprocessing.active_children()}
    batches = loader.epoch(0)
    next(batches)
    (worker,) = [child for child in multiprocessing.active_children() if child.pid not in before]
    time.sleep(wait_s)
    worker.kill()
    with pytest.raises(DataError, match=rf"loader process {worker.pid} \(exit code -9\).*try data.num_workers=0"):
        list(batches)
    loader.close()


def leave(sample_dir: Path, how: str, report: Connection) -> None:
    """A main process with a worker that it never closes."""
    loader = TrainLoader(open_dataset(sample_dir), config(sample_dir, 1, **{"train.global_batch": 8}), 0, 1, IMAGENET)
    batches = loader.epoch(0)
    next(batches)
    report.send([child.pid for child in multiprocessing.active_children()])
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    globals()["kept"] = loader, batches  # as a traceback or a module would keep them
    sys.exit(3)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize(("how", "code"), [("killed", -signal.SIGKILL), ("error", 3)])
def test_a_main_process_that_never_closes_ends_and_leaves_nothing(sample_dir: Path, how: str, code: int) -> None:
    """``kill -9`` orphans no worker; an error's exit does not wait for workers that ignore SIGTERM."""
    context = fork_server()
    ours, theirs = context.Pipe(duplex=False)
    main = context.Process(target=leave, args=(sample_dir, how, theirs))
    main.start()
    theirs.close()
    assert ours.poll(60)
    workers = ours.recv()
    ours.close()
    assert len(workers) == 1
    try:
        main.join(20)
        assert main.exitcode == code
        deadline = time.monotonic() + 10
        while any(map(running, workers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(running, workers))
    finally:
        main.kill()
        for pid in filter(running, workers):
            os.kill(pid, signal.SIGKILL)


def test_pictures_for_evaluation_keep_their_order(dataset: Dataset) -> None:
    ids = dataset.rows("test")[::-1][:23].copy()
    found = {workers: list(iter_eval(dataset, ids, 32, IMAGENET, 10, workers)) for workers in (0, 2)}
    for parts in found.values():
        assert [len(part) for _, part in parts] == [10, 10, 3]
        assert torch.cat([part for _, part in parts]).tolist() == ids.tolist()
    one, two = (torch.cat([images for images, _ in parts]) for parts in found.values())
    assert one.shape == (23, 3, 32, 32) and torch.equal(one, two)
