"""Vectors that are known already, by the content of their pictures: an archive that grows embeds what is new.

A picture is the same when its key, its length and the CRC-32 of its file are: of all pictures that change and keep
their length, one in four billion would pass for the old one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from marc_dist.config import DataError
from marc_dist.data.columns import CHUNK
from marc_dist.data.dataset import Dataset
from marc_dist.retrieval.exact import Float32, Int
from marc_dist.retrieval.index_folder import read_store
from marc_dist.retrieval.vectors.store import Made, file_crc, grown_from

Contents = NDArray[np.void]
CONTENT = np.dtype("V16")


def contents(dataset: Dataset, ids: Int) -> Contents:
    """(n,) 16 bytes each, equal for equal pictures: a hash of key, length and CRC-32."""
    found = np.empty(len(ids), dtype=CONTENT)
    for start in range(0, len(ids), CHUNK):
        some = ids[start : start + CHUNK]
        facts = zip(dataset.keys[some].tolist(), dataset.size[some].tolist(), dataset.crc32[some].tolist(), strict=True)
        digests = [hashlib.blake2b(f"{size} {crc} {key}".encode(), digest_size=16).digest() for key, size, crc in facts]
        found[start : start + CHUNK] = np.frombuffer(b"".join(digests), dtype=CONTENT)
    return found


class Known:
    """The vectors of some folders that the same encoder made from the same kind of pictures, in any data set.

    Args:
        folders: of stores; those that are none, or are damaged, are passed over.
        made: what the vectors that are wanted depend on.
        dim: of the vectors.
    """

    def __init__(self, folders: Iterable[Path], made: Made, dim: int) -> None:
        self._dim = dim
        self._rows: list[Float32] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        for folder in folders:
            with suppress(DataError):
                meta = read_store(folder)
                parts = [part for part in meta["parts"].values() if grown_from(part["made"], made)]
                for part in parts if meta["dim"] == dim else ():
                    with suppress(OSError, ValueError, EOFError, KeyError):
                        self._add(folder, part, dim)

    def _add(self, folder: Path, part: dict[str, object], dim: int) -> None:
        file, names = folder / str(part["file"]), folder / str(part["contents"])
        if file_crc(file) != part["crc32"] or file_crc(names) != part["contents_crc32"]:
            return
        rows, keys = np.lib.format.open_memmap(file, mode="r"), np.load(names)
        if rows.shape != (len(keys), dim) or rows.dtype != np.float32 or keys.dtype != CONTENT:
            return
        number = len(self._rows)
        self._rows.append(rows)
        for place, content in enumerate(keys):
            self._places.setdefault(content.tobytes(), (number, place))

    def __len__(self) -> int:
        return len(self._places)

    def find(self, wanted: Contents) -> tuple[NDArray[np.bool_], Float32]:
        """Which of the pictures are known, (n,), and the vectors of those, in order."""
        places = [self._places.get(content.tobytes()) for content in wanted] if self._places else []
        there = np.array([place is not None for place in places] or np.zeros(len(wanted)), dtype=bool)
        rows = [self._rows[place[0]][place[1]] for place in places if place is not None]
        return there, np.array(rows, dtype=np.float32).reshape(len(rows), self._dim)


def runs_of(places: Int) -> list[slice]:
    """The stretches of ``places`` in which each follows the one before, as slices of it."""
    if not len(places):
        return []
    breaks = [0, *(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(places)]
    return [slice(start, stop) for start, stop in pairwise(breaks)]
