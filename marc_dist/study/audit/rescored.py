"""What the scores of a study would be without leaked queries: every query's score is kept, so this is arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from marc_dist import metrics
from marc_dist.config import DataError
from marc_dist.data.dataset import Dataset
from marc_dist.run.evaluations import Queries, read_queries, read_summary
from marc_dist.study.audit.leaks import Leaks
from marc_dist.study.metric_names import LABEL_METRICS
from marc_dist.study.plan import Evaluation, Plan
from marc_dist.study.scores import eval_dir
from marc_dist.study.statistics import Interval, hierarchical_interval
from marc_dist.study.tables.collected import Block, Column, Row


@dataclass(frozen=True)
class Rescored:
    """One loss and metric, with all queries and without the leaked ones.

    Attributes:
        dataset: of the study file.
        encoder: likewise.
        loss: name of the row.
        title: for people.
        floor: whether it is one.
        column: evaluation and metric.
        rule: what makes a query a leaked one.
        seeds: that are done.
        queries: that ask.
        leaked: of them.
        every: over all queries.
        without: over the others; NaN where none is left.
    """

    dataset: str
    encoder: str
    loss: str
    title: str
    floor: bool
    column: Column
    rule: str
    seeds: int
    queries: int
    leaked: int
    every: Interval
    without: Interval

    @property
    def difference(self) -> float:
        """Mean without the leaked queries - mean over all."""
        return self.without.mean - self.every.mean


def rescored(plan: Plan, block: Block, leaks: Leaks) -> Iterator[Rescored]:
    """Every loss and floor of a table, scored on its own data set, by every rule that applies.

    Args:
        plan: of the study.
        block: the table.
        leaks: of its data set.

    Raises:
        DataError: an evaluation that was removed meanwhile, or is of other pictures.
    """
    for row in block.rows:
        folders = _folders(plan, block, row)
        for evaluation in plan.evaluations(block.dataset):
            if evaluation.target is not None:
                continue  # asks with pictures of another data set
            yield from _of_evaluation(plan, block, row, evaluation, folders, leaks)


def _folders(plan: Plan, block: Block, row: Row) -> list[Path]:
    base = plan.out / block.dataset / block.encoder
    return [base / "floors" / row.name] if row.floor else [base / row.name / f"seed-{seed}" for seed in row.seeds]


def _of_evaluation(
    plan: Plan, block: Block, row: Row, evaluation: Evaluation, folders: list[Path], leaks: Leaks
) -> Iterator[Rescored]:
    summaries = [read_summary(eval_dir(folder, evaluation)) for folder in folders]
    found = [read_queries(eval_dir(f, evaluation), summary) for f, summary in zip(folders, summaries, strict=True)]
    if not found:
        return
    rows = asked_rows(plan.datasets[block.dataset], str(summaries[0]["queries"]["split"]), found[0].keys, folders[0])
    if any(one.keys != found[0].keys for one in found):
        raise DataError(f"{plan.out / block.dataset}: cells of {row.name} were scored on other queries; use --again")
    names = list(metrics.THIRDS)
    third = np.array([names.index(label["third"]) for label in summaries[0]["per_label"]], dtype=np.int64)
    for metric in evaluation.metrics:
        column = Column(evaluation.name, metric)
        for rule, leaked in leaks.leaked.items():
            away = leaked[rows]
            yield Rescored(
                block.dataset, block.encoder, row.name, row.title, row.floor, column, rule, len(folders), len(rows),
                int(away.sum()), row.figures[column], _without(plan, found, metric, ~away, third),
            )  # fmt: skip


def asked_rows(dataset: Dataset, split: str, keys: list[str], place: Path) -> NDArray[np.int64]:
    """Rows of the queries in their data set.

    Args:
        dataset: that they are of.
        split: of the queries.
        keys: of the queries.
        place: for messages.

    Raises:
        DataError: a query that the data set has not.
    """
    rows = dataset.rows(split)
    number = dict(zip(map(str, dataset.keys[rows]), rows.tolist(), strict=True))
    try:
        return np.array([number[key] for key in keys], dtype=np.int64)
    except KeyError as error:
        raise DataError(f"{place}: asks with {error.args[0]}, which {dataset.root} has not in {split}") from None


def _without(
    plan: Plan, found: list[Queries], metric: str, kept: NDArray[np.bool_], third: NDArray[np.int64]
) -> Interval:
    """Over the queries that are kept; metrics that are means over labels are taken over their queries anew."""
    nothing = Interval(np.nan, np.nan, np.nan)
    if not kept.any():
        return nothing
    level, draws = plan.study.statistics.level, plan.study.statistics.draws
    if metric not in LABEL_METRICS:
        values = np.stack([one.scores[metric][kept] for one in found])
        return hierarchical_interval(values, level=level, draws=draws)
    if any(one.label_ap is None for one in found):
        return nothing
    group = LABEL_METRICS[metric]
    means = []
    for one in found:
        assert one.label_ap is not None
        score = metrics.group_means(metrics.mean_known(one.label_ap[kept]), third)[group]["mAP"]
        means.append(np.nan if score is None else float(score))
    return hierarchical_interval(np.array(means)[:, None], level=level, draws=draws)
