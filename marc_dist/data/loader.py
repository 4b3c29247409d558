"""Batches of a rank, in the order of the plan, decoded and augmented by worker processes.

A worker is asked for (epoch, step) and builds the rank's whole part of that step. Nothing it does depends on which
worker it is, so 0, 1 or 8 of them give the same tensors.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.util import Finalize
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from marc_dist.config import Config, DataError, MarcError
from marc_dist.data.augment import draw, eval_transform
from marc_dist.data.augment_batch import apply_batch
from marc_dist.data.cache import DecodedCache, cache_root, open_cache, why_not
from marc_dist.data.dataset import Dataset
from marc_dist.data.plan import Ids, epoch_order, global_batch_ids, num_steps, rank_part
from marc_dist.data.reader import IndexedReader
from marc_dist.data.sampler import epoch_length, label_aware_order, repeat_factors, visit_numbers

T = TypeVar("T")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Batch:
    """A rank's part of one global step.

    Attributes:
        images: (V * B, 3, S, S) float32, normalised; all of view 0, then all of view 1, ...
        labels: (B, L) bool.
        ids: (B,) int64 sample ids.
        step: number of the global step in its epoch.
        global_size: samples of the global step over all ranks, bad ones included.
        bad: (id, what is wrong) of this rank's samples that were left out (``data.on_error=skip``).
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    step: int
    global_size: int
    bad: tuple[tuple[int, str], ...] = ()


class _Tasks(TorchDataset[Any]):
    """What a worker computes; an error that belongs to a person travels as a value, not as a wrapped traceback."""

    def __getitem__(self, task: tuple[int, ...]) -> Any:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # without workers, too: pictures are so small that threads only wait for each other
        try:
            return self.build(*task)
        except MarcError as error:
            return error
        finally:
            torch.set_num_threads(threads)

    def build(self, *task: int) -> Any:
        """The result of one task."""
        raise AssertionError("overridden")


class _Schedule(Sampler[tuple[int, ...]]):
    """The tasks of the coming pass; workers live on between passes, so the tasks come from here and not from them."""

    def __init__(self) -> None:
        self.tasks: Sequence[tuple[int, ...]] = ()

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)


def _start_worker(_: int) -> None:
    """A job's stop signals are the main process's business; a worker ends when its main process does.

    torch watches the parent instead, which here is the fork server, and that lives as long as any worker does.
    """
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_main, daemon=True).start()


def _end_with_main() -> None:
    main = multiprocessing.parent_process()
    assert main is not None, "only workers watch"
    main.join()
    os._exit(1)


def _kill(workers: list[Any]) -> None:
    """For workers that nobody closed: they ignore the SIGTERM that multiprocessing sends (and then waits for ever)."""
    for worker in workers:
        worker.kill()


def _as_is(result: Any) -> Any:
    return result


def _context() -> Any:
    """Fork server: a plain fork would copy a process in which gloo's or CUDA's threads hold locks, and a spawned
    worker would import torch anew. The server is born with the stop signals blocked, or it would take the workers
    with it when a whole process group is signalled; a signal that reaches this process meanwhile comes a little later.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["marc_dist.data.loader"])
    resource_tracker.ensure_running()  # it would unblock SIGTERM
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


class _Loader(DataLoader[Any]):
    def check_worker_number_rationality(self) -> None:
        """No warning about more workers than cores: their number is a setting."""


class _Pool(Generic[T]):
    """Runs tasks in order, in this process or in workers that stay alive between passes."""

    def __init__(self, tasks: _Tasks, num_workers: int) -> None:
        self.schedule = _Schedule()
        workers: dict[str, Any] = {}
        if num_workers:
            workers = {
                "multiprocessing_context": _context(),
                "persistent_workers": True,
                "worker_init_fn": _start_worker,
            }
        self._loader: _Loader | None = _Loader(
            tasks,
            batch_size=None,
            sampler=self.schedule,
            num_workers=num_workers,
            collate_fn=_as_is,
            generator=torch.Generator(),  # its own: starting workers must not move the run's generator
            **workers,
        )

        self._workers: list[Any] = []
        Finalize(self, _kill, (self._workers,), exitpriority=10)  # before multiprocessing waits for its children

    def run(self, tasks: Sequence[tuple[int, ...]]) -> Iterator[T]:
        """Results in the order of ``tasks``."""
        assert self._loader is not None, "closed"
        self.schedule.tasks = tasks
        results = iter(self._loader)
        self._workers[:] = getattr(results, "_workers", [])
        try:
            for result in results:
                if isinstance(result, MarcError):
                    raise result
                yield result
        except RuntimeError:
            dead = [worker for worker in self._workers if not worker.is_alive()]
            if not dead:
                raise
            names = ", ".join(f"{worker.pid} (exit code {worker.exitcode})" for worker in dead)
            killed = any((worker.exitcode or 0) < 0 for worker in dead)
            why = "mostly for want of memory or of room in /dev/shm" if killed else "see its own message above"
            raise DataError(
                f"loader process {names} ended by itself, {why}; try data.num_workers={max(0, len(self._workers) - 1)}"
            ) from None

    def close(self) -> None:
        """End the workers."""
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()
        _kill([worker for worker in self._workers if worker.is_alive()])
        self._workers.clear()
        self._loader = None


class _TrainTasks(_Tasks):
    def __init__(
        self, dataset: Dataset, config: Config, rank: int, world: int, tick: Callable[[], None] = lambda: None
    ) -> None:
        self.rows = dataset.rows(config.data.train_split)
        self.dataset, self.config, self.rank, self.world = dataset, config, rank, world
        self.reader = IndexedReader(dataset, verify_crc=config.data.verify_crc, retries=config.data.retries)
        self.cache: DecodedCache | None = None
        self.note = "data.cache=none: every picture is decoded each time"
        if config.data.cache == "auto":
            self._open_cache(tick)
        self._order: tuple[int, Ids, Ids] | None = None
        self._views: Tensor | None = None

    def _open_cache(self, tick: Callable[[], None]) -> None:
        data = self.config.data
        root = cache_root(data.cache_dir)
        reason = why_not(self.dataset, self.rows, root)
        if reason is not None:
            self.note = f"decoded pictures are not kept, {reason}; every picture is decoded each time"
            return
        skip = data.on_error == "skip"
        self.cache = open_cache(self.dataset, data.train_split, root, reader=self.reader, skip=skip, tick=tick)
        self.note = f"decoded pictures in {self.cache.folder}"

    def picture(self, sample: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8.

        Raises:
            DataError: it cannot be read or decoded.
        """
        if self.cache is not None:
            return self.cache.picture(sample)
        return np.array(self.reader.image(sample))

    def views(self, sample: int, epoch: int, visit: int) -> Tensor:
        """(V, 3, S, S) float32, the augmented views of a sample; a function of (seed, epoch, sample, view) alone.

        A sample's second visit in an epoch draws as views V to 2 V - 1, and so on. The next call overwrites them.
        """
        data, seed = self.config.data, self.config.train.seed
        picture = torch.from_numpy(self.picture(sample)).permute(2, 0, 1)[None]
        numbers = range(visit * data.num_views, (visit + 1) * data.num_views)
        drawn = [draw(self.config.augment, seed=seed, epoch=epoch, sample=sample, view=view) for view in numbers]
        if self._views is None:  # fresh memory for every sample would cost a third of the time
            self._views = torch.empty(data.num_views, 3, data.image_size, data.image_size)
        sizes = torch.tensor([picture.shape[2:]])
        return apply_batch(picture, sizes, drawn, data.image_size, rows=[0] * len(drawn), out=self._views)

    def order(self, epoch: int) -> tuple[Ids, Ids]:
        """The ids of an epoch in order, and which visit of its sample in that epoch each is, from 0."""
        if self._order is None or self._order[0] != epoch:
            ids = self._new_order(epoch)
            self._order = epoch, ids, visit_numbers(ids)
        return self._order[1:]

    def _new_order(self, epoch: int) -> Ids:
        seed, fingerprint = self.config.train.seed, self.dataset.fingerprint
        if self.config.data.sampler == "uniform":
            return epoch_order(self.rows, seed=seed, epoch=epoch, fingerprint=fingerprint)
        return label_aware_order(
            self.rows,
            self.dataset.labels[self.rows],
            seed=seed,
            epoch=epoch,
            fingerprint=fingerprint,
            global_batch=self.config.train.global_batch,
            threshold=self.config.data.repeat_threshold,
            maximum=self.config.data.repeat_max,
        )

    def epoch_length(self) -> int:
        """Entries of every epoch's order."""
        data = self.config.data
        if data.sampler == "uniform":
            return len(self.rows)
        labels = self.dataset.labels[self.rows]
        return epoch_length(repeat_factors(labels, threshold=data.repeat_threshold, maximum=data.repeat_max))

    def build(self, *task: int) -> Batch:
        epoch, step = task
        every, visits = (global_batch_ids(part, step, self.config.train.global_batch) for part in self.order(epoch))
        ids = rank_part(every, self.rank, self.world)
        visits = rank_part(visits, self.rank, self.world)
        size, num_views = self.config.data.image_size, self.config.data.num_views
        images = torch.empty((num_views, len(ids), 3, size, size), dtype=torch.float32)
        good: list[int] = []
        bad: list[tuple[int, str]] = []
        for sample, visit in zip(ids.tolist(), visits.tolist(), strict=True):
            try:
                images[:, len(good)] = self.views(sample, epoch, visit)
            except DataError as error:
                if self.config.data.on_error == "stop":
                    raise
                bad.append((sample, str(error)))
            else:
                good.append(sample)
        return Batch(
            images=images[:, : len(good)].flatten(0, 1),
            labels=torch.from_numpy(self.dataset.labels[good]),
            ids=torch.tensor(good, dtype=torch.int64),
            step=step,
            global_size=len(every),
            bad=tuple(bad),
        )


class TrainLoader:
    """A rank's batches, epoch by epoch.

    Args:
        dataset: an opened shard folder.
        config: the run's settings.
        rank: of this process.
        world: number of processes.
        tick: called now and then while pictures are decoded ahead.

    Attributes:
        note: one line for people on where pictures come from.

    Raises:
        DataError: the dataset has no such split; a picture that cannot be decoded ahead.
    """

    def __init__(
        self, dataset: Dataset, config: Config, rank: int, world: int, tick: Callable[[], None] = lambda: None
    ) -> None:
        tasks = _TrainTasks(dataset, config, rank, world, tick)
        self.note = tasks.note
        self.steps_per_epoch = num_steps(tasks.epoch_length(), config.train.global_batch)
        self._pool: _Pool[Batch] = _Pool(tasks, config.data.num_workers)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``start_step`` on; a rank with no rows in a step gets an empty batch.

        Raises:
            DataError: a sample that cannot be read; names shard and key.
        """
        return self._pool.run([(epoch, step) for step in range(start_step, self.steps_per_epoch)])

    def close(self) -> None:
        """End the workers."""
        self._pool.close()


class _EvalTasks(_Tasks):
    def __init__(self, dataset: Dataset, ids: Ids, image_size: int, batch: int, verify_crc: bool) -> None:
        self.ids, self.image_size, self.batch = ids, image_size, batch
        self.reader = IndexedReader(dataset, verify_crc=verify_crc)

    def build(self, *task: int) -> tuple[Tensor, Tensor]:
        ids = self.ids[task[0] * self.batch : (task[0] + 1) * self.batch]
        images = torch.stack([eval_transform(self.reader.image(sample), self.image_size) for sample in ids.tolist()])
        return images, torch.from_numpy(ids.copy())


def iter_eval(
    dataset: Dataset, ids: Ids, image_size: int, batch: int, num_workers: int, verify_crc: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures as they are, in the order of ``ids``.

    Args:
        dataset: an opened shard folder.
        ids: (N,) sample ids.
        image_size: S, side of the square given to the encoder, pixels.
        batch: pictures a batch.
        num_workers: processes that decode; 0 = this one.
        verify_crc: check every image's CRC-32.

    Yields:
        (B, 3, S, S) float32 normalised, and their (B,) ids.
    """
    pool: _Pool[tuple[Tensor, Tensor]] = _Pool(_EvalTasks(dataset, ids, image_size, batch, verify_crc), num_workers)
    try:
        yield from pool.run([(number,) for number in range(num_steps(len(ids), batch))])
    finally:
        pool.close()
