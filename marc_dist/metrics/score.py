"""Retrieval metrics for label sets: pure, accumulated in float64, vectorised over blocks of queries.

A ranking is an int64 array (B, K) of archive positions, best first; -1 marks a rank without an item (a list shorter
than K, or the query itself taken out). Such a rank has gain 0 and is not relevant, so every sum runs as its formula
says.

Notation, as in ``docs/metrics.md``: g_r is the gain of the item at rank r (1-based), d_r = 1 when it is relevant, R the
number of relevant items in the archive (the query itself excluded), k the cut-off.

A query without any relevant item scores 0 and is counted (as in DeepHash-pytorch's ``CalcTopMap``): all encoders and
all metrics then average over the same queries. Their number is reported beside the means. Where lower is better, such a
query has the worst value, 1 (``ANMRR``). ``Scoring.without_relevant`` leaves such queries out instead.

The archive's labels are given as they are, (N, L), or, once for many blocks, as ``distinct_sets(labels)``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from marc_dist.metrics.arguments import Bool, Int, as_labels, as_self_positions
from marc_dist.metrics.complete import Whole, ranks_of, score_whole
from marc_dist.metrics.conventions import Gain, Relevance, Scoring
from marc_dist.metrics.label_metrics import NEIGHBOURS, knn_f1, label_set_scores
from marc_dist.metrics.label_sets import (
    Count,
    DistinctSets,
    Float,
    best_gains,
    checked_block,
    first_codes,
    gains,
    looked_up,
    num_hits,
    overlap,
    relevant,
    sets_of,
    table,
)
from marc_dist.metrics.rank_metrics import (
    LEVELS,
    acg,
    average_precision,
    cut,
    ndcg,
    precision,
    recall,
    recall_precision,
    reciprocal_rank,
    success,
    wap,
)

DIFFICULTIES = {"easy": 0.4, "medium": 0.6, "hard": 0.8}
"""Least label Jaccard of a relevant item; OML writes distances, 0.6, 0.4, 0.2."""
STRICT_KS = (1, 2, 4, 8)
DIFFICULT_K = 10
BLOCK = 256
"""Queries at once where all are gone through."""


def lower_is_better(name: str) -> bool:
    """Whether a metric, named as ``score_queries`` names it, is a loss."""
    return name.startswith("ANMRR") or "_HL@" in name


def most_relevant(query_labels: Bool, archive_labels: Bool | DistinctSets, self_position: Int, rule: Relevance) -> int:
    """M of ANMRR: the largest number of relevant items that a query has, over all queries of an evaluation.

    Args:
        query_labels: (Q, L).
        archive_labels: (N, L), or ``distinct_sets`` of it.
        self_position: (Q,) each query's own archive position, or -1.
        rule: what counts as relevant.

    Raises:
        ValueError: arguments that do not fit each other.
    """
    archive, most = sets_of(archive_labels), 0
    query_labels = as_labels("query_labels", query_labels, width=archive.sets.shape[1])
    self_position = as_self_positions(self_position, len(query_labels), len(archive.code) - 1)
    for start in range(0, len(query_labels), BLOCK):
        block = slice(start, start + BLOCK)
        hit = table(relevant(query_labels[block], archive.sets, rule))
        most = max(most, int(num_hits(hit, archive, self_position[block]).max()))
    return most


def score_queries(
    ranking: Int,
    query_labels: Bool,
    archive_labels: Bool | DistinctSets,
    self_position: Int,
    scoring: Scoring,
    *,
    complete: bool,
    extra: bool = False,
    most: int | None = None,
    cosine: NDArray[np.floating] | None = None,
    checked: bool = False,
) -> dict[str, Float]:
    """Every metric of every query of a block.

    Args:
        ranking: (B, K) archive positions, -1 for none.
        query_labels: (B, L).
        archive_labels: (N, L), or ``distinct_sets`` of it.
        self_position: (B,) the query's own archive position, or -1; never relevant, never part of an ideal.
        scoring: what to compute.
        complete: the ranking orders the whole archive; only then is there a "mAP" without cut-off.
        extra: also the metrics of ``docs/metrics.md`` that ``marc-eval`` leaves out by default. K >= 10 for them.
        most: ``most_relevant`` of all queries, for ``ANMRR``; None = no ANMRR.
        cosine: (B, >= 10) similarity of the first answers, for ``kNN_F1``; None = no kNN_F1.
        checked: see ``checked_block``.

    Returns:
        Name -> (B,): ``mAP`` (if complete), ``mAP@k``, ``wAP@k``, ``nDCG@k``, ``ACG@k``, ``P@k``, ``num_relevant``.
        NaN in ``mAP_*_oml``, for queries that this source leaves out; and in every metric of a query without a relevant
        item, where ``scoring.without_relevant`` is skip.

    Raises:
        ValueError: see ``checked_block``.
    """
    ranking, query_labels, archive, self_position = checked_block(
        ranking, query_labels, archive_labels, self_position, checked=checked
    )
    sides = query_labels, archive, self_position
    return _scores(ranking, *sides, scoring, complete, extra, most, cosine, labels=False)[0]


def score_all(
    ranking: Int,
    query_labels: Bool,
    archive_labels: Bool | DistinctSets,
    self_position: Int,
    scoring: Scoring,
    *,
    extra: bool = False,
    most: int | None = None,
    cosine: NDArray[np.floating] | None = None,
    checked: bool = False,
) -> Whole:
    """Everything about a block of complete rankings, each list gone through once.

    To the last bit what ``score_queries``, ``score_labels`` and ``query_curves`` return; the curves of the labels, one
    by one, are those that ``label_curves`` adds up.

    Args:
        ranking: (B, N) archive positions of the whole archive, best first, -1 for none.
        query_labels: (B, L).
        archive_labels: (N, L), or ``distinct_sets`` of it.
        self_position: (B,) the query's own archive position, or -1.
        scoring: what to compute.
        extra: see ``score_queries``, as the others.
        most: M of ANMRR.
        cosine: (B, >= 10) of the first answers.
        checked: see ``checked_block``.

    Raises:
        ValueError: see ``checked_block``.
    """
    ranking, query_labels, archive, self_position = checked_block(
        ranking, query_labels, archive_labels, self_position, checked=checked
    )
    scores, whole = _scores(
        ranking, query_labels, archive, self_position, scoring, True, extra, most, cosine, labels=True
    )
    assert whole is not None
    return whole._replace(scores=scores)


def _scores(
    ranking: Int,
    query_labels: Bool,
    archive: DistinctSets,
    self_position: Int,
    scoring: Scoring,
    complete: bool,
    extra: bool,
    most: int | None,
    cosine: NDArray[np.floating] | None,
    *,
    labels: bool,
) -> tuple[dict[str, Float], Whole | None]:
    """The metrics of ``score_queries`` and, if the rankings are complete, all that one pass gave."""
    shared = overlap(query_labels, archive.sets)
    gain_table = table(gains(query_labels, archive.sets, scoring.gain, shared))
    hit_sets = relevant(query_labels, archive.sets, scoring.relevance, shared)
    depth = max(*scoring.ks, NEIGHBOURS, DIFFICULT_K) if extra else max(scoring.ks)
    codes = first_codes(archive, ranking[:, :depth], self_position)
    gain, hit = looked_up(gain_table, codes), looked_up(table(hit_sets), codes).astype(np.float64)
    num = num_hits(table(hit_sets), archive, self_position)
    best = best_gains(gain_table, archive, self_position, max(scoring.ks))
    out: dict[str, Float] = {"num_relevant": num}
    levels, whole = None, None
    if extra:
        levels = {name: relevant(query_labels, archive.sets, least, shared) for name, least in DIFFICULTIES.items()}
    if complete:
        asked = query_labels if labels else None
        whole = score_whole(ranking, archive, self_position, hit_sets, levels=levels, most=most, query_labels=asked)
        out["mAP"] = whole.scores["mAP"]
    for k in scoring.ks:
        ideal = best if scoring.ideal == "database" else cut(gain, k)
        out[f"mAP@{k}"] = average_precision(hit, num, k, scoring.denominator)
        out[f"wAP@{k}"] = wap(gain, k)
        out[f"nDCG@{k}"] = ndcg(gain, ideal, k, linear=scoring.linear)
        out[f"ACG@{k}"] = acg(gain, k)
        out[f"P@{k}"] = precision(hit, k)
    if levels is not None:
        out |= _first_hits(hit, num, scoring.ks)
        out |= _extra_at(codes, query_labels, archive, scoring, levels, shared, cosine)
    if whole is not None:
        out |= whole.scores  # mAP keeps its place
    if scoring.without_relevant == "skip":
        out |= {name: np.where(num > 0, values, np.nan) for name, values in out.items() if name != "num_relevant"}
    return out, whole


def _first_hits(hit: Float, num: Float, ks: tuple[int, ...]) -> dict[str, Float]:
    """Recall, success and reciprocal rank of the first ranks."""
    out: dict[str, Float] = {}
    for k in ks:
        out[f"R@{k}"] = recall(hit, num, k)
        out[f"hit@{k}"] = success(hit, k)
        out[f"MRR@{k}"] = reciprocal_rank(hit, k)
    return out


def full_average_precision(
    ranking: Int,
    query_labels: Bool,
    archive_labels: Bool | DistinctSets,
    self_position: Int,
    rule: Relevance,
    *,
    checked: bool = False,
) -> Float:
    """Average precision over complete rankings alone, (B,): the ``mAP`` of ``score_queries``.

    Args:
        ranking: (B, N) archive positions of the whole archive, best first, -1 for none.
        query_labels: (B, L).
        archive_labels: (N, L), or ``distinct_sets`` of it.
        self_position: (B,) the query's own archive position, or -1.
        rule: what counts as relevant, see ``relevant``.
        checked: see ``checked_block``.

    Raises:
        ValueError: see ``checked_block``.
    """
    ranking, query_labels, archive, self_position = checked_block(
        ranking, query_labels, archive_labels, self_position, checked=checked
    )
    return score_whole(ranking, archive, self_position, relevant(query_labels, archive.sets, rule)).scores["mAP"]


def _extra_at(
    codes: Int,
    query_labels: Bool,
    archive: DistinctSets,
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


def query_curves(
    ranking: Int,
    query_labels: Bool,
    archive_labels: Bool | DistinctSets,
    self_position: Int,
    rule: Relevance,
    *,
    checked: bool = False,
) -> Float:
    """Interpolated precision at recall 0, 0.01, ..., 1 of each query, (B, 101); 0 without a relevant item.

    Beyond the depth of an incomplete ranking the precision is 0.

    Args:
        ranking: (B, K) archive positions, best first, -1 for none.
        query_labels: (B, L).
        archive_labels: (N, L), or ``distinct_sets`` of it.
        self_position: (B,) the query's own archive position, or -1.
        rule: what counts as relevant, see ``relevant``.
        checked: see ``checked_block``.

    Raises:
        ValueError: see ``checked_block``.
    """
    ranking, query_labels, archive, self_position = checked_block(
        ranking, query_labels, archive_labels, self_position, checked=checked
    )
    hit_sets = relevant(query_labels, archive.sets, rule)
    num = num_hits(table(hit_sets), archive, self_position)
    out, steps = np.zeros((len(ranking), LEVELS)), np.arange(1.0, ranking.shape[1] + 1)
    for row, order in enumerate(ranking):
        (ranks,) = ranks_of(archive, order, int(self_position[row]), [hit_sets[row]], steps)
        out[row] = recall_precision(ranks, num[row], steps)
    return out
