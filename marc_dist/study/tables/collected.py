"""The scores of all cells of a study, with intervals and tests; what is missing is named."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from marc_dist.config import DataError
from marc_dist.metrics import lower_is_better
from marc_dist.study.metric_names import LABEL_METRICS
from marc_dist.study.plan import Evaluation, Plan
from marc_dist.study.scores import Scores, read_scores
from marc_dist.study.state import is_done, read_record
from marc_dist.study.statistics import (
    Interval,
    Paired,
    Ranks,
    hierarchical_interval,
    holm,
    paired_tests,
    rank_diagram,
    seeds_needed,
)

FLOOR_TITLES = {
    "random": "random weights",
    "image_statistics": "image statistics",
    "pretrained": "pretrained, not trained",
    "whitened": "pretrained, PCA-whitened",
    "linear_probe": "linear probe, cross-entropy",
}


@dataclass(frozen=True)
class Column:
    """A metric of an evaluation."""

    evaluation: str
    metric: str

    @property
    def lower(self) -> bool:
        """Whether less is better."""
        return lower_is_better(self.metric)


@dataclass(frozen=True)
class Row:
    """A loss, or a floor, on a data set with an encoder.

    Attributes:
        name: of its folder.
        title: for people.
        floor: whether it is one.
        seeds: that are done.
        by_seed: column -> one mean a seed; NaN where there is none.
        figures: column -> mean and interval.
    """

    name: str
    title: str
    floor: bool
    seeds: tuple[int, ...]
    by_seed: dict[Column, list[float]]
    figures: dict[Column, Interval]


@dataclass(frozen=True)
class Pair:
    """Two losses compared over the seeds that both have; p values also corrected for the number of pairs."""

    column: Column
    one: str
    other: str
    seeds: int
    paired: Paired
    t_holm: float
    wilcoxon_holm: float

    def seen_from(self, name: str) -> Interval:
        """The difference of one of the two to the other, with its interval."""
        difference, low, high = self.paired.difference, self.paired.low, self.paired.high
        return Interval(difference, low, high) if name == self.one else Interval(-difference, -high, -low)


@dataclass(frozen=True)
class Block:
    """One table: a data set and an encoder."""

    dataset: str
    encoder: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]

    def best(self, column: Column) -> str | None:
        """The loss with the best mean of a column."""
        known = [r for r in self.rows if not r.floor and column in r.figures and not math.isnan(r.figures[column].mean)]
        pick: Callable[..., Row] = min if column.lower else max
        return pick(known, key=lambda row: row.figures[column].mean).name if known else None

    def against(self, plan: Plan) -> tuple[str, list[tuple[str, dict[Column, Pair]]]]:
        """The loss that the others are shown against: the one that the study names, or the first that was tested.

        Args:
            plan: of the study.

        Returns:
            Its name, and of every other loss its name and tests, a pair a column: against the one whose settings were
            chosen in the same way.
        """
        methods = {method.name: method for method in plan.methods}
        first = plan.study.statistics.against or self.pairs[0].one
        tested = []
        for row in self.rows:
            source = methods[row.name].tuned_on if row.name in methods else None
            against = first if source is None else f"{first}@{source}"
            mine = {pair.column: pair for pair in self.pairs if {pair.one, pair.other} == {row.name, against}}
            if mine:
                tested.append((row.name, mine))
        return first, tested


@dataclass(frozen=True)
class Ranking:
    """Losses ranked over the data sets of an encoder."""

    encoder: str
    column: Column
    names: tuple[str, ...]
    ranks: Ranks


@dataclass(frozen=True)
class Findings:
    """All that a study found.

    Attributes:
        blocks: tables.
        rankings: over data sets, where there are 2 or more.
        missing: task -> why it is not there.
        notes: what a reader has to know, a line each.
    """

    blocks: tuple[Block, ...]
    rankings: tuple[Ranking, ...]
    missing: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def collect(plan: Plan) -> Findings:
    """Read the scores of a study's folder and compute intervals and tests.

    Args:
        plan: of the study.
    """
    missing: dict[str, str] = {}
    blocks = [
        _block(plan, dataset, encoder, missing) for dataset in plan.study.datasets for encoder in plan.study.encoders
    ]
    for task in plan.tasks.values():
        record = read_record(plan.folder(task))
        if task.name not in missing and not is_done(plan, task, record):
            other = record.fingerprint not in ("", plan.fingerprint(task))
            missing[task.name] = "made with other settings" if other else record.reason or "not done yet"
    return Findings(tuple(blocks), tuple(_rankings(plan, blocks)), missing, tuple(_notes(plan)))


def title_of(plan: Plan, part: str, name: str) -> str:
    """What people call a data set or encoder.

    Args:
        plan: of the study.
        part: ``datasets`` or ``encoders``.
        name: of the entry.
    """
    return str(getattr(plan.study, part)[name].get("title", name))


def _block(plan: Plan, dataset: str, encoder: str, missing: dict[str, str]) -> Block:
    evaluations = plan.evaluations(dataset)
    columns = tuple(Column(one.name, metric) for one in evaluations for metric in one.metrics)
    rows: list[Row] = []
    tasks = [task for task in plan.tasks.values() if (task.dataset, task.encoder) == (dataset, encoder)]
    for task in tasks:
        if task.kind == "floors" and is_done(plan, task):
            for floor in plan.study.floors:
                folder = plan.folder(task) / floor
                rows.append(_row(plan, floor, FLOOR_TITLES[floor], [(0, folder)], evaluations, missing, floor=True))
    for method in plan.methods_on(dataset):
        cells = [task for task in tasks if task.kind == "cell" and task.method == method]
        there = [(task.seed, plan.folder(task)) for task in cells if is_done(plan, task)]
        if there:
            rows.append(_row(plan, method.name, method.title, there, evaluations, missing))
    title = f"{title_of(plan, 'datasets', dataset)}, {title_of(plan, 'encoders', encoder)}"
    return Block(dataset, encoder, title, columns, tuple(rows), tuple(_pairs(plan, rows, columns)))


def _row(
    plan: Plan,
    name: str,
    title: str,
    folders: list[tuple[int, Path]],
    evaluations: list[Evaluation],
    missing: dict[str, str],
    *,
    floor: bool = False,
) -> Row:
    seeds: list[int] = []
    found: list[dict[str, Scores]] = []
    for seed, folder in folders:
        try:
            found.append({one.name: read_scores(folder, one) for one in evaluations})
            seeds.append(seed)
        except DataError as error:
            missing[str(folder.relative_to(plan.out))] = str(error)
    by_seed: dict[Column, list[float]] = {}
    figures: dict[Column, Interval] = {}
    for one in evaluations:
        for metric in one.metrics:
            column = Column(one.name, metric)
            if found:
                means = [_number(scores[one.name].means.get(metric)) for scores in found]
                by_seed[column] = means
                figures[column] = _interval(plan, metric, means, [scores[one.name] for scores in found])
    return Row(name, title, floor, tuple(seeds), by_seed, figures)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _interval(plan: Plan, metric: str, means: list[float], found: list[Scores]) -> Interval:
    """Over seeds and queries; of a mean over labels, over seeds alone: queries carry different labels."""
    level, draws = plan.study.statistics.level, plan.study.statistics.draws
    if metric in LABEL_METRICS or any(metric not in one.queries for one in found):
        return hierarchical_interval(np.array(means)[:, None], level=level, draws=draws)
    return hierarchical_interval(np.stack([one.queries[metric] for one in found]), level=level, draws=draws)


def families(plan: Plan, rows: Sequence[Row]) -> list[list[tuple[Row, Row]]]:
    """The pairs of losses that are tested, in groups that are corrected for their number of pairs.

    Losses are compared whose settings were chosen in the same way: on their own data set, or on another one. Points of
    a sweep are not, they have curves.

    Args:
        plan: of the study.
        rows: of one table.
    """
    methods = {method.name: method for method in plan.methods if not method.sweep}
    losses = [row for row in rows if not row.floor and row.name in methods]
    found = []
    for source in dict.fromkeys(methods[row.name].tuned_on for row in losses):
        alike = [row for row in losses if methods[row.name].tuned_on == source]
        against = plan.study.statistics.against
        if against is None:
            found.append(list(combinations(alike, 2)))
            continue
        chosen = [row for row in alike if against in (row.name, methods[row.name].loss)]
        found.append([(row, chosen[0]) for row in alike if row not in chosen] if chosen else [])
    return found


def _pairs(plan: Plan, rows: list[Row], columns: tuple[Column, ...]) -> list[Pair]:
    if not plan.study.statistics.tests:
        return []
    level = plan.study.statistics.level
    return [
        pair for column in columns for family in families(plan, rows) for pair in corrected_tests(column, family, level)
    ]


def corrected_tests(column: Column, family: list[tuple[Row, Row]], level: float) -> list[Pair]:
    """The tests of a group of pairs by one column, corrected for their number; pairs with too few seeds are left out.

    Args:
        column: a metric of an evaluation.
        family: pairs of losses.
        level: of intervals.
    """
    found: list[tuple[str, str, int, Paired]] = []
    for one, other in family:
        if column not in one.figures or column not in other.figures:
            continue
        both = [seed for seed in one.seeds if seed in other.seeds]
        if len(both) < seeds_needed():
            continue
        a, b = (np.array([row.by_seed[column][row.seeds.index(seed)] for seed in both]) for row in (one, other))
        found.append((one.name, other.name, len(both), paired_tests(a, b, level=level)))
    t = holm([paired.t_p for *_, paired in found]) if found else []
    wilcoxon = holm([paired.wilcoxon_p for *_, paired in found]) if found else []
    return [Pair(column, *told, *ps) for told, *ps in zip(found, t, wilcoxon, strict=True)]


def _rankings(plan: Plan, blocks: list[Block]) -> list[Ranking]:
    """Over data sets: of the losses that all of them have, by the columns that all of them have."""
    found = []
    for encoder in plan.study.encoders:
        mine = [block for block in blocks if block.encoder == encoder]
        if len(mine) < 2:
            continue
        swept = {method.name for method in plan.methods if method.sweep or method.tuned_on is not None}
        names = [row.name for row in mine[0].rows if not row.floor and row.name not in swept]
        names = [name for name in names if all(any(row.name == name for row in block.rows) for block in mine)]
        for column in mine[0].columns:
            if len(names) < 3 or not all(column in block.columns for block in mine):
                continue
            scores = np.array([[_mean(block, name, column) for name in names] for block in mine])
            if np.isnan(scores).any(axis=1).sum() > len(mine) - 2:
                continue
            found.append(Ranking(encoder, column, tuple(names), rank_diagram(-scores if column.lower else scores)))
    return found


def _mean(block: Block, name: str, column: Column) -> float:
    row = next(row for row in block.rows if row.name == name)
    return row.figures[column].mean if column in row.figures else math.nan


def _notes(plan: Plan) -> list[str]:
    level, seeds = plan.study.statistics.level, len(plan.study.seeds)
    told = [
        f"Means over {seeds} seed(s), in brackets the {100 * level:g} % interval over seeds and queries (hierarchical "
        "bootstrap); of metrics with label in their name, or a third of the labels, over seeds alone. Floors have one "
        "seed, and intervals over queries."
    ]
    if plan.study.statistics.tests:
        told.append(note_on_tests(plan))
    if plan.study.tune is not None:
        tune = plan.study.tune
        told.append(
            f"Settings were chosen by {tune.metric} on {100 * tune.validation_share:g} % of each training split, with "
            f"{tune.trials} trials of equal length for every loss and data set; the test split was not looked at. "
            "Seeds repeat the training with the chosen settings, not the choice."
        )
    return told


def note_on_tests(plan: Plan) -> str:
    """How many pairs are tested, and whether so few seeds can tell them apart."""
    num = sum(not method.sweep and method.tuned_on is None for method in plan.methods)
    pairs = num - 1 if plan.study.statistics.against is not None else num * (num - 1) // 2
    needed, seeds = seeds_needed(max(pairs, 1)), len(plan.study.seeds)
    many = "" if pairs == 1 else "s"
    told = f"Tests are paired over seeds and corrected by Holm for the {pairs} pair{many} of a metric."
    if seeds < needed:
        told += (
            f" With {seeds} seeds no Wilcoxon test can be significant after that; it takes {needed} seeds. "
            "The paired t test can."
        )
    return told
