"""The evaluations of a cell: where they lie, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marc_dist.metrics import Float
from marc_dist.run.evaluations import evaluation_folder, read_queries, read_summary
from marc_dist.study.metric_names import LABEL_METRICS
from marc_dist.study.plan import Evaluation


@dataclass(frozen=True)
class Scores:
    """One evaluation of one cell or floor.

    Attributes:
        means: metric -> mean; None for none.
        queries: metric -> (Q,), NaN where a query does not count; empty for metrics of labels.
        summary: all of ``metrics.json``.
    """

    means: dict[str, float | None]
    queries: dict[str, Float]
    summary: dict[str, Any]


def eval_dir(folder: Path, evaluation: Evaluation) -> Path:
    """Where an evaluation of a cell lies."""
    return evaluation_folder(folder, evaluation.protocol, evaluation.name)


def read_scores(folder: Path, evaluation: Evaluation) -> Scores:
    """What an evaluation found.

    Raises:
        DataError: it is not there, or damaged.
    """
    place = eval_dir(folder, evaluation)
    summary = read_summary(place)
    means = dict(summary["scores"]["trained"])
    means |= {metric: summary["thirds"]["trained"][group]["mAP"] for metric, group in LABEL_METRICS.items()}
    return Scores(means, read_queries(place, summary).scores, summary)
