"""The tables that marc-eval prints, and the rows that they share with the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from marc_dist.config import printable
from marc_dist.retrieval.meanings import group_of, is_usual

MISSING = "-"
MOST_LABELS = 30
"""More labels than this are left to ``per_label.csv``."""
Interval = Sequence[float] | None


@dataclass(frozen=True)
class Row:
    """One figure of all encoders.

    Attributes:
        name: of the metric or the third of the labels.
        values: one per encoder; None = no value.
        intervals: of the values.
        difference: trained - untrained, None without a baseline.
        between: interval of the difference.
        lower: lower is better.
        kept: queries that count, where a metric leaves some out.
    """

    name: str
    values: tuple[float | None, ...]
    intervals: tuple[Interval, ...]
    difference: float | None = None
    between: Interval = None
    lower: bool = False
    kept: int | None = None

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the interval of the difference excludes 0, else empty.

        An interval without width comes from too few queries to draw from, and says nothing.
        """
        if self.between is None or self.between[0] <= 0.0 <= self.between[1] or self.between[0] == self.between[1]:
            return ""
        return "better" if (self.between[0] > 0.0) != self.lower else "worse"


def figure(value: float | None) -> str:
    """A score with four digits after the point; ``-`` for none."""
    return MISSING if value is None else f"{value:.4f}"


def _row(name: str, values: dict[str, float | None], intervals: dict[str, Interval]) -> Row:
    first, other = values["trained"], values.get("untrained")
    difference = None if first is None or other is None else first - other
    ends = tuple(intervals[who] for who in values)
    return Row(name, tuple(values.values()), ends, difference, intervals.get("difference"))


def metric_rows(summary: dict[str, Any], *, usual: bool) -> list[Row]:
    """The usual metrics, or all others, in the order in which they were computed."""
    scores, ends = summary["scores"], summary["intervals"]["scores"]
    rows = []
    for metric in scores["trained"]:
        if is_usual(metric) == usual:
            values = {who: one[metric] for who, one in scores.items()}
            row = _row(metric, values, {who: one[metric] for who, one in ends.items()})
            lower, kept = metric in summary["lower_is_better"], summary["queries_kept"].get(metric)
            rows.append(replace(row, lower=lower, kept=kept))
    return rows


def third_rows(summary: dict[str, Any]) -> list[Row]:
    """Mean AP of single labels, of all and of each third."""
    thirds, ends = summary["thirds"], summary["intervals"]["thirds"]
    return [
        _row(
            f"label AP, {third} ({told['num_labels']})",
            {who: one[third]["mAP"] for who, one in thirds.items()},
            {who: one[third] for who, one in ends.items()},
        )
        for third, told in thirds["trained"].items()
    ]


def label_rows(summary: dict[str, Any]) -> list[tuple[dict[str, Any], Row]]:
    """What ``per_label`` says of each label, and its AP; most common first."""
    ends = summary["intervals"]["per_label"]
    rows = [
        (label, _row(label["label"], label["ap"], {who: one[at] for who, one in ends.items()}))
        for at, label in enumerate(summary["per_label"])
    ]
    return sorted(rows, key=lambda row: -row[0]["archive_count"])


def further_rows(summary: dict[str, Any]) -> dict[str, list[Row]]:
    """The further metrics by group; empty when they were not computed."""
    groups: dict[str, list[Row]] = {}
    for row in metric_rows(summary, usual=False):
        groups.setdefault(group_of(row.name), []).append(row)
    return groups


def _cells(row: Row) -> list[str]:
    cells = [figure(value) for value in row.values]
    if len(cells) == 1:
        return cells
    ends = "" if row.between is None else f"{row.between[0]:+.3f} to {row.between[1]:+.3f}"
    return [*cells, _difference(row), ends]


def _difference(row: Row) -> str:
    """With a star where its interval excludes 0."""
    return MISSING if row.difference is None else f"{row.difference:+.4f}{' *' if row.verdict else ''}"


def print_tables(summary: dict[str, Any], console: Console) -> None:
    """The metrics of the encoders side by side with the interval of their difference, then the AP of each label."""
    names = list(summary["scores"])
    queries, archive = summary["queries"]["title"], summary["archive"]["title"]
    title = archive if queries == archive else f"{queries} in {archive}"
    title = f"{title}: {summary['num_queries']:,} queries, {summary['num_archive']:,} images"
    table = Table(title=Text(printable(title)), box=SIMPLE_HEAD)
    table.add_column("metric", no_wrap=True)
    columns = [*names, "difference", "95 % interval"] if len(names) == 2 else names
    for name in columns:
        table.add_column(name, justify="left" if name == "difference" else "right")  # signs below each other
    for row in metric_rows(summary, usual=True):
        table.add_row(row.name, *_cells(row))
    for rows in (third_rows(summary), *further_rows(summary).values()):
        table.add_section()
        for row in rows:
            table.add_row(row.name, *_cells(row))
    console.print(table)
    if len(names) == 2:
        lower = "; of ANMRR and HL less is better" if summary["lower_is_better"] else ""
        console.print(f"* the 95 % interval of the difference, over queries, excludes 0{lower}")
    _print_labels(summary, console)
    if summary["queries_without_relevant"]:
        console.print(f"{summary['queries_without_relevant']} queries without a relevant image score 0 and count")


def _print_labels(summary: dict[str, Any], console: Console) -> None:
    rows = label_rows(summary)
    if len(rows) > MOST_LABELS:
        console.print(f"average precision of each of the {len(rows)} labels: eval/per_label.csv")
        return
    names = list(summary["scores"])
    table = Table(title="average precision of each label", box=SIMPLE_HEAD)
    for column in ("label", "third"):
        table.add_column(column)
    more = ["difference"] if len(names) == 2 else []
    for column in ("in archive", "queries", *names, *more):
        table.add_column(column, justify="left" if column == "difference" else "right")
    for label, row in rows:
        cells = [figure(value) for value in row.values]
        if more:
            cells.append(_difference(row))
        numbers = [str(label["archive_count"]), str(label["query_count"])]
        table.add_row(Text(printable(label["label"])), label["third"], *numbers, *cells)
    console.print(table)
