"""How far something long is: a bar on a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_S = 10.0
"""Seconds between two lines, where there is no terminal."""

Tell = Callable[[int, int], None]
"""Is told how many are done, and bytes of them."""
Show = Callable[[str, int, str], AbstractContextManager[Tell]]
"""``progress``, or ``quiet``."""


def bar(console: Console, *, transient: bool = False) -> Progress:
    """A bar of rich's: what, how many of how many, figures of its own (the field ``figures``), time left.

    Args:
        console: where.
        transient: it goes away at its end.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    tail = (TextColumn("{task.fields[figures]}"), TimeRemainingColumn())
    return Progress(*columns, *tail, console=console, transient=transient)


def shown_time(seconds: float) -> str:
    """``0:01:05``."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


@contextmanager
def quiet(what: str, total: int, unit: str = "") -> Iterator[Tell]:
    """As ``progress``, and shows nothing.

    Args:
        what: is done.
        total: how many there are.
        unit: of what.
    """
    yield lambda done, size: None


@contextmanager
def progress(what: str, total: int, unit: str = "pictures") -> Iterator[Tell]:
    """Show on stderr how far the block is; it calls what it gets from time to time.

    Args:
        what: is done: ``packing``.
        total: how many there are.
        unit: of what.
    """
    console = Console(stderr=True)
    start = last = time.monotonic()

    def rate(done: int, size: int, now: float) -> str:
        seconds = max(now - start, 1e-3)
        speed = f"{done / seconds:,.0f} {unit}/s"
        return f"{speed}, {size / seconds / 1e6:.1f} MB/s" if size else speed

    if console.is_terminal:
        with bar(console, transient=True) as shown:
            task = shown.add_task(what, total=total, figures="")
            yield lambda done, size: shown.update(task, completed=done, figures=rate(done, size, time.monotonic()))
        return

    def line(done: int, size: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LINE_S:
            return
        last = now
        left = shown_time((now - start) / max(done, 1) * (total - done)) if done else "unknown"
        share = f"{done / max(total, 1):.0%}"
        text = f"{what}: {done:,} of {total:,} {unit} ({share}), {rate(done, size, now)}, {left} left"
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    yield line
