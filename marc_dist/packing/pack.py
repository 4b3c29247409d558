"""Samples -> a shard folder: planned first, written in parallel beside the place, published by one rename.

A shard is a function of the plan and the pictures' bytes, so any number of processes gives equal files, and so does an
interrupted packing that is gone on with. Until the last rename the old folder, if any, is untouched.
"""

from __future__ import annotations

import shutil
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from marc_dist.config import DataError
from marc_dist.packing import shard_records
from marc_dist.packing.bands.measure import band_facts, values_hash
from marc_dist.packing.bands.plan import band_rule
from marc_dist.packing.compact import Compact
from marc_dist.packing.layout import Pairs, cut, plan_entries
from marc_dist.packing.manifest import ShardPlan, describe
from marc_dist.packing.publish import publication
from marc_dist.packing.reading.samples import Source, odd_sizes
from marc_dist.packing.tar import Demands, Entry, Location, ShardPart, WrittenShard, join_parts, pixels, write_part
from marc_dist.packing.worker_pool import PoolTask, work

Progress = Callable[[int, int], None]
PART = 64  # samples that a process writes at a time: shards are few, and no core may wait for the others' last one


def pack(
    source: Source,
    out: Path,
    *,
    workers: int = 1,
    samples_per_shard: int = 1000,
    shard_mb: float | None = None,
    to_png: bool = False,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write a shard folder.

    Args:
        source: what was found in the download.
        out: the folder to make.
        workers: processes.
        samples_per_shard: samples of a full shard.
        shard_mb: megabytes of pictures that a shard may hold, if fewer samples reach them.
        to_png: store every picture as PNG.
        force: replace an existing shard folder; it stays as it is until the new one is complete.
        resume: take over the shards that an interrupted call has finished, if they are what this one would write; and
            leave its own behind when it is interrupted or fails.
        progress: called with samples and bytes done so far.

    Returns:
        The number of shards taken over.

    Raises:
        DataError: nothing to pack, a picture that cannot be packed, a folder in the way, a full disk.
    """
    plan = plan_entries(source, to_png=to_png)
    if not plan:
        raise DataError(f"{source.recipe.title}: nothing to pack")
    with publication(out, force, shard_records.sweep if resume else None) as folder:
        left = shard_records.left_over(folder)
        _room(source, out, sum(left.values()))
        demands = demands_of(source)
        tasks = [
            _ShardTask(folder / f"{split}-{number:06d}.tar", split, pairs, places, demands)
            for split, pairs in plan.items()
            for number, places in enumerate(cut(pairs, samples_per_shard, shard_mb))
        ]
        kept = _write_shards(tasks, left, workers, progress)
        conclude(source, plan, _by_split(tasks), folder, to_png=to_png, workers=workers)
    return kept


def pack_more(
    plan: Mapping[str, Pairs],
    folder: Path,
    first: Mapping[str, int],
    demands: Demands,
    *,
    workers: int,
    samples_per_shard: int,
    shard_mb: float | None,
    progress: Progress | None,
) -> dict[str, list[WrittenShard]]:
    """Write the shards of pictures that come to a folder which has shards; see ``pack``.

    Args:
        plan: split -> the new samples in order.
        folder: that is being written.
        first: split -> number of its first new shard.
        demands: what every picture must be.
        workers: see ``pack``.
        samples_per_shard: see ``pack``.
        shard_mb: see ``pack``.
        progress: see ``pack``.

    Returns:
        Split -> its new shards in order.
    """
    tasks = [
        _ShardTask(folder / f"{split}-{number:06d}.tar", split, pairs, places, demands, noted=False)
        for split, pairs in plan.items()
        for number, places in enumerate(cut(pairs, samples_per_shard, shard_mb), first[split])
    ]
    _write_shards(tasks, {}, workers, progress)
    return _by_split(tasks)


def demands_of(source: Source) -> Demands:
    """What every picture of a data set must be."""
    strict = source.recipe.policies.size == "stop" and "size" not in source.allow
    return Demands(
        source.recipe.expect.image_size if strict else None,
        source.recipe.policies.bands == "stop" and "bands" not in source.allow,
        band_rule(source.recipe, source.samples[0].file) if source.recipe.bands else None,
    )


def conclude(
    source: Source,
    plan: ShardPlan,
    shards: Mapping[str, Sequence[WrittenShard]],
    folder: Path,
    *,
    to_png: bool,
    workers: int = 1,
) -> None:
    """Look at all samples together, and write what stands beside the shards.

    Args:
        source: of the samples.
        plan: split -> all samples of the folder in order of their keys.
        shards: split -> all of its shards in order.
        folder: where they lie.
        to_png: see ``pack``.
        workers: processes.

    Raises:
        DataError: equal pictures in two splits, and the recipe does not let that pass.
    """
    odd_sizes(
        source, ((row.key, (row.width, row.height)) for s in shards.values() for shard in s for row in shard.rows)
    )
    _remarks(source, (row for written in shards.values() for shard in written for row in shard.rows))
    _duplicates(source, plan, shards, folder)
    named = demands_of(source).named
    bands = None if named is None else band_facts(named, shards, folder, workers)
    describe(source, plan, shards, folder, {**source.asked, "to_png": to_png, "drawn": source.drawn}, bands)
    shard_records.forget(folder)


@dataclass
class _ShardTask:
    """A shard to be written, and how far it has got."""

    path: Path
    split: str
    pairs: Pairs
    places: range
    demands: Demands
    shard: WrittenShard | None = None
    parts: dict[int, ShardPart] = field(default_factory=dict)
    noted: bool = True  # for a later --resume

    @property
    def starts(self) -> range:
        return range(0, len(self.places), PART)

    @property
    def entries(self) -> list[Entry]:
        return [entry for _, entry in self.pairs[self.places.start : self.places.stop]]

    def part_path(self, start: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{start:06d}")

    def take_over(self) -> PoolTask:
        entries = self.entries
        return shard_records.take_over, (self.path, entries, shard_records.plan_digest(entries, self.demands))

    def write(self) -> Iterator[PoolTask]:
        entries = self.entries
        for start in self.starts:
            yield write_part, (self.part_path(start), entries[start : start + PART], self.demands)

    def finish(self) -> PoolTask:
        files, parts = [self.part_path(start) for start in self.starts], [self.parts[start] for start in self.starts]
        if not self.noted:
            return join_parts, (self.path, files, parts)
        return shard_records.finish, (self.path, files, parts, shard_records.plan_digest(self.entries, self.demands))


def _by_split(tasks: Iterable[_ShardTask]) -> dict[str, list[WrittenShard]]:
    shards: dict[str, list[WrittenShard]] = defaultdict(list)
    for task in tasks:
        assert task.shard is not None, "every job is done"
        shards[task.split].append(task.shard)
    return shards


def _room(source: Source, out: Path, have: int) -> None:
    """Refuse before the first byte when the disk cannot hold the pictures as they are, ``have`` bytes being there."""
    num = max(len(source.recipe.bands), 1) if source.recipe.band_files else 1
    need = sum(num * sample.file.stat().st_size + 2048 for sample in source.samples) - have
    free = shutil.disk_usage(out.parent).free
    if need > free:
        raise DataError(f"{out}: needs about {need / 1e6:.1f} MB, the disk has {free / 1e6:.1f} MB free")


def _write_shards(tasks: Sequence[_ShardTask], left: dict[str, int], workers: int, progress: Progress | None) -> int:
    """Write every shard, or take it over; how many were taken over."""
    for name in set(left) - {task.path.name for task in tasks}:
        shard_records.forget(tasks[0].path.parent, name)
    of_path = {task.path: task for task in tasks}
    done = [0, 0]
    kept = 0

    def tell(rows: Sequence[Location]) -> None:
        done[0], done[1] = done[0] + len(rows), done[1] + sum(row.size for row in rows)
        if progress is not None:
            progress(*done)

    def finished(job: PoolTask, result: Any) -> Iterable[PoolTask]:
        nonlocal kept
        path: Path = job[1][0]
        if job[0] is write_part:
            task = of_path[path.with_suffix("")]
            task.parts[int(path.suffix[1:])] = result
            tell(result.rows)
            return [task.finish()] if len(task.parts) == len(task.starts) else []
        task = of_path[path]
        if result is None:
            return task.write()
        if job[0] is shard_records.take_over:
            kept += 1
            tell(result.rows)
        task.shard = result._replace(rows=Compact(map(_plain_row, result.rows), _row))
        task.parts.clear()
        return []

    def jobs() -> Iterator[PoolTask]:
        for task in tasks:
            yield from [task.take_over()] if task.path.name in left else task.write()

    work(jobs(), finished, workers)
    return kept


def _plain_row(row: Location) -> tuple[Any, ...]:
    return *row[:-1], bytes.fromhex(row.source)


def _row(plain: tuple[Any, ...]) -> Location:
    return Location._make((*plain[:-1], plain[-1].hex()))


def _remarks(source: Source, rows: Iterable[Location]) -> None:
    """Tell what was done to pictures."""
    told = {
        "turned": "pictures turned as their EXIF note says",
        "band dropped": "pictures whose fourth band was dropped",
        "opaque band dropped": "pictures whose fourth band says nothing; it was dropped",
        "no values": "pictures that hold no values at all, only nodata or NaN",
        "a band without values": "pictures of which a band holds no values, only nodata or NaN",
    }
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for remark in row.remark.split(", ") if row.remark else ():
            found[remark].append(row.key)
    for remark, text in told.items():
        keys = found[remark]
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        if keys:
            source.warnings.append(f"pictures: {len(keys)} {text}: {', '.join(keys[:3])}{more}")


def _duplicates(source: Source, plan: ShardPlan, shards: Mapping[str, Sequence[WrittenShard]], folder: Path) -> None:
    """Equal pixels in two splits: what is trained on is then also asked for.

    Only pictures whose few glanced-at pixels occur in two splits are looked at whole.
    """

    def places() -> Iterator[tuple[str, str, Location]]:
        return ((split, shard.name, row) for split in plan for shard in shards[split] for row in shard.rows)

    several = _in_several_splits((split, row.glance) for split, _, row in places())
    seen: dict[str, tuple[str, str]] = {}
    faults = []
    for split, name, row in places():
        if int(row.glance, 16) not in several:
            continue
        with (folder / name).open("rb") as file:
            file.seek(row.offset)
            data = file.read(row.size)
            whole = values_hash(data, row.key) if source.recipe.bands else pixels(data, row.key)
        other = seen.setdefault(whole, (split, row.key))
        if other[0] != split:
            faults.append(f"{other[1]} ({other[0]}) = {row.key} ({split})")
    source.check("duplicates", faults, "equal pictures in two splits")


def _in_several_splits(glances: Iterable[tuple[str, str]]) -> set[int]:
    """The glances, as numbers, that occur in more than one split, of (split, glance) of each picture."""
    splits: dict[str, int] = {}
    values, numbers = array("Q"), array("I")
    for split, glance in glances:
        values.append(int(glance, 16))
        numbers.append(splits.setdefault(split, len(splits)))
    every, of = np.frombuffer(values, dtype=np.uint64), np.frombuffer(numbers, dtype=np.uint32)
    order = np.lexsort((of, every))
    every, of = every[order], of[order]
    return set(every[1:][(every[1:] == every[:-1]) & (of[1:] != of[:-1])].tolist())
