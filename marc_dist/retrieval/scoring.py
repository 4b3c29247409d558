"""From rankings to scores: what an evaluation keeps of an encoder, block of queries by block.

Blocks may be scored on any rank; put together in the order of the queries they give the same bits on any number of
ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from marc_dist import comm, metrics
from marc_dist.config import EvalConfig
from marc_dist.metrics.rank_metrics import LEVELS
from marc_dist.retrieval.protocols import Protocol

Float = metrics.Float
Int = metrics.Int
Bool = metrics.Bool
Part = tuple[Int, NDArray[np.floating] | None]
TOP = 10
"""First answers that are kept of every query."""
LONG = 1 << 16
"""Ranks above which threads share the queries of a block; below, Python itself takes most of the time."""


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
        return self.block_in_parts(start, iter([(ranking, cosine)]))

    def block_in_parts(self, start: int, parts: Iterator[Part]) -> Block:
        """Score some queries, of which only one part's rankings are in memory at a time; parts change no bit.

        Args:
            start: the first one's place among the protocol's queries.
            parts: rankings and cosines of the queries that follow each other; see ``block``.
        """
        done: list[tuple[dict[str, Float], Float, Int]] = []
        curves = None
        if self.complete:
            num_labels = self.archive.sets.shape[1]
            curves = np.zeros(LEVELS), np.zeros((num_labels, LEVELS)), np.zeros(num_labels, dtype=np.int64)
        at = start
        for part in parts:
            done.append(self._part(at, *part, curves))
            at += len(part[0])
            del part  # before the next one is made
        scores = {name: np.concatenate([one[name] for one, _, _ in done]) for name in done[0][0]}
        label_ap, top = np.concatenate([one[1] for one in done]), np.concatenate([one[2] for one in done])
        if curves is None:
            return Block(start, scores, label_ap, top)
        return Block(start, scores, label_ap, top, curves[0], curves[1:])

    def _part(
        self, start: int, ranking: Int, cosine: NDArray[np.floating] | None, curves: tuple[Float, Float, Int] | None
    ) -> tuple[dict[str, Float], Float, Int]:
        """Scores, label APs and first answers; curves are added to the sums."""
        rows = slice(start, start + len(ranking))
        asked = self.protocol.queries.labels[self.protocol.queries.ids[rows]]
        own = self.protocol.self_positions(self.protocol.own_ids()[rows])
        short = max(0, TOP - ranking.shape[1])  # an archive of fewer images
        ranking = np.pad(ranking, ((0, 0), (0, short)), constant_values=-1) if short else ranking
        if cosine is not None:
            missing = max(0, TOP - cosine.shape[1])
            cosine = np.pad(cosine, ((0, 0), (0, missing)), constant_values=-np.inf) if self.extra else None
        first = ranking[:, :TOP]
        top = np.where(first < 0, -1, self.protocol.archive.ids[first])
        if curves is None:
            scores = metrics.score_queries(
                ranking, asked, self.archive, own, self.scoring,
                complete=False, extra=self.extra, most=self.most, cosine=cosine, checked=True,
            )  # fmt: skip
            label_ap = metrics.score_labels(ranking, asked, self.archive, own, complete=False, checked=True)
            return scores, label_ap, top
        whole = self._whole(ranking, asked, own, cosine)
        for curve in whole.curves:
            np.add(curves[0], curve, out=curves[0])
        for label, curve in zip(whole.labels.tolist(), whole.label_curves, strict=True):
            curves[1][label] += curve
            curves[2][label] += 1
        return whole.scores, whole.label_ap, top

    def _whole(self, ranking: Int, asked: Bool, own: Int, cosine: NDArray[np.floating] | None) -> metrics.Whole:
        """Everything about complete rankings; long ones are shared out to the threads of this process."""

        def score(rows: slice) -> metrics.Whole:
            near = None if cosine is None else cosine[rows]
            return metrics.score_all(
                ranking[rows], asked[rows], self.archive, own[rows], self.scoring,
                extra=self.extra, most=self.most, cosine=near, checked=True,
            )  # fmt: skip

        threads = min(torch.get_num_threads(), len(ranking)) if ranking.shape[1] >= LONG else 1
        ends = [len(ranking) * at // threads for at in range(threads + 1)]
        slices = [slice(*pair) for pair in zip(ends[:-1], ends[1:], strict=True)]
        if threads == 1:
            return score(slices[0])
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(score, slices))
        scores = {name: np.concatenate([one.scores[name] for one in found]) for name in found[0].scores}
        return metrics.Whole(scores, *(np.concatenate(some) for some in zip(*(one[1:] for one in found), strict=True)))


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
