"""``sources.parquet``: which file each picture of a shard folder was made of. Only ``marc-shard --append`` reads it.

It lies beside the index, and not in it: a training opens the index, and has no use for hashes and places.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from marc_dist.config import DataError, first_line
from marc_dist.data.columns import CHUNK
from marc_dist.data.dataset import Dataset
from marc_dist.geography.acquisition import UNKNOWN, Acquisition
from marc_dist.geography.places import read_places
from marc_dist.packing.reading.samples import LabelledPicture
from marc_dist.packing.tar import Entry, Location, WrittenShard, by_key

NAME = "sources.parquet"
COLUMNS = {"key": "string", "path": "string", "sha256": "binary", "glance": "string", "remark": "string"}


class PackedPicture(NamedTuple):
    """A picture that lies in the folder; ``labels`` are class numbers, ascending."""

    split: str
    shard: str
    ext: str
    scene: str
    labels: tuple[int, ...]
    row: Location
    taken: Acquisition = UNKNOWN


def write(
    folder: Path,
    plan: Mapping[str, Sequence[tuple[LabelledPicture, Entry]]],
    shards: Mapping[str, Sequence[WrittenShard]],
) -> str:
    """Write it, on disk when this returns; rows as in the index.

    Args:
        folder: where the shards lie.
        plan: split -> samples in order of their keys.
        shards: split -> finished shards.

    Returns:
        The SHA-256 of the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(column, pa.type_for_alias(kind)) for column, kind in COLUMNS.items()])
    facts = (
        (row.key, sample.origin, bytes.fromhex(row.source), row.glance, row.remark)
        for split, pairs in plan.items()
        for (sample, _), (_, row) in zip(pairs, by_key(shards[split]), strict=True)
    )
    with pq.ParquetWriter(folder / NAME, schema, compression="zstd") as writer:
        while some := list(islice(facts, CHUNK)):
            writer.write_batch(pa.record_batch(list(zip(*some, strict=True)), schema=schema))
    with (folder / NAME).open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def fault(dataset: Dataset) -> str | None:
    """What is wrong with the file of an opened folder; None: nothing, or an older folder that has none."""
    wanted = dataset.meta.get("sources_sha256")
    try:
        if wanted is None or hashlib.sha256((dataset.root / NAME).read_bytes()).hexdigest() == wanted:
            return None
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "not the file that dataset.json was written with"


def read(dataset: Dataset) -> dict[str, PackedPicture]:
    """The pictures of an opened folder by their place inside the download, in order of the index.

    Raises:
        DataError: the file is damaged, missing, or of other pictures.
    """
    origins = _origins(dataset)
    places = read_places(dataset.root / "index.parquet")
    found = {}
    for start in range(0, len(dataset), CHUNK):
        some = slice(start, start + CHUNK)
        texts = zip(
            *(column[some].tolist() for column in (dataset.split, dataset.ext, dataset.scene, dataset.keys)),
            strict=True,
        )
        numbers = (dataset.offset, dataset.size, dataset.crc32, dataset.width, dataset.height)
        offsets = zip(*(column[some].tolist() for column in numbers), strict=True)
        shards = dataset.shard[some].tolist()
        labels = dataset.label_rows(some)
        taken = places.acquisitions(start, start + CHUNK)
        for (split, ext, scene, key), place, shard, bits, (path, *facts), when in zip(
            texts, offsets, shards, labels, origins[some], taken, strict=True
        ):
            row = Location(key, *place, *facts)
            carried = tuple(np.flatnonzero(bits).tolist())
            found[path] = PackedPicture(split, dataset.shards[shard], ext, scene, carried, row, when)
    return found


def _origins(dataset: Dataset) -> list[tuple[str, str, str, str]]:
    """Place, glance, remark and hash of every picture, in order of the index."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = dataset.root / NAME
    found = fault(dataset)
    try:
        if found is None:
            table = pq.read_table(file, columns=list(COLUMNS)).to_pydict()
            if table["key"] == list(dataset.keys):
                sums = [sum_.hex() for sum_ in table["sha256"]]
                return list(zip(table["path"], table["glance"], table["remark"], sums, strict=True))
            found = "not of the pictures of the index"
    except (pa.ArrowException, OSError, ValueError, TypeError, AttributeError) as error:
        found = first_line(error)
    raise DataError(f"{file}: {found}; pack again with marc-shard --force")
