"""The tables that marc-eval prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

MISSING = "-"


def figure(value: float | None) -> str:
    """A score with four digits after the point; ``-`` for none."""
    return MISSING if value is None else f"{value:.4f}"


def rows_of(summary: dict[str, Any]) -> list[tuple[str, list[float | None]]]:
    """(name, one value per encoder) for every metric and every label third, in the order of display."""
    scores, thirds = summary["scores"], summary["thirds"]
    rows = [(metric, [one[metric] for one in scores.values()]) for metric in scores["trained"]]
    for third, told in thirds["trained"].items():
        rows.append((f"label AP, {third} ({told['num_labels']})", [one[third]["mAP"] for one in thirds.values()]))
    return rows


def print_tables(summary: dict[str, Any], console: Console) -> None:
    """All metrics of the encoders side by side, then the AP of each label, most common first."""
    names = list(summary["scores"])
    table = Table(title=Text(f"{summary['title']}: {summary['num_queries']} queries, {summary['num_archive']} images"))
    table.add_column("metric")
    for name in names:
        table.add_column(name, justify="right")
    if len(names) == 2:
        table.add_column("gain", justify="right")
    for metric, values in rows_of(summary):
        cells = [figure(value) for value in values]
        if len(names) == 2:
            first, second = values
            cells.append(MISSING if first is None or second is None else f"{first - second:+.4f}")
        table.add_row(metric, *cells)
    console.print(table)
    labels = Table(title="average precision of each label")
    for column in ("label", "third"):
        labels.add_column(column)
    for column in ("in archive", "queries", *names):
        labels.add_column(column, justify="right")
    for row in sorted(summary["per_label"], key=lambda row: -row["archive_count"]):
        numbers = [str(row["archive_count"]), str(row["query_count"])]
        ap = [figure(row["ap"][name]) for name in names]
        labels.add_row(Text(row["label"]), row["third"], *numbers, *ap)
    console.print(labels)
    if summary["queries_without_relevant"]:
        console.print(f"{summary['queries_without_relevant']} queries without a relevant image score 0 and count")
