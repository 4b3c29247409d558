"""What a person sees of a search: a live table on a terminal, elsewhere a line every 10 s and one a finished trial."""

from __future__ import annotations

import shlex
import statistics
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from marc_dist.run.progress import clock
from marc_dist.tuning.search_space.space import Point
from marc_dist.tuning.state import Search, Trial, interval

SHOWN = 14  # trials in the table
REFRESH_S = 0.5
LINE_S = 10.0
MARKS = {"open": "…", "done": "[green]done[/]", "stopped": "[yellow]stopped[/]", "failed": "[red]failed[/]"}


def shown_point(point: Point) -> str:
    """``loss.tau=0.07 optim.lr=0.002``, as words of the command line."""
    return " ".join(f"{name}={_shown(value)}" for name, value in point.items())


def _shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _score(values: list[float]) -> str:
    mean, low, high = interval(values)
    if mean is None:
        return "-"
    return f"{mean:.4f}" if low is None or high is None else f"{mean:.4f} ± {(high - low) / 2:.4f}"


def _scores(search: Search, number: int) -> str:
    return ", ".join(f"{name} {_score(search.values(number, name))}" for name in search.plan.objectives)


class Board:
    """Shows one search.

    Args:
        search: what is shown.
        console: where.
    """

    def __init__(self, search: Search, console: Console) -> None:
        self.search, self.console = search, console
        self._seen = {key for key, run in search.runs.items() if run.state != "open"}
        self._began, self._before = time.monotonic(), search.epochs_used
        self._last = 0.0 if console.is_terminal else self._began
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Board:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self) -> None:
        """Bring the board up to date."""
        if self._live is not None:
            if time.monotonic() - self._last > REFRESH_S:
                self._last = time.monotonic()
                self._live.update(self._table(), refresh=True)
            return
        for key, run in sorted(self.search.runs.items()):
            if run.state != "open" and key not in self._seen:
                self._seen.add(key)
                self.console.print(self._line(run), markup=False, soft_wrap=True)
        if time.monotonic() - self._last > LINE_S:
            self._last = time.monotonic()
            self.console.print(self._status(), markup=False, soft_wrap=True)

    def _status(self) -> str:
        """How far the search is, in at most 80 characters."""
        search, name = self.search, self.search.plan.objectives[0]
        under_way = sum(run.state == "open" for run in search.runs.values())
        ranked = search.finished()
        best = f", best {name} {statistics.fmean(search.values(ranked[0], name)):.4f}" if ranked else ""
        done = search.epochs_used - self._before
        rate = done / max(time.monotonic() - self._began, 1e-9)
        left = f", left {clock(search.epochs_left / rate)}" if done > 0 and not search.over else ""
        return (
            f"{len(search.points)} of {search.num_settings} settings, {under_way} run, {search.epochs_used:g} epochs"
            f"{best}{left}"
        )

    def _line(self, run: Trial) -> str:
        search = self.search
        name = search.plan.objectives[0]
        value = run.last(name)
        figure = f"{name} {value:.4f}" if value is not None else "no score"
        over = sum(one.state != "open" for one in search.runs.values())
        end = f", {run.reason}" if run.reason and run.state != "done" else ""
        return (
            f"trial {run.name}  {run.state}  epoch {run.epoch:g}/{search.plan.epochs}  {figure}  "
            f"{shown_point(run.point)}{end}  "
            f"({over} trials over, {len(search.points)} of {search.num_settings} settings)"
        )

    def _table(self) -> Table:
        search, plan = self.search, self.search.plan
        ranked = search.finished()
        table = Table(title=f"{search.space.title}\n{self._status()}", box=None, title_justify="left")
        for column in ("trial", "state", "epoch", *plan.objectives, "settings"):
            table.add_column(column, justify="right" if column in ("epoch", *plan.objectives) else "left")
        if ranked:
            scores = [_score(search.values(ranked[0], name)) for name in plan.objectives]
            best = search.of(ranked[0])[0]
            table.add_row(best.name, "[bold green]best[/]", f"{best.epoch:g}", *scores, shown_point(best.point))
            table.add_section()
        recent = sorted(search.runs.values(), key=lambda run: (run.state != "open", -(run.ended or 0.0)))[:SHOWN]
        for run in sorted(recent, key=lambda run: (run.number, run.seed)):
            values = [run.last(name) for name in plan.objectives]
            cells = ["-" if value is None else f"{value:.4f}" for value in values]
            table.add_row(run.name, MARKS[run.state], f"{run.epoch:g}/{plan.epochs}", *cells, shown_point(run.point))
        return table


def print_end(search: Search, folder: Path, best: Path | None, report: Path | None, console: Console) -> None:
    """Print the best setting, what was used, and the command that trains it in full.

    Args:
        search: that is over.
        folder: of the search.
        best: the run file of the best setting; None when no setting was trained in full.
        report: the HTML report; None when there is none.
        console: where.
    """
    plan, ranked = search.plan, search.finished()
    states = [run.state for run in search.runs.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("done", "stopped", "failed", "open"))
    whole = plan.epochs * max(len(states), 1)
    used = f"{search.epochs_used:g} epochs, {search.epochs_used / whole:.0%} of {len(states)} trials in full"
    console.print(f"{len(search.points)} settings, {len(states)} trials ({counts}); {used}", soft_wrap=True)
    failed = [run for run in search.runs.values() if run.state == "failed"]
    for run in failed[:3]:
        console.print(f"failed: {run.name}: {run.reason}", markup=False, soft_wrap=True)
    if not ranked or best is None:
        console.print(
            f"no setting was trained in full; {folder / 'trials'} holds logs/rank-0.log of each", soft_wrap=True
        )
        return
    if len(plan.objectives) > 1:
        table = Table("setting", *plan.objectives, "settings", box=None, title="no other is better in all objectives")
        for number in search.pareto():
            scores = [_score(search.values(number, name)) for name in plan.objectives]
            table.add_row(f"{number:04d}", *scores, shown_point(search.points[number]))
        console.print(table)
    lines = [
        f"best: {search.of(ranked[0])[0].name}  {shown_point(search.points[ranked[0]])}",
        f"      {_scores(search, ranked[0])} (validation, {plan.epochs} epochs)",
    ]
    own = search.own()
    if own == ranked[0]:
        lines.append("      the run file's own setting: none of the others is better")
    elif own is not None:
        lines.append(f"      the run file's own, {search.of(own)[0].name}: {_scores(search, own)}")
    if report is not None:
        lines.append(f"report: {report}")
    lines += ["train it in full:", f"marc-train {shlex.quote(str(best))}"]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
