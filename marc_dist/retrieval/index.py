"""Exact cosine search over an archive whose rows lie on several ranks; the only file that names ``faiss``.

What comes out does not depend on ranks, batches, threads or device, bit for bit:

- Unit vectors are rounded to a grid of 2^-24 (``exact_unit``). Each coordinate is still a float32; each product of two
  is a multiple of 2^-48, and so is every partial sum, whose size stays below 2 (Cauchy-Schwarz). All of them fit
  float64 exactly, so an inner product in float64 has no rounding error in any order of summation.
- FAISS, in float32, only proposes candidates. Those are scored again in float64 and ordered by (score descending, id
  ascending). An item that FAISS left out can be no better than its last candidate plus the rounding bound; when that is
  not clearly worse than the k-th score, ties included, the query is compared with the whole part instead.
"""

from __future__ import annotations

from typing import Any

import torch  # before faiss: both bring an OpenMP and CUDA runtime, and torch's must be the one that is loaded

# isort: split
import faiss
import numpy as np
from numpy.typing import NDArray

from marc_dist import comm
from marc_dist.config import DataError

Float32 = NDArray[np.float32]
Float = NDArray[np.float64]
Int = NDArray[np.int64]
GRID = 2.0**24
MARGIN = 32
QUERY_BLOCK = 256
ARCHIVE_BLOCK = 16384
GPU_MAX_K = 2048
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


def check_finite(features: NDArray[np.floating], names: list[str], what: str) -> None:
    """Refuse NaN and infinity on any rank, on all ranks alike: FAISS would return wrong lists without a word.

    Args:
        features: (rows of this rank, d).
        names: what a person calls each row.
        what: whose features they are.

    Raises:
        DataError: with the number of such rows and the names of the first three.
    """
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    everywhere = [name for part in comm.gather_object([names[row] for row in bad.tolist()]) for name in part]
    if everywhere:
        more = f" and {len(everywhere) - 3} more" if len(everywhere) > 3 else ""
        raise DataError(
            f"{what}: features of {', '.join(everywhere[:3])}{more} are not finite; "
            "check these images, and whether the training diverged (loss in metrics.jsonl)"
        )


def _order(scores: Float, ids: Int) -> Int:
    """Positions that order each row by (score descending, id ascending), (B, M)."""
    return np.asarray(np.lexsort((ids, -scores), axis=1), dtype=np.int64)


def _best(scores: Float, ids: Int, k: int) -> tuple[Float, Int]:
    """The first k of each row in order, padded with (-inf, -1)."""
    scores = np.where(ids == NONE, -np.inf, scores)
    place = _order(scores, ids)[:, :k]
    scores, ids = np.take_along_axis(scores, place, axis=1), np.take_along_axis(ids, place, axis=1)
    short = ((0, 0), (0, k - scores.shape[1]))
    ids = np.where(np.isneginf(scores), NONE, ids)
    return np.pad(scores, short, constant_values=-np.inf), np.pad(ids, short, constant_values=NONE)


class PartIndex:
    """One rank's part of the archive.

    Args:
        features: (n, d) from ``exact_unit``; n may be zero.
        ids: (n,) sample ids, each at most once over all ranks.
        gpu: search on this GPU; None = on the CPU.
    """

    def __init__(self, features: Float32, ids: Int, gpu: int | None = None) -> None:
        self.features = np.ascontiguousarray(features, dtype=np.float32)
        self.ids = np.asarray(ids, dtype=np.int64)
        self.device = torch.device("cpu" if gpu is None else f"cuda:{gpu}")  # where collectives want their tensors
        self._gpu = False
        self._index: Any = faiss.IndexFlatIP(self.features.shape[1])
        if gpu is not None and faiss.get_num_gpus() > 0:
            self._gpu = True
            self._resources = faiss.StandardGpuResources()
            self._resources.setTempMemory(64 << 20)  # faiss would take 1.5 GiB beside torch
            self._index = faiss.index_cpu_to_gpu(self._resources, gpu, self._index)
        if len(self.ids):
            self._index.add(self.features)
        # |float32 inner product - exact one| <= d u / (1 - d u) with u = 2^-24, for vectors of length 1 (+ rounding)
        share = self.features.shape[1] * 2.0**-24
        self.bound = 1.01 * share / (1.0 - share) + 2.0**-23

    def search(self, queries: Float32, query_ids: Int, k: int, margin: int = MARGIN) -> tuple[Float, Int]:
        """The k best of this part for each query, without the query's own id, exact.

        Args:
            queries: (B, d) from ``exact_unit``.
            query_ids: (B,) ids to leave out; -1 = none.
            k: wanted; lists of a smaller part are padded with (-inf, -1).
            margin: candidates beyond k + 1 that FAISS is asked for.
        """
        num = len(self.ids)
        ask = min(k + 1 + margin, num)
        if ask == num or (self._gpu and ask > GPU_MAX_K):
            return self._exhaustive(queries, query_ids, k)
        rough, place = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), ask)
        missing = place < 0  # FAISS pads short lists with -1: gone before -1 becomes the last row of an array
        place = np.where(missing, 0, place)
        exact = np.empty(place.shape)
        for row, chosen in enumerate(place):
            exact[row] = self.features[chosen].astype(np.float64) @ queries[row].astype(np.float64)
        ids = np.where(missing | (self.ids[place] == query_ids[:, None]), NONE, self.ids[place])
        scores, ids = _best(exact, ids, k)
        unseen = rough[:, -1].astype(np.float64) + self.bound
        unsure = np.flatnonzero((scores[:, k - 1] <= unseen) | missing.any(axis=1))
        if len(unsure):
            scores[unsure], ids[unsure] = self._exhaustive(queries[unsure], query_ids[unsure], k)
        return scores, ids

    def _exhaustive(self, queries: Float32, query_ids: Int, k: int) -> tuple[Float, Int]:
        wide = queries.astype(np.float64)
        scores, ids = np.empty((len(queries), 0)), np.empty((len(queries), 0), dtype=np.int64)
        for start in range(0, max(len(self.ids), 1), ARCHIVE_BLOCK):
            here = self.ids[None, start : start + ARCHIVE_BLOCK]
            more = wide @ self.features[start : start + ARCHIVE_BLOCK].astype(np.float64).T
            more_ids = np.where(here == query_ids[:, None], NONE, here)
            scores, ids = _best(np.hstack([scores, more]), np.hstack([ids, more_ids]), k)
        return scores, ids


def top_k(index: PartIndex, queries: Float32, query_ids: Int, k: int, margin: int = MARGIN) -> tuple[Float, Int]:
    """The k best of the whole archive for each query: every part is asked, the lists are merged here. A collective.

    Args:
        index: this rank's part.
        queries: (Q, d), the same on all ranks.
        query_ids: (Q,) ids to leave out; -1 = none.
        k: length of a list; padded with (-inf, -1) when the archive is shorter.
        margin: see ``PartIndex.search``.

    Returns:
        Scores (Q, k) float64 and sample ids (Q, k), equal on all ranks.
    """
    scores = np.full((len(queries), k), -np.inf)
    ids = np.full((len(queries), k), NONE, dtype=np.int64)
    for start in range(0, len(queries), QUERY_BLOCK):
        block = slice(start, start + QUERY_BLOCK)
        ours = index.search(queries[block], query_ids[block], k, margin)
        rows, world = len(queries[block]), comm.world()
        parts = [comm.gather_rows_plain(torch.from_numpy(part).to(index.device)).cpu().numpy() for part in ours]
        merged = [part.reshape(world, rows, k).transpose(1, 0, 2).reshape(rows, world * k) for part in parts]
        scores[block], ids[block] = _best(merged[0], merged[1], k)
    return scores, ids


def full_ranking(queries: Float32, archive: Float32, self_position: Int) -> Int:
    """The whole archive in order for each query, (B, N) archive positions, by (score descending, position ascending).

    Archive rows in ascending order of id make that the order of ``top_k``. The query's own item is taken out; -1 then
    fills the last rank.

    Args:
        queries: (B, d) from ``exact_unit``.
        archive: (N, d) from ``exact_unit``.
        self_position: (B,) position of the query's own item, or -1.
    """
    scores = queries.astype(np.float64) @ archive.astype(np.float64).T
    own = np.flatnonzero(self_position >= 0)
    scores[own, self_position[own]] = -np.inf
    ranking = np.argsort(-scores, axis=1, kind="stable").astype(np.int64)
    ranking[own, -1] = NONE
    return ranking
