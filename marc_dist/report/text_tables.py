"""The tables that marc-eval prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from marc_dist.config import printable
from marc_dist.report.score_rows import MISSING, Row, further_rows, label_rows, metric_rows, score, third_rows

MOST_LABELS = 30
"""More labels than this are left to ``per_label.csv``."""


def _cells(row: Row) -> list[str]:
    cells = [score(value) for value in row.values]
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
        fate = without_relevant(summary)
        console.print(f"{summary['queries_without_relevant']} queries without a relevant image {fate}")


def without_relevant(summary: dict[str, Any]) -> str:
    """What became of queries without a relevant image; evaluations before there was a choice counted them."""
    left_out = summary.get("without_relevant", "zero") == "skip"
    return "are left out of all means but the labels'" if left_out else "score 0 and count"


def _print_labels(summary: dict[str, Any], console: Console) -> None:
    rows = label_rows(summary)
    if len(rows) > MOST_LABELS:
        console.print(f"average precision of each of the {len(rows)} labels: per_label.csv")
        return
    names = list(summary["scores"])
    table = Table(title="average precision of each label", box=SIMPLE_HEAD)
    for column in ("label", "third"):
        table.add_column(column)
    more = ["difference"] if len(names) == 2 else []
    for column in ("in archive", "queries", *names, *more):
        table.add_column(column, justify="left" if column == "difference" else "right")
    for label, row in rows:
        cells = [score(value) for value in row.values]
        if more:
            cells.append(_difference(row))
        numbers = [str(label["archive_count"]), str(label["query_count"])]
        table.add_row(Text(printable(label["label"])), label["third"], *numbers, *cells)
    console.print(table)


def print_comparison(
    title: str, names: Sequence[str], sections: Sequence[Sequence[Sequence[Row]]], console: Console
) -> None:
    """Each figure of all runs below each other, with intervals, and the paired difference to the first run.

    Args:
        title: what was asked, and how.
        names: of the runs.
        sections: of figures, each with a row a run.
        console: where to.
    """
    table = Table(title=Text(printable(title)), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("metric, run", overflow="fold", max_width=27)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    table.add_column("difference", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    for section in sections:
        for rows in section:
            kept = "" if rows[0].kept is None else f", {rows[0].kept:,} queries"
            table.add_row(Text(rows[0].name + kept, style="bold"))
            for name, row in zip(names, rows, strict=True):
                own = "" if row.intervals[0] is None else "{:.3f} to {:.3f}".format(*row.intervals[0])
                ends = "" if row.between is None else "{:+.3f} to {:+.3f}".format(*row.between)
                gap = "" if row is rows[0] else _difference(row)
                table.add_row(Text("  " + printable(name)), score(row.values[0]), own, gap, ends)
        table.add_section()
    console.print(table)
    lower = "; of ANMRR and HL less is better" if any(rows[0].lower for section in sections for rows in section) else ""
    console.print(
        f"* the paired 95 % interval of the difference to {printable(names[0])}, over queries, excludes 0{lower}"
    )
    console.print("The intervals say nothing of other seeds of training.")


def print_list(run: str, lines: Sequence[Sequence[str]], console: Console) -> None:
    """Print the evaluations of a run.

    Args:
        run: its folder, as a title.
        lines: of each evaluation its name, day, numbers of queries and of archive images, mAP, and its settings.
        console: where.
    """
    table = Table(title=Text(printable(run)), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("evaluation", "made", "queries", "archive", "mAP", "settings"):
        right = name in ("queries", "archive", "mAP")
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=name != "settings")
    for line in lines:
        table.add_row(*(Text(printable(cell)) for cell in line))
    console.print(table)
