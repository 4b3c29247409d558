"""The nearest vectors of an archive, for one process."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from marc_dist.api.arrays import own_positions, refuse_empty_archive, unit_vectors
from marc_dist.config import ConfigError, DataError
from marc_dist.metrics import check_k
from marc_dist.retrieval.exact import Float, Float32, Int, best
from marc_dist.retrieval.index.parts import FlatPart, build, check_spec, train
from marc_dist.retrieval.index.spec import IndexSpec, parse_spec
from marc_dist.retrieval.search import QUERY_BLOCK, Part, sample_places

if TYPE_CHECKING:
    from marc_dist.api.arrays import Array


class Neighbours(NamedTuple):
    """The nearest items of each query, best first.

    Attributes:
        scores: (Q, k) float64 cosines (of binary codes: 1 - 2 x distance / bits); -inf where there is no item.
        positions: (Q, k) int64 rows of the archive; -1 where there is no item.
    """

    scores: Float
    positions: Int


def search(
    query_vectors: Array,
    archive_vectors: Array,
    k: int,
    *,
    self_positions: Array | None = None,
    query_ids: Array | None = None,
    archive_ids: Array | None = None,
    index: str = "flat",
) -> Neighbours:
    """The k archive vectors of the largest cosine with each query.

    Exact, but for a FAISS factory string: vectors are scaled to length 1 on a grid of 2^-24, on which float64 products
    have no rounding error. Equal cosines go by archive position, lower first; so do equal codes.

    Args:
        query_vectors: (Q, d), of any length.
        archive_vectors: (N, d).
        k: answers a query; where the archive holds fewer, the rest is (-inf, -1).
        self_positions: (Q,) each query's own row of the archive, which is left out; -1 = none.
        query_ids: (Q,) numbers or texts: a query leaves out the archive item of the same id.
        archive_ids: (N,) different ids, with ``query_ids``.
        index: flat (exact), sign or itqN (binary codes), or a FAISS factory string: IVF256,PQ32:nprobe=16.

    Raises:
        ValueError: k below 1, an empty archive, vectors of different widths, NaN, ids that do not fit, an index that
            FAISS does not know or cannot train on so few vectors.
    """
    check_k(k)
    archive = unit_vectors("archive_vectors", archive_vectors)
    refuse_empty_archive("archive_vectors", len(archive))
    queries = unit_vectors("query_vectors", query_vectors, width=archive.shape[1])
    own = own_positions(self_positions, query_ids, archive_ids, len(queries), len(archive))
    try:
        part = _part(parse_spec(index), archive)
    except (ConfigError, DataError) as error:
        raise ValueError(str(error).replace("eval.index=", "index=")) from None
    return nearest(part, queries, own, int(k))


def _part(spec: IndexSpec, archive: Float32) -> Part:
    check_spec(spec, archive.shape[1])
    places = np.arange(len(archive), dtype=np.int64)
    if spec.kind == "flat":
        return FlatPart(archive, places)
    trained = train(spec, archive[sample_places(len(archive))])
    return build(spec, trained, archive, places, None)


def nearest(part: Part, queries: Float32, own: Int, k: int) -> Neighbours:
    """``retrieval.search.top_k`` of one process, whatever group of processes it may be in.

    Args:
        part: the whole archive.
        queries: (Q, d) from ``exact_unit``.
        own: (Q,) positions to leave out; -1 = none.
        k: length of a list.
    """
    scores, positions = np.full((len(queries), k), -np.inf), np.full((len(queries), k), -1, dtype=np.int64)
    for start in range(0, len(queries), QUERY_BLOCK):
        block = slice(start, start + QUERY_BLOCK)
        found = part.search(queries[block], own[block], k)
        scores[block], positions[block] = best(found.scores, found.ids, k)  # an index that guesses proposes more
    return Neighbours(scores, positions)
