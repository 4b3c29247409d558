"""Files that a crash leaves whole, locks that end with their process, JSON that anybody may have damaged."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
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


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file completely or not at all: temporary file, fsync, rename, fsync of the folder.

    Raises:
        LaunchError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(getattr(error, "strerror", None) or first_line(error)) from None
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
