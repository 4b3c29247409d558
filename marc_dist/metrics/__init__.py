"""Retrieval metrics for multi-label data: pure, in numbers alone, accumulated in float64."""

from marc_dist.metrics.arguments import Bool, Int, as_labels, as_self_positions, check_k, check_ranking
from marc_dist.metrics.complete import Whole
from marc_dist.metrics.conventions import Gain, Relevance, Scoring
from marc_dist.metrics.label_scores import (
    THIRDS,
    group_means,
    label_curves,
    label_groups,
    label_thirds,
    mean_known,
    score_labels,
)
from marc_dist.metrics.label_sets import DistinctSets, Float, distinct_sets, gains, relevant
from marc_dist.metrics.rank_metrics import acg, average_precision, dcg, ndcg, precision, recall, wap
from marc_dist.metrics.score import (
    DIFFICULTIES,
    full_average_precision,
    lower_is_better,
    most_relevant,
    query_curves,
    score_all,
    score_queries,
)

__all__ = [
    "Bool",
    "DIFFICULTIES",
    "DistinctSets",
    "Float",
    "Gain",
    "Int",
    "Relevance",
    "Scoring",
    "THIRDS",
    "Whole",
    "acg",
    "as_labels",
    "as_self_positions",
    "average_precision",
    "check_k",
    "check_ranking",
    "dcg",
    "distinct_sets",
    "full_average_precision",
    "gains",
    "group_means",
    "label_curves",
    "label_groups",
    "label_thirds",
    "lower_is_better",
    "mean_known",
    "most_relevant",
    "ndcg",
    "precision",
    "query_curves",
    "recall",
    "relevant",
    "score_all",
    "score_labels",
    "score_queries",
    "wap",
]
