"""Decoded pictures of a split in one memory-mapped file, made once a node and shared by its processes.

Decoding is most of a loader's work, and these benchmarks fit into memory: the file's pages are in the page cache of the
node, once, however many ranks and workers look at them. It is named after the data set's fingerprint, so that other
data can never be taken for these, and appears under its name by one rename when it is complete.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from marc_dist.config import DataError, user_path
from marc_dist.data.dataset import Dataset
from marc_dist.data.plan import Ids
from marc_dist.data.reader import IndexedReader
from marc_dist.files import locked, write_atomic

FORMAT = 1
SHARE = 0.5  # of the memory that is free, and of the disk, that a cache may take
POLL_S = 0.2
AHEAD = 64  # pictures that the disk may fetch before their turn


class DecodedCache:
    """Pictures by id; opened on first use in each process, so it may be pickled.

    Args:
        folder: as ``build_cache`` made it.
        ids: of the split, ascending.
        dataset: for messages.
    """

    def __init__(self, folder: Path, ids: Ids, dataset: Dataset) -> None:
        self.folder, self.ids, self.dataset = folder, ids, dataset
        self._open: tuple[NDArray[np.uint8], NDArray[np.int32], dict[str, str]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def _opened(self) -> tuple[NDArray[np.uint8], NDArray[np.int32], dict[str, str]]:
        if self._open is None:
            pixels = np.load(self.folder / "pixels.npy", mmap_mode="c")
            meta = json.loads((self.folder / "cache.json").read_text())
            self._open = pixels, np.load(self.folder / "sizes.npy"), meta["errors"]
        return self._open

    def picture(self, sample: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8, not copied; what is written to it stays in this process.

        Raises:
            DataError: the sample could not be decoded when the cache was made.
        """
        pixels, sizes, errors = self._opened()
        if str(sample) in errors:
            raise DataError(errors[str(sample)])
        (row,) = self.rows(np.array([sample]))
        height, width = sizes[row]
        found: NDArray[np.uint8] = pixels[row, :height, :width]
        return found

    def rows(self, ids: Ids) -> list[int]:
        """Where samples lie in ``tensors``."""
        found: list[int] = np.searchsorted(self.ids, ids).tolist()
        return found

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All pictures, (N, H, W, 3) uint8, and their (N, 2) heights and widths; not copied."""
        pixels, sizes, _ = self._opened()
        return torch.from_numpy(pixels), torch.from_numpy(sizes)


def cache_root(given: str | None) -> Path:
    """Where caches lie: ``given``, else the environment's MARC_CACHE_DIR, else a private folder in the temporary one.

    Raises:
        DataError: the folder in the temporary directory belongs to somebody else.
    """
    given = given or os.environ.get("MARC_CACHE_DIR")
    if given:
        if "\0" in given:
            raise DataError(f"data.cache_dir: expected a folder's name, got {given!r}")
        return user_path(given)
    root = Path(tempfile.gettempdir()) / f"marc-dist-cache-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise DataError(f"{root}: belongs to another user; set data.cache_dir, or data.cache=none")
    return root


def why_not(dataset: Dataset, ids: Ids, root: Path) -> str | None:
    """Why the decoded pictures of a split do not fit into the free memory or disk, or None.

    Args:
        dataset: knows the pictures' sizes.
        ids: samples of the split, at least one; each takes as much room as the greatest height and width among them.
        root: folder of caches; need not exist.
    """
    need = len(ids) * int(dataset.height[ids].max()) * int(dataset.width[ids].max()) * 3
    rooms = {"memory": _free_memory(), "disk": shutil.disk_usage(_existing(root)).free}
    for name, free in rooms.items():
        if free is not None and need > SHARE * free:
            return f"they take {need / 1e9:.1f} GB, and {SHARE:.0%} of the free {name} is {SHARE * free / 1e9:.1f} GB"
    return None


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def _free_memory() -> int | None:
    """Bytes that programs may still take; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def open_cache(
    dataset: Dataset,
    split: str,
    root: Path,
    *,
    reader: IndexedReader,
    skip: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> DecodedCache:
    """The cache of a split, made now if this node has none yet; one process makes it, the others wait.

    Args:
        dataset: an opened shard folder.
        split: whose pictures.
        root: folder of caches.
        reader: of the data set.
        skip: note pictures that cannot be decoded and go on.
        tick: called now and then while it is made or waited for.

    Raises:
        DataError: a picture that cannot be read and ``skip`` is off; a folder that cannot be written.
    """

    def wait() -> None:
        tick()
        time.sleep(POLL_S)

    ids = dataset.rows(split)
    folder = root / f"{dataset.fingerprint[:24]}-{split}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock"), wait):
            if not _is_whole(folder, dataset, ids, skip):
                _build(dataset, ids, folder, reader, skip, tick)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror}); set data.cache_dir or data.cache=none"
        ) from None
    return DecodedCache(folder, ids, dataset)


def _is_whole(folder: Path, dataset: Dataset, ids: Ids, skip: bool) -> bool:
    try:
        meta = json.loads((folder / "cache.json").read_text())
        pixels, sizes = np.load(folder / "pixels.npy", mmap_mode="r"), np.load(folder / "sizes.npy")
    except Exception:  # numpy parses a header as Python: SyntaxError, TokenError, ... of a damaged one
        return False
    most = (int(dataset.height[ids].max()), int(dataset.width[ids].max()))
    shapes = {"pixels": (pixels.shape, pixels.dtype), "sizes": (sizes.shape, sizes.dtype)}
    if shapes != {"pixels": ((len(ids), *most, 3), np.uint8), "sizes": ((len(ids), 2), np.int32)}:
        return False
    expected = {"format": FORMAT, "fingerprint": dataset.fingerprint, "num": len(ids)}
    expected["bytes"] = (folder / "pixels.npy").stat().st_size
    if not isinstance(meta, dict) or any(meta.get(key) != value for key, value in expected.items()):
        return False
    return isinstance(meta.get("errors"), dict) and (skip or not meta["errors"])


def _build(
    dataset: Dataset, ids: Ids, folder: Path, reader: IndexedReader, skip: bool, tick: Callable[[], None]
) -> None:
    for old in (folder, *folder.parent.glob(f"{folder.name}.new-*")):  # of a process that was killed, or other bytes
        shutil.rmtree(old, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.new-", dir=folder.parent))
    try:
        shape = (len(ids), int(dataset.height[ids].max()), int(dataset.width[ids].max()), 3)
        pixels = np.lib.format.open_memmap(temporary / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)
        sizes = np.zeros((len(ids), 2), dtype=np.int32)
        errors: dict[str, str] = {}

        mine = threading.local()  # a reader for each thread: a retry closes its files
        readers: list[IndexedReader] = []

        def decode(row: int) -> None:
            if not hasattr(mine, "reader"):
                mine.reader = copy.copy(reader)
                readers.append(mine.reader)
                mine.reader.expect(ids[row : row + AHEAD])
            mine.reader.expect(ids[row + AHEAD : row + AHEAD + 1])
            try:
                picture = np.asarray(mine.reader.image(int(ids[row])))
                if picture.shape[0] > shape[1] or picture.shape[1] > shape[2]:
                    raise DataError(
                        f"{dataset.place(int(ids[row]))}: larger than the index says; check with marc-shard --verify"
                    )
            except DataError as error:
                if not skip:
                    raise
                errors[str(ids[row])] = str(error)
                return
            sizes[row] = picture.shape[:2]
            pixels[row, : picture.shape[0], : picture.shape[1]] = picture

        pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))  # Pillow decodes outside Python's lock
        try:
            for _ in pool.map(decode, range(len(ids))):
                tick()
        finally:
            pool.shutdown(cancel_futures=True)
            for one in readers:
                one.close()
        pixels.flush()
        with (temporary / "sizes.npy").open("wb") as file:
            np.save(file, sizes)
            file.flush()
            os.fsync(file.fileno())
        meta = {
            "format": FORMAT,
            "fingerprint": dataset.fingerprint,
            "num": len(ids),
            "bytes": (temporary / "pixels.npy").stat().st_size,
            "errors": errors,
        }
        write_atomic(temporary / "cache.json", json.dumps(meta).encode())
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
