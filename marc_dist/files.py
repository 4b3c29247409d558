"""Files that a crash leaves whole, locks that end with their process, JSON that anybody may have damaged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from marc_dist.config import LaunchError, first_line


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Make what was written to a file survive a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it lies in, so that they survive a power cut; one that is there stays as it is.

    Raises:
        OSError: it cannot be made.
    """
    made = []
    while not folder.is_dir():
        made.append(folder)
        folder = folder.parent
    for path in reversed(made):
        try:
            path.mkdir(exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None
        sync_folder(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file completely or not at all: temporary file, fsync, rename, fsync of the folder.

    Raises:
        LaunchError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        make_folder(path.parent)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, ValueError) as error:  # ValueError: a name that cannot be one, such as one with a NUL
        with suppress(OSError, ValueError):
            temporary.unlink()
        reason = getattr(error, "strerror", None) or error
        raise LaunchError(f"{path}: cannot be written ({reason}); free space or choose another folder") from None


def folder_time(folder: Path) -> float:
    """What time it is by the clock that dates the files of a folder, in seconds since 1970.

    On a shared file system that is the server's clock, not this machine's: ages of files are differences to this. Where
    nothing can be written it is this machine's clock.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
            file.flush()
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def append_line(path: Path, line: bytes) -> None:
    """Append a line to a file, on the disk when this returns. A torn last line of an earlier crash gets its end first.

    Args:
        path: of the file; it and its folder are made when they are not there.
        line: without its end.

    Raises:
        OSError: no room, or it cannot be written.
    """
    make_folder(path.parent)
    new = not path.exists()
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)


def write_set(folder: Path, files: Mapping[str, bytes], index: str, data: bytes) -> None:
    """Write files that belong together: ``set_member`` finds those of the old set or those of the new, never a mixture.

    The new files wait beside the old ones, under names with their sums, until the index names them; then they take the
    old ones' places. What a crash left waiting takes its place, or goes, at the next call.

    Args:
        folder: made when it is not there.
        files: name -> content.
        index: name of the file that speaks for the set.
        data: its content: a JSON object whose ``sha256`` has the sum of every file, by name.

    Raises:
        LaunchError: no room, or the folder cannot be written; the set is then the old one.
    """
    _finish_set(folder, index)
    for name, content in files.items():
        write_atomic(_waiting(folder, name, hashlib.sha256(content).hexdigest()), content)
    write_atomic(folder / index, data)
    _finish_set(folder, index)


def set_member(folder: Path, name: str, sums: Any) -> Path:
    """Where a file of a set lies at this moment.

    Args:
        folder: of the set.
        name: of the file.
        sums: ``sha256`` of the index, or whatever stands there.
    """
    wanted = sums.get(name) if isinstance(sums, dict) else None
    waiting = _waiting(folder, name, str(wanted))
    return waiting if re.fullmatch("[0-9a-f]{64}", str(wanted)) and waiting.is_file() else folder / name


def _waiting(folder: Path, name: str, sum_: str) -> Path:
    return folder / f".{name}.{sum_}.next"


def _finish_set(folder: Path, index: str) -> None:
    """Give the files that wait their places if the index names them, else remove them."""
    waiting = sorted(folder.glob(".*.next"))
    sums = None
    try:
        if waiting and (folder / index).exists():
            with suppress(ValueError):  # damaged: it names nothing
                sums = read_object((folder / index).read_text(encoding="utf-8")).get("sha256")
        for path in waiting:
            name, _, sum_ = path.name.removeprefix(".").removesuffix(".next").rpartition(".")
            if isinstance(sums, dict) and sums.get(name) == sum_:
                path.replace(folder / name)
            else:
                path.unlink()
    except OSError as error:  # also of the index: what waits may be all that there is of the set
        raise LaunchError(f"{folder}: cannot be written ({error.strerror}); free space or make it writable") from None


def try_lock(path: Path) -> FileLock | None:
    """A lock that ends with this process, however that ends; None while another process holds it.

    Args:
        path: the lock file; it stays where it is.

    Raises:
        OSError: it cannot be made, or its file system has no locks. (A lock that is a mere file would outlive a killed
            process, so there is no falling back to one.)
    """
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


@contextmanager
def locked(path: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Hold ``try_lock(path)`` inside the block.

    Args:
        path: the lock file.
        wait: called while another process holds it, again and again; may sleep, or raise to give up.
    """
    while (lock := try_lock(path)) is None:
        wait()
    try:
        yield
    finally:
        lock.release()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read, is not JSON, or holds something else than an object; says which on one line.
    """
    try:
        return read_object(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(getattr(error, "strerror", None) or first_line(error)) from None


def read_object(text: str) -> dict[str, Any]:
    """The JSON object in a text.

    Raises:
        ValueError: it is not JSON, or holds something else than an object; says which on one line.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(first_line(error)) from None
    if not isinstance(found, dict):
        raise ValueError(f"expected an object, got {type(found).__name__}")
    return found


def json_records(lines: Iterable[bytes]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Lines of a ``.jsonl`` file that are JSON objects, each with what it says; torn and damaged ones are left out."""
    for line in lines:
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                yield line, record
