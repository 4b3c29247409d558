"""Pictures that look alike: equal files, and copies that were saved anew, resized, brightened, turned or mirrored.

A perceptual hash (``perceptual_hash``, 64 bits, of brightness alone) proposes pairs, and small copies of both pictures
decide: their correlation must be ``ALIKE``. The hash alone takes two forests for one picture; with the second look no
two different pictures of ML-AID and GID-MTL5 are a pair (``benchmarks/look_alikes.py`` has recall and false pairs).
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from marc_dist.config import DataError
from marc_dist.data.bands.preview import grey_of_bands
from marc_dist.data.decode import KINDS, decode_rgb
from marc_dist.packing.perceptual_hash import HASHED, TURNS, codes_of, turned
from marc_dist.packing.worker_pool import PoolTask, work

MOST_BITS = 10
"""Bits of 64 in which the hashes of a pair may differ."""
ALIKE = 0.9
"""Least correlation of a pair's small copies."""
PLAIN = 1.5
"""Standard deviation, in grey levels, below which a picture shows nothing: such ones are alike only when equal."""
EQUAL = -1
SMALL = 16  # side of the copies that decide, pixels
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)  # of what it cannot read, rasterio gives the bands
PART = 256  # pictures of a job
FEW = 1000  # up to so many are looked at by this process alone: helpers take a second to start
BANDS = 4  # of 16 bits; two hashes that differ in at most MOST_BITS agree up to MOST_BITS // 4 bits in one of them
BLOCK = 1 << 16  # pairs that are compared at a time: few enough for a processor's cache
ASKED = 1 << 14  # pictures whose partners are looked for at a time
ROWS = 1 << 10  # pictures whose small copies are turned into floats at a time


class Place(NamedTuple):
    """Where a picture's bytes are: in a file, or in a part of it."""

    path: Path
    offset: int = 0
    size: int = -1


class Looks(NamedTuple):
    """What is remembered of n pictures, 360 bytes each.

    Attributes:
        content: (n,) 16 bytes, a hash of the file.
        codes: (n, TURNS) uint64, the perceptual hash of each turn of the picture.
        small: (n, SMALL * SMALL) uint8, grey.
    """

    content: NDArray[np.void]
    codes: NDArray[np.uint64]
    small: NDArray[np.uint8]


class Partners(NamedTuple):
    """For each of n pictures the one in each of S splits that is most like it; -1 where none is.

    Attributes:
        sample: (n, S) int64.
        bits: (n, S) int64, in which the hashes differ; ``EQUAL`` for equal files.
    """

    sample: NDArray[np.int64]
    bits: NDArray[np.int64]


def look_at(places: Sequence[Place]) -> Looks:
    """Read and hash pictures. One that cannot be decoded is like none: packing names it.

    Raises:
        DataError: a file that cannot be read.
    """
    return looks_of((data := _read(place), grey_copy(data, str(place.path))) for place in places)


def looks_of(pictures: Iterable[tuple[bytes, Image.Image]]) -> Looks:
    """The looks of pictures: a file's content, and its small grey copy, each."""
    content, hashed, small = [], [], []
    for data, grey in pictures:
        content.append(hashlib.blake2b(data, digest_size=16).digest())
        hashed.append(np.asarray(grey))
        small.append(np.asarray(grey.resize((SMALL, SMALL), Image.Resampling.BOX)).reshape(-1))
    return Looks(
        np.array(content, dtype="V16"),
        codes_of(np.array(hashed, dtype=np.uint8).reshape(-1, HASHED, HASHED)),
        np.array(small, dtype=np.uint8).reshape(-1, SMALL * SMALL),
    )


def _read(place: Place) -> bytes:
    try:
        with place.path.open("rb") as file:
            file.seek(place.offset)
            return file.read(place.size)
    except OSError as error:
        raise DataError(f"{place.path}: cannot be read ({error.strerror})") from None


def grey_copy(data: bytes, place: str) -> Image.Image:
    """A small grey copy; black when the picture cannot be decoded."""
    side = (HASHED, HASHED)
    try:
        with Image.open(BytesIO(data), formats=KINDS) as image:
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                image.draft("L", (2 * HASHED, 2 * HASHED))  # decoded at a fraction of its size, brightness alone
                return image.convert("L").resize(side, Image.Resampling.LANCZOS)
        return decode_rgb(data, place).convert("L").resize(side, Image.Resampling.LANCZOS)
    except Exception:  # Pillow raises whatever comes up; see above
        grey = grey_of_bands(data, place)
        return Image.new("L", side) if grey is None else grey.resize(side, Image.Resampling.LANCZOS)


def look_at_all(places: Sequence[Place], workers: int, progress: Callable[[int, int], None]) -> Looks:
    """``look_at`` on every core.

    Args:
        places: of the pictures, each another one; at least one.
        workers: processes.
        progress: called with pictures and bytes done so far; bytes only as far as they are known.

    Raises:
        DataError: a file that cannot be read.
    """
    num = len(places)
    found = Looks(
        np.empty(num, dtype="V16"),
        np.empty((num, TURNS), dtype=np.uint64),
        np.empty((num, SMALL * SMALL), dtype=np.uint8),
    )
    done = size = 0

    def finished(job: PoolTask, looks: Looks) -> list[PoolTask]:
        nonlocal done, size
        part = job[1][0]
        start = started.pop(part[0])
        here = slice(start, start + len(part))
        found.content[here], found.codes[here], found.small[here] = looks
        done, size = done + len(part), size + sum(max(place.size, 0) for place in part)
        progress(done, size)
        return []

    started: dict[Place, int] = {}

    def jobs() -> Iterator[PoolTask]:
        for start in range(0, num, PART):
            part = places[start : start + PART]
            started[part[0]] = start
            yield look_at, (part,)

    work(jobs(), finished, workers if num > FEW else 1)
    return found


def partners(looks: Looks, split: NDArray[np.int64], num_splits: int, threads: int = 1) -> Partners:
    """For each picture the most similar one of each split: an equal file, else the nearest hash, the first of several.

    Memory grows with n; time with n^2, though of the pairs only one in a hundred is looked at.

    Args:
        looks: of n pictures.
        split: (n,) number of each picture's split.
        num_splits: S.
        threads: that compare hashes; the result is the same.
    """
    num = len(split)
    best = np.full((num, num_splits), _NONE, dtype=np.int64)
    _equal(looks.content, split, best)
    _, leader, group = np.unique(_with_split(looks.content, split), return_index=True, return_inverse=True)
    near = np.full((num, num_splits), _NONE, dtype=np.int64)
    for one, two, bits in _near(looks, leader[_shows_something(looks.small, leader)], threads):
        for here, there in ((one, two), (two, one)):
            np.minimum.at(near, (here, split[there]), _ranked(bits, there))
    best = np.minimum(best, near[leader[group]])  # equal files of a split share what one of them was found to be like
    rank = best >> _SHIFT
    none = best == _NONE
    return Partners(np.where(none, -1, best & (1 << _SHIFT) - 1), np.where(none, EQUAL, rank + EQUAL))


_SHIFT = 40
_NONE = np.iinfo(np.int64).max


def _ranked(bits: Any, sample: Any) -> Any:
    """One number that orders by bits, then by sample."""
    return (bits - EQUAL << _SHIFT) | sample


def _with_split(content: NDArray[np.void], split: NDArray[np.int64]) -> NDArray[np.void]:
    both = np.zeros(len(split), dtype=[("content", "V16"), ("split", np.int64)])
    both["content"], both["split"] = content, split
    return both.view("V24")


def _equal(content: NDArray[np.void], split: NDArray[np.int64], best: NDArray[np.int64]) -> None:
    """Note the first equal file of each split, and for that one itself the second."""
    order = np.argsort(content, kind="stable")
    same = np.flatnonzero(content[order][1:] == content[order][:-1])
    for start, end in _runs(same):
        members = order[start : end + 2]
        for number in np.unique(split[members]):
            there = members[split[members] == number]
            best[members, number] = _ranked(EQUAL, there[0])
            best[there[0], number] = there[1] if len(there) > 1 else _NONE  # itself does not count


def _runs(numbers: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    if len(numbers):
        breaks = np.flatnonzero(np.diff(numbers) > 1)
        starts, ends = np.r_[0, breaks + 1], np.r_[breaks, len(numbers) - 1]
        yield from zip(numbers[starts].tolist(), numbers[ends].tolist(), strict=True)


def _shows_something(small: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    shows = np.empty(len(rows), dtype=np.bool_)
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        shows[start : start + ROWS] = small[part].std(axis=1, dtype=np.float32) >= PLAIN
    return shows


@cache
def _masks(radius: int) -> NDArray[np.uint16]:
    """All numbers of 16 bits of which at most so many are set."""
    chosen = [bits for num in range(radius + 1) for bits in itertools.combinations(range(16), num)]
    return np.array([sum(1 << bit for bit in bits) for bits in chosen], dtype=np.uint16)


def _near(looks: Looks, rows: NDArray[np.int64], threads: int) -> Iterator[tuple[NDArray[np.int64], ...]]:
    """Pairs of these rows that look alike, and the bits of their hashes that differ; a pair may come several times.

    Two hashes that differ in few bits agree in one of four bands up to very few: each band is a table of 65,536 lists.
    """
    own = looks.codes[rows, 0]
    bands = own.view(np.uint16).reshape(-1, BANDS)
    tables = []
    for band in range(BANDS):
        order = np.argsort(bands[:, band], kind="stable").astype(np.int32)
        tables.append((order, np.concatenate([[0], np.cumsum(np.bincount(bands[:, band], minlength=1 << 16))])))
    jobs = [(band, turn) for band in range(BANDS) for turn in range(TURNS)]
    stop = Event()

    def found(job: tuple[int, int]) -> list[tuple[NDArray[np.int64], ...]]:
        return list(_near_in(looks, rows, own, tables[job[0]], *job, stop))

    with ThreadPoolExecutor(max(threads, 1)) as pool:  # NumPy lets other threads run while it compares
        try:
            for pairs in pool.map(found, jobs):
                yield from pairs
        finally:  # Ctrl-C does not wait for the rest
            stop.set()


def _near_in(
    looks: Looks,
    rows: NDArray[np.int64],
    own: NDArray[np.uint64],
    table: tuple[NDArray[np.int32], NDArray[np.int64]],
    band: int,
    turn: int,
    stop: Event,
) -> Iterator[tuple[NDArray[np.int64], ...]]:
    """The pairs that one band of the hashes gives, the first picture of each in one turn."""
    order, ends = table
    lists = own[order]  # those of one list lie side by side
    for start in range(0, len(rows), ASKED):
        some = rows[start : start + ASKED]
        codes = looks.codes[some, turn]
        asked = codes.view(np.uint16).reshape(-1, BANDS)[:, band]
        for mask in _masks(MOST_BITS // BANDS):
            if stop.is_set():
                return
            wanted = (asked ^ mask).astype(np.int64)
            first = ends[wanted]
            for one, place, bits in _close(codes, lists, first, ends[wanted + 1] - first):
                here, there = some[one], rows[order[place]]
                keep = here != there
                if keep.any():
                    yield from _confirmed(looks, here[keep], there[keep], bits[keep].astype(np.int64), turn)


def _close(
    codes: NDArray[np.uint64], lists: NDArray[np.uint64], first: NDArray[np.int64], num: NDArray[np.int64]
) -> Iterator[tuple[NDArray[Any], ...]]:
    """Each code against the ``num`` from ``first`` on in ``lists``, at most about ``BLOCK`` pairs at a time.

    Returns:
        Number of the code, place in ``lists``, and the bits that differ, of the pairs with few of those.
    """
    total = np.cumsum(num)
    start = 0
    while start < len(num):
        before = total[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(total, before + BLOCK, side="right")))
        some, ends = num[start:end], total[start:end] - before
        place = np.arange(ends[-1]) + np.repeat(first[start:end] - (ends - some), some)
        bits = np.bitwise_count(np.repeat(codes[start:end], some) ^ lists[place])
        near = np.flatnonzero(bits <= MOST_BITS)
        if len(near):
            yield start + np.searchsorted(ends, near, side="right"), place[near], bits[near]
        start = end


def _confirmed(
    looks: Looks, one: NDArray[np.int64], two: NDArray[np.int64], bits: NDArray[np.int64], turn: int
) -> Iterator[tuple[NDArray[np.int64], ...]]:
    """The pairs of which the small copies correlate, the first one's turned."""
    for start in range(0, len(one), ROWS):
        here, there = one[start : start + ROWS], two[start : start + ROWS]
        first = turned(looks.small[here].reshape(-1, SMALL, SMALL), turn).reshape(len(here), -1)
        keep = np.einsum("ij,ij->i", _normed(first), _normed(looks.small[there])) >= ALIKE
        if keep.any():
            yield here[keep], there[keep], bits[start : start + ROWS][keep]


def _normed(small: NDArray[np.uint8]) -> NDArray[np.float32]:
    centred = small - small.mean(axis=1, keepdims=True, dtype=np.float32)
    return np.asarray(centred / np.linalg.norm(centred, axis=1, keepdims=True))
