"""Retrieval metrics for label sets: pure, accumulated in float64, vectorised over blocks of queries.

A ranking is an int64 array (B, K) of archive positions, best first; -1 marks a rank without an item (a list shorter
than K, or the query itself taken out). Such a rank has gain 0 and is not relevant, so every sum runs as its formula
says.

Notation, as in ``docs/metrics.md``: g_r is the gain of the item at rank r (1-based), d_r = 1 when it is relevant, R the
number of relevant items in the archive (the query itself excluded), k the cut-off.

A query without any relevant item scores 0 and is counted (as in DeepHash-pytorch's ``CalcTopMap``): all encoders and
all metrics then average over the same queries. Their number is reported beside the means. Where lower is better, such a
query has the worst value, 1 (``ANMRR``).

The archive's labels are given as they are, (N, L), or, once for many blocks, as ``label_sets(labels)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from marc_dist.retrieval.label_metrics import NEIGHBOURS, knn_f1, label_set_scores
from marc_dist.retrieval.label_sets import (
    Bool,
    Byte,
    Count,
    Float,
    Gain,
    Int,
    LabelSets,
    Relevance,
    best_gains,
    bit_table,
    first_codes,
    gains,
    in_order,
    label_sets,
    looked_up,
    num_hits,
    overlap,
    relevant,
    table,
)
from marc_dist.retrieval.rank_metrics import (
    LEVELS,
    Denominator,
    acg,
    average_precision,
    average_precision_of,
    cut,
    dcg,
    hit_ranks,
    ndcg,
    nmrr,
    precision,
    recall_precision,
    trapezoidal_ap,
    wap,
)

__all__ = [
    "DIFFICULTIES",
    "STRICT_KS",
    "THIRDS",
    "Bool",
    "Float",
    "Gain",
    "Int",
    "LabelSets",
    "Relevance",
    "Scoring",
    "acg",
    "average_precision",
    "dcg",
    "full_average_precision",
    "gains",
    "label_curves",
    "label_sets",
    "label_thirds",
    "lower_is_better",
    "mean_known",
    "most_relevant",
    "ndcg",
    "precision",
    "query_curves",
    "relevant",
    "score_labels",
    "score_queries",
    "wap",
]

Ideal = Literal["database", "retrieved"]
THIRDS = ("rare", "medium", "common")
DIFFICULTIES = {"easy": 0.4, "medium": 0.6, "hard": 0.8}
"""Least label Jaccard of a relevant item; OML writes distances, 0.6, 0.4, 0.2."""
STRICT_KS = (1, 2, 4, 8)
DIFFICULT_K = 10
BLOCK = 256
"""Queries at once where all are gone through."""


@dataclass(frozen=True)
class Scoring:
    """What is computed: cut-offs, graded gain, binary relevance, and the two choices on which sources differ."""

    ks: tuple[int, ...] = (10, 100)
    gain: Gain = "count"
    relevance: Relevance = "any"
    denominator: Denominator = "hits"
    ideal: Ideal = "database"


def lower_is_better(name: str) -> bool:
    """Whether a metric, named as ``score_queries`` names it, is a loss."""
    return name.startswith("ANMRR") or "_HL@" in name


def _sets(archive: Bool | LabelSets) -> LabelSets:
    return archive if isinstance(archive, LabelSets) else label_sets(archive)


def most_relevant(query_labels: Bool, archive_labels: Bool | LabelSets, self_position: Int, rule: Relevance) -> int:
    """M of ANMRR: the largest number of relevant items that a query has, over all queries of an evaluation."""
    archive, most = _sets(archive_labels), 0
    for start in range(0, len(query_labels), BLOCK):
        block = slice(start, start + BLOCK)
        hit = table(relevant(query_labels[block], archive.sets, rule))
        most = max(most, int(num_hits(hit, archive, self_position[block]).max()))
    return most


def score_queries(
    ranking: Int,
    query_labels: Bool,
    archive_labels: Bool | LabelSets,
    self_position: Int,
    scoring: Scoring,
    *,
    complete: bool,
    extra: bool = False,
    most: int | None = None,
    cosine: NDArray[np.floating] | None = None,
) -> dict[str, Float]:
    """Every metric of every query of a block.

    Args:
        ranking: (B, K) archive positions, -1 for none.
        query_labels: (B, L).
        archive_labels: (N, L), or ``label_sets`` of it.
        self_position: (B,) the query's own archive position, or -1; never relevant, never part of an ideal.
        scoring: what to compute.
        complete: the ranking orders the whole archive; only then is there a "mAP" without cut-off.
        extra: also the metrics of ``docs/metrics.md`` that ``marc-eval`` leaves out by default. K >= 10 for them.
        most: ``most_relevant`` of all queries, for ``ANMRR``; None = no ANMRR.
        cosine: (B, >= 10) similarity of the first answers, for ``kNN_F1``; None = no kNN_F1.

    Returns:
        Name -> (B,): ``mAP`` (if complete), ``mAP@k``, ``wAP@k``, ``nDCG@k``, ``ACG@k``, ``P@k``, ``num_relevant``.
        NaN only in ``mAP_*_oml``: queries that this source leaves out.
    """
    archive = _sets(archive_labels)
    shared = overlap(query_labels, archive.sets)
    gain_table = table(gains(query_labels, archive.sets, scoring.gain, shared))
    hit_sets = relevant(query_labels, archive.sets, scoring.relevance, shared)
    depth = max(*scoring.ks, NEIGHBOURS, DIFFICULT_K) if extra else max(scoring.ks)
    codes = first_codes(archive, ranking[:, :depth], self_position)
    gain, hit = looked_up(gain_table, codes), looked_up(table(hit_sets), codes).astype(np.float64)
    num = num_hits(table(hit_sets), archive, self_position)
    best = best_gains(gain_table, archive, self_position, max(scoring.ks))
    out: dict[str, Float] = {"num_relevant": num}
    if complete:
        out["mAP"] = _full_ap(ranking, archive, self_position, bit_table(hit_sets), num)
    for k in scoring.ks:
        ideal = best if scoring.ideal == "database" else cut(gain, k)
        out[f"mAP@{k}"] = average_precision(hit, num, k, scoring.denominator)
        out[f"wAP@{k}"] = wap(gain, k)
        out[f"nDCG@{k}"] = ndcg(gain, ideal, k, linear=scoring.gain != "count")
        out[f"ACG@{k}"] = acg(gain, k)
        out[f"P@{k}"] = precision(hit, k)
    if extra:
        levels = {name: relevant(query_labels, archive.sets, least, shared) for name, least in DIFFICULTIES.items()}
        out |= _extra_at(codes, query_labels, archive, scoring, levels, shared, cosine)
        if complete:
            out |= _extra_full(ranking, archive, self_position, hit_sets, levels, most)
    return out


def _steps(ranking: Int) -> Float:
    return np.arange(1.0, ranking.shape[1] + 1)


def full_average_precision(
    ranking: Int, query_labels: Bool, archive_labels: Bool | LabelSets, self_position: Int, rule: Relevance
) -> Float:
    """Average precision over complete rankings alone, (B,): the ``mAP`` of ``score_queries``."""
    archive = _sets(archive_labels)
    hit_sets = relevant(query_labels, archive.sets, rule)
    num = num_hits(table(hit_sets), archive, self_position)
    return _full_ap(ranking, archive, self_position, bit_table(hit_sets), num)


def _full_ap(ranking: Int, archive: LabelSets, self_position: Int, bits: Byte, num: Float) -> Float:
    """AP of the whole ranking; query by query, because a row of a large archive fills the cache."""
    out, steps = np.zeros(len(ranking)), _steps(ranking)
    for row, order in enumerate(ranking):
        (ranks,) = hit_ranks(in_order(archive, bits[row], order, int(self_position[row])), 1, steps)
        out[row] = average_precision_of(ranks, num[row], steps)
    return out


def _extra_at(
    codes: Int,
    query_labels: Bool,
    archive: LabelSets,
    scoring: Scoring,
    levels: dict[str, Bool],
    shared: Count,
    cosine: NDArray[np.floating] | None,
) -> dict[str, Float]:
    """The further metrics that look at the first ranks, from (B, k) codes in rank order."""
    strict = looked_up(table(relevant(query_labels, archive.sets, "subset", shared)), codes).astype(np.float64)
    out = {f"mAP_strict@{k}": average_precision(strict, np.full(len(codes), float(k)), k, "all") for k in STRICT_KS}
    for name, level in levels.items():
        hit = looked_up(table(level), codes).astype(np.float64)
        out[f"P_{name}@{DIFFICULT_K}"] = precision(hit, DIFFICULT_K)
    similarities: tuple[Gain, ...] = ("jaccard", "cosine")
    for kind in similarities:
        gain = looked_up(table(gains(query_labels, archive.sets, kind, shared)), codes)
        out |= {f"{kind}@{k}": acg(gain, k) for k in scoring.ks}
    top = np.pad(archive.sets, ((0, 1), (0, 0)))[codes]
    for k in scoring.ks:
        out |= label_set_scores(top, query_labels, k)
    if cosine is not None:
        out[f"kNN_F1@{NEIGHBOURS}"] = knn_f1(top, codes < len(archive.counts), cosine, query_labels)
    return out


def _extra_full(
    ranking: Int, archive: LabelSets, self_position: Int, hit_sets: Bool, levels: dict[str, Bool], most: int | None
) -> dict[str, Float]:
    """The further metrics of the whole ranking."""
    rules = [hit_sets, *levels.values()]
    bits, steps = bit_table(*rules), _steps(ranking)
    num, *nums = (num_hits(table(rule), archive, self_position) for rule in rules)
    out = {f"mAP_{name}": np.zeros(len(ranking)) for name in DIFFICULTIES}
    losses = {} if most is None else {name: np.ones(len(ranking)) for name in ("ANMRR", "ANMRR_mpeg7")}
    for row, order in enumerate(ranking):
        ranks, *found = hit_ranks(in_order(archive, bits[row], order, int(self_position[row])), len(rules), steps)
        for values, one, have in zip(out.values(), found, nums, strict=True):
            values[row] = trapezoidal_ap(one, have[row], steps)
        for name, values in losses.items():
            values[row] = nmrr(ranks, num[row], float(most or 0), mpeg7=name == "ANMRR_mpeg7")
    kept = {f"{name}_oml": np.where(nums[-1] > 0, values, np.nan) for name, values in out.items()}
    return {**out, **kept, **losses}


def _label_hits(
    ranking: Int, query_labels: Bool, archive: LabelSets, self_position: Int
) -> Iterator[tuple[int, int, Float, float, Float]]:
    """Query, label, ranks of its carriers, their number, steps; of every label that query and archive carry."""
    steps = _steps(ranking)
    carriers = num_hits(table(archive.sets.T), archive, np.full(archive.sets.shape[1], -1))
    own = np.pad(archive.sets, ((0, 1), (0, 0)))[archive.code[self_position]]
    carried = np.ascontiguousarray(archive.sets.T)[:, None]
    for row, order in enumerate(ranking):
        labels = np.flatnonzero(query_labels[row] & (carriers > own[row]))
        for start in range(0, len(labels), 8):
            some = labels[start : start + 8]
            answers = in_order(archive, bit_table(*carried[some])[0], order, int(self_position[row]))
            for label, ranks in zip(some.tolist(), hit_ranks(answers, len(some), steps), strict=True):
                yield row, label, ranks, float(carriers[label] - own[row, label]), steps


def score_labels(
    ranking: Int, query_labels: Bool, archive_labels: Bool | LabelSets, self_position: Int, *, complete: bool
) -> Float:
    """Average precision of each label of each query, (B, L): relevant are the items that carry the label.

    NaN where the query does not carry the label, and where no (other) archive item carries it: such a query says
    nothing about the encoder and is left out of the label's mean. With an incomplete ranking of depth K the
    denominator is min(K, R).
    """
    out = np.full(query_labels.shape, np.nan)
    for row, label, ranks, num, steps in _label_hits(ranking, query_labels, _sets(archive_labels), self_position):
        below = num if complete else min(num, float(ranking.shape[1]))
        out[row, label] = average_precision_of(ranks, below, steps)
    return out


def query_curves(
    ranking: Int, query_labels: Bool, archive_labels: Bool | LabelSets, self_position: Int, rule: Relevance
) -> Float:
    """Interpolated precision at recall 0, 0.01, ..., 1 of each query, (B, 101); 0 without a relevant item.

    Beyond the depth of an incomplete ranking the precision is 0.
    """
    archive = _sets(archive_labels)
    hit_sets = relevant(query_labels, archive.sets, rule)
    bits, num = bit_table(hit_sets), num_hits(table(hit_sets), archive, self_position)
    out, steps = np.zeros((len(ranking), LEVELS)), _steps(ranking)
    for row, order in enumerate(ranking):
        (ranks,) = hit_ranks(in_order(archive, bits[row], order, int(self_position[row])), 1, steps)
        out[row] = recall_precision(ranks, num[row], steps)
    return out


def label_curves(
    ranking: Int, query_labels: Bool, archive_labels: Bool | LabelSets, self_position: Int
) -> tuple[Float, Int]:
    """Interpolated precision at recall 0, 0.01, ..., 1 of each label, summed over queries.

    The queries are those that ``score_labels`` counts.

    Returns:
        Sums (L, 101) and number of queries (L,). Add those of all blocks, then divide.
    """
    total = np.zeros((query_labels.shape[1], LEVELS))
    num = np.zeros(query_labels.shape[1], dtype=np.int64)
    for _, label, ranks, have, steps in _label_hits(ranking, query_labels, _sets(archive_labels), self_position):
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
