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
"""Candidates' coordinates that are held in float64 at a time."""
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


def full_ranking(queries: Float32, archive: Float32, self_position: Int) -> Int:
    """The whole archive in order for each query, (B, N) archive positions, by (score descending, position ascending).

    Archive rows in ascending order of id make that the order of ``top_k``. The query's own item is taken out; -1 then
    fills the last rank.

    Args:
        queries: (B, d) from ``exact_unit``, or of +1 and -1.
        archive: (N, d) from ``exact_unit``, or of +1 and -1.
        self_position: (B,) position of the query's own item, or -1.
    """
    wide = queries.astype(np.float64)
    scores = np.empty((len(queries), len(archive)))
    for start in range(0, len(archive), ARCHIVE_BLOCK):  # no second copy of the whole archive
        block = slice(start, start + ARCHIVE_BLOCK)
        scores[:, block] = wide @ archive[block].astype(np.float64).T
    own = np.flatnonzero(self_position >= 0)
    scores[own, self_position[own]] = -np.inf
    ranking = np.argsort(-scores, axis=1, kind="stable").astype(np.int64)
    ranking[own, -1] = NONE
    return ranking
