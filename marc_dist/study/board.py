"""What a person sees of a study that runs: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console
from rich.live import Live
from rich.table import Table

from marc_dist.study.estimate import estimate
from marc_dist.study.plan import Plan, Task
from marc_dist.study.state import Record, Worker, is_done, read_record, read_workers

REFRESH_S = 1.0
LINE_S = 10.0
"""Least time between two lines where nobody sees a table."""
SHOWN = 8  # workers, and failures, in the table


def clock(seconds: float) -> str:
    """``1:02:03``."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class Board:
    """Shows one study.

    Args:
        plan: of the study.
        console: where.
        jobs: tasks at a time, for the time left.
    """

    def __init__(self, plan: Plan, console: Console, jobs: int) -> None:
        self.plan, self.console, self.jobs = plan, console, jobs
        self.records: dict[str, Record] = {}
        self._over: set[str] = set()
        self._told: set[str] = set()
        self._last, self._line = 0.0, ""
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Board:
        self.look()
        self._told = {name for name, record in self.records.items() if record.reason}
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def look(self) -> None:
        """Read how far the tasks are; those that are over are not read again."""
        for name, task in self.plan.tasks.items():
            if name not in self._over:
                self.records[name] = read_record(self.plan.folder(task))
                if is_done(self.plan, task, self.records[name]):
                    self._over.add(name)

    def say(self, line: str) -> None:
        """Print a line above the table."""
        self.console.print(line, markup=False, soft_wrap=True)

    def show(self, workers: Iterable[str], *, now: bool = False) -> None:
        """Bring it up to date, not too often.

        Args:
            workers: names of those that are at work.
            now: whatever the time since the last call.
        """
        wait = REFRESH_S if self._live is not None else LINE_S
        if not now and time.monotonic() - self._last < wait:
            return
        self._last = time.monotonic()
        self.look()
        busy = read_workers(self.plan.out, workers)
        for name, record in self.records.items():
            if record.word == "failed" and name not in self._told:
                self._told.add(name)
                self.say(f"failed: {name}: {record.reason}")
            elif record.word == "done" and record.reason and name not in self._told:
                self._told.add(name)
                self.say(f"note: {name}: {record.reason}")
        if self._live is not None:
            self._live.update(self._table(busy), refresh=True)
            return
        line = self.line(busy)
        if line != self._line:
            self._line = line
            self.say(line)

    def _word(self, kind: str, found: Iterable[Task]) -> str:
        tasks = [task for task in found if task.kind == kind]
        failed = sum(self.records[task.name].word == "failed" for task in tasks)
        done = sum(task.name in self._over for task in tasks)
        return f"{done} of {len(tasks)}" + (f", {failed} failed" if failed else "") if tasks else "-"

    def line(self, busy: list[Worker]) -> str:
        """All of it in one line."""
        tasks = self.plan.tasks.values()
        searches = self._word("search", tasks)
        told = [f"{self._word('cell', tasks)} cells", *([f"{searches} searches"] if searches != "-" else [])]
        told += [f"now {', '.join(worker.task for worker in busy[:SHOWN])}"] if busy else []
        return "; ".join([*told, self._left()])

    def _left(self) -> str:
        found = estimate(self.plan, self.records)
        guess = "" if found.measured else " (a guess)"
        return f"about {clock(found.seconds / self.jobs)} left{guess}"

    def _table(self, busy: list[Worker]) -> Table:
        title = f"{self.plan.study.title or self.plan.path.stem}: {self.line([])}"
        table = Table(title=title, box=None, title_justify="left")
        for column in ("data set", "encoder", "searches", "cells", "loss by loss"):
            table.add_column(column)
        for dataset in self.plan.study.datasets:
            for encoder in self.plan.study.encoders:
                mine = [t for t in self.plan.tasks.values() if (t.dataset, t.encoder) == (dataset, encoder)]
                told = []
                for method in self.plan.methods_on(dataset)[:SHOWN]:
                    cells = [t for t in mine if t.kind == "cell" and t.method == method]
                    told.append(f"{method.name} {sum(t.name in self._over for t in cells)}")
                more = len(self.plan.methods_on(dataset)) - SHOWN
                told += [f"and {more} more"] if more > 0 else []
                words = self._word("search", mine), self._word("cell", mine)
                table.add_row(dataset, encoder, *words, ", ".join(told))
        table.add_section()
        for worker in busy[:SHOWN]:
            table.add_row("now", "", "", "", f"{worker.task}, {clock(time.time() - worker.since)}")
        return table
