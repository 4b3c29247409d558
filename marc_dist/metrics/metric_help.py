"""What each metric means, in a line: for the report and the tables. No numbers, no files."""

from __future__ import annotations

import re

USUAL = ("mAP", "mAP@", "wAP@", "nDCG@", "ACG@", "P@")
"""Names, up to the cut-off, of the metrics that are always computed; all others are further ones."""

MEANINGS = {
    "mAP": "mean average precision over the whole ranking",
    "mAP@": "mean average precision of the first {k}, divided by {below}",
    "wAP@": "weighted average precision: mean ACG at the hits",
    "nDCG@": "discounted gain against {best}",
    "ACG@": "mean gain of the first {k}",
    "P@": "share of relevant images among the first {k}",
    "label AP": "average precision of single labels; the mean over labels, their number in brackets",
    "mAP_easy": "area under precision-recall by trapezoids; relevant: label Jaccard of 0.4 or more",
    "mAP_medium": "the same, label Jaccard of 0.6 or more",
    "mAP_hard": "the same, label Jaccard of 0.8 or more",
    "mAP_easy_oml": "as mAP_easy, over the queries that have a hard match",
    "mAP_medium_oml": "as mAP_medium, over the queries that have a hard match",
    "mAP_hard_oml": "as mAP_hard, over the queries that have a hard match",
    "P_easy@": "share of the first {k} with label Jaccard of 0.4 or more",
    "P_medium@": "share of the first {k} with label Jaccard of 0.6 or more",
    "P_hard@": "share of the first {k} with label Jaccard of 0.8 or more",
    "mAP_strict@": "relevant: no label that the query lacks; precisions at the hits, their sum divided by k",
    "R@": "share of the relevant images that are among the first {k}",
    "hit@": "1 where any of the first {k} is relevant: Recall@{k} of metric learning",
    "MRR@": "1 / rank of the first relevant image, 0 beyond {k}",
    "MRR": "1 / rank of the first relevant image",
    "R_precision": "share of relevant images among the first R, R their number",
    "jaccard@": "shared labels among all labels of query and answer, mean of the first {k}",
    "cosine@": "shared labels over the geometric mean of both numbers of labels, mean of the first {k}",
    "accuracy@": "shared among all labels of the two",
    "precision@": "share of the answers' labels that the query has",
    "recall@": "share of the query's labels that the answers have",
    "F@": "harmonic mean of precision and recall",
    "HL@": "Hamming loss: labels on which the two differ, among all classes",
    "ANMRR": "average normalised modified retrieval rank",
    "ANMRR_mpeg7": "the same with the penalty of MPEG-7",
    "kNN_F1@": "F1 of the labels that the {k} nearest vote for, a vote weighs 1 / distance",
}
BELOW = {
    "hits": "the hits among them",
    "min": "{k} or the number of relevant images, the smaller of them",
    "all": "the number of relevant images",
    "k": "{k}",
}
"""What ``eval.denominator`` means."""
BEST = {
    "database": "the best possible list of the archive",
    "retrieved": "the same answers in their best order (optimistic)",
}
"""What ``eval.ideal`` means."""
SEARCHED = {
    "backbone": "the backbone's features",
    "hidden": "the hidden layer of the head",
    "projection": "the projection, the head's output",
    "concat": "backbone, hidden layer and projection, each of length 1, side by side",
}
"""The vectors that ``eval.features`` names."""
GROUPS = {
    "Recall and the first relevant image": ("R@", "hit@", "MRR", "R_precision"),
    "Stricter relevance": ("mAP_", "P_"),
    "Label similarity of the first answers": ("jaccard@", "cosine@"),
    "Labels of the first k answers put together": ("union_",),
    "Labels of each of the first k answers": ("item_",),
    "Rank of the relevant images, and votes": ("ANMRR", "kNN_"),
}


def is_usual(metric: str) -> bool:
    """Whether a metric is one of those that ``marc-eval`` always shows."""
    return re.sub(r"\d+$", "", metric) in USUAL


def group_of(metric: str) -> str:
    """The group that a further metric is shown in."""
    return next(name for name, starts in GROUPS.items() if metric.startswith(starts))


def meaning(metric: str, *, denominator: str = "hits", ideal: str = "database") -> str:
    """One line on a metric, named as in ``metrics.json`` or as a row of the tables.

    Args:
        metric: its name.
        denominator: ``eval.denominator`` of the evaluation.
        ideal: ``eval.ideal`` of the evaluation.
    """
    if metric.startswith("label AP"):
        return MEANINGS["label AP"]
    name, at, k = metric.removeprefix("union_").removeprefix("item_").partition("@")
    return MEANINGS[name + at].format(k=k, below=BELOW[denominator].format(k=k), best=BEST[ideal])
