"""Exact order of inner products: what comes out depends on no rank, batch, thread or device, bit for bit.

Unit vectors are rounded to a grid of 2^-24 (``exact_unit``). Each coordinate is still a float32; each product of two is
a multiple of 2^-48, and so is every partial sum, whose size stays below 2 (Cauchy-Schwarz). All of them fit float64
exactly, so an inner product in float64 has no rounding error in any order of summation. Equal scores go by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from marc_dist import comm
from marc_dist.config import DataError

Float32 = NDArray[np.float32]
Float = NDArray[np.float64]
Int = NDArray[np.int64]
GRID = 2.0**24
ARCHIVE_BLOCK = 16384
QUERIES_AT_ONCE = 256
SCORED_AT_ONCE = 2**19
"""Coordinates of candidates, or of the archive, that are held in float64 at a time."""
LEAST_ROWS = 256
RANKED_AT_ONCE = 1 << 28
"""Bytes of whole rankings that are held at a time."""
BITS = 30
"""Of the whole numbers that ``full_ranking`` sorts first."""
NONE = -1


def exact_unit(features: NDArray[np.floating]) -> Float32:
    """Rows scaled to length 1 and rounded to multiples of 2^-24; a row of zeros stays zero.

    The rounding moves a coordinate by at most 2^-25, about what float32 loses anyway.
    """
    wide = features.astype(np.float64)
    peak = np.abs(wide).max(axis=1, keepdims=True, initial=0.0)
    wide = np.divide(wide, peak, out=np.zeros_like(wide), where=peak > 0)  # no overflow in the squares
    norm = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    unit = np.divide(wide, norm, out=np.zeros_like(wide), where=norm > 0)
    return np.asarray(np.rint(unit * GRID) / GRID, dtype=np.float32)


class Pieces:
    """Rows of several arrays of one width, one after the other, without a copy of them all.

    A slice that lies in one piece is a view; other slices, and rows by number, are copied.
    """

    def __init__(self, parts: Sequence[Float32]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self.shape = int(self._starts[-1]), int(parts[0].shape[1])
        self.nbytes = sum(part.nbytes for part in parts)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice | Int) -> Float32:
        if isinstance(key, slice):
            start, stop, _ = key.indices(len(self))
            cuts = zip(self._parts, self._starts.tolist(), strict=False)
            taken = [part[max(0, start - at) : max(0, stop - at)] for part, at in cuts]
            held = [part for part in taken if len(part)] or taken[:1]
            return held[0] if len(held) == 1 else np.concatenate(held)
        out = np.empty((len(key), self.shape[1]), dtype=np.float32)
        where = np.searchsorted(self._starts, key, side="right") - 1
        for number, part in enumerate(self._parts):
            here = where == number
            out[here] = part[key[here] - self._starts[number]]
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)


Rows = Float32 | Pieces


class Signs:
    """Binary codes, (n, bits) of +1 and -1, held packed; a slice is unpacked.

    Args:
        codes: (n, bytes) packed, as ``BinaryPart`` has them; 1 is +1.
        bits: of a code.
    """

    def __init__(self, codes: NDArray[np.uint8], bits: int) -> None:
        self._codes = codes
        self.shape = len(codes), bits

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice) -> Float32:
        ones = np.unpackbits(self._codes[key], axis=1, count=self.shape[1])
        return np.where(ones, np.float32(1), np.float32(-1))


def rounding_bound(d: int) -> float:
    """Largest distance of a float32 inner product of two vectors of ``exact_unit`` from the exact one.

    d u / (1 - d u) with u = 2^-24, for vectors of length 1 (+ rounding).
    """
    share = d * 2.0**-24
    return 1.01 * share / (1.0 - share) + 2.0**-23


def check_finite(features: NDArray[np.floating], names: list[str], what: str) -> None:
    """Refuse NaN and infinity on any rank, on all ranks alike: FAISS would return wrong lists without a word.

    Args:
        features: (rows of this rank, d).
        names: what a person calls each row.
        what: whose features they are.

    Raises:
        DataError: with the number of such rows and the names of the first three.
    """
    refuse_bad_features([names[row] for row in np.flatnonzero(~np.isfinite(features).all(axis=1)).tolist()], what)


def refuse_bad_features(bad: list[str], what: str) -> None:
    """``check_finite`` with the names of this rank's bad rows."""
    everywhere = [name for part in comm.gather_object(bad) for name in part]
    if everywhere:
        more = f" and {len(everywhere) - 3} more" if len(everywhere) > 3 else ""
        raise DataError(
            f"{what}: features of {', '.join(everywhere[:3])}{more} are not finite; "
            "check these images, and whether the training diverged (loss in metrics.jsonl)"
        )


def best(scores: Float, ids: Int, k: int) -> tuple[Float, Int]:
    """The first k of each row by (score descending, id ascending), padded with (-inf, -1).

    Args:
        scores: (B, M).
        ids: (B, M); -1 = nothing there.
        k: wanted.
    """
    scores, ids, _ = best_with(scores, ids, k, scores)
    return scores, ids


def best_with(scores: Float, ids: Int, k: int, also: Float) -> tuple[Float, Int, Float]:
    """``best``, with a further array put into the same order.

    Args:
        scores: (B, M).
        ids: (B, M); -1 = nothing there.
        k: wanted.
        also: (B, M) what goes along with each score.

    Returns:
        Scores, ids and ``also``, (B, k) each, padded with -inf, -1 and -inf.
    """
    scores = np.where(ids == NONE, -np.inf, scores)
    place = np.argsort(-scores, axis=1, kind="stable")  # by id, too, only where it matters: lists come nearly in order
    ordered = np.take_along_axis(scores, place, axis=1)
    tied = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    place[tied] = np.lexsort((ids[tied], -scores[tied]), axis=1)
    place = place[:, :k]
    scores, ids = np.take_along_axis(scores, place, axis=1), np.take_along_axis(ids, place, axis=1)
    ids = np.where(np.isneginf(scores), NONE, ids)
    short = ((0, 0), (0, k - scores.shape[1]))
    carried = np.pad(np.take_along_axis(also, place, axis=1), short, constant_values=-np.inf)
    return np.pad(scores, short, constant_values=-np.inf), np.pad(ids, short, constant_values=NONE), carried


def exact_scores(queries: Float32, archive: Rows, place: Int) -> Float:
    """(B, M) float64 inner products of each query with some archive rows.

    Args:
        queries: (B, d) from ``exact_unit``.
        archive: (n, d) from ``exact_unit``.
        place: (B, M) numbers of archive rows; -1 = nothing there, which reads row 0.
    """
    out = np.empty(place.shape)
    step = max(1, SCORED_AT_ONCE // max(1, place.shape[1] * queries.shape[1]))

    def score(start: int) -> None:
        chosen = np.maximum(place[start : start + step], 0)
        flat = chosen.ravel()
        rows = np.take(archive, flat, axis=0, mode="clip") if isinstance(archive, np.ndarray) else archive[flat]
        wide = rows.reshape(*chosen.shape, -1).astype(np.float64)
        out[start : start + step] = (wide @ queries[start : start + step, :, None].astype(np.float64))[:, :, 0]

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:  # the sums are exact: no thread changes a bit
        list(pool.map(score, range(0, len(queries), step)))
    return out


def exhaustive(queries: Float32, own_ids: Int, archive: Rows, ids: Int, k: int) -> tuple[Float, Int]:
    """The k best of ``archive``, compared with every row in float64.

    Args:
        queries: (B, d) from ``exact_unit``.
        own_ids: (B,) ids to leave out; -1 = none.
        archive: (n, d) from ``exact_unit``.
        ids: (n,).
        k: wanted; padded with (-inf, -1).
    """
    if len(queries) > QUERIES_AT_ONCE:
        starts = range(0, len(queries), QUERIES_AT_ONCE)
        blocks = [slice(start, start + QUERIES_AT_ONCE) for start in starts]
        parts = [exhaustive(queries[block], own_ids[block], archive, ids, k) for block in blocks]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    wide = queries.astype(np.float64)
    scores, found = np.empty((len(queries), 0)), np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, max(len(ids), 1), ARCHIVE_BLOCK):
        here = ids[None, start : start + ARCHIVE_BLOCK]
        more = wide @ archive[start : start + ARCHIVE_BLOCK].astype(np.float64).T
        more_ids = np.where(here == own_ids[:, None], NONE, here)
        scores, found = best(np.hstack([scores, more]), np.hstack([found, more_ids]), k)
    return scores, found


def full_ranking(queries: Float32, archive: Rows | Signs, self_position: Int) -> Int:
    """The whole archive in order for each query, (B, N) archive positions, by (score descending, position ascending).

    Archive rows in ascending order of id make that the order of ``top_k``. The query's own item is taken out; -1 then
    fills the last rank. Needs 8 bytes a query and item, and about 50 an item beside that: ``queries_at_once`` says how
    many queries to hand over. Of a mapped archive, a block of rows at a time is read.

    Args:
        queries: (B, d) from ``exact_unit``, or of +1 and -1.
        archive: (N, d) from ``exact_unit``, or of +1 and -1.
        self_position: (B,) position of the query's own item, or -1.
    """
    wide = queries.astype(np.float64)
    scores = np.empty((len(queries), len(archive)))
    step = max(LEAST_ROWS, SCORED_AT_ONCE // max(1, queries.shape[1]))
    for start in range(0, len(archive), step):
        block = slice(start, start + step)
        np.matmul(wide, archive[block].astype(np.float64).T, out=scores[:, block])
    ranking = scores.view(np.int64)  # a query's order takes the place of its scores
    for row, own in enumerate(self_position.tolist()):
        ranking[row] = _order(scores[row], own)
    return ranking


def queries_at_once(num_archive: int, most: int) -> int:
    """Queries for one call of ``full_ranking``: ``RANKED_AT_ONCE`` bytes of rankings, at least one query.

    Args:
        num_archive: N.
        most: wanted where the archive is small.
    """
    return max(1, min(most, RANKED_AT_ONCE // (8 * max(1, num_archive))))


def _order(scores: Float, own: int) -> Int:
    """One query's items by (score descending, position ascending), (N,).

    A radix sort orders whole numbers of 30 bits, the distance to the best score, rounded down; being stable, it leaves
    what it sees as equal in order of position. Then the exact scores are gone through in that order: where one rises,
    the items of that number are sorted again by score and position. So what comes out is exact, and a pass over the
    scores has checked it.

    Args:
        scores: (N,) float64, exact.
        own: position of the query's own item, which goes to the end as -1, or -1.
    """
    if not len(scores):
        return np.empty(0, dtype=np.int64)
    distance = scores.max() - scores  # without rounding: both are multiples of one grid
    exponent = int(np.frexp(distance.max())[1])
    distance *= 2.0 ** (BITS - exponent)
    coarse = distance.astype(np.int32)
    if own >= 0:
        coarse[own] = 1 << BITS  # above all others
    del distance
    ordered, at = torch.sort(torch.from_numpy(coarse), stable=True)
    order, found = at.numpy(), scores.take(at.numpy())
    if own >= 0:
        found[-1] = -np.inf
    rising = np.flatnonzero(found[1:] > found[:-1])
    if len(rising):
        _sort_again(order, ordered.numpy(), found, rising)
    if own >= 0:
        order[-1] = NONE
    return order


def _sort_again(order: Int, coarse: NDArray[np.int32], found: Float, rising: Int) -> None:
    """Sort, by exact score and position, the items whose rounded number is that of an item at one of ``rising``.

    Args:
        order: (N,) positions, changed in place.
        coarse: (N,) the numbers, in that order.
        found: (N,) the exact scores, in that order.
        rising: places in that order after which a larger score follows.
    """
    number = np.unique(coarse[rising])
    first, end = np.searchsorted(coarse, number), np.searchsorted(coarse, number, side="right")
    length = end - first
    place = np.arange(length.sum()) + np.repeat(first - (np.cumsum(length) - length), length)
    sorted_again = np.lexsort((order[place], -found[place], coarse[place]))
    order[place] = order[place[sorted_again]]
