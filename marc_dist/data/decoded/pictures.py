"""Where the pictures of a cache come from: an earlier cache that has them, or the shards.

A picture is known by its place in a shard, and the shard by its SHA-256: equal places hold equal bytes, whatever the
data set's fingerprint is. So after an addition to a data set only the pictures of new shards are decoded.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marc_dist.data.dataset import Dataset
from marc_dist.data.decoded.files import OpenedCache, open_files, read_picture
from marc_dist.data.plan import Ids
from marc_dist.data.reader import IndexedReader

PLACES = "places.bin"
WIDTH = 16  # bytes of a place
AHEAD = 64  # pictures that the disk may fetch before their turn


class EarlierCache(NamedTuple):
    """A cache that has some of the pictures.

    Attributes:
        folder: of it.
        rows: (N,) where it has each of the pictures, -1: nowhere.
    """

    folder: Path
    rows: NDArray[np.int64]


def picture_places(dataset: Dataset, ids: Ids) -> bytes:
    """16 bytes for each sample: a hash of its shard's SHA-256, and where in it the picture lies."""
    sums = [str(shard["sha256"]) for shard in dataset.meta["shards"]]
    places = (column[ids].tolist() for column in (dataset.shard, dataset.offset, dataset.size))
    return b"".join(
        hashlib.sha256(f"{sums[shard]} {offset} {size}".encode()).digest()[:WIDTH]
        for shard, offset, size in zip(*places, strict=True)
    )


def find_earlier(folder: Path, places: bytes) -> EarlierCache | None:
    """The cache beside ``folder`` that has most of the pictures, of the same split and decoders; None: none has any.

    Args:
        folder: of the cache that is to be made; the part of its name after the first hyphen says split and decoders.
        places: of the pictures.
    """
    wanted = _by_place(places)
    best: EarlierCache | None = None
    for other in sorted(folder.parent.glob(f"*-{folder.name.partition('-')[2]}")):
        try:
            known = json.loads((other / "cache.json").read_bytes())["cache"]["places_sha256"]
            data = (other / PLACES).read_bytes()
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue  # being made, damaged, or of an older version
        if hashlib.sha256(data).hexdigest() != known:
            continue
        rows = np.full(len(places) // WIDTH, -1, dtype=np.int64)
        for place, row in _by_place(data).items():
            if place in wanted:
                rows[wanted[place]] = row
        if (rows >= 0).sum() > (0 if best is None else (best.rows >= 0).sum()):
            best = EarlierCache(other, rows)
    return best


def _by_place(places: bytes) -> dict[bytes, int]:
    return {places[start : start + WIDTH]: start // WIDTH for start in range(0, len(places), WIDTH)}


class Pictures:
    """Decoded pictures for threads that go through them in order.

    Args:
        ids: of the pictures.
        reader: of the data set.
        earlier: a cache that has some of them; what it has lost, or holds damaged, is decoded.
    """

    def __init__(self, ids: Ids, reader: IndexedReader, earlier: EarlierCache | None) -> None:
        self._ids, self._reader = ids, reader
        self._cache: OpenedCache | None = None
        self._rows = np.full(len(ids), -1, dtype=np.int64)
        with suppress(OSError, ValueError, RecursionError):
            if earlier is not None:
                self._cache = open_files(earlier.folder)
                self._rows = np.where(earlier.rows < len(self._cache.sizes), earlier.rows, -1)
        self._left = ids[self._rows < 0]
        self._nth = np.cumsum(self._rows < 0) - 1
        self._mine = threading.local()  # a reader for each thread: a retry closes its files
        self._readers: list[IndexedReader] = []

    def read(self, row: int) -> NDArray[Any]:
        """(H, W, C) values, see ``batches.Picture``.

        Raises:
            DataError: it cannot be read or decoded.
        """
        at = int(self._rows[row])
        if self._cache is not None and at >= 0 and self._cache.sizes[at].all():  # 0 x 0: it could not be decoded
            with suppress(OSError):
                return read_picture(self._cache, at)
        mine, nth = self._mine, int(self._nth[row])
        if not hasattr(mine, "reader"):
            mine.reader = copy.copy(self._reader)
            self._readers.append(mine.reader)
            mine.reader.expect(self._left[max(nth, 0) : max(nth, 0) + AHEAD])
        mine.reader.expect(self._left[nth + AHEAD : nth + AHEAD + 1])
        reader: IndexedReader = mine.reader
        return reader.picture(int(self._ids[row]))

    def close(self) -> None:
        """Close what was opened."""
        for reader in self._readers:
            reader.close()
        if self._cache is not None:
            os.close(self._cache.file)
