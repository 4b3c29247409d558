"""Check a shard folder from end to end: the tar as a stranger reads it against the index that we wrote."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from marc_dist.config import DataError
from marc_dist.data.bands.pick import BandPick
from marc_dist.data.columns import CHUNK
from marc_dist.data.dataset import Dataset, content_fingerprint, open_dataset
from marc_dist.data.decode import decode_rgb
from marc_dist.packing import sources
from marc_dist.packing.tar import members


class ShardReport(NamedTuple):
    """What was checked in one shard."""

    name: str
    num_samples: int
    size: int
    faults: list[str]


def verify(path: Path) -> list[ShardReport]:
    """``verify_opened`` of the shard folder at a path.

    Raises:
        DataError: the folder cannot be opened at all.
    """
    return verify_opened(open_dataset(path), lambda done, size: None)


def verify_opened(dataset: Dataset, progress: Callable[[int, int], None]) -> list[ShardReport]:
    """Read every byte of every shard.

    Args:
        dataset: an opened shard folder.
        progress: called with pictures and bytes checked so far.

    Returns:
        A report a shard; ``faults`` names keys, and is empty for a sound shard.
    """
    faults = _index(dataset) + [f"{sources.NAME}: {found}" for found in (sources.fault(dataset),) if found]
    reports = [ShardReport("index.parquet", len(dataset), (dataset.root / "index.parquet").stat().st_size, faults)]
    done = size = 0

    def tell(pictures: int, more: int) -> None:
        nonlocal done, size
        done, size = done + pictures, size + more
        progress(done, size)

    for number, shard in enumerate(dataset.meta["shards"]):
        found = _shard_faults(dataset, number, shard["sha256"], tell)
        reports.append(ShardReport(shard["name"], shard["num_samples"], shard["size"], found))
    return reports


def _index(dataset: Dataset) -> list[str]:
    """What the index and the list of files say about one another."""
    faults = []
    if fingerprint(dataset) != dataset.fingerprint:
        faults.append("its rows do not give the fingerprint in dataset.json")
    listed = sum(int(shard["num_samples"]) for shard in dataset.meta["shards"])
    if listed != len(dataset):
        faults.append(f"holds {len(dataset)} samples, dataset.json lists {listed}")
    strange = sorted(file.name for file in dataset.root.glob("*.tar") if file.name not in dataset.shards)
    return faults + [f"{name}: a shard that dataset.json does not list" for name in strange]


def fingerprint(dataset: Dataset) -> str:
    """The content's fingerprint, computed anew from the index."""
    rows = zip(dataset.keys, dataset.split, _masked(dataset), dataset.scene, dataset.crc32, dataset.size, strict=True)
    return content_fingerprint(
        dataset.classes,
        ((str(key), str(split), bits, str(scene), int(crc), int(size)) for key, split, bits, scene, crc, size in rows),
    )


def _masked(dataset: Dataset) -> Iterator[bytes]:
    """Each sample's label bits, those beyond the last class zero."""
    for start in range(0, len(dataset), CHUNK):
        labels = dataset.label_rows(slice(start, start + CHUNK))
        yield from map(bytes, np.packbits(labels, axis=1, bitorder="little"))


def _shard_faults(dataset: Dataset, number: int, sha256: str, tell: Callable[[int, int], None]) -> list[str]:
    path = dataset.root / dataset.shards[number]
    rows = [int(row) for row in (dataset.shard == number).nonzero()[0]]
    faults = []
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            faults.append("SHA-256 differs from dataset.json")
        try:
            file.seek(0)
            found = {member.name: (member.offset_data, member.size) for _, member in members(file, "r:")}
        except Exception as error:  # tarfile raises whatever comes up: TarError, ValueError, OverflowError, ...
            return [*faults, f"not a readable tar ({error or type(error).__name__})"]
        for row in rows:
            tell(1, int(dataset.size[row]))
            name = f"{dataset.keys[row]}.{dataset.ext[row]}"
            if found.get(name) != (int(dataset.offset[row]), int(dataset.size[row])):
                faults.append(f"{name}: not where the index says")
                continue
            faults += _sample_faults(dataset, row, file.fileno(), found.get(f"{dataset.keys[row]}.json"))
        expected = {f"{dataset.keys[row]}.{end}" for row in rows for end in (dataset.ext[row], "json")}
        faults += [f"{name}: not in the index" for name in sorted(set(found) - expected)]
    return faults


def _size(dataset: Dataset, data: bytes, key: str) -> tuple[int, int]:
    """Width and height of a picture, all of which is decoded."""
    if "bands" not in dataset.meta:
        return decode_rgb(data, key).size
    height, width = BandPick.all_of(dataset)(data, key).shape[:2]
    return width, height


def _sample_faults(dataset: Dataset, row: int, file: int, meta: tuple[int, int] | None) -> list[str]:
    key = str(dataset.keys[row])
    data = os.pread(file, int(dataset.size[row]), int(dataset.offset[row]))
    if zlib.crc32(data) != int(dataset.crc32[row]):
        return [f"{key}: CRC-32 differs from the index"]
    try:
        width, height = _size(dataset, data, key)
    except DataError as error:
        return [str(error)]
    if (width, height) != (dataset.width[row], dataset.height[row]):
        expected_size = f"{dataset.width[row]}x{dataset.height[row]}"
        return [f"{key}: {width}x{height} pixels, the index says {expected_size}"]
    try:
        labels = json.loads(os.pread(file, *reversed(meta)))["labels"] if meta else None
    except (ValueError, KeyError, TypeError, RecursionError, MemoryError, OverflowError):
        labels = None
    if labels is None:
        return [f"{key}: no readable JSON beside the picture"]
    expected = [name for name, on in zip(dataset.classes, dataset.label_rows(row), strict=True) if on]
    return [] if labels == expected else [f"{key}: labels {labels} differ from the index's {expected}"]
