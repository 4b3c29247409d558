"""A folder that appears whole or not at all: written beside its place, published in one step."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from marc_dist.config import DataError
from marc_dist.files import make_folder, sync_folder

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def publication(out: Path, force: bool, sweep: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """A private folder beside ``out`` that becomes ``out`` when the block ends well, and vanishes when it does not.

    An older shard folder at ``out`` stays as it is until the new one takes its place, in one step where the file system
    can exchange two names; elsewhere in two, and the next call mends what a crash between them left.
    A block that leaves the private folder empty changes nothing.

    Args:
        out: the folder to make.
        force: replace an existing shard folder.
        sweep: removes from the private folder what the next call cannot use; called at the start and after a failure.
            Without it everything goes, both times.

    Raises:
        DataError: something else is in the way, another process writes there, the disk is full or fails.
    """
    if out.name in ("", ".."):
        raise DataError(f"{out}: expected a folder to make, this one is there; choose another --out")
    partial_dir, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    try:
        make_folder(out.parent)
        partial_dir.mkdir(exist_ok=True)
        lock = os.open(partial_dir, os.O_RDONLY | os.O_NOFOLLOW)  # a link: what lies elsewhere is not ours to remove
    except OSError as error:
        raise DataError(f"{out.parent}: cannot write there ({error.strerror})") from None
    try:
        # The folder itself is locked: a lock file (filelock's way) would lie beside the place for ever, or leave a gap
        # between its removal and the next call. The lock goes with the folder when that is renamed into its place.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{out}: another marc-shard is writing it; wait for it") from None
        try:
            (sweep or clear)(partial_dir)
            _mend(out, old)
            _in_the_way(out, force)
            yield partial_dir
            if not any(partial_dir.iterdir()):
                partial_dir.rmdir()
                return
            sync_folder(partial_dir)
            _replace(partial_dir, out, old)
            sync_folder(out.parent)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            kept = _after_failure(partial_dir, sweep)
            if error.errno in FULL:
                what = "finished shards were kept" if kept else "nothing was kept"
                raise DataError(f"{out}: the disk is full; {what}, free some room and start again") from None
            raise DataError(f"{out}: cannot be written ({error.strerror or error})") from None
        except BaseException:
            _after_failure(partial_dir, sweep)
            raise
    finally:
        os.close(lock)


def _after_failure(folder: Path, sweep: Callable[[Path], None] | None) -> bool:
    """Whether anything is left for the next call."""
    if sweep is not None and folder.is_dir():
        try:
            sweep(folder)
            if any(folder.iterdir()):
                return True
        except OSError:  # the disk fails; the next start sweeps before it takes anything over
            return True
    shutil.rmtree(folder, ignore_errors=True)
    return False


def _mend(out: Path, old: Path) -> None:
    """After a crash between the two renames of ``_replace``: the old folder comes back."""
    if old.exists():
        if not out.exists():
            old.rename(out)
        sync_folder(out.parent)  # before anything is removed: the crash may have been this process's alone
    shutil.rmtree(old, ignore_errors=True)


def _replace(new: Path, out: Path, old: Path) -> None:
    if not out.exists():
        new.rename(out)
    elif _exchange(new, out):
        sync_folder(out.parent)  # else a power cut may undo the exchange, and not the removal
        shutil.rmtree(new, ignore_errors=True)  # now the older folder
    else:
        out.rename(old)
        new.rename(out)


def _exchange(one: Path, two: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot."""
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call is not None and call(here, os.fsencode(one), here, os.fsencode(two), exchange) == 0


def clear(folder: Path) -> None:
    """Remove everything in a folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _in_the_way(out: Path, force: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        if out.exists():
            out.rmdir()
        return
    if not (out / "dataset.json").is_file():
        raise DataError(f"{out}: exists and is not a shard folder; choose another --out")
    if not force:
        raise DataError(f"{out}: exists; pass --force to replace it")
