"""The evaluations of a cell: where they lie, how they are made, and how they are read. The only place that knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from marc_dist.config import Config
from marc_dist.metrics import Float
from marc_dist.study.metric_names import LABEL_METRICS
from marc_dist.study.plan import Evaluation

FILES = ("per_query.parquet", "per_label.csv", "map.parquet", "metrics.json")


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
    return folder / "eval" / evaluation.folder


def score(config: Config, folder: Path, evaluation: Evaluation, say: Callable[[str], None]) -> None:
    """Evaluate a run and keep the result in a folder of its own.

    Args:
        config: of ``Plan.eval_config``.
        folder: of the run.
        evaluation: how.
        say: takes one line for people.
    """
    from marc_dist.retrieval.evaluate import evaluate  # torch and FAISS

    evaluate(config, folder, say)
    keep(folder, evaluation)


def keep(folder: Path, evaluation: Evaluation) -> None:
    """Move what an evaluation has written into its own folder; the file that speaks for the set comes last."""
    to = eval_dir(folder, evaluation)
    to.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        if (folder / "eval" / file).exists():
            (folder / "eval" / file).replace(to / file)


def read_scores(folder: Path, evaluation: Evaluation) -> Scores:
    """What an evaluation found.

    Raises:
        DataError: it is not there, or damaged.
    """
    from marc_dist.retrieval.results import read

    summary, rows = read(eval_dir(folder, evaluation))
    rows = [row for row in rows if row["encoder"] == "trained"]
    means = dict(summary["scores"]["trained"])
    means |= {metric: summary["thirds"]["trained"][group]["mAP"] for metric, group in LABEL_METRICS.items()}
    columns = [metric for metric in summary["scores"]["trained"] if rows and metric in rows[0]]
    queries = {
        metric: np.array([np.nan if row[metric] is None else row[metric] for row in rows], dtype=np.float64)
        for metric in columns
    }
    return Scores(means, queries, summary)
