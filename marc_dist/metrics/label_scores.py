"""Average precision, curves and thirds of single labels; pure. Notation as in ``score.py``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from marc_dist.metrics.arguments import Bool, Int
from marc_dist.metrics.complete import LabelQuestions, ranks_of
from marc_dist.metrics.label_sets import DistinctSets, Float, checked_block
from marc_dist.metrics.rank_metrics import LEVELS, average_precision_of, recall_precision

THIRDS = ("rare", "medium", "common")


def _label_hits(
    ranking: Int, query_labels: Bool, archive: DistinctSets, self_position: Int
) -> Iterator[tuple[int, int, Float, float, Float]]:
    """Query, label, ranks of its carriers, their number, steps; of every label that query and archive carry."""
    steps, questions = np.arange(1.0, ranking.shape[1] + 1), LabelQuestions(query_labels, archive, self_position)
    for row, order in enumerate(ranking):
        labels = questions.of(row)
        found = ranks_of(archive, order, int(self_position[row]), [questions.carried[one] for one in labels], steps)
        for label, ranks in zip(labels, found, strict=True):
            yield row, label, ranks, questions.num_relevant(row, label), steps


def score_labels(
    ranking: Int,
    query_labels: Bool,
    archive_labels: Bool | DistinctSets,
    self_position: Int,
    *,
    complete: bool,
    checked: bool = False,
) -> Float:
    """Average precision of each label of each query, (B, L): relevant are the items that carry the label.

    NaN where the query does not carry the label, and where no (other) archive item carries it: such a query says
    nothing about the encoder and is left out of the label's mean. With an incomplete ranking of depth K the
    denominator is min(K, R).

    Args:
        ranking: (B, K) archive positions, best first, -1 for none.
        query_labels: (B, L).
        archive_labels: (N, L), or ``distinct_sets`` of it.
        self_position: (B,) the query's own archive position, or -1.
        complete: the ranking orders the whole archive.
        checked: see ``checked_block``.

    Raises:
        ValueError: see ``checked_block``.
    """
    ranking, query_labels, archive, own = checked_block(
        ranking, query_labels, archive_labels, self_position, checked=checked
    )
    out = np.full(query_labels.shape, np.nan)
    for row, label, ranks, num, steps in _label_hits(ranking, query_labels, archive, own):
        below = num if complete else min(num, float(ranking.shape[1]))
        out[row, label] = average_precision_of(ranks, below, steps)
    return out


def label_curves(
    ranking: Int,
    query_labels: Bool,
    archive_labels: Bool | DistinctSets,
    self_position: Int,
    *,
    checked: bool = False,
) -> tuple[Float, Int]:
    """Interpolated precision at recall 0, 0.01, ..., 1 of each label, summed over queries.

    The queries are those that ``score_labels`` counts.

    Args:
        ranking: (B, K) archive positions, best first, -1 for none.
        query_labels: (B, L).
        archive_labels: (N, L), or ``distinct_sets`` of it.
        self_position: (B,) the query's own archive position, or -1.
        checked: see ``checked_block``.

    Returns:
        Sums (L, 101) and number of queries (L,). Add those of all blocks, then divide.

    Raises:
        ValueError: see ``checked_block``.
    """
    ranking, query_labels, archive, own = checked_block(
        ranking, query_labels, archive_labels, self_position, checked=checked
    )
    total = np.zeros((query_labels.shape[1], LEVELS))
    num = np.zeros(query_labels.shape[1], dtype=np.int64)
    for _, label, ranks, have, steps in _label_hits(ranking, query_labels, archive, own):
        total[label] += recall_precision(ranks, have, steps)
        num[label] += 1
    return total, num


def mean_known(values: Float) -> Float:
    """Column means over what is not NaN, (B, L) -> (L,); NaN for a column without any value."""
    known = ~np.isnan(values)
    num = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.asarray(np.divide(total, num, out=np.full(values.shape[1], np.nan), where=num > 0))


def label_thirds(counts: Int) -> Int:
    """Each label's third by archive count, (L,): 0 rare, 1 medium, 2 common; equal counts in label order.

    Sizes differ by at most one; the larger ones come first, so that rare labels are never the smallest group.
    """
    order = np.argsort(counts, kind="stable")
    third = np.empty(len(counts), dtype=np.int64)
    for number, part in enumerate(np.array_split(order, len(THIRDS))):
        third[part] = number
    return third


def label_groups(third: Int) -> dict[str, Bool]:
    """Which labels are in each group, (L,): all of them, and each third of ``label_thirds``."""
    return {"all": np.full(len(third), True), **{name: third == at for at, name in enumerate(THIRDS)}}


def group_means(per_label: Float, third: Int) -> dict[str, dict[str, float | int | None]]:
    """Mean AP of the labels that have one, of all and of each third: ``mAP`` (None without any), ``num_labels``.

    Args:
        per_label: (L,) mean AP of each label, NaN for none.
        third: (L,) of ``label_thirds``.
    """
    out: dict[str, dict[str, float | int | None]] = {}
    for name, chosen in label_groups(third).items():
        known = per_label[chosen & ~np.isnan(per_label)]
        out[name] = {"mAP": float(known.mean()) if len(known) else None, "num_labels": len(known)}
    return out
