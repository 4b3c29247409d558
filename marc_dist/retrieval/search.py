"""An archive that lies in parts on the ranks, searched as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from marc_dist import comm
from marc_dist.retrieval.exact import NONE, Float, Float32, Int, Rows, best, best_with
from marc_dist.retrieval.index.parts import MARGIN, BinaryPart, FactoryPart, FlatPart, build, train
from marc_dist.retrieval.index.spec import IndexSpec

QUERY_BLOCK = 4096
RECALL_QUERIES = 100
TRAIN_ROWS = 1 << 18
Part = FlatPart | BinaryPart | FactoryPart
Number = TypeVar("Number", np.float64, np.int64)


def make_part(
    spec: IndexSpec,
    rows: Callable[[Int], Rows],
    archive_ids: Int,
    mine: Int,
    gpu: int | None,
    *,
    float16: bool,
    say: Callable[[str], None],
) -> Part:
    """This rank's index, trained on the whole archive. A collective; see ``learn`` and ``build``.

    Args:
        spec: which index.
        rows: ids -> their unit vectors.
        archive_ids: ids of the whole archive, ascending.
        mine: this rank's part of them.
        gpu: search on this GPU.
        float16: see ``build``.
        say: hears where the search runs.
    """
    trained = learn(spec, rows, archive_ids, say)
    return build(spec, trained, rows(mine), mine, gpu, float16=float16, say=say)


def sample_places(num: int) -> Int:
    """Rows of an archive of ``num`` that an index is trained on: evenly spaced, at most ``TRAIN_ROWS``."""
    if num <= TRAIN_ROWS:
        return np.arange(num, dtype=np.int64)
    return np.linspace(0, num - 1, TRAIN_ROWS).astype(np.int64)


def learn(spec: IndexSpec, rows: Callable[[Int], Rows], archive_ids: Int, say: Callable[[str], None]) -> bytes:
    """What rank 0 learns from a sample of the whole archive, on every rank. A collective.

    Args:
        spec: which index; a flat one learns nothing.
        rows: ids -> their unit vectors.
        archive_ids: ids of the whole archive, ascending.
        say: takes one line for people.

    Raises:
        DataError: too few vectors to train on; told on every rank.
    """
    trained: bytes | Exception = b""
    if spec.kind != "flat" and comm.rank() == 0:
        try:
            trained = train(spec, np.asarray(rows(archive_ids[sample_places(len(archive_ids))])), say)
        except Exception as error:
            trained = error
    if spec.kind != "flat":
        trained = comm.broadcast_object(trained)
    if isinstance(trained, Exception):
        raise trained
    return trained


def top_k(
    index: Part,
    queries: Float32,
    own_ids: Int,
    k: int,
    margin: int = MARGIN,
    *,
    device: torch.device | None = None,
) -> tuple[Float, Int]:
    """The k best of the whole archive for each query: every part is asked, the lists are merged here. A collective.

    Flat and binary lists are exact. Of an approximate index, the lists that the parts propose are first cut to the
    length that one index would have proposed, by its own scores, and then ordered by exact score: what a part proposes
    beyond that does not make the lists of several ranks better than those of one. They are then the same for any
    number of ranks, but for equal rough scores at the end of such a list, and for graphs (HNSW, NSG), of which each
    rank builds its own.

    Args:
        index: this rank's part.
        queries: (Q, d), the same on all ranks.
        own_ids: (Q,) ids to leave out; -1 = none.
        k: length of a list; padded with (-inf, -1) when the archive is shorter.
        margin: see ``FlatPart.search``.
        device: where collectives want their tensors.

    Returns:
        Scores (Q, k) float64 and sample ids (Q, k), equal on all ranks.
    """
    scores = np.full((len(queries), k), -np.inf)
    ids = np.full((len(queries), k), NONE, dtype=np.int64)
    for start in range(0, len(queries), QUERY_BLOCK):
        block = slice(start, start + QUERY_BLOCK)
        ours = index.search(queries[block], own_ids[block], k, margin)
        if ours.rough is None and comm.world() == 1:
            scores[block], ids[block] = ours.scores, ours.ids
            continue
        all_scores, all_ids = _gathered(ours.scores, device), _gathered(ours.ids, device)
        if ours.rough is not None:
            rough = _gathered(ours.rough, device)
            _, all_ids, all_scores = best_with(rough, all_ids, ours.ids.shape[1], all_scores)
        scores[block], ids[block] = best(all_scores, all_ids, k)
    return scores, ids


def _gathered(part: NDArray[Number], device: torch.device | None) -> NDArray[Number]:
    """(B, w) of every rank -> (B, world x w), in rank order."""
    rows, width, world = *part.shape, comm.world()
    every = comm.gather_rows_plain(torch.from_numpy(part).to(device or torch.device("cpu"))).cpu().numpy()
    joined = every.reshape(world, rows, width).transpose(1, 0, 2).reshape(rows, world * width)
    return np.asarray(joined, dtype=part.dtype)


def recall(
    features: Rows, ids: Int, queries: Float32, own_ids: Int, listed: Int, k: int, device: torch.device | None
) -> float:
    """Share of the exact first k, by cosine, that an index which is not flat lists among its first k. A collective.

    Over at most ``RECALL_QUERIES`` evenly spaced queries; lists shorter than k count what they have.

    Args:
        features: (n, d) this rank's part.
        ids: (n,) its ids.
        queries: (Q, d) all queries.
        own_ids: (Q,) see ``top_k``.
        listed: (Q, >= k) what the index found.
        k: cut-off.
        device: where collectives want their tensors.
    """
    chosen = np.unique(np.linspace(0, len(queries) - 1, min(RECALL_QUERIES, len(queries))).astype(np.int64))
    _, exact = top_k(FlatPart(features, ids), queries[chosen], own_ids[chosen], k, device=device)
    there = exact >= 0
    hits = (exact[:, :, None] == listed[chosen, None, :k]).any(axis=2) & there
    return float(hits.sum() / max(1, there.sum()))
