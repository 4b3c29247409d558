"""Batches from tars that are read from end to end, wherever they are; the ``webdataset`` library takes them apart.

``data.dir`` holds the two small files that say what there is, ``dataset.json`` and ``index.parquet``; the tars may be
elsewhere. So ids, labels, checksums and augmentation are those of the indexed reader, and all that arrives is checked
against the index: what is missing, strange or damaged is named.

The order is that of ``lanes``: a function of (seed, epoch), free of ranks and workers. A worker is asked for (epoch,
step, part) and keeps its lanes open; asked for another step than the next it begins the lanes of that epoch anew and
passes over what was given before, so that its answer never depends on what it did before.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import c_uint64
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from marc_dist.augment.views import PixelScale
from marc_dist.config import Config, DataError
from marc_dist.data.bands.pick import band_notes, pick_for
from marc_dist.data.batches import (
    Batch,
    Picture,
    Pictures,
    Placed,
    Stopwatch,
    Where,
    augmented,
    merge,
    stack,
    try_each,
    with_views,
)
from marc_dist.data.dataset import Dataset
from marc_dist.data.device_augment import BatchAugmenter
from marc_dist.data.loader_pool import Pool, Tasks
from marc_dist.data.plan import Ids, rank_part
from marc_dist.data.reader import FIRST_WAIT_S, decoded
from marc_dist.data.remote import TarStream, printable_url, shard_urls
from marc_dist.data.stream_order import Lanes, alike, pair_rate

MEASURED = 200_000  # samples of the epoch whose shuffle is measured
LOOK_S = 0.5
"""Between looks whether anything arrives, while a batch is waited for."""


class Arrived(NamedTuple):
    """A sample as it came, or what is wrong with it."""

    id: int
    data: bytes
    fault: str | None = None


class StreamedShard(NamedTuple):
    """A tar to stream.

    Attributes:
        url: see ``shard_urls``.
        ids: of the split's samples, in the order of the tar.
    """

    url: str
    ids: Ids


class Stream:
    """Samples of shards as they arrive.

    Args:
        dataset: the index.
        config: the run's settings.
        shards: where each is to be had.

    Attributes:
        came: grows with every sample that arrives, in whatever process; shared by all.
    """

    def __init__(self, dataset: Dataset, config: Config, shards: Mapping[int, StreamedShard]) -> None:
        self.dataset, self.shards, self.data = dataset, shards, config.data
        self.came = multiprocessing.RawValue(c_uint64)
        # all tries together end before the watchdog would end the run, which knows ranks and no URLs
        self.stall_s = config.train.timeout_s / (2 * (config.data.retries + 1))

    def arriving(self, shards: Sequence[int]) -> Generator[Arrived, None, None]:
        """Every sample of ``shards`` once, in the index's order; what does not come carries its fault.

        Raises:
            DataError: something does not come, and ``data.on_error=stop``.
        """
        for shard in shards:
            yield from self._shard(shard, self.shards[shard])

    def _shard(self, number: int, shard: StreamedShard) -> Generator[Arrived, None, None]:
        places = {sample: place for place, sample in enumerate(shard.ids.tolist())}
        done, fault = 0, ""
        for attempt in range(self.data.retries + 1):
            if attempt:
                time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
            opened = self._open(number, shard.url)
            try:
                for sample, data in opened:
                    self.came.value += 1  # two at once may count as one: it is only looked at for a change
                    place = places.get(sample, -1)
                    if place < done:  # of another split, or given before the stream broke
                        continue
                    yield from (self._missing(shard, gap, "not where the index has it") for gap in range(done, place))
                    done = place + 1
                    yield Arrived(sample, data, self._damage(shard, sample, data))
                fault = "the tar ended too early"
            except Missing:
                raise
            except Exception as error:  # webdataset's and tarfile's own
                text = str(error.args[0] if error.args else error).split(" @ <")[0]  # webdataset adds the stream's repr
                fault = " ".join(text.split())[:200] or type(error).__name__
            finally:
                opened.close()
            if done == len(shard.ids):
                return
        tries = f" ({self.data.retries + 1} tries)" if self.data.retries else ""
        yield from (self._missing(shard, gap, f"{fault}{tries}") for gap in range(done, len(shard.ids)))

    def _open(self, number: int, url: str) -> Generator[tuple[int, bytes], None, None]:
        """Id and picture of what the tar holds."""
        from webdataset.tariterators import group_by_keys, tar_file_expander

        inside = np.flatnonzero(self.dataset.shard == number)
        ids = dict(zip(self.dataset.keys[inside].tolist(), inside.tolist(), strict=True))
        stream = TarStream(url, self.dataset.meta["shards"][number]["size"], self.stall_s)
        try:
            for sample in group_by_keys(tar_file_expander([{"url": "", "stream": stream}])):
                found = ids.get(sample["__key__"])
                if found is None:
                    raise DataError(f"{sample['__key__']} is not in the index of {self.dataset.root}")
                yield found, sample.get(self.dataset.ext[found], b"")
        finally:
            stream.close()

    def _damage(self, shard: StreamedShard, sample: int, data: bytes) -> str | None:
        if not self.data.verify_crc:
            return None
        expected, got = int(self.dataset.crc32[sample]), zlib.crc32(data)
        if got == expected:
            return None
        return f"{self._name(shard, sample)}: expected CRC-32 {expected:08x}, got {got:08x}"

    def _missing(self, shard: StreamedShard, place: int, fault: str) -> Arrived:
        sample = int(shard.ids[place])
        text = f"{self._name(shard, sample)}: did not arrive: {fault}; check data.urls and the shard"
        if self.data.on_error == "stop":
            raise Missing(f"{text}, or leave such samples out with data.on_error=skip")
        return Arrived(sample, b"", text)

    def _name(self, shard: StreamedShard, sample: int) -> str:
        name = self.dataset.shards[self.dataset.shard[sample]]
        place = printable_url(shard.url)
        return f"{place if place.endswith(name) else f'{place} for {name}'}: {self.dataset.keys[sample]}"


class Missing(DataError):
    """A sample that did not arrive ends the run."""


class _Lane:
    """An open lane: where it is, and what comes."""

    def __init__(self, tasks: StreamTasks, epoch: int, lane: int) -> None:
        self.epoch, self.at = epoch, 0
        self._arriving = tasks.stream.arriving(tasks.lanes.deal(epoch)[lane])
        self._leaving = tasks.lanes.shuffled(self._arriving, epoch, lane)

    def take(self, start: int, stop: int) -> list[Arrived]:
        """Items ``start`` to ``stop`` - 1."""
        while self.at < start:
            next(self._leaving)
            self.at += 1
        self.at = stop
        return [next(self._leaving) for _ in range(start, stop)]

    def close(self) -> None:
        """End what it reads from."""
        self._arriving.close()


class StreamTasks(Tasks):
    """Parts of a rank's part of a global step.

    Args:
        dataset: the index; its shards may be elsewhere.
        config: the run's settings.
        lanes: the order.
        own: the rank's lanes, shared out among ``parts``.
        parts: number of parts, at least 1.
        scale: what the encoder expects.
    """

    gives: Literal["images", "pixels", "rows"] = "images"

    def __init__(self, dataset: Dataset, config: Config, lanes: Lanes, own: Ids, parts: int, scale: PixelScale) -> None:
        self.scale = scale
        self.dataset, self.config, self.lanes, self.own, self.parts = dataset, config, lanes, own, parts
        self.pick = pick_for(dataset, scale.bands)
        urls = shard_urls(config, dataset, list(lanes.samples))
        shards = {shard: StreamedShard(urls[shard], ids) for shard, ids in lanes.samples.items()}
        self.stream = Stream(dataset, config, shards)
        self._open: dict[int, _Lane] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def build(self, *task: int) -> Batch | Pictures:
        """The lanes of a part, in (epoch, step, part)."""
        epoch, step, part = task
        watch = Stopwatch()
        with watch.on("read"):
            arrived = {
                item.id: item
                for lane in rank_part(self.own, part, self.parts).tolist()
                for item in self._take(lane, epoch, step)
            }
        ids = np.fromiter(arrived, dtype=np.int64)

        def read(sample: int) -> Picture:
            item = arrived[sample]
            if item.fault is not None:
                raise DataError(item.fault)
            with watch.on("decode"):
                return decoded(item.data, self.dataset.place(sample), self.pick)

        pictures, good, bad = try_each(self.config, ids, read)
        with watch.on("decode"):
            placed = Placed(*stack(pictures), list(range(len(good))))
        where = Where(epoch, step, self.lanes.step_size(epoch, step))
        ids = ids[good]
        num = self.scale.num_bands
        batch = with_views(self.config, self.dataset, where, ids, np.zeros_like(ids), placed, bad, watch, num)
        return augmented(batch, self.config.data.image_size, self.scale) if self.gives == "images" else batch

    def _take(self, lane: int, epoch: int, step: int) -> list[Arrived]:
        start, stop = (self.lanes.given(epoch, lane, at) for at in (step, step + 1))
        opened = self._open.get(lane)
        if opened is None or opened.epoch != epoch or opened.at > start:
            if opened is not None:
                opened.close()
            opened = self._open[lane] = _Lane(self, epoch, lane)
        return opened.take(start, stop)

    def close(self) -> None:
        """End what this process reads from."""
        for lane in self._open.values():
            lane.close()
        self._open.clear()


class StreamLoader:
    """A rank's batches, epoch by epoch; the interface of ``TrainLoader``.

    Args:
        dataset: opened with ``shards=False``.
        config: the run's settings.
        rank: of this process.
        world: number of processes.
        scale: what the encoder expects.
        device: where the encoder runs.
        at: told (step from 1, "loading") while a batch is waited for and samples arrive.

    Attributes:
        notes: lines for people: which promises are not kept, how good the shuffle is.
        steps_per_epoch: global steps.

    Raises:
        ConfigError: ``data.urls`` that do not fit the data set.
        DataError: the data set has no such split.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: Config,
        rank: int,
        world: int,
        scale: PixelScale,
        device: torch.device,
        at: Callable[[int, str], None] = lambda step, phase: None,
    ) -> None:
        data = config.data
        self._at = at
        rows = dataset.rows(data.train_split)
        rows = rows[np.lexsort((dataset.offset[rows], dataset.shard[rows]))]
        parts = np.split(rows, np.flatnonzero(np.diff(dataset.shard[rows])) + 1)
        lanes = Lanes(
            {int(dataset.shard[part[0]]): part for part in parts},
            data.lanes,
            data.shuffle,
            config.train.global_batch,
            seed=config.train.seed,
            fingerprint=dataset.fingerprint,
        )
        own = rank_part(np.arange(lanes.num), rank, world)
        self._parts = max(1, min(data.num_workers, len(own)))
        self._tasks = StreamTasks(dataset, config, lanes, own, self._parts, scale)
        self._finisher = BatchAugmenter(config, device, None, lambda: None, scale)
        self._tasks.gives = self._finisher.wants
        self._num_views = data.num_views
        self.steps_per_epoch = lanes.steps
        self.notes = [
            f"streamed, {len(parts)} shards in {lanes.num} lanes: every sample once an epoch, the same batches on "
            "any number of ranks and workers; they are not the indexed reader's, and are shuffled in blocks",
            "not kept when streamed: a run that goes on reads the start of its epoch again"
            + (f"; {world - lanes.num} of {world} ranks have no lane and stay idle" * (world > lanes.num)),
            self._finisher.note,
            *band_notes(config, scale),
        ]
        if rank == 0:
            self.notes.insert(1, self._quality(lanes))
        if data.num_workers > self._parts:
            self.notes.append(
                f"{self._parts} of data.num_workers={data.num_workers} processes have a lane to read; raise data.lanes"
            )
        self._pool: Pool[Batch | Pictures] = Pool(self._tasks, min(data.num_workers, self._parts))
        self._batches: Iterator[Batch] = iter(())

    def _quality(self, lanes: Lanes) -> str:
        data, dataset = self._tasks.config.data, self._tasks.dataset
        groups, what = alike(dataset.scene.tolist(), lanes.samples)
        steps = max(1, min(lanes.steps, MEASURED * lanes.steps // lanes.num_samples))
        ids, numbers = lanes.order(0, steps)
        rate = pair_rate(groups[ids], numbers, groups[np.concatenate(list(lanes.samples.values()))])
        return (
            f"{what} in a batch: {rate:.2f} times as often as after an exact shuffle (data.lanes={lanes.num}, "
            f"data.shuffle={data.shuffle})"
        )

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``start_step`` on; a rank without lanes gets empty ones.

        Raises:
            DataError: a sample that does not arrive or cannot be read; names URL and key.
        """
        steps = range(start_step, self.steps_per_epoch)
        parts = self._pool.run([(epoch, step, part) for step in steps for part in range(self._parts)])
        self._batches = self._finisher.finish(parts)
        groups = zip(*[self._batches] * self._parts, strict=True)
        step = epoch * self.steps_per_epoch + start_step
        while True:
            step += 1
            with self._waiting(step):
                group = next(groups, None)
            if group is None:
                return
            yield merge(group, self._num_views)

    @contextmanager
    def _waiting(self, step: int) -> Iterator[None]:
        """Tell, inside the block, that samples arrive: filling a shuffle buffer may take long, and is no hang."""
        stop, came = threading.Event(), self._tasks.stream.came

        def look() -> None:
            before = came.value
            while not stop.wait(LOOK_S):
                if came.value != before:
                    before = came.value
                    self._at(step, "loading")

        looking = threading.Thread(target=look, name="arrivals", daemon=True)
        looking.start()
        try:
            yield
        finally:
            stop.set()
            looking.join()

    def close(self) -> None:
        """End the workers, and what this process reads from."""
        if isinstance(self._batches, Generator):
            self._batches.close()
        self._pool.close()
        self._tasks.close()
