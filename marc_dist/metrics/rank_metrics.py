"""The formulas that score a ranking; pure.

First those of many queries at a cut-off k: (B, K) gains g_r or hits d_r in rank order. Then those of one query over a
whole ranking: ``ranks`` is (H,) float64, the 1-based ranks of the relevant items that were found, ascending;
``num_relevant`` is R, the relevant items of the archive; R > H when the ranking was cut off. All are 0 (``nmrr``: 1,
its worst) when R = 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from marc_dist.metrics.arguments import check_k
from marc_dist.metrics.conventions import Denominator, check_denominator
from marc_dist.metrics.label_sets import Byte, Float

LEVELS = 101
"""Recall 0, 0.01, ..., 1."""


def cut(x: Float, k: int) -> Float:
    """The first k columns, or all that there are.

    Raises:
        ValueError: k below 1, or no (queries, ranks).
    """
    if np.ndim(x) != 2:
        raise ValueError(f"expected values (queries, ranks), got shape {np.shape(x)}")
    check_k(k)
    return x[:, : min(k, x.shape[1])]


def acg(gain: Float, k: int) -> Float:
    """Average cumulative gain, (B, K) ranked gains -> (B,): ACG@k = (1/k) sum_{r<=k} g_r.

    Source: RImbriaco/OML ``multilabel_metrics.py``. Always divided by k, also when the archive holds fewer items. With
    the jaccard or cosine gain this is the mean label similarity at k.
    """
    return np.asarray(cut(gain, k).sum(axis=1) / k)


def dcg(gain: Float, k: int, *, linear: bool) -> Float:
    """Discounted cumulative gain, (B,): sum_{r<=k} f(g_r) / log2(1 + r).

    Args:
        gain: (B, K) ranked gains.
        k: cut-off.
        linear: f(g) = g; else 2^g - 1.
    """
    top = cut(gain, k)
    discount = 1.0 / np.log2(np.arange(2, top.shape[1] + 2))
    # a sum, not a product of matrices: that of BLAS may round otherwise in another block of queries
    return np.asarray(((top if linear else np.exp2(top) - 1.0) * discount).sum(axis=1))


def ndcg(gain: Float, ideal: Float, k: int, *, linear: bool = False) -> Float:
    """Normalised DCG, (B,): DCG@k of the ranking / DCG@k of ``ideal`` sorted descending; 0 when that is 0.

    Args:
        gain: (B, K) ranked gains.
        ideal: (B, M) gains to sort: of the whole archive (after kunhe/TALR; our default), or the first k of ``gain``
            itself (RImbriaco/OML, optimistic: a ranking without a hit beyond its own order scores 1).
        k: cut-off.
        linear: f(g) = g, for the jaccard and cosine gains; else 2^g - 1. No epsilon is added (OML adds 1e-6).
    """
    best = dcg(-np.sort(-ideal, axis=1), k, linear=linear)
    got = dcg(gain, k, linear=linear)
    return np.asarray(np.divide(got, best, out=np.zeros_like(got), where=best > 0))


def wap(gain: Float, k: int) -> Float:
    """Weighted average precision, (B,): sum_{r<=k} [g_r > 0] ACG@r / sum_{r<=k} [g_r > 0]; 0 without a hit.

    Source: CV4RS ``wmap`` and OML, without OML's epsilon. Not bounded by 1 with the count gain.
    """
    top = cut(gain, k)
    hit = top > 0
    mean = np.cumsum(top, axis=1) / np.arange(1, top.shape[1] + 1)
    num = hit.sum(axis=1)
    return np.asarray((mean * hit).sum(axis=1) / np.maximum(num, 1))


def average_precision(hit: Float, num_relevant: Float, k: int | None, denominator: Denominator = "hits") -> Float:
    """Average precision, (B,): sum_{r<=k} d_r P@r / D, P@r = (1/r) sum_{s<=r} d_s; 0 when D = 0.

    Args:
        hit: (B, K) d_r in rank order.
        num_relevant: (B,) R.
        k: cut-off; None = the whole ranking, where all denominators agree if the ranking is complete.
        denominator: hits: D = sum_{r<=k} d_r (DeepHash-pytorch ``CalcTopMap``, the usual mAP@k of the field, our
            default; it does not punish what was missed). min: D = min(k, R), so that 1 is reached by every query
            (pytorch-metric-learning's MAP@R with k = R). all: D = R (trec_eval's ``map_cut``; below 1 where R > k).
            k: D = k (CV4RS's "MAP@R"). Without a cut-off, min and k are R, too.

    Raises:
        ValueError: no such denominator, k below 1.
    """
    check_denominator(denominator)
    top = hit if k is None else cut(hit, k)
    found = np.cumsum(top, axis=1)
    total = (top * found / np.arange(1, top.shape[1] + 1)).sum(axis=1)
    if denominator == "hits":
        below = top.sum(axis=1)
    elif denominator == "all" or k is None:
        below = num_relevant
    else:
        below = np.minimum(num_relevant, k) if denominator == "min" else np.full(len(top), float(k))
    return np.asarray(np.divide(total, below, out=np.zeros_like(total), where=below > 0))


def precision(hit: Float, k: int) -> Float:
    """P@k = (1/k) sum_{r<=k} d_r, (B,). Always divided by k, also when the archive holds fewer items."""
    return np.asarray(cut(hit, k).sum(axis=1) / k)


def recall(hit: Float, num_relevant: Float, k: int) -> Float:
    """R@k = (1/R) sum_{r<=k} d_r, (B,); 0 when R = 0.

    Not the "Recall@K" of metric learning, which asks whether there is any hit: ``success``.

    Args:
        hit: (B, K) d_r in rank order.
        num_relevant: (B,) R.
        k: cut-off.
    """
    found = cut(hit, k).sum(axis=1)
    return np.asarray(np.divide(found, num_relevant, out=np.zeros_like(found), where=num_relevant > 0))


def success(hit: Float, k: int) -> Float:
    """1 where any of the first k is relevant, else 0, (B,): "Recall@K" of metric learning, trec_eval's ``success``."""
    return np.asarray(cut(hit, k).any(axis=1), dtype=np.float64)


def reciprocal_rank(hit: Float, k: int) -> Float:
    """1 / rank of the first relevant item, (B,); 0 when none of the first k is. Its mean is the MRR@k."""
    top = np.pad(cut(hit, k) > 0, ((0, 0), (0, 1)), constant_values=True)  # one more, for queries without a hit
    first = top.argmax(axis=1)
    return np.where(first < top.shape[1] - 1, 1.0 / (first + 1.0), 0.0)


def reciprocal_rank_of(ranks: Float) -> float:
    """1 / rank of the first relevant item, 0 without any."""
    return 1.0 / float(ranks[0]) if len(ranks) else 0.0


def r_precision(ranks: Float, num_relevant: float) -> float:
    """Share of relevant items among the first R, 0 when R = 0; precision and recall at R are the same."""
    return float(np.searchsorted(ranks, num_relevant, side="right") / num_relevant) if num_relevant else 0.0


def hit_ranks(answers: Byte, num: int, steps: Float) -> Iterator[Float]:
    """The ranks of the items that say yes, for each of ``num`` questions in turn.

    Args:
        answers: (K,) in rank order, a question a bit.
        num: questions, at most 8.
        steps: 1, 2, ..., at least K of them; made once for many queries.
    """
    for bit in range(num):
        yield steps[: len(answers)].compress((answers & np.uint8(1 << bit)) != 0)


def average_precision_of(ranks: Float, num_relevant: float, steps: Float) -> float:
    """Average precision of one ranking: (1/R) sum_j j / rank_j; 0 when R = 0.

    Args:
        ranks: (H,) of the relevant items that were found, from 1, ascending.
        num_relevant: R.
        steps: 1, 2, ..., at least H of them; made once for many queries.
    """
    return float((steps[: len(ranks)] / ranks).sum() / num_relevant) if num_relevant else 0.0


def trapezoidal_ap(ranks: Float, num_relevant: float, steps: Float) -> float:
    """(1/R) sum_j [p_j + j / rank_j] / 2, p_j = (j - 1) / (rank_j - 1), or 1 when rank_j = 1: area by trapezoids.

    Source: Radenovic et al., cnnimageretrieval-pytorch ``compute_ap``, as used by RImbriaco/OML.

    Args:
        ranks: (H,) of the relevant items that were found, from 1, ascending.
        num_relevant: R; the result is 0 when it is 0.
        steps: 1, 2, ..., at least H of them; made once for many queries.
    """
    if not num_relevant:
        return 0.0
    upto = steps[: len(ranks)]
    before = np.divide(upto - 1.0, ranks - 1.0, out=np.ones_like(ranks), where=ranks > 1)
    return float((before + upto / ranks).sum() / (2.0 * num_relevant))


def nmrr(ranks: Float, num_relevant: float, most: float, *, mpeg7: bool = False) -> float:
    """Normalised modified retrieval rank: 0 = perfect, 1 = nothing among the first K; lower is better.

    K = min(4 R, 2 M), AVR = (1/R) sum_j rank*_j, NMRR = (AVR - (1 + R)/2) / D. Beyond K, rank* = K + 1 with
    D = K + 0.5 - 0.5 R; or, in MPEG-7, rank* = 1.25 K with D = 1.25 K - 0.5 (1 + R). Penalty and D belong together:
    only then is the worst value 1. Copies that look at the first R ranks instead of K are wrong.

    Args:
        ranks: of a complete ranking, or of one at least K deep.
        num_relevant: R.
        most: M, the largest R of all queries of the evaluation (not of a block).
        mpeg7: which pair of penalty and D.
    """
    if not num_relevant:
        return 1.0
    depth = min(4.0 * num_relevant, 2.0 * most)
    near = ranks[: np.searchsorted(ranks, depth, side="right")]
    beyond = 1.25 * depth if mpeg7 else depth + 1.0
    mean = (near.sum() + (num_relevant - len(near)) * beyond) / num_relevant
    perfect = 0.5 * (1.0 + num_relevant)
    return float((mean - perfect) / (beyond - perfect))


def recall_precision(ranks: Float, num_relevant: float, steps: Float) -> Float:
    """Interpolated precision at 101 recall levels, (101,): the best precision at this recall or a larger one.

    0 at levels that the ranking never reaches.

    Args:
        ranks: (H,) of the relevant items that were found, from 1, ascending.
        num_relevant: R, a whole number.
        steps: 1, 2, ..., at least H of them; made once for many queries.
    """
    points = np.zeros(LEVELS)
    num = len(ranks)
    if not num or not num_relevant:
        return points
    # the first hit at which the recall is i / 100 or more, in whole numbers: ceil(i R / 100), but at least the first
    needed = np.maximum(-(-np.arange(LEVELS) * int(num_relevant) // (LEVELS - 1)), 1)
    reached = needed[needed <= num]
    most = np.maximum.reduceat(steps[:num] / ranks, reached - 1)  # between one level and the next
    points[: len(reached)] = np.maximum.accumulate(most[::-1])[::-1]
    return points
