"""``sources.parquet``: which file each picture of a shard folder was made of. Only ``marc-shard --append`` reads it.

It lies beside the index, and not in it: a training opens the index, and has no use for hashes and places.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marc_dist.config import DataError, first_line
from marc_dist.data.columns import CHUNK
from marc_dist.data.dataset import Dataset
from marc_dist.geography.acquisition import UNKNOWN, Acquisition
from marc_dist.geography.places import read_places
from marc_dist.packing.reading.samples import LabelledPicture
from marc_dist.packing.tar import Entry, Location, WrittenShard, by_key, codecs

NAME, REMOVED = "sources.parquet", "removed.csv"
ROWS = 1 << 14  # that are written at a time: as objects, they take a kB each
COLUMNS = {"key": "string", "path": "string", "sha256": "binary", "glance": "string", "remark": "string"}


def batch(rows: Sequence[Sequence[Any]], kinds: Mapping[str, str]) -> Any:
    """A pyarrow record batch of rows without empty cells. ``pa.record_batch`` would import Pandas: 40 MB.

    Args:
        rows: at least one.
        kinds: of the columns: ``string``, ``binary`` or a NumPy dtype.
    """
    import pyarrow as pa

    columns = []
    for kind, cells in zip(kinds.values(), zip(*rows, strict=True), strict=True):
        if kind in ("string", "binary"):
            texts = [cell.encode() for cell in cells] if kind == "string" else cells
            ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
            buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))]
        else:
            buffers = [None, pa.py_buffer(np.array(cells, dtype=kind))]
        columns.append(pa.Array.from_buffers(pa.type_for_alias(kind), len(rows), buffers))
    return pa.RecordBatch.from_arrays(columns, schema=schema_of(kinds))


def schema_of(kinds: Mapping[str, str]) -> Any:
    """The pyarrow schema of ``batch``."""
    import pyarrow as pa

    return pa.schema([(column, pa.type_for_alias(kind)) for column, kind in kinds.items()])


def _decoders() -> bytes:
    """What a glance depends on besides the picture."""
    return json.dumps(codecs()).encode()


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
    import pyarrow.parquet as pq

    facts = (
        (row.key, sample.origin, bytes.fromhex(row.source), row.glance, row.remark)
        for split, pairs in plan.items()
        for (sample, _), (_, row) in zip(pairs, by_key(shards[split]), strict=True)
    )
    schema = schema_of(COLUMNS).with_metadata({"decoders": _decoders()})
    with pq.ParquetWriter(folder / NAME, schema, compression="zstd") as writer:
        while some := list(islice(facts, ROWS)):
            writer.write_batch(batch(some, COLUMNS).replace_schema_metadata(schema.metadata))
    with (folder / NAME).open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def fault(dataset: Dataset) -> str | None:
    """What is wrong with the file of an opened folder; None: nothing, or an older folder that has none."""
    wanted = dataset.meta.get("sources_sha256")
    try:
        if wanted is None:
            return None
        with (dataset.root / NAME).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == wanted:
                return None
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "not the file that dataset.json was written with"


def glances_hold(dataset: Dataset) -> bool:
    """Whether the glances of an opened folder were taken with the decoders of today: others may give other pixels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return (pq.read_schema(dataset.root / NAME).metadata or {}).get(b"decoders") == _decoders()
    except (pa.ArrowException, OSError):  # ``read`` says what is wrong with it
        return False


def removed_splits(dataset: Dataset) -> dict[str, str]:
    """Place -> split of the pictures that were taken out of an opened folder whose splits were drawn.

    Raises:
        DataError: the list of them cannot be read.
    """
    file = dataset.root / REMOVED
    try:
        rows = list(csv.reader(StringIO(file.read_text("utf-8"), newline=""))) if file.is_file() else []
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read ({error}); delete it, and pictures that come back are new") from None
    odd = next((row for row in rows[1:] if len(row) != 2 or not re.fullmatch(r"[a-z][a-z0-9_]*", row[1])), None)
    if odd is not None or (rows and rows[0] != ["path", "split"]):
        raise DataError(f"{file}: expected lines `path,split`; delete it, and pictures that come back are new")
    return {place: split for place, split in rows[1:]}


def removed_csv(splits: Mapping[str, str]) -> str:
    """The file that ``removed_splits`` reads.

    Args:
        splits: place -> split.
    """
    text = StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("path", "split"), *sorted(splits.items())])
    return text.getvalue()


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
