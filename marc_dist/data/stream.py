"""Batches from tars that are read from end to end, wherever they are: the ``webdataset`` library opens and takes apart.

``data.dir`` holds the two small files that say what there is, ``dataset.json`` and ``index.parquet``; the tars may be
elsewhere. So ids, labels, checksums and augmentation are those of the indexed reader, and all that arrives is checked
against the index: what is missing, strange or damaged is named.

The order is that of ``lanes``: a function of (seed, epoch), free of ranks and workers. A worker is asked for (epoch,
step, part) and keeps its lanes open; asked for another step than the next it begins the lanes of that epoch anew and
passes over what was given before, so that its answer never depends on what it did before.
"""

from __future__ import annotations

import glob
import re
import shlex
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple
from urllib.parse import urlparse

import numpy as np
import torch

from marc_dist.config import Config, ConfigError, DataError, user_path
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
from marc_dist.data.decode import decode_rgb
from marc_dist.data.finish import Finisher
from marc_dist.data.lanes import Lanes, alike, pair_rate
from marc_dist.data.plan import Ids, rank_part
from marc_dist.data.pool import Pool, Tasks
from marc_dist.data.reader import FIRST_WAIT_S

MEASURED = 200_000  # samples of the epoch whose shuffle is measured


class Arrived(NamedTuple):
    """A sample as it came, or what is wrong with it."""

    id: int
    data: bytes
    fault: str | None = None


class Shard(NamedTuple):
    """A tar to stream.

    Attributes:
        url: as ``webdataset.gopen`` takes it.
        ids: of the split's samples, in the order of the tar.
    """

    url: str
    ids: Ids


def shuffled(size: int) -> Callable[[Iterator[Any], Any], Iterator[Any]]:
    """Webdataset's buffer of ``size`` items, full before it gives the first; it never sees what the items are."""
    import webdataset

    def through(items: Iterator[Any], generator: Any) -> Iterator[Any]:
        found: Iterator[Any] = webdataset.shuffle(size, initial=size, rng=generator)(items)
        return found

    return through


def shard_urls(config: Config, dataset: Dataset, shards: Sequence[int]) -> dict[int, str]:
    """Where each of some shards is to be had.

    Raises:
        ConfigError: a pattern that matches no file, an entry of no shard of the data set, a shard with none or several.
    """
    if not config.data.urls:
        return {shard: str(dataset.root / dataset.shards[shard]) for shard in shards}
    found: dict[int, str] = {}
    for url in _expanded(config.data.urls):
        shard = _shard_of(url, dataset)
        if found.setdefault(shard, url) != url:
            raise ConfigError(f"data.urls: {dataset.shards[shard]} has two, {found[shard]} and {url}; give one")
    missing = [dataset.shards[shard] for shard in shards if shard not in found]
    if missing:
        raise ConfigError(
            f"data.urls: expected one for each of {len(shards)} shards of {config.data.train_split}, got none for "
            f"{len(missing)} of them, the first {missing[0]}"
        )
    return {shard: found[shard] for shard in shards}


def _expanded(urls: Sequence[str]) -> Iterator[str]:
    import braceexpand

    for pattern in urls:
        for url in braceexpand.braceexpand(pattern):
            if url.startswith("s3://"):
                yield f"pipe:aws s3 cp {shlex.quote(url)} -"
            elif re.match("[a-z]+:", url):
                yield url
            else:
                paths = sorted(glob.glob(str(user_path(url))))  # noqa: PTH207  (Path.glob takes no absolute pattern)
                if not paths:
                    raise ConfigError(f"data.urls: {url}: no such file")
                yield from paths


def _shard_of(url: str, dataset: Dataset) -> int:
    """The one shard whose file name a URL ends with, or a command contains."""
    if url.startswith("pipe:"):
        named = [i for i, name in enumerate(dataset.shards) if re.search(rf"(?<![\w.-]){re.escape(name)}(?!\w)", url)]
    else:
        last = PurePosixPath(urlparse(url).path).name
        named = [i for i, name in enumerate(dataset.shards) if name == last]
    if len(named) != 1:
        got = "none" if not named else " and ".join(dataset.shards[i] for i in named)
        raise ConfigError(f"data.urls: {url}: expected the name of one shard of {dataset.name} in it, got {got}")
    return named[0]


class Stream:
    """Samples of shards as they arrive.

    Args:
        dataset: the index.
        config: the run's settings.
        shards: where each is to be had.
    """

    def __init__(self, dataset: Dataset, config: Config, shards: Mapping[int, Shard]) -> None:
        self.dataset, self.shards = dataset, shards
        self.retries, self.verify_crc = config.data.retries, config.data.verify_crc
        self._ids: dict[str, int] = {}

    def arriving(self, shards: Sequence[int]) -> Generator[Arrived, None, None]:
        """Every sample of ``shards`` once, in the index's order; what does not come carries its fault."""
        for shard in shards:
            yield from self._shard(self.shards[shard])

    def _shard(self, shard: Shard) -> Generator[Arrived, None, None]:
        numbers = {sample: number for number, sample in enumerate(shard.ids.tolist())}
        done, fault = 0, ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
            opened = self._open(shard)
            try:
                for sample, data in opened:
                    number = numbers.get(sample, -1)
                    if number < done:  # of another split, or given before the stream broke
                        continue
                    yield from (self._missing(shard, gap, "it is not in the tar") for gap in range(done, number))
                    done = number + 1
                    yield Arrived(sample, data, self._damage(shard, sample, data))
                fault = "ended too early"
            except Exception as error:  # webdataset's and tarfile's own, and those of whatever opens the URL
                fault = " ".join(str(error).split())[:300] or type(error).__name__
            finally:
                opened.close()
            if done == len(shard.ids):
                return
        yield from (self._missing(shard, gap, fault) for gap in range(done, len(shard.ids)))

    def _open(self, shard: Shard) -> Generator[tuple[int, bytes], None, None]:
        """Id and picture of what the tar holds."""
        import webdataset
        from webdataset.tariterators import group_by_keys, tar_file_expander

        if not self._ids:
            self._ids = {key: sample for sample, key in enumerate(self.dataset.keys.tolist())}
        stream = webdataset.gopen(shard.url)
        try:
            for sample in group_by_keys(tar_file_expander([{"url": shard.url, "stream": stream}])):
                found = self._ids.get(sample["__key__"])
                if found is None:
                    raise DataError(f"{sample['__key__']} is not in the index of {self.dataset.root}")
                yield found, sample.get(self.dataset.ext[found], b"")
        finally:
            _close(stream)

    def _damage(self, shard: Shard, sample: int, data: bytes) -> str | None:
        expected, got = int(self.dataset.crc32[sample]), zlib.crc32(data)
        if not self.verify_crc or got == expected:
            return None
        return f"{shard.url}: {self.dataset.keys[sample]}: expected CRC-32 {expected:08x}, got {got:08x}"

    def _missing(self, shard: Shard, number: int, fault: str) -> Arrived:
        sample = int(shard.ids[number])
        tries = f" ({self.retries + 1} tries)" if self.retries else ""
        return Arrived(
            sample,
            b"",
            f"{shard.url}: {self.dataset.keys[sample]} did not arrive{tries}: {fault}; check the URL and the shard, "
            "or leave such samples out with data.on_error=skip",
        )


def _close(stream: Any) -> None:
    """End a stream that may be left in its middle; a command behind it ends, too."""
    process = getattr(stream, "proc", None)
    with suppress(Exception):
        if process is None:
            stream.close()
            return
        stream.stream.close()
        process.kill()
        process.wait()


class _Lane:
    """An open lane: where it is, and what comes."""

    def __init__(self, tasks: StreamTasks, epoch: int, lane: int) -> None:
        self.epoch, self.at = epoch, 0
        self._arriving = tasks.stream.arriving(tasks.lanes.deal(epoch)[lane])
        self._leaving = tasks.shuffle(self._arriving, tasks.lanes.generator(epoch, lane))

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
    """

    gives: Literal["images", "pixels", "rows"] = "images"

    def __init__(self, dataset: Dataset, config: Config, lanes: Lanes, own: Ids, parts: int) -> None:
        self.dataset, self.config, self.lanes, self.own, self.parts = dataset, config, lanes, own, parts
        urls = shard_urls(config, dataset, list(lanes.samples))
        self.stream = Stream(dataset, config, {shard: Shard(urls[shard], ids) for shard, ids in lanes.samples.items()})
        self._open: dict[int, _Lane] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def shuffle(self, items: Iterator[Any], generator: Any) -> Iterator[Any]:
        """A lane's buffer."""
        return shuffled(self.config.data.shuffle)(items, generator)

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
                return np.asarray(decode_rgb(item.data, self.dataset.place(sample)))

        pictures, good, bad = try_each(self.config, ids, read)
        with watch.on("decode"):
            placed = Placed(*stack(pictures), list(range(len(good))))
        where = Where(epoch, step, self.lanes.step_size(epoch, step))
        ids = ids[good]
        batch = with_views(self.config, self.dataset, where, ids, np.zeros_like(ids), placed, bad, watch)
        return augmented(batch, self.config.data.image_size) if self.gives == "images" else batch

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
        config: the run's settings. ``pipe:`` entries of ``data.urls`` run as shell commands: they come from the user's
            own settings, never from a file of the data set.
        rank: of this process.
        world: number of processes.
        device: where the encoder runs.

    Attributes:
        notes: lines for people: which promises are not kept, how good the shuffle is.
        steps_per_epoch: global steps.

    Raises:
        ConfigError: ``data.urls`` that do not fit the data set.
        DataError: the data set has no such split.
    """

    def __init__(self, dataset: Dataset, config: Config, rank: int, world: int, device: torch.device) -> None:
        data = config.data
        rows = dataset.rows(data.train_split)
        rows = rows[np.lexsort((dataset.offset[rows], dataset.shard[rows]))]
        samples = {int(shard): rows[dataset.shard[rows] == shard] for shard in np.unique(dataset.shard[rows])}
        lanes = Lanes(
            samples, data.lanes, config.train.global_batch, seed=config.train.seed, fingerprint=dataset.fingerprint
        )
        own = rank_part(np.arange(lanes.num), rank, world)
        self._parts = max(1, min(data.num_workers, len(own)))
        self._tasks = StreamTasks(dataset, config, lanes, own, self._parts)
        self._finisher = Finisher(config, device, None, lambda: None)
        self._tasks.gives = self._finisher.wants
        self._num_views = data.num_views
        self.steps_per_epoch = lanes.steps
        self.notes = [
            f"streamed, {len(samples)} shards in {lanes.num} lanes: every sample once an epoch, the same batches on "
            "any number of ranks and workers; they are not the indexed reader's, and are shuffled in blocks",
            "not kept when streamed: a run that goes on reads the start of its epoch again"
            + (f"; {world - lanes.num} of {world} ranks have no lane and stay idle" * (world > lanes.num)),
            self._finisher.note,
        ]
        if rank == 0:
            self.notes.insert(1, self._quality(lanes))
        self._pool: Pool[Batch | Pictures] = Pool(self._tasks, min(data.num_workers, self._parts))
        self._batches: Iterator[Batch] = iter(())

    def _quality(self, lanes: Lanes) -> str:
        data, dataset = self._tasks.config.data, self._tasks.dataset
        groups, what = alike(dataset.scene.tolist(), lanes.samples)
        steps = max(1, min(lanes.steps, MEASURED * lanes.steps // lanes.num_samples))
        ids, numbers = lanes.order(0, shuffled(data.shuffle), steps)
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
        return map(lambda group: merge(group, self._num_views), zip(*[self._batches] * self._parts, strict=True))

    def close(self) -> None:
        """End the workers, and what this process reads from."""
        if isinstance(self._batches, Generator):
            self._batches.close()
        self._pool.close()
        self._tasks.close()
