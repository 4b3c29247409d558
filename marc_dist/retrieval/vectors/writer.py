"""Writes the vectors of a split, all ranks together, so that a killed process loses five seconds of them.

All ranks write their rows into one temporary file, which rank 0 renames; the folder must be one that all ranks see, as
the run folder is. A second file has a byte for each row, 1 once the row is on disk, and the next process that wants the
same vectors goes on with both. A lock tells it that nobody else is at work on them; a process that does not get the
lock, or has no locks, writes a file of its own.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from marc_dist import comm
from marc_dist.config import DataError, LaunchError
from marc_dist.files import make_folder, sync_folder, try_lock, write_atomic
from marc_dist.retrieval.exact import Float32
from marc_dist.retrieval.index_folder import FORMAT, read_store
from marc_dist.retrieval.vectors.store import Made, file_crc, grown_from, same_vectors

Result = TypeVar("Result")
OLD_S = 86_400.0
"""A temporary file that was not touched for so long belongs to a process that was killed."""
SYNC_S = 5.0
"""Seconds after which what was embedded is put on disk."""


def _file_name(split: str, made: Made) -> str:
    plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}", split)
    name = split if plain else hashlib.sha256(split.encode()).hexdigest()[:16]
    return f"{name}-{hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:8]}.npy"


class RowWriter:
    """Takes the rows of a split as this rank computes them, in any order.

    Args:
        path: the temporary file.
        done: the file beside it that says which rows are on disk; None: nobody will ask.
        shape: (n, d) of the whole split.
    """

    def __init__(self, path: Path, done: Path | None, shape: tuple[int, int]) -> None:
        self._file = path.open("r+b")  # written, not mapped: a full disk is an error then, not a killed process
        self._start = path.stat().st_size - 4 * shape[0] * shape[1]
        self._width = 4 * shape[1]
        self._done = None if done is None else done.open("r+b")
        self._new: list[tuple[int, int]] = []
        self._synced = time.monotonic()

    def __call__(self, place: int, rows: Float32) -> None:
        """Take the vectors of rows ``place``, ``place`` + 1, ..."""
        self._file.seek(self._start + place * self._width)
        self._file.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
        self._new.append((place, len(rows)))
        if time.monotonic() - self._synced > SYNC_S:
            self.sync()

    def there(self, num: int) -> NDArray[np.bool_]:
        """(num,) which rows of the split an earlier process has put on disk."""
        if self._done is None:
            return np.zeros(num, dtype=bool)
        self._done.seek(0)
        return np.asarray(np.frombuffer(self._done.read(num), dtype=np.uint8) == 1)

    def sync(self) -> None:
        """Put on disk what was taken, then say so."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._done is not None:
            for place, num in self._new:
                self._done.seek(place)
                self._done.write(b"\x01" * num)
            self._done.flush()
            os.fsync(self._done.fileno())
        self._new.clear()
        self._synced = time.monotonic()

    def close(self) -> None:
        """Close the files; what was not put on disk does not count."""
        for file in (self._file, self._done):
            if file is not None:
                with suppress(OSError):
                    file.close()


def write_split(
    folder: Path,
    split: str,
    shape: tuple[int, int],
    made: Made,
    about: dict[str, Any],
    fill: Callable[[RowWriter], None],
    check: Callable[[], None],
    contents: NDArray[np.void] | None = None,
) -> None:
    """Write one split's vectors, all ranks together, and enter it into ``store.json``. A collective.

    Args:
        folder: of the store; made when it is not there.
        split: name.
        shape: (n, d) of the whole split.
        made: what the vectors depend on; parts of another encoder are forgotten.
        about: what else people or commands want to know.
        fill: computes this rank's rows that are not ``there`` and hands them over.
        check: a collective that raises, on all ranks alike, when the rows should not be kept.
        contents: (n,) which picture each row is of, so that another data set may take it over; see ``known.py``.

    Raises:
        LaunchError: no room, or the folder cannot be written; on every rank.
        DataError: from ``fill`` or ``check``, on every rank.
    """
    path = folder / _file_name(split, made)
    with _begun(path, shape) as (temporary, done):
        _together(lambda: _fill(temporary, done, shape, fill), path)
        check()
        if comm.rank() == 0:
            publish = partial(_publish, temporary, path, split, shape, made, about, contents)
        _together(publish if comm.rank() == 0 else lambda: None, path)


@contextmanager
def _begun(path: Path, shape: tuple[int, int]) -> Iterator[tuple[Path, Path | None]]:
    """The temporary files of a part. Removed in the end, but where this process is told to end. A collective."""
    lock: FileLock | None = None
    names: tuple[Path, Path | None] | None = None
    ended = False

    def reserve() -> tuple[Path, Path | None]:
        nonlocal lock
        make_folder(path.parent)
        _clean(path)
        lock = _lock(path.parent)
        return _reserve(path, shape, mine=lock is not None)

    try:
        names = comm.broadcast_object(_together(reserve if comm.rank() == 0 else lambda: None, path))
        assert names is not None
        yield names
    except BaseException as error:
        ended = not isinstance(error, Exception)
        raise
    finally:
        if comm.rank() == 0 and names is not None and (not ended or names[1] is None):
            for name in names:
                if name is not None:
                    with suppress(OSError):
                        name.unlink()
        if lock is not None:
            lock.release()


def _together(work: Callable[[], Result], path: Path) -> Result | None:
    """Do something on every rank; when it fails on one, all raise the error of the first that failed."""
    error: Exception | None = None
    result: Result | None = None
    try:
        result = work()
    except OSError as failure:
        reason = failure.strerror or failure
        error = LaunchError(f"{path}: cannot be written ({reason}); free space or choose another folder")
    except Exception as failure:
        error = failure
    for other in comm.gather_object(error):
        if other is not None:
            raise other
    return result


def _lock(folder: Path) -> FileLock | None:
    """The right to go on with what a killed process has left; None: another process has it, or there are no locks."""
    try:
        return try_lock(folder / ".begun.lock")
    except OSError:
        return None


def _clean(path: Path) -> None:
    """Remove what killed processes have left a day ago, but for what the part at ``path`` goes on with."""
    for left in path.parent.glob(".*.tmp"):
        with suppress(OSError):
            if not left.name.startswith(f".{path.name}.begun") and time.time() - left.stat().st_mtime > OLD_S:
                left.unlink()


def _reserve(path: Path, shape: tuple[int, int], *, mine: bool) -> tuple[Path, Path | None]:
    """The temporary file and the one that says which rows it holds, of an earlier process if they are whole."""
    if not mine:
        own = f".{path.name}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"  # hosts may share a pid
        _room(path.with_name(own), shape)
        return path.with_name(own), None
    temporary, done = (path.with_name(f".{path.name}.{what}.tmp") for what in ("begun", "begun-rows"))
    head = _header(shape)
    try:
        size = len(head) + 4 * shape[0] * shape[1]
        whole = temporary.stat().st_size == size and done.stat().st_size == shape[0]
        with temporary.open("rb") as file:
            whole = whole and file.read(len(head)) == head
    except OSError:
        whole = False
    if not whole:
        for old in (done, temporary):  # the rows first: without them nothing of the other counts
            old.unlink(missing_ok=True)
        sync_folder(path.parent)
        _room(temporary, shape)
        sync_folder(path.parent)
        done.write_bytes(bytes(shape[0]))
    return temporary, done


def _header(shape: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return out.getvalue()


def _room(temporary: Path, shape: tuple[int, int]) -> None:
    with temporary.open("wb") as file:
        file.write(_header(shape))
        file.truncate(file.tell() + 4 * shape[0] * shape[1])
        file.flush()
        os.fsync(file.fileno())


def _fill(temporary: Path, done: Path | None, shape: tuple[int, int], fill: Callable[[RowWriter], None]) -> None:
    rows = RowWriter(temporary, done, shape)
    try:
        fill(rows)
        rows.sync()
    finally:
        rows.close()


def _publish(
    temporary: Path,
    path: Path,
    split: str,
    shape: tuple[int, int],
    made: Made,
    about: dict[str, Any],
    contents: NDArray[np.void] | None,
) -> None:
    try:
        there = read_store(path.parent)["parts"]
    except DataError:
        there = {}
    alike = grown_from if contents is not None else same_vectors
    parts = {name: part for name, part in there.items() if alike(part["made"], made)}
    part = {"rows": shape[0], "crc32": file_crc(temporary), "file": path.name, "made": made}
    if contents is not None:
        names = path.with_name(f"contents-of-{path.name}")
        out = io.BytesIO()
        np.save(out, contents)
        write_atomic(names, out.getvalue())
        part |= {"contents": names.name, "contents_crc32": zlib.crc32(out.getvalue())}
    temporary.replace(path)
    sync_folder(path.parent)
    parts[split] = part
    told = {"format": FORMAT, "dim": shape[1], "about": about, "parts": parts}
    write_atomic(path.parent / "store.json", (json.dumps(told, indent=2) + "\n").encode())
    _forget(path.parent, there, parts)


def _forget(folder: Path, there: dict[str, Any], parts: dict[str, Any]) -> None:
    """Remove the files that ``store.json`` names no more; who has one open keeps it."""
    named = {part["file"] for part in parts.values()}
    for part in there.values():
        if part["file"] not in named:
            for name in (part["file"], f"contents-of-{part['file']}"):
                with suppress(OSError):
                    (folder / name).unlink()


def forget_splits(folder: Path, made: Made, splits: Sequence[str]) -> None:
    """Remove the parts of splits that the data set has no more, and of the data set that it has grown from.

    Args:
        folder: of the store.
        made: what the parts that stay depend on.
        splits: names of all splits of the data set.
    """
    try:
        meta = read_store(folder)
    except DataError:
        return
    there = meta["parts"]
    parts = {split: part for split, part in there.items() if split in splits and same_vectors(part["made"], made)}
    if len(parts) < len(there):
        write_atomic(folder / "store.json", (json.dumps({**meta, "parts": parts}, indent=2) + "\n").encode())
        _forget(folder, there, parts)
