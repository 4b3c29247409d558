"""A shard folder, opened: what is in it and where each image lies. No torch, no decoding."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marc_dist.config import DataConfig, DataError, first_line, user_path
from marc_dist.data.plan import held_out

FORMAT = 1
SCHEMA = {
    "key": "string", "split": "string", "shard": "string", "offset": "int64", "size": "int64", "crc32": "uint32",
    "labels": "binary", "scene": "string", "width": "int32", "height": "int32", "ext": "string",
}  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """The index of a shard folder as columns. A sample id is a row number of ``index.parquet``.

    n samples, L labels. ``offset`` and ``size`` point at the image's bytes inside its tar.
    """

    root: Path
    name: str
    title: str
    classes: tuple[str, ...]
    fingerprint: str
    meta: dict[str, Any]
    shards: tuple[str, ...]
    keys: NDArray[np.object_]
    split: NDArray[np.object_]
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    crc32: NDArray[np.uint32]
    labels: NDArray[np.bool_]
    scene: NDArray[np.object_]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    ext: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Ids of a split's samples, ascending.

        Raises:
            DataError: the folder has no such split.
        """
        ids = np.flatnonzero(self.split == split).astype(np.int64)
        if not len(ids):
            known = ", ".join(sorted(set(self.split.tolist()))) or "none"
            raise DataError(f"{self.root}: no split named {split!r}; it has {known}")
        return ids

    def train_rows(self, data: DataConfig) -> NDArray[np.int64]:
        """Ids of the samples that training visits, ascending: ``train_split`` without its validation samples.

        Raises:
            DataError: the folder has no such split, or nothing of it is left.
        """
        return self._divided(data)[0]

    def validation_rows(self, data: DataConfig) -> NDArray[np.int64]:
        """Ids of the samples of ``train_split`` that are kept from training, ascending; none if no share is."""
        return self._divided(data)[1]

    def _divided(self, data: DataConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows = self.rows(data.train_split)
        if not data.validation_share:
            return rows, rows[:0]
        kept = held_out(self.keys[rows].tolist(), data.validation_share, data.validation_seed)
        if not kept.any() or kept.all():
            raise DataError(
                f"{self.root}: split {data.train_split!r} has {len(rows)} samples, too few for "
                f"data.validation_share={data.validation_share:g}; expected at least one on each side"
            )
        return rows[~kept], rows[kept]

    def label_counts(self, split: str | NDArray[np.int64]) -> NDArray[np.int64]:
        """(L,) samples of a split, or of these ids, that carry each label."""
        rows = self.rows(split) if isinstance(split, str) else split
        return np.asarray(self.labels[rows].sum(axis=0), dtype=np.int64)

    def cooccurrence(self, split: str | NDArray[np.int64]) -> NDArray[np.int64]:
        """(L, L) samples of a split, or of these ids, that carry both labels; the diagonal holds ``label_counts``."""
        rows = self.labels[self.rows(split) if isinstance(split, str) else split].astype(np.int64)
        return rows.T @ rows

    def place(self, sample: int) -> str:
        """``shard:key`` of a sample, for messages."""
        return f"{self.root / self.shards[self.shard[sample]]}: {self.keys[sample]}"


def content_fingerprint(classes: Sequence[str], rows: Iterable[tuple[str, str, bytes, str, int, int]]) -> str:
    """SHA-256 of what a data set holds: free of paths, shard sizes, numbers of processes and library versions.

    Args:
        classes: in order.
        rows: key, split, packed label bits, scene, CRC-32 and size of each sample, in order.
    """
    digest = hashlib.sha256(json.dumps([FORMAT, list(classes)]).encode())
    for key, split, labels, scene, crc32, size in rows:
        digest.update(json.dumps([key, split, labels.hex(), scene, crc32, size]).encode())
    return digest.hexdigest()


def open_dataset(path: str | Path, *, shards: bool = True) -> Dataset:
    """Open a shard folder and check it against its own ``dataset.json``.

    Args:
        path: the folder.
        shards: whether the tars must lie there, too; streamed, they may be elsewhere.

    Raises:
        DataError: missing, another kind of folder, another format version, an index or a shard that is not the one
            that ``dataset.json`` was written with.
    """
    root = user_path(path)
    meta = _read_meta(root)
    index = root / "index.parquet"
    data = _content(index)
    if hashlib.sha256(data).hexdigest() != meta["index_sha256"]:
        raise DataError(
            f"{index}: not the index that dataset.json was written with; pack again with marc-shard --force"
        )
    for shard in meta["shards"] if shards else ():
        file = root / shard["name"]
        try:
            size = file.stat().st_size if file.is_file() else None
        except OSError:  # a name that the file system refuses
            size = None
        if size != shard["size"]:
            got = "no such file" if size is None else f"{size} bytes"
            raise DataError(
                f"{file}: expected a shard of {shard['size']} bytes, got {got}; see marc-shard --verify {root}, "
                "pack again with marc-shard --force"
            )
    return _from_table(root, meta, data)


def _read_meta(root: Path) -> dict[str, Any]:
    if not root.is_dir():
        raise DataError(f"{root}: no such shard folder; make it with marc-shard --dataset NAME --out {root}")
    file = root / "dataset.json"
    if not file.is_file():
        raise DataError(
            f"{root}: not a shard folder (no dataset.json); make one with marc-shard --dataset NAME --out DIR"
        )
    try:
        meta = json.loads(_content(file))
        version = meta["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{file}: not readable ({error}); pack again with marc-shard --force") from None
    if version != FORMAT:
        raise DataError(
            f"{file}: format {version}, this marc-dist reads format {FORMAT}; pack again with this version's marc-shard"
        )
    missing = {"name", "title", "classes", "fingerprint", "index_sha256", "shards"} - set(meta)
    if missing:
        raise DataError(f"{file}: lacks {', '.join(sorted(missing))}; pack again with marc-shard --force")
    if not isinstance(meta["shards"], list) or not all(map(_is_shard, meta["shards"])):
        raise DataError(f"{file}: its list of shards is not readable; pack again with marc-shard --force")
    classes = meta["classes"]
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise DataError(f"{file}: its list of classes is not readable; pack again with marc-shard --force")
    if not re.fullmatch("[0-9a-f]{64}", str(meta["fingerprint"])):  # it becomes part of the name of a folder
        raise DataError(f"{file}: its fingerprint is not a SHA-256; pack again with marc-shard --force")
    return dict(meta)


def _content(file: Path) -> bytes:
    try:
        if not file.is_file():
            raise DataError(f"{file}: no such file; pack again with marc-shard")
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); pack again with marc-shard") from None


def _is_shard(entry: Any) -> bool:
    """Whether an entry of dataset.json's list has what is needed, and a plain file name."""
    kinds = {"name": str, "size": int, "sha256": str, "num_samples": int}
    if not isinstance(entry, dict) or not all(type(entry.get(key)) is kind for key, kind in kinds.items()):
        return False
    return bool(re.fullmatch(r"[A-Za-z0-9_-]+\.tar", entry["name"]))


def _columns(file: Path, data: bytes) -> tuple[dict[str, list[Any]], dict[str, NDArray[Any]]]:
    """The index's columns, texts and numbers, of the types of ``SCHEMA`` and without gaps."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in SCHEMA.items()])
        table = pq.read_table(pa.BufferReader(data)).select(schema.names).cast(schema)
        table.validate(full=True)
        empty = [name for name in schema.names if table.column(name).null_count]
        if empty:
            raise ValueError(f"column {empty[0]} has empty cells")
        texts = [name for name, kind in SCHEMA.items() if kind in ("string", "binary")]
        numbers = [name for name in SCHEMA if name not in texts]
        return (
            {name: table.column(name).to_pylist() for name in texts},
            {name: table.column(name).to_numpy() for name in numbers},
        )
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise DataError(f"{file}: not a shard index ({first_line(error)}); pack again with marc-shard") from None


def _from_table(root: Path, meta: dict[str, Any], data: bytes) -> Dataset:
    column, number = _columns(root / "index.parquet", data)
    names = tuple(shard["name"] for shard in meta["shards"])
    position = {name: i for i, name in enumerate(names)}
    classes = tuple(meta["classes"])
    width = -(-len(classes) // 8)

    def refuse(rows: Iterable[bool], what: str) -> None:
        if any(rows):
            raise DataError(f"{root / 'index.parquet'}: {what}; pack again with marc-shard --force")

    refuse([not set(column["shard"]) <= set(names)], "names shards that dataset.json does not")
    refuse((len(bits) != width for bits in column["labels"]), f"expected labels of {len(classes)} bits everywhere")
    refuse((number["width"] < 1) | (number["height"] < 1), "pictures without pixels")
    shard = np.array([position[name] for name in column["shard"]], dtype=np.int32)
    room = np.array([entry["size"] for entry in meta["shards"]], dtype=np.int64)[shard] - number["offset"]
    refuse((number["offset"] < 0) | (number["size"] < 1) | (number["size"] > room), "pictures outside of their shard")
    packed = np.frombuffer(b"".join(column["labels"]), dtype=np.uint8).reshape(-1, width)
    bits = np.unpackbits(packed, axis=1, bitorder="little")[:, : len(classes)].astype(bool)
    return Dataset(
        root=root,
        name=str(meta["name"]),
        title=str(meta["title"]),
        classes=classes,
        fingerprint=str(meta["fingerprint"]),
        meta=meta,
        shards=names,
        keys=np.array(column["key"], dtype=object),
        split=np.array(column["split"], dtype=object),
        shard=shard,
        offset=number["offset"],
        size=number["size"],
        crc32=number["crc32"],
        labels=bits,
        scene=np.array(column["scene"], dtype=object),
        width=number["width"],
        height=number["height"],
        ext=np.array(column["ext"], dtype=object),
    )
