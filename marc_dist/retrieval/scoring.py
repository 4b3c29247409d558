"""From rankings to scores: what an evaluation keeps of an encoder, block of queries by block.

Blocks may be scored on any rank; put together in the order of the queries they give the same bits on any number of
ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from marc_dist import comm, metrics
from marc_dist.config import EvalConfig
from marc_dist.retrieval.protocols import Protocol

Float = metrics.Float
Int = metrics.Int
TOP = 10
"""First answers that are kept of every query."""


@dataclass(frozen=True)
class Curves:
    """Interpolated precision at recall 0, 0.01, ..., 1: mean over queries (101,), of each label (L, 101) with NaN."""

    queries: Float
    labels: Float


@dataclass(frozen=True)
class Searched:
    """What one encoder found.

    Attributes:
        scores: metric -> (Q,).
        label_ap: (Q, L), NaN where a query says nothing of a label.
        top: (Q, TOP) archive sample ids, -1 for none.
        curves: of complete rankings.
    """

    scores: dict[str, Float]
    label_ap: Float
    top: Int
    curves: Curves | None = None


@dataclass(frozen=True)
class Block:
    """Scores of the queries from ``start`` on; curves are sums over them, with the number of queries of each label."""

    start: int
    scores: dict[str, Float]
    label_ap: Float
    top: Int
    query_curve: Float | None = None
    label_curves: tuple[Float, Int] | None = None


@dataclass(frozen=True)
class Scorer:
    """What all blocks of an evaluation share: made once by ``scorer``, the same on all ranks."""

    protocol: Protocol
    archive: metrics.DistinctSets
    scoring: metrics.Scoring
    complete: bool
    extra: bool
    most: int | None

    def block(self, start: int, ranking: Int, cosine: NDArray[np.floating] | None = None) -> Block:
        """Score some queries.

        Args:
            start: the first one's place among the protocol's queries.
            ranking: (B, K) positions in the protocol's archive, best first, -1 for none; K as ``complete`` promises.
            cosine: (B, >= 10) similarity of the first answers, for ``kNN_F1``; None = without it.
        """
        archive = self.protocol.archive
        rows = slice(start, start + len(ranking))
        asked = self.protocol.queries.labels[self.protocol.queries.ids[rows]]
        own = self.protocol.self_positions(self.protocol.own_ids()[rows])
        short = max(0, TOP - ranking.shape[1])  # an archive of fewer images
        ranking = np.pad(ranking, ((0, 0), (0, short)), constant_values=-1)
        scores = metrics.score_queries(
            ranking,
            asked,
            self.archive,
            own,
            self.scoring,
            complete=self.complete,
            extra=self.extra,
            most=self.most,
            cosine=cosine if self.extra else None,
            checked=True,
        )
        label_ap = metrics.score_labels(ranking, asked, self.archive, own, complete=self.complete, checked=True)
        first = ranking[:, :TOP]
        top = np.where(first < 0, -1, archive.ids[first])
        if not self.complete:
            return Block(start, scores, label_ap, top)
        rule = self.scoring.relevance
        curve = metrics.query_curves(ranking, asked, self.archive, own, rule, checked=True).sum(axis=0)
        labels = metrics.label_curves(ranking, asked, self.archive, own, checked=True)
        return Block(start, scores, label_ap, top, curve, labels)


def scoring_of(config: EvalConfig) -> metrics.Scoring:
    """Cut-offs and conventions as the settings have them."""
    return metrics.Scoring(
        config.ks,
        config.gain,
        config.relevance,
        config.denominator,
        config.ideal,
        config.ndcg_form,
        config.without_relevant,
    )


def scorer(protocol: Protocol, config: EvalConfig, *, complete: bool) -> Scorer:
    """Prepare the scoring of an evaluation.

    Args:
        protocol: who asks and who answers.
        config: cut-offs, conventions, and whether all further metrics are wanted.
        complete: rankings will order the whole archive; else they are at least ``max(*ks, TOP)`` deep.
    """
    queries, archive = protocol.queries, protocol.archive
    sets = metrics.distinct_sets(archive.labels[archive.ids])
    most = None
    if config.extra and complete:
        own = protocol.self_positions(protocol.own_ids())
        most = metrics.most_relevant(queries.labels[queries.ids], sets, own, config.relevance)
    return Scorer(protocol, sets, scoring_of(config), complete, config.extra, most)


def gathered(blocks: list[Block]) -> Searched:
    """The blocks of all ranks, in the order of the queries. A collective; complete on every rank."""
    every = sorted((block for part in comm.gather_object(blocks) for block in part), key=lambda block: block.start)
    return Searched(
        {name: np.concatenate([block.scores[name] for block in every]) for name in every[0].scores},
        np.concatenate([block.label_ap for block in every]),
        np.concatenate([block.top for block in every]),
        _curves(every),
    )


def _curves(blocks: list[Block]) -> Curves | None:
    """Means over all queries; added one block after the other, so that ranks change no bit."""
    queries = [block.query_curve for block in blocks if block.query_curve is not None]
    labels = [block.label_curves for block in blocks if block.label_curves is not None]
    if not queries or not labels:
        return None
    total, num = np.zeros_like(labels[0][0]), np.zeros_like(labels[0][1])
    for one, have in labels:
        total, num = total + one, num + have
    mean = np.divide(total, num[:, None], out=np.full(total.shape, np.nan), where=num[:, None] > 0)
    every = np.zeros_like(queries[0])
    for curve in queries:
        every = every + curve
    return Curves(every / sum(len(block.top) for block in blocks), mean)
