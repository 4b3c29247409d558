"""Decoded pictures of a split in one file, made once a node and shared by its processes.

Decoding is most of a loader's work, and these benchmarks fit into memory: the file's pages are in the page cache of the
node, once, however many ranks and workers look at them. It is named after the data set's fingerprint and the decoders'
versions, so that other pixels can never be taken for these, and appears under its name by one rename when it is whole.
Pictures of shards that an earlier cache knows are taken from there.

Each picture has a CRC-32 and is checked every time it is read: damage ends a run in one line, and the next start makes
the file anew. It is read, not mapped: a mapped file that another program cuts short kills its readers without a word.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import weakref
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marc_dist.config import DataError, LaunchError, user_path
from marc_dist.data.bands.pick import BandPick
from marc_dist.data.dataset import Dataset
from marc_dist.data.decode import decoders
from marc_dist.data.decoded.files import FORMAT, OpenedCache, crc_of, open_files, read_picture, row_bytes
from marc_dist.data.decoded.pictures import PLACES, Pictures, find_earlier, picture_places
from marc_dist.data.plan import Ids
from marc_dist.data.reader import IndexedReader
from marc_dist.files import locked, write_atomic
from marc_dist.memory_limits import free_memory

SHARE = 0.5  # of the memory that is free, and of the disk, that a cache may take
POLL_S = 0.2


class DecodedCache:
    """Pictures by id; opened on first use in each process, so it may be pickled.

    Args:
        folder: as ``build_cache`` made it.
        ids: of the split, ascending.
        dataset: for messages.
    """

    def __init__(self, folder: Path, ids: Ids, dataset: Dataset) -> None:
        self.folder, self.ids, self.dataset = folder, ids, dataset
        self._open: OpenedCache | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def _opened(self) -> OpenedCache:
        if self._open is None:
            try:
                self._open = open_files(self.folder)
            except (OSError, ValueError, RecursionError) as error:
                raise self._damage(f"{self.folder}: cannot be read any more ({error})") from None
            weakref.finalize(self, os.close, self._open.file)
        return self._open

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C) of all pictures, each as large as the largest."""
        return self._opened().shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of their values: uint8 of plain RGB, else that of the bands."""
        return self._opened().dtype

    @property
    def sizes(self) -> NDArray[np.int32]:
        """(N, 2) height and width of each."""
        return self._opened().sizes

    def refuse(self, sample: int) -> None:
        """See ``picture``; nothing is read.

        Raises:
            DataError: the sample could not be decoded when the cache was made.
        """
        told = self._opened().errors.get(str(sample))
        if told is not None:
            raise DataError(told)

    def picture(self, sample: int) -> NDArray[Any]:
        """(H, W, C), see ``batches.Picture``; the caller's own.

        Raises:
            DataError: the sample could not be decoded when the cache was made.
            LaunchError: the cache is damaged; the next start makes it anew.
        """
        self.refuse(sample)
        (row,) = self.rows(np.array([sample]))
        return self._read(row)

    def block(self, start: int, stop: int) -> NDArray[Any]:
        """(stop - start, H, W, C) pictures by their place, see ``rows``; smaller ones at the top left.

        Raises:
            LaunchError: see ``picture``.
        """
        out = np.zeros((stop - start, *self.shape[1:]), dtype=self.dtype)
        for place in range(start, stop):
            picture = self._read(place)
            out[place - start, : picture.shape[0], : picture.shape[1]] = picture
        return out

    def rows(self, ids: Ids) -> list[int]:
        """Where samples lie among all pictures."""
        found: list[int] = np.searchsorted(self.ids, ids).tolist()
        return found

    def _read(self, row: int) -> NDArray[Any]:
        """A picture, once its checksum was found right."""
        cache = self._opened()
        try:
            return read_picture(cache, row)
        except OSError as error:
            raise self._damage(self._place(row, str(error))) from None

    def _place(self, row: int, why: str) -> str:
        sample = int(self.ids[row])
        return f"{self.folder / 'pixels.npy'}: the decoded picture of {self.dataset.keys[sample]} is damaged ({why})"

    def _damage(self, what: str) -> LaunchError:
        """An error for people; the next start will find no cache here."""
        try:
            (self.folder / "cache.json").unlink(missing_ok=True)
            remedy = "start the same command again, which makes this folder anew"
        except OSError:
            remedy = "delete this folder and start the same command again"
        return LaunchError(f"{what}; {remedy}; if it comes back, test the disk, or set data.cache=none")


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


def why_not(dataset: Dataset, ids: Ids, root: Path, pick: BandPick | None = None) -> str | None:
    """Why the decoded pictures of a split do not fit into the free memory or disk, or None.

    Args:
        dataset: knows the pictures' sizes.
        ids: samples of the split, at least one; each takes as much room as the greatest height and width among them.
        root: folder of caches; need not exist.
        pick: the bands that are kept; None = red, green and blue of 8 bits.
    """
    channels, kind = _values(pick)
    need = len(ids) * int(dataset.height[ids].max()) * int(dataset.width[ids].max()) * channels * kind.itemsize
    rooms = {"memory": free_memory(), "disk": shutil.disk_usage(_existing(root)).free}
    for name, free in rooms.items():
        if free is not None and need > SHARE * free:
            return f"they take {need / 1e9:.1f} GB, and {SHARE:.0%} of the free {name} is {SHARE * free / 1e9:.1f} GB"
    return None


def _values(pick: BandPick | None) -> tuple[int, np.dtype[Any]]:
    """Numbers of a pixel, and their type."""
    return (3, np.dtype(np.uint8)) if pick is None else (len(pick.names), np.dtype(pick.dtype))


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.absolute().parents) if place.exists())


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
        reader: of the data set; says which bands.
        skip: note pictures that cannot be decoded and go on.
        tick: called now and then while it is made or waited for.

    Raises:
        DataError: a picture that cannot be read and ``skip`` is off; a folder that cannot be written.
    """

    def wait() -> None:
        tick()
        time.sleep(POLL_S)

    ids = dataset.rows(split)
    made_by = hashlib.sha256(repr(_made_by(reader.pick)).encode()).hexdigest()
    folder = root / f"{dataset.fingerprint[:24]}-{split}-{made_by[:8]}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock"), wait):
            if not _is_whole(folder, dataset, ids, skip, reader.pick):
                _build(dataset, ids, folder, reader, skip, tick)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror}); set data.cache_dir or data.cache=none"
        ) from None
    return DecodedCache(folder, ids, dataset)


def _made_by(pick: BandPick | None) -> tuple[Any, ...]:
    """What the pixels depend on besides the files: the decoders; of bands, also which ones and what fills gaps."""
    if pick is None:
        return decoders()
    return "rasterio", version("rasterio"), pick.indexes, pick.nodata, pick.fill


def _is_whole(folder: Path, dataset: Dataset, ids: Ids, skip: bool, pick: BandPick | None) -> bool:
    """Whether a finished cache of these pictures lies there; the pixels are checked when they are read."""
    try:
        cache = open_files(folder)
    except (OSError, ValueError, RecursionError):
        return False
    os.close(cache.file)
    meta = json.loads((folder / "cache.json").read_bytes())["cache"]
    most = (int(dataset.height[ids].max()), int(dataset.width[ids].max()))
    channels, kind = _values(pick)
    if (cache.shape, cache.dtype) != ((len(ids), *most, channels), kind):
        return False
    if meta["fingerprint"] != dataset.fingerprint:
        return False
    size = (folder / "pixels.npy").stat().st_size
    return size == cache.start + len(ids) * row_bytes(cache) and (skip or not cache.errors)


def _build(
    dataset: Dataset, ids: Ids, folder: Path, reader: IndexedReader, skip: bool, tick: Callable[[], None]
) -> None:
    for old in (folder, *folder.parent.glob(f"{folder.name}.new-*")):  # of a process that was killed, or other bytes
        shutil.rmtree(old, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.new-", dir=folder.parent))
    channels, kind = _values(reader.pick)
    shape = (len(ids), int(dataset.height[ids].max()), int(dataset.width[ids].max()), channels)
    size = shape[1] * shape[2] * shape[3] * kind.itemsize
    file = (temporary / "pixels.npy").open("wb")
    try:
        np.lib.format.write_array_header_2_0(file, {"descr": kind.str, "fortran_order": False, "shape": shape})
        file.flush()
        start = file.tell()
        sizes, sums = np.zeros((len(ids), 2), dtype="<i4"), np.zeros(len(ids), dtype="<u4")
        errors: dict[str, str] = {}

        places = picture_places(dataset, ids)
        pictures = Pictures(ids, reader, find_earlier(folder, places))

        def decode(row: int) -> None:
            try:
                picture = pictures.read(row)
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
            wide = np.zeros((picture.shape[0], *shape[2:]), dtype=kind)
            wide[:, : picture.shape[1]] = picture
            sums[row] = zlib.crc32(wide.data)
            _write(file.fileno(), wide.data.cast("B"), start + row * size)

        pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))  # Pillow decodes outside Python's lock
        try:
            for _ in pool.map(decode, range(len(ids))):
                tick()
        finally:
            pool.shutdown(cancel_futures=True)
            pictures.close()
        os.truncate(file.fileno(), start + len(ids) * size)  # smaller pictures leave room
        os.fsync(file.fileno())
        table = sizes.tobytes() + sums.tobytes()
        write_atomic(temporary / "table.bin", table)
        write_atomic(temporary / PLACES, places)
        meta = {
            "format": FORMAT,
            "fingerprint": dataset.fingerprint,
            "decoders": _made_by(reader.pick),
            "shape": shape[:3],
            **({} if reader.pick is None else {"channels": channels, "dtype": kind.name}),
            "start": start,
            "table_crc32": zlib.crc32(table),
            "places_sha256": hashlib.sha256(places).hexdigest(),
            "errors": errors,
        }
        content = {"cache": meta, "crc32": crc_of(meta)}
        write_atomic(temporary / "cache.json", json.dumps(content).encode())
        temporary.rename(folder)
    finally:
        file.close()
        shutil.rmtree(temporary, ignore_errors=True)


def _write(file: int, data: memoryview, at: int) -> None:
    """All of it; where memory-mapped pixels would end the process on a full disk, this raises ``OSError``."""
    while data:
        num = os.pwrite(file, data, at)
        data, at = data[num:], at + num
