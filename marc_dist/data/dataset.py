"""A shard folder, opened: what is in it and where each image lies. No torch, no decoding."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marc_dist.config import DataConfig, DataError, user_path
from marc_dist.data.columns import (
    CHUNK,
    CODED,
    SCHEMA,
    Block,
    BlockGoneError,
    Codes,
    Texts,
    distinct,
    read_columns,
    texts_of,
)
from marc_dist.data.plan import held_out

FORMAT = 1


Objects = NDArray[np.object_]


@dataclass(frozen=True)
class Dataset:
    """The index of a shard folder as columns. A sample id is a row number of ``index.parquet``.

    n samples, L labels. ``offset`` and ``size`` point at the image's bytes inside its tar. The columns lie in a
    ``Block``, which the loader processes of a rank share: a pickled data set holds none of them.

    Attributes:
        bits: (n, ceil(L / 8)) the labels as the index holds them, lowest bit first.
    """

    root: Path
    name: str
    title: str
    classes: tuple[str, ...]
    fingerprint: str
    meta: dict[str, Any]
    shards: tuple[str, ...]
    keys: Texts | Objects
    split: Codes | Objects
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    crc32: NDArray[np.uint32]
    bits: NDArray[np.uint8]
    scene: Codes | Objects
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    ext: Codes | Objects
    shared: _Columns | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        kept = {} if self.shared is None else self.shared.columns
        return {one.name: value for one in fields(self) if kept.get(one.name) is not (value := getattr(self, one.name))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.shared is not None:
            self.__dict__.update({name: one for name, one in self.shared.columns.items() if name not in state})

    @cached_property
    def labels(self) -> NDArray[np.bool_]:
        """(n, L) all labels, a byte each, kept from the first use on; ``label_rows`` gives those of some samples."""
        return self.label_rows(slice(None))

    def label_rows(self, rows: Any) -> NDArray[np.bool_]:
        """(..., L) labels of a sample, or of these ids."""
        ones = np.unpackbits(self.bits[rows], axis=-1, count=len(self.classes), bitorder="little")
        return ones.view(np.bool_)

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Ids of a split's samples, ascending.

        Raises:
            DataError: the folder has no such split.
        """
        ids = np.flatnonzero(self.split == split).astype(np.int64)
        if not len(ids):
            known = ", ".join(distinct(self.split)) or "none"
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
        kept = held_out(list(self.keys[rows]), data.validation_share, data.validation_seed)
        if not kept.any() or kept.all():
            raise DataError(
                f"{self.root}: split {data.train_split!r} has {len(rows)} samples, too few for "
                f"data.validation_share={data.validation_share:g}; expected at least one on each side"
            )
        return rows[~kept], rows[kept]

    def label_counts(self, split: str | NDArray[np.int64]) -> NDArray[np.int64]:
        """(L,) samples of a split, or of these ids, that carry each label."""
        rows = self.rows(split) if isinstance(split, str) else split
        counts = np.zeros(len(self.classes), dtype=np.int64)
        for start in range(0, len(rows), CHUNK):
            counts += self.label_rows(rows[start : start + CHUNK]).sum(axis=0)
        return counts

    def cooccurrence(self, split: str | NDArray[np.int64]) -> NDArray[np.int64]:
        """(L, L) samples of a split, or of these ids, that carry both labels; the diagonal holds ``label_counts``."""
        rows = self.rows(split) if isinstance(split, str) else split
        return cooccurrence(self.label_rows(rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK))

    def place(self, sample: int) -> str:
        """``shard:key`` of a sample, for messages."""
        return f"{self.root / self.shards[self.shard[sample]]}: {self.keys[sample]}"


def cooccurrence(parts: Iterable[NDArray[np.bool_]]) -> NDArray[np.int64]:
    """(L, L) rows that carry both labels, of (n, L) parts of up to 2^24 rows each: float32 counts exactly so far.

    A product of whole numbers goes past BLAS, and takes many times as long.
    """
    total: NDArray[np.int64] | None = None
    for part in parts:
        ones = part.astype(np.float32)
        both = (ones.T @ ones).astype(np.int64)
        total = both if total is None else total + both
    return np.zeros((0, 0), dtype=np.int64) if total is None else total


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
    data = _index_bytes(root / "index.parquet", meta)
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
    return _from_columns(root, meta, _Columns(root, meta, data))


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


class _Columns:
    """The checked columns of an index. Pickled, they are the name of a ``Block``, and the folder to read them from."""

    def __init__(self, root: Path, meta: Mapping[str, Any], data: bytes) -> None:
        self.root = root
        self._facts = {key: meta[key] for key in ("classes", "shards", "index_sha256")}
        self._open(Block(read_columns(root / "index.parquet", self._facts, data)))

    def _open(self, block: Block) -> None:
        self._block, arrays = block, block.arrays
        self.columns: dict[str, Any] = {
            name: array for name, array in arrays.items() if name in SCHEMA and name not in CODED
        }
        self.columns |= {name: Codes(arrays[name], texts_of(arrays, name)) for name in CODED}
        self.columns["keys"], self.columns["bits"] = texts_of(arrays, "key"), self.columns.pop("labels")

    def __reduce__(self) -> tuple[Any, ...]:
        return _map_columns, (self.root, self._facts, pickle.dumps(self._block))


def _map_columns(root: Path, facts: dict[str, Any], block: bytes) -> _Columns:
    try:
        mapped = pickle.loads(block)  # noqa: S301 - part of a pickle
    except BlockGoneError:
        file = root / "index.parquet"
        return _Columns(root, facts, _index_bytes(file, facts))
    columns = _Columns.__new__(_Columns)
    columns.root, columns._facts = root, facts
    columns._open(mapped)
    return columns


def _index_bytes(file: Path, facts: Mapping[str, Any]) -> bytes:
    data = _content(file)
    if hashlib.sha256(data).hexdigest() != facts["index_sha256"]:
        raise DataError(f"{file}: not the index that dataset.json was written with; pack again with marc-shard --force")
    return data


def _from_columns(root: Path, meta: dict[str, Any], shared: _Columns) -> Dataset:
    return Dataset(
        root=root,
        name=str(meta["name"]),
        title=str(meta["title"]),
        classes=tuple(meta["classes"]),
        fingerprint=str(meta["fingerprint"]),
        meta=meta,
        shards=tuple(shard["name"] for shard in meta["shards"]),
        shared=shared,
        **shared.columns,
    )
