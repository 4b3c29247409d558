"""The bands of finished shards, measured: ``bands`` of ``dataset.json``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from marc_dist.data.bands.statistics import BandCounts
from marc_dist.data.bands.tiff import read_tiff
from marc_dist.packing.bands.rule import BandRule
from marc_dist.packing.tar import WrittenShard
from marc_dist.packing.worker_pool import PoolTask, work

PART = 256  # pictures that a process measures at a time


def values_hash(data: bytes, place: str) -> str:
    """A hash of all values of a picture with bands.

    Raises:
        DataError: it cannot be read.
    """
    planes = read_tiff(data, place).planes
    return hashlib.sha256(repr(planes.shape).encode() + np.ascontiguousarray(planes).tobytes()).hexdigest()


def count_part(shard: Path, rows: Sequence[tuple[str, int, int]], rule: BandRule) -> BandCounts:
    """The values of some pictures of a shard, counted.

    Args:
        shard: the tar.
        rows: key, first byte and size of each picture.
        rule: of the bands.

    Raises:
        DataError: a picture that cannot be read.
    """
    counts = BandCounts(len(rule.names), rule.dtype)
    with shard.open("rb") as file:
        for key, offset, size in rows:
            file.seek(offset)
            counts.add(read_tiff(file.read(size), f"{shard}: {key}").planes, rule.nodata)
    return counts


def band_facts(
    rule: BandRule, shards: Mapping[str, Sequence[WrittenShard]], folder: Path, workers: int
) -> dict[str, Any]:
    """What ``dataset.json`` says of the bands; equal pictures give equal facts, however they are shared out.

    Args:
        rule: of the bands.
        shards: split -> its shards; the split ``train`` is measured, else the first one.
        folder: where they lie.
        workers: processes.

    Raises:
        DataError: a picture that cannot be read.
    """
    split = "train" if "train" in shards else next(iter(shards))
    total = BandCounts(len(rule.names), rule.dtype)

    def jobs() -> Iterator[PoolTask]:
        for shard in shards[split]:
            rows = [(row.key, row.offset, row.size) for row in shard.rows]
            for start in range(0, len(rows), PART):
                yield count_part, (folder / shard.name, rows[start : start + PART], rule)

    def finished(job: PoolTask, counts: BandCounts) -> list[PoolTask]:
        total.merge(counts)
        return []

    work(jobs(), finished, workers)
    return {
        "names": list(rule.names),
        "dtype": rule.dtype,
        "nodata": rule.nodata,
        "stacked": rule.stacked,
        "measured": split,
        "statistics": total.facts(),
    }
