"""The columns of an index, laid out in one block of memory that every process of a rank maps.

``index.parquet`` is compressed, so it cannot be mapped; a decoded copy on disk would need a place, an owner and an end.
So the rows are decoded once, into memory without a file, and a loader process maps that memory by the name that the
system gives it. Where there is no such memory, or it has gone, a process decodes ``index.parquet`` for itself.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from marc_dist.config import DataError, first_line

ALIGN = 64
TOKEN_BYTES = 32
CHUNK = 1 << 16  # rows decoded at a time
SCHEMA = {
    "key": "string", "split": "string", "shard": "string", "offset": "int64", "size": "int64", "crc32": "uint32",
    "labels": "binary", "scene": "string", "width": "int32", "height": "int32", "ext": "string",
}  # fmt: skip
CODED = ("split", "scene", "ext")
DICTIONARIES = (*CODED, "shard")


class Texts:
    """Strings, one a row, as one run of UTF-8: a string is made when it is asked for.

    Args:
        ends: (n,) where each ends in ``data``, ascending.
        data: of all.
    """

    def __init__(self, ends: NDArray[np.uint64], data: NDArray[np.uint8]) -> None:
        self.ends, self.data = ends, data

    def __len__(self) -> int:
        return len(self.ends)

    def _one(self, row: int) -> str:
        start = int(self.ends[row - 1]) if row else 0
        return self.data[start : int(self.ends[row])].tobytes().decode()

    def _many(self, rows: NDArray[np.int64]) -> list[str]:
        starts = np.where(rows > 0, self.ends[rows - 1], 0) if len(rows) else rows
        view = self.data.data
        return [str(view[a:b], "utf-8") for a, b in zip(starts.tolist(), self.ends[rows].tolist(), strict=True)]

    def __getitem__(self, item: Any) -> Any:
        """The string of a row, or (m,) objects of a slice, of ids or of a mask, as of an array."""
        if isinstance(item, int | np.integer):
            if not -len(self) <= item < len(self):
                raise IndexError(f"row {item} of {len(self)}")
            return self._one(int(item) % len(self))
        rows = np.arange(len(self))[item]
        found = np.empty(len(rows), dtype=object)
        found[:] = self._many(rows)
        return found

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), CHUNK):
            yield from self._many(np.arange(start, min(start + CHUNK, len(self))))

    def tolist(self) -> list[str]:
        """All strings."""
        return list(self)

    def copy(self) -> NDArray[np.object_]:
        """All strings, as an array."""
        return np.asarray(self[:], dtype=object)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.copy() if dtype is None else self.copy().astype(dtype)

    def __eq__(self, other: object) -> NDArray[np.bool_]:  # type: ignore[override]  # as an array compares
        return np.asarray(self.copy() == (other.copy() if isinstance(other, Texts) else other))

    __hash__ = None  # type: ignore[assignment]


class Codes(Texts):
    """Strings of which few are different, as ``Texts``: a small number a row, and what the numbers mean.

    Args:
        codes: (n,) unsigned.
        names: of each code, distinct.
    """

    def __init__(self, codes: NDArray[Any], names: Texts) -> None:
        self.codes, self.names = codes, names

    def __len__(self) -> int:
        return len(self.codes)

    def _one(self, row: int) -> str:
        return self.names._one(int(self.codes[row]))

    def _many(self, rows: NDArray[np.int64]) -> list[str]:
        names = self.names.tolist()
        return [names[code] for code in self.codes[rows].tolist()]

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, int | np.integer):
            return super().__getitem__(item)
        return self.names.copy()[self.codes[item]]

    def __eq__(self, other: object) -> NDArray[np.bool_]:  # type: ignore[override]
        if not isinstance(other, str):
            return super().__eq__(other)
        code = next((number for number, name in enumerate(self.names) if name == other), len(self.names))
        return np.asarray(self.codes == code)

    __hash__ = None


def distinct(column: Texts | NDArray[np.object_], rows: NDArray[np.int64] | None = None) -> list[str]:
    """The different strings of a column, or of these rows of it, sorted."""
    if isinstance(column, Codes):
        used = np.bincount(column.codes if rows is None else column.codes[rows], minlength=len(column.names))
        return sorted(name for name, num in zip(column.names, used.tolist(), strict=True) if num)
    return sorted(set((column if rows is None else column[rows]).tolist()))


class Block:
    """Named arrays side by side in memory that other processes of this machine and user can map; read-only.

    Pickled, it is a name: whoever unpickles it maps the same memory. ``BlockGoneError`` where that is not possible.

    Args:
        arrays: what goes in; taken out of there one by one, so that little is held twice.
    """

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._layout: dict[str, tuple[str, tuple[int, ...], int]] = {}
        end = TOKEN_BYTES
        for name, array in arrays.items():
            start = -(-end // ALIGN) * ALIGN
            self._layout[name] = array.dtype.str, array.shape, start
            end = start + array.nbytes
        self._place = None
        try:
            file = os.memfd_create("marc-index")  # Linux
        except (AttributeError, OSError):
            self._memory = mmap.mmap(-1, end)
        else:
            finalize(self, os.close, file)
            os.ftruncate(file, end)
            self._memory = mmap.mmap(file, end)
            self._place = f"/proc/{os.getpid()}/fd/{file}"
        self._memory[:TOKEN_BYTES] = self._token = secrets.token_bytes(TOKEN_BYTES)
        for name in self._layout:
            self._array(name)[...] = arrays.pop(name)
        self.arrays = self._read_only()

    def _array(self, name: str) -> NDArray[Any]:
        kind, shape, start = self._layout[name]
        return np.ndarray(shape, dtype=kind, buffer=self._memory, offset=start)

    def _read_only(self) -> dict[str, NDArray[Any]]:
        arrays = {name: self._array(name) for name in self._layout}
        for array in arrays.values():
            array.flags.writeable = False
        return arrays

    def __getstate__(self) -> dict[str, Any]:
        return {"_layout": self._layout, "_place": self._place, "_token": self._token}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._place is None:
            raise BlockGoneError
        try:
            file = os.open(self._place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                self._memory = mmap.mmap(file, 0, prot=mmap.PROT_READ)
            finally:
                os.close(file)
        except (OSError, ValueError):
            raise BlockGoneError from None
        if self._memory[:TOKEN_BYTES] != self._token:  # on another machine, or of another process of that number
            raise BlockGoneError
        self.arrays = self._read_only()


class BlockGoneError(Exception):
    """The memory of a ``Block`` cannot be mapped here."""


def run_of(part: Any) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Where each text of a pyarrow ``large_string`` or ``large_binary`` ends in the bytes of all, and those bytes."""
    _, offsets, data = part.buffers()
    if not len(part):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint8)
    ends = np.frombuffer(offsets, dtype=np.int64)[part.offset : part.offset + len(part) + 1]
    first, last = int(ends[0]), int(ends[-1])
    every = np.frombuffer(data, dtype=np.uint8)[first:last] if last > first else np.zeros(0, dtype=np.uint8)
    return ends[1:] - first, every


def numbers_of(part: Any, kind: str) -> NDArray[Any]:
    """The numbers of a pyarrow array without empty cells. ``to_numpy`` would import Pandas: 40 MB, half a second."""
    width = np.dtype(kind).itemsize
    return np.frombuffer(part.buffers()[1] or b"", dtype=kind, count=len(part), offset=part.offset * width)


def text_arrays(name: str, parts: Iterable[Any]) -> dict[str, NDArray[Any]]:
    """The arrays of a ``Texts``, for a ``Block``.

    Args:
        name: of the column.
        parts: pyarrow arrays of ``large_string`` without empty cells, one after the other.
    """
    lengths, data = [np.zeros(0, dtype=np.uint32)], [np.zeros(0, dtype=np.uint8)]
    for part in parts:
        ends, every = run_of(part)
        lengths.append(np.diff(ends, prepend=0).astype(np.uint32))
        data.append(every.copy())
    kind = np.uint32 if sum(map(len, data)) < 1 << 32 else np.uint64
    return {f"{name}.ends": np.cumsum(np.concatenate(lengths), dtype=kind), f"{name}.data": np.concatenate(data)}


def code_arrays(name: str, parts: Iterable[Any]) -> dict[str, NDArray[Any]]:
    """The arrays of a ``Codes``, for a ``Block``.

    Args:
        name: of the column.
        parts: pyarrow arrays, dictionaries of strings without empty cells, one after the other.
    """
    known: dict[str, int] = {}
    found = [np.zeros(0, dtype=np.uint8)]
    for part in parts:
        values = part.dictionary.to_pylist()
        codes = np.array([known.setdefault(value, len(known)) for value in values], dtype=np.int64)
        found.append(smallest(codes, len(known))[numbers_of(part.indices, "int32")])
    texts = [text.encode() for text in known]
    data: dict[str, NDArray[Any]] = {
        f"{name}.ends": np.cumsum(list(map(len, texts)), dtype=np.uint32),
        f"{name}.data": np.frombuffer(b"".join(texts), dtype=np.uint8),
    }
    return {name: np.concatenate(found), **data}


def texts_of(arrays: Mapping[str, NDArray[Any]], name: str) -> Texts:
    """The column that ``text_arrays`` has laid out."""
    return Texts(arrays[f"{name}.ends"], arrays[f"{name}.data"])


def smallest(codes: NDArray[np.int64], num: int) -> NDArray[Any]:
    """Codes below ``num`` in the smallest unsigned type that holds them."""
    return codes.astype(np.min_scalar_type(max(num - 1, 0)))


def read_columns(file: Path, facts: Mapping[str, Any], data: bytes) -> dict[str, NDArray[Any]]:
    """What goes into a ``Block``: the columns, of the types of ``SCHEMA``, without gaps, checked by ``dataset.json``.

    Args:
        file: its place, for messages.
        facts: of ``dataset.json``: ``classes`` and ``shards``.
        data: the bytes of ``index.parquet``.

    Raises:
        DataError: not such a table, or rows that cannot be right.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays: dict[str, NDArray[Any]] = {}
    try:
        table = pq.ParquetFile(pa.BufferReader(data), read_dictionary=list(DICTIONARIES))
        for name in SCHEMA:
            arrays |= _column(file, name, _parts(table, name), facts)
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise DataError(f"{file}: not a shard index ({first_line(error)}); pack again with marc-shard") from None
    finally:
        pa.default_memory_pool().release_unused()
    _check(file, arrays, facts)
    return arrays


def _parts(table: Any, name: str) -> Iterator[Any]:
    """A column in parts, so that little is held twice; texts of which few are different as dictionaries."""
    import pyarrow as pa

    if name not in table.schema_arrow.names:
        raise ValueError(f"no column {name}")
    kind, num = pa.type_for_alias(SCHEMA[name]), 0
    kind = {"key": pa.large_string(), "labels": pa.large_binary()}.get(name, kind)  # one kind of offsets
    for batch in table.iter_batches(CHUNK, columns=[name], use_threads=False):
        batch.validate(full=True)
        part = batch.column(name)
        if not pa.types.is_dictionary(part.type):
            part = part.cast(kind)
        if name in DICTIONARIES:
            part = part if pa.types.is_dictionary(part.type) else part.dictionary_encode()
            part = part.cast(pa.dictionary(pa.int32(), kind))
        if part.null_count or (name in DICTIONARIES and part.dictionary.null_count):
            raise ValueError(f"column {name} has empty cells")
        num += len(part)
        yield part
    if num != table.metadata.num_rows:
        raise ValueError(f"column {name} has {num} cells, expected {table.metadata.num_rows}")


def _column(file: Path, name: str, parts: Iterator[Any], facts: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    if name == "key":
        return text_arrays(name, parts)
    if name in CODED:
        return code_arrays(name, parts)
    if name == "shard":
        return {name: _shard_numbers(file, parts, facts)}
    if name == "labels":
        return {name: _label_bits(file, parts, facts)}
    return {name: np.concatenate([np.zeros(0, SCHEMA[name]), *(numbers_of(part, SCHEMA[name]) for part in parts)])}


def _refuse(wrong: bool | np.bool_, file: Path, what: str) -> None:
    if wrong:
        raise DataError(f"{file}: {what}; pack again with marc-shard --force")


def _shard_numbers(file: Path, parts: Iterable[Any], facts: Mapping[str, Any]) -> NDArray[np.int32]:
    """(n,) the number of each row's shard."""
    position = {entry["name"]: i for i, entry in enumerate(facts["shards"])}
    found = [np.zeros(0, dtype=np.int32)]
    for part in parts:
        numbers = np.array([position.get(name, -1) for name in part.dictionary.to_pylist()], dtype=np.int32)
        found.append(numbers[numbers_of(part.indices, "int32")])
    shard = np.concatenate(found)
    _refuse((shard < 0).any(), file, "names shards that dataset.json does not")
    return shard


def _label_bits(file: Path, parts: Iterable[Any], facts: Mapping[str, Any]) -> NDArray[np.uint8]:
    """(n, bytes of a row) the bits of each row's labels."""
    width = -(-len(facts["classes"]) // 8)
    found = [np.zeros((0, width), dtype=np.uint8)]
    for part in parts:
        ends, data = run_of(part)
        _refuse(
            (np.diff(ends, prepend=0) != width).any(),
            file,
            f"expected labels of {len(facts['classes'])} bits everywhere",
        )
        found.append(data.reshape(-1, width).copy())
    return np.concatenate(found)


def _check(file: Path, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
    _refuse(((arrays["width"] < 1) | (arrays["height"] < 1)).any(), file, "pictures without pixels")
    room = np.array([entry["size"] for entry in facts["shards"]], dtype=np.int64)
    offset, size = arrays["offset"], arrays["size"]
    outside = (offset < 0) | (size < 1)
    if len(offset):
        outside |= size > room[arrays["shard"]] - offset
    _refuse(outside.any(), file, "pictures outside of their shard")
