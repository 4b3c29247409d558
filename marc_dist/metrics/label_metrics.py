"""Metrics that compare the labels of the first answers with the query's, (B,) each; pure.

``shared``, ``theirs`` and ``ours`` are numbers of labels. An item that is not there (-1 in the ranking) counts as one
without labels. A quotient 0/0 is 0, but for the Hamming loss, which two empty sets do not raise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from marc_dist.metrics.arguments import Bool
from marc_dist.metrics.label_sets import Float, sizes

NEIGHBOURS = 10
SAME = 2.0**-18
"""Cosines above 1 - SAME count as distance 0: features of length 1 on the grid of the index are known no better."""


def _ratio(above: Float, below: Float) -> Float:
    return np.divide(above, below, out=np.zeros(np.broadcast_shapes(above.shape, below.shape)), where=below > 0)


def f_measure(precision: Float, recall: Float) -> Float:
    """2 P R / (P + R), 0 when both are 0. Of one query's values, or of the means: CV4RS takes it of the means."""
    return _ratio(2.0 * precision * recall, precision + recall)


def set_measures(shared: Float, theirs: Float, ours: Float, num_labels: int) -> dict[str, Float]:
    """How well one label set, Z, tells another, Y; same shape as the arguments.

    accuracy = |Y & Z| / |Y | Z|, precision = |Y & Z| / |Z|, recall = |Y & Z| / |Y|, F = 2 P R / (P + R), and
    HL = |Y ^ Z| / L (Hamming loss: lower is better).

    Args:
        shared: |Y & Z|, of any shape.
        theirs: |Z|, of a shape that broadcasts to that of ``shared``.
        ours: |Y|, likewise.
        num_labels: L, the number of classes.
    """
    precision, recall = _ratio(shared, theirs), _ratio(shared, ours)
    return {
        "accuracy": _ratio(shared, ours + theirs - shared),
        "precision": precision,
        "recall": recall,
        "F": f_measure(precision, recall),
        "HL": (ours + theirs - 2.0 * shared) / num_labels,
    }


def label_set_scores(top: Bool, query_labels: Bool, k: int) -> dict[str, Float]:
    """Both readings of the label-set measures at k, name -> (B,).

    ``union_*``: the labels of the first k answers are put together first (CV4RS ``lib/evaluation``). ``item_*``: every
    one of the first k answers is measured alone, and the mean is taken; always divided by k. CV4RS does that for HL;
    for the others it is our reading of the earlier literature, not checked against code. One version of CV4RS takes F
    of the mean precision and recall (``f_measure`` does it), an earlier one the mean of the queries' F, as here: only
    that has an interval.

    Args:
        top: (B, K) answers x L labels, (B, K, L), K >= k, or fewer when the archive is smaller.
        query_labels: (B, L).
        k: cut-off.
    """
    top = top[:, :k]
    num_labels, ours = query_labels.shape[1], sizes(query_labels)
    union = np.asarray(top.any(axis=1))
    measured = set_measures(sizes(union & query_labels), sizes(union), ours, num_labels)
    scores = {f"union_{name}@{k}": value for name, value in measured.items()}
    theirs = top.sum(axis=2).astype(np.float64)
    shared = (top & query_labels[:, None, :]).sum(axis=2).astype(np.float64)
    missing = k - top.shape[1]
    for name, value in set_measures(shared, theirs, ours[:, None], num_labels).items():
        rest = missing * ours / num_labels if name == "HL" else 0.0
        scores[f"item_{name}@{k}"] = np.asarray((value.sum(axis=1) + rest) / k)
    return scores


def knn_f1(top: Bool, there: Bool, cosine: NDArray[np.floating], query_labels: Bool) -> Float:
    """Sample F1 of the labels that the nearest neighbours vote for, (B,): 2 |Y & Z| / (|Y| + |Z|), 0 if both are empty.

    Z holds the labels to which more than half of the votes go; a neighbour's vote weighs 1 / distance, the Euclidean
    one of unit vectors, sqrt(2 - 2 cosine). Where neighbours are at distance 0, they alone vote. Source: GRN-SNDL
    ``utils/metrics.py``: scikit-learn's ``KNeighborsClassifier(10, weights="distance")``, then ``f1_score`` with
    ``average="samples"``.

    Args:
        top: (B, K, L) labels of the answers; the first 10 vote.
        there: (B, K) false where the ranking has no item.
        cosine: (B, K) their similarity; anything where there is none.
        query_labels: (B, L).
    """
    top, there = top[:, :NEIGHBOURS], there[:, :NEIGHBOURS]
    near = np.where(there, cosine[:, :NEIGHBOURS], -1.0).astype(np.float64)
    same = there & (near >= 1.0 - SAME)
    distance = np.sqrt(np.maximum(2.0 - 2.0 * near, 2.0 * SAME))
    weight = np.where(same.any(axis=1, keepdims=True), same, there / distance)
    votes = (weight[:, :, None] * top).sum(axis=1)
    told = 2.0 * votes > weight.sum(axis=1, keepdims=True)
    return _ratio(2.0 * sizes(told & query_labels), sizes(told) + sizes(query_labels))
