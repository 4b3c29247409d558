"""What complete rankings are scored by, in one pass over each query's list; pure. Notation as in ``score.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from marc_dist.metrics.arguments import Bool, Int
from marc_dist.metrics.label_sets import DistinctSets, Float, bit_table, in_order, num_hits, table
from marc_dist.metrics.rank_metrics import (
    LEVELS,
    average_precision_of,
    hit_ranks,
    nmrr,
    r_precision,
    recall_precision,
    reciprocal_rank_of,
    trapezoidal_ap,
)

AT_ONCE = 8
"""Questions that one look-up answers, a bit each."""


def ranks_of(archive: DistinctSets, order: Int, own: int, questions: Sequence[Bool], steps: Float) -> Iterator[Float]:
    """The ranks of the items that say yes, for each question in turn.

    Args:
        archive: N items.
        order: (K,) archive positions, best first; -1 = no item.
        own: archive position of the query itself, which never says yes, or -1.
        questions: (S,) each, what every distinct set says.
        steps: 1, 2, ..., at least K of them; made once for many queries.
    """
    for start in range(0, len(questions), AT_ONCE):
        some = questions[start : start + AT_ONCE]
        bits = bit_table(*(one[None] for one in some))[0]
        yield from hit_ranks(in_order(archive, bits, order, own), len(some), steps)


class LabelQuestions:
    """Which labels each query is asked about: those that it and an(other) item of the archive carry.

    Args:
        query_labels: (B, L).
        archive: N items.
        self_position: (B,) the query's own archive position, or -1.
    """

    def __init__(self, query_labels: Bool, archive: DistinctSets, self_position: Int) -> None:
        self._carriers = num_hits(table(archive.sets.T), archive, np.full(archive.sets.shape[1], -1))
        self._own = np.pad(archive.sets, ((0, 1), (0, 0)))[archive.code[self_position]]
        self._asked = query_labels & (self._carriers > self._own)
        self.carried = np.ascontiguousarray(archive.sets.T)
        """(L, S) which distinct sets hold each label."""

    def of(self, row: int) -> list[int]:
        """The labels of one query, ascending."""
        return [int(label) for label in np.flatnonzero(self._asked[row])]

    def num_relevant(self, row: int, label: int) -> float:
        """Items other than the query itself that carry the label."""
        return float(self._carriers[label] - self._own[row, label])


class Whole(NamedTuple):
    """Scores of complete rankings.

    Attributes:
        scores: metric -> (B,).
        label_ap: (B, L), see ``score_labels``.
        curves: (B, 101), see ``query_curves``.
        labels: (P,) the label of each of ``label_curves``, query by query.
        label_curves: (P, 101) interpolated precision of each label that a query is asked about.
    """

    scores: dict[str, Float]
    label_ap: Float
    curves: Float
    labels: Int
    label_curves: Float


def score_whole(
    ranking: Int,
    archive: DistinctSets,
    self_position: Int,
    hit_sets: Bool,
    *,
    levels: Mapping[str, Bool] | None = None,
    most: int | None = None,
    query_labels: Bool | None = None,
) -> Whole:
    """``mAP`` and, where they are asked for, the further metrics, label APs and curves of complete rankings.

    Query by query, because a row of a large archive fills the cache.

    Args:
        ranking: (B, N) archive positions of the whole archive, best first, -1 for none.
        archive: N items.
        self_position: (B,) the query's own archive position, or -1.
        hit_sets: (B, S) which distinct sets are relevant.
        levels: name -> (B, S) relevance by difficulty, the hardest last, for the further metrics; None = without them.
        most: see ``score_queries``.
        query_labels: (B, L), for label APs and curves; None = without them.
    """
    rules = [hit_sets, *(levels or {}).values()]
    num, *nums = (num_hits(table(rule), archive, self_position) for rule in rules)
    steps, out = np.arange(1.0, ranking.shape[1] + 1), _empty(len(ranking), levels, most)
    labels = None if query_labels is None else LabelQuestions(query_labels, archive, self_position)
    width = 0 if query_labels is None else query_labels.shape[1]
    label_ap = np.full((len(ranking), width), np.nan)
    curves = np.zeros((len(ranking) if labels else 0, LEVELS))
    curved: list[tuple[int, Float]] = []
    for row, order in enumerate(ranking):
        asked = [] if labels is None else labels.of(row)
        questions = [rule[row] for rule in rules] + [labels.carried[label] for label in asked if labels]
        found = ranks_of(archive, order, int(self_position[row]), questions, steps)
        ranks = next(found)
        out["mAP"][row] = average_precision_of(ranks, num[row], steps)
        if labels is not None:
            curves[row] = recall_precision(ranks, num[row], steps)
        if levels is not None:
            out["MRR"][row], out["R_precision"][row] = reciprocal_rank_of(ranks), r_precision(ranks, num[row])
            for name, have in zip(levels, nums, strict=True):
                out[f"mAP_{name}"][row] = trapezoidal_ap(next(found), have[row], steps)
        if most is not None and levels is not None:
            for name in ("ANMRR", "ANMRR_mpeg7"):
                out[name][row] = nmrr(ranks, num[row], float(most), mpeg7=name == "ANMRR_mpeg7")
        for label, ranks in zip(asked, found, strict=True):
            carriers = labels.num_relevant(row, label) if labels else 0.0
            label_ap[row, label] = average_precision_of(ranks, carriers, steps)
            curved.append((label, recall_precision(ranks, carriers, steps)))
    for name in levels or {}:
        out[f"mAP_{name}_oml"] = np.where(nums[-1] > 0, out[f"mAP_{name}"], np.nan)
    of = np.array([label for label, _ in curved], dtype=np.int64)
    every = np.stack([curve for _, curve in curved]) if curved else np.zeros((0, LEVELS))
    return Whole(out, label_ap, curves, of, every)


def _empty(num: int, levels: Mapping[str, Bool] | None, most: int | None) -> dict[str, Float]:
    """All metrics in their order, 0 for a query without a relevant item, 1 where lower is better."""
    names, losses = ["mAP"], []
    if levels is not None:
        names += [*(f"mAP_{name}" for name in levels), *(f"mAP_{name}_oml" for name in levels), "MRR", "R_precision"]
        losses = [] if most is None else ["ANMRR", "ANMRR_mpeg7"]
    return {**{name: np.zeros(num) for name in names}, **{name: np.ones(num) for name in losses}}
