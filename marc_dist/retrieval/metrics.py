"""Retrieval metrics for label sets: pure, float64, vectorised over blocks of queries.

A ranking is an int64 array (B, K) of archive positions, best first; -1 marks a rank without an item (a list shorter
than K, or the query itself taken out). Such a rank has gain 0 and is not relevant, so every sum runs as its formula
says.

Notation, as in ``docs/metrics.md``: g_r is the gain of the item at rank r (1-based), d_r = 1 when it is relevant, R the
number of relevant items in the archive (the query itself excluded), k the cut-off.

A query without any relevant item scores 0 and is counted (as in DeepHash-pytorch's ``CalcTopMap``): all encoders and
all metrics then average over the same queries. Their number is reported beside the means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]
Gain = Literal["count", "jaccard", "cosine"]
Relevance = Literal["any", "exact", "subset"] | float
Denominator = Literal["hits", "min", "all"]
Ideal = Literal["database", "retrieved"]
THIRDS = ("rare", "medium", "common")


@dataclass(frozen=True)
class Scoring:
    """What is computed: cut-offs, graded gain, binary relevance, and the two choices on which sources differ."""

    ks: tuple[int, ...] = (10, 100)
    gain: Gain = "count"
    relevance: Relevance = "any"
    denominator: Denominator = "hits"
    ideal: Ideal = "database"


def overlap(query_labels: Bool, archive_labels: Bool) -> Float:
    """(B, L), (N, L) -> (B, N) number of shared labels."""
    return np.asarray(query_labels.astype(np.float64) @ archive_labels.astype(np.float64).T)


def _sizes(labels: Bool) -> Float:
    return np.asarray(labels.sum(axis=1), dtype=np.float64)


def gains(query_labels: Bool, archive_labels: Bool, kind: Gain) -> Float:
    """Graded relevance of every item to every query, (B, N).

    count: |Y_q & Y_r|. jaccard: |Y_q & Y_r| / |Y_q | Y_r|. cosine: |Y_q & Y_r| / sqrt(|Y_q| |Y_r|). An empty label set
    shares nothing: gain 0, also with another empty one.
    """
    shared = overlap(query_labels, archive_labels)
    if kind == "count":
        return shared
    ours, theirs = _sizes(query_labels)[:, None], _sizes(archive_labels)[None, :]
    below = ours + theirs - shared if kind == "jaccard" else np.sqrt(ours * theirs)
    return np.asarray(np.divide(shared, below, out=np.zeros_like(shared), where=below > 0))


def relevant(query_labels: Bool, archive_labels: Bool, rule: Relevance) -> Bool:
    """Whether every item is relevant to every query, (B, N).

    any: at least one shared label. exact: equal label sets. subset: Y_r inside Y_q (CV4RS's strict MAP@R). A number t:
    Jaccard >= t; the source (OML) writes distance <= 1 - t. An item or a query without labels is never relevant.
    """
    shared = overlap(query_labels, archive_labels)
    ours, theirs = _sizes(query_labels)[:, None], _sizes(archive_labels)[None, :]
    if rule == "any":
        return np.asarray(shared > 0)
    if rule == "subset":
        return np.asarray((shared == theirs) & (theirs > 0))
    if rule == "exact":
        return np.asarray((shared == theirs) & (shared == ours) & (shared > 0))
    return np.asarray((shared >= float(rule) * (ours + theirs - shared) - 1e-9) & (shared > 0))  # 1e-9: t = 0.6 of 5


def ranked(values: NDArray[np.generic], ranking: Int) -> Float:
    """(B, N) values in rank order, (B, K); 0 where the ranking has no item."""
    taken = np.take_along_axis(values, np.maximum(ranking, 0), axis=1).astype(np.float64)
    taken[ranking < 0] = 0.0
    return taken


def _cut(x: Float, k: int) -> Float:
    return x[:, : min(k, x.shape[1])]


def acg(gain: Float, k: int) -> Float:
    """Average cumulative gain, (B, K) ranked gains -> (B,): ACG@k = (1/k) sum_{r<=k} g_r.

    Source: RImbriaco/OML ``multilabel_metrics.py``. Always divided by k, also when the archive holds fewer items. With
    the jaccard or cosine gain this is the mean label similarity at k.
    """
    return np.asarray(_cut(gain, k).sum(axis=1) / k)


def dcg(gain: Float, k: int, *, linear: bool) -> Float:
    """Discounted cumulative gain, (B, K) -> (B,): sum_{r<=k} f(g_r) / log2(1 + r), f(g) = g if linear else 2^g - 1."""
    top = _cut(gain, k)
    discount = 1.0 / np.log2(np.arange(2, top.shape[1] + 2))
    return np.asarray((top if linear else np.exp2(top) - 1.0) @ discount)


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
    top = _cut(gain, k)
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
            default; it does not punish what was missed). min: D = min(k, R). all: D = R.
    """
    top = hit if k is None else _cut(hit, k)
    found = np.cumsum(top, axis=1)
    total = (top * found / np.arange(1, top.shape[1] + 1)).sum(axis=1)
    if denominator == "hits":
        below = top.sum(axis=1)
    else:
        below = num_relevant if denominator == "all" or k is None else np.minimum(num_relevant, k)
    return np.asarray(np.divide(total, below, out=np.zeros_like(total), where=below > 0))


def precision(hit: Float, k: int) -> Float:
    """P@k = (1/k) sum_{r<=k} d_r, (B,). Always divided by k, also when the archive holds fewer items."""
    return np.asarray(_cut(hit, k).sum(axis=1) / k)


def _without(values: NDArray[np.generic], self_position: Int) -> Float:
    """A copy as float64 with the query's own item (position -1: none) set to 0."""
    out = values.astype(np.float64)
    rows = np.flatnonzero(self_position >= 0)
    out[rows, self_position[rows]] = 0.0
    return out


def score_queries(
    ranking: Int, query_labels: Bool, archive_labels: Bool, self_position: Int, scoring: Scoring, *, complete: bool
) -> dict[str, Float]:
    """Every metric of every query of a block.

    Args:
        ranking: (B, K) archive positions, -1 for none.
        query_labels: (B, L).
        archive_labels: (N, L).
        self_position: (B,) the query's own archive position, or -1; never relevant, never part of an ideal.
        scoring: what to compute.
        complete: the ranking orders the whole archive; only then is there a "mAP" without cut-off.

    Returns:
        Name -> (B,): ``mAP`` (if complete), ``mAP@k``, ``wAP@k``, ``nDCG@k``, ``ACG@k``, ``P@k``, ``num_relevant``.
    """
    gain_all = _without(gains(query_labels, archive_labels, scoring.gain), self_position)
    hit_all = _without(relevant(query_labels, archive_labels, scoring.relevance), self_position)
    gain, hit = ranked(gain_all, ranking), ranked(hit_all, ranking)
    num = hit_all.sum(axis=1)
    linear = scoring.gain != "count"
    top = min(max(scoring.ks), gain_all.shape[1])
    best = -np.partition(-gain_all, top - 1, axis=1)[:, :top] if top else gain_all
    out: dict[str, Float] = {"num_relevant": num}
    if complete:
        out["mAP"] = average_precision(hit, num, None, "all")
    for k in scoring.ks:
        ideal = best if scoring.ideal == "database" else _cut(gain, k)
        out[f"mAP@{k}"] = average_precision(hit, num, k, scoring.denominator)
        out[f"wAP@{k}"] = wap(gain, k)
        out[f"nDCG@{k}"] = ndcg(gain, ideal, k, linear=linear)
        out[f"ACG@{k}"] = acg(gain, k)
        out[f"P@{k}"] = precision(hit, k)
    return out


def score_labels(
    ranking: Int, query_labels: Bool, archive_labels: Bool, self_position: Int, *, complete: bool
) -> Float:
    """Average precision of each label of each query, (B, L): relevant are the items that carry the label.

    NaN where the query does not carry the label, and where no (other) archive item carries it: such a query says
    nothing about the encoder and is left out of the label's mean. With an incomplete ranking of depth K the
    denominator is min(K, R).
    """
    out = np.full(query_labels.shape, np.nan)
    for label in range(query_labels.shape[1]):
        carries = archive_labels[:, label]
        rows = np.flatnonzero(query_labels[:, label])
        own = self_position[rows]
        num = carries.sum() - ((own >= 0) & carries[np.maximum(own, 0)]) if len(carries) else np.zeros(len(rows))
        rows, num = rows[num > 0], np.asarray(num[num > 0], dtype=np.float64)
        if len(rows):
            hit = (carries[np.maximum(ranking[rows], 0)] & (ranking[rows] >= 0)).astype(np.float64)
            depth = None if complete else ranking.shape[1]
            out[rows, label] = average_precision(hit, num, depth, "all" if complete else "min")
    return out


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
