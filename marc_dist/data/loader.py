"""Batches of a rank, in the order of the plan, decoded and augmented by worker processes.

A worker is told the ids of a step and builds the rank's whole part of that step. Nothing it does depends on which
worker it is, so 0, 1 or 8 of them give the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from marc_dist.augment.views import Augment, PixelScale, eval_transform
from marc_dist.config import AugmentConfig, Config
from marc_dist.data.bands.pick import band_notes, pick_for
from marc_dist.data.batches import (
    Batch,
    Picture,
    Pictures,
    Placed,
    Stopwatch,
    Where,
    augmented,
    stack,
    try_each,
    with_views,
)
from marc_dist.data.cache import DecodedCache, cache_root, open_cache, why_not
from marc_dist.data.dataset import Dataset
from marc_dist.data.device_augment import BatchAugmenter
from marc_dist.data.epoch_order import EpochOrder
from marc_dist.data.loader_pool import Pool, Tasks
from marc_dist.data.plan import Ids, global_batch_ids, num_steps, rank_part
from marc_dist.data.reader import IndexedReader, decoded


class _TrainTasks(Tasks):
    """Parts of global steps.

    Args:
        dataset: an opened shard folder.
        config: the run's settings.
        rank: of this process.
        world: number of processes.
        scale: what the encoder expects.
        tick: called now and then while pictures are decoded ahead.

    Attributes:
        gives: what a task's result holds, see ``BatchAugmenter.wants``; set by the loader.
        note: where pictures come from.
    """

    gives: Literal["images", "pixels", "rows"] = "images"

    def __init__(
        self,
        dataset: Dataset,
        config: Config,
        rank: int,
        world: int,
        scale: PixelScale,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.scale = scale
        self.dataset, self.config, self.rank, self.world = dataset, config, rank, world
        self.pick = pick_for(dataset, scale.bands)
        self.reader = IndexedReader(
            dataset, verify_crc=config.data.verify_crc, retries=config.data.retries, pick=self.pick
        )
        self.cache: DecodedCache | None = None
        self.note = "data.cache=none: every picture is decoded each time"
        if config.data.cache == "auto":
            self._open_cache(tick)

    def _open_cache(self, tick: Callable[[], None]) -> None:
        data = self.config.data
        root = cache_root(data.cache_dir)
        reason = why_not(self.dataset, self.dataset.rows(data.train_split), root, self.pick)
        if reason is not None:
            self.note = f"decoded pictures are not kept, {reason}; every picture is decoded each time"
            return
        skip = data.on_error == "skip"
        self.cache = open_cache(self.dataset, data.train_split, root, reader=self.reader, skip=skip, tick=tick)
        self.note = f"decoded pictures in {self.cache.folder}"

    def build(self, *task: int) -> Batch | Pictures:
        """The rank's part of an epoch's step: (epoch, step, entries of the whole step, ids ..., visits ...)."""
        epoch, step, num = task[:3]
        ids, visits = np.array(task[3:], dtype=np.int64).reshape(2, -1)
        watch = Stopwatch()
        pictures, good, bad = try_each(self.config, ids, self._read_with(ids, watch))
        ids, visits = ids[good], visits[good]
        if self.cache is not None and self.gives == "rows":
            placed = Placed(None, None, self.cache.rows(ids))
        else:
            with watch.on("decode"):
                placed = Placed(*stack(pictures, shared=self.gives == "pixels"), list(range(len(good))))
        where = Where(epoch, step, num)
        num = self.scale.num_bands
        batch = with_views(self.config, self.dataset, where, ids, visits, placed, bad, watch, num)
        return augmented(batch, self.config.data.image_size, self.scale) if self.gives == "images" else batch

    def _read_with(self, ids: Ids, watch: Stopwatch) -> Callable[[int], Picture]:
        """How to get a picture of ``ids``."""
        if self.cache is not None:
            cache = self.cache
            return _nothing_of(cache) if self.gives == "rows" else lambda sample: self._cached(cache, sample, watch)
        self.reader.expect(ids.tolist())
        return lambda sample: self._decoded(sample, watch)

    def _cached(self, cache: DecodedCache, sample: int, watch: Stopwatch) -> Picture:
        with watch.on("read"):
            return cache.picture(sample)

    def _decoded(self, sample: int, watch: Stopwatch) -> Picture:
        with watch.on("read"):
            data = self.reader.read(sample)
        with watch.on("decode"):
            return decoded(data, self.dataset.place(sample), self.pick)


def _nothing_of(cache: DecodedCache) -> Callable[[int], Picture]:
    """For pictures that are held elsewhere: only whether there is one."""

    def look(sample: int) -> Picture:
        cache.refuse(sample)
        return np.empty((0, 0, 3), dtype=np.uint8)

    return look


class _Steps(Sequence[tuple[int, ...]]):
    """The tasks of an epoch, each made when it is taken: an epoch's order is long, and workers need none of it."""

    def __init__(self, order: EpochOrder, epoch: int, steps: range, place: tuple[int, int]) -> None:
        self.order, self.epoch, self.steps, self.place = order, epoch, steps, place

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, item: Any) -> Any:
        step, batch = self.steps[item], self.order.config.train.global_batch
        every, visits = (global_batch_ids(part, step, batch) for part in self.order.entries(self.epoch))
        own = (rank_part(part, *self.place).tolist() for part in (every, visits))
        return (self.epoch, step, len(every), *chain.from_iterable(own))


class TrainLoader:
    """A rank's batches, epoch by epoch.

    Args:
        dataset: an opened shard folder.
        config: the run's settings.
        rank: of this process.
        world: number of processes.
        scale: what the encoder expects.
        tick: called now and then while pictures are decoded ahead.
        device: where the encoder runs.

    Attributes:
        notes: lines for people on where pictures come from and where they are augmented.
        steps_per_epoch: global steps.

    Raises:
        DataError: the dataset has no such split; a picture that cannot be decoded ahead.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: Config,
        rank: int,
        world: int,
        scale: PixelScale,
        tick: Callable[[], None] = lambda: None,
        device: torch.device | None = None,
    ) -> None:
        self._order, self._place = EpochOrder(dataset, config), (rank, world)
        tasks = _TrainTasks(dataset, config, rank, world, scale, tick)
        self._finisher = BatchAugmenter(config, device or torch.device("cpu"), tasks.cache, tick, scale)
        tasks.gives = self._finisher.wants
        self.notes = [*band_notes(config, scale), tasks.note, self._finisher.note]
        self.steps_per_epoch = num_steps(self._order.length(), config.train.global_batch)
        self._pool: Pool[Batch | Pictures] = Pool(tasks, config.data.num_workers)
        self._batches: Iterator[Batch] = iter(())

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``start_step`` on; a rank with no rows in a step gets an empty batch.

        Raises:
            DataError: a sample that cannot be read; names shard and key.
        """
        tasks = _Steps(self._order, epoch, range(start_step, self.steps_per_epoch), self._place)
        self._batches = self._finisher.finish(self._pool.run(tasks))
        return self._batches

    def close(self) -> None:
        """End the workers."""
        if isinstance(self._batches, Generator):  # a thread may be at work for it
            self._batches.close()
        self._pool.close()


class _EvalTasks(Tasks):
    def __init__(
        self,
        dataset: Dataset,
        ids: Ids,
        image_size: int,
        scale: PixelScale,
        batch: int,
        verify_crc: bool,
        view: FixedView | None,
    ) -> None:
        self.scale = scale
        self.ids, self.image_size, self.batch, self.view = ids, image_size, batch, view
        self.reader = IndexedReader(dataset, verify_crc=verify_crc, pick=pick_for(dataset, scale.bands))

    def build(self, *task: int) -> tuple[Tensor, Tensor]:
        ids = self.ids[task[0] * self.batch : (task[0] + 1) * self.batch]
        self.reader.expect(ids.tolist())
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # without workers, too: pictures are so small that threads only wait for each other
        try:
            images = [self._image(sample) for sample in ids.tolist()]
        finally:
            torch.set_num_threads(threads)
        return torch.stack(images), torch.from_numpy(ids.copy())

    def _image(self, sample: int) -> Tensor:
        picture = self.reader.picture(sample) if self.scale.bands is not None else self.reader.image(sample)
        if self.view is None:
            return eval_transform(picture, self.image_size, self.scale)
        augment = Augment(self.view.augment, self.image_size, 0, self.scale)
        return augment(picture, 0, sample, self.view.number)


class FixedView(NamedTuple):
    """One augmented view of every picture, the same for all runs: that of seed 0 and epoch 0 with this number."""

    augment: AugmentConfig
    number: int


def iter_eval(
    dataset: Dataset,
    ids: Ids,
    image_size: int,
    scale: PixelScale,
    batch: int,
    num_workers: int,
    verify_crc: bool = True,
    view: FixedView | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures as they are, or one augmented view of each, in the order of ``ids``.

    Args:
        dataset: an opened shard folder.
        ids: (N,) sample ids.
        image_size: S, side of the square given to the encoder, pixels.
        scale: what the encoder expects.
        batch: pictures a batch.
        num_workers: processes that decode; 0 = this one.
        verify_crc: check every image's CRC-32.
        view: which augmented view; None = the pictures as they are.

    Yields:
        (B, C, S, S) float32 normalised, C = 3 or the number of bands, and their (B,) ids.
    """
    tasks = _EvalTasks(dataset, ids, image_size, scale, batch, verify_crc, view)
    pool: Pool[tuple[Tensor, Tensor]] = Pool(tasks, num_workers)
    try:
        yield from pool.run([(number,) for number in range(num_steps(len(ids), batch))])
    finally:
        pool.close()
