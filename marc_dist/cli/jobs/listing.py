"""What ``marc-jobs list`` says: a row for every job, as plain values for scripts and as a table for people."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from marc_dist.config import MarcError, printable
from marc_dist.run.job import JOB, Job, State, attempts_of_job, ended, read_job
from marc_dist.run.progress import life_age_s, read_progress

MANY = 8
"""Questions to Slurm at the same time."""
COLOURS = {"running": "green", "failed": "red", "cancelled": "yellow", "stopped": "yellow", "unknown": "magenta"}
COLUMNS = ("run", "job", "size", "state", "start", "step", "loss", "images/s", "sign of life", "submitted", "")
ROW = (
    "run", "parent", "kind", "id", "what", "nodes", "procs_per_node", "state", "detail", "attempt", "step",
    "total_steps", "loss", "images_per_s", "eta_s", "life_age_s", "submitted_at", "error",
)  # fmt: skip
"""Keys of a row of the list; a value that nobody knows is None."""
Ask = Callable[[Job, Path], State]
_FAULTS = (MarcError, OSError, ValueError, KeyError, TypeError)  # of files that somebody else wrote, or broke


class _Found(NamedTuple):
    run_dir: Path
    parent: Path | None
    job: Job | None
    error: str | None


def rows(places: Sequence[Path], ask: Ask) -> list[dict[str, Any]]:
    """A row for every job below some folders, newest first, an array's elements under it.

    Args:
        places: looked at themselves, and two levels deep.
        ask: for the state of a job.

    Returns:
        Values under the keys of ``ROW``. A folder that cannot be read is a row with its ``error``.
    """
    found = _in_order(_find(places))
    with ThreadPoolExecutor(MANY) as pool:  # asking Slurm is a process each; Ray does not like threads
        answers = {
            one.run_dir: pool.submit(_answer, one, ask)
            for one in found
            if one.job is not None and one.job.kind == "slurm"
        }
        return [
            _row(one, answers[one.run_dir].result() if one.run_dir in answers else _answer(one, ask)) for one in found
        ]


def _find(places: Iterable[Path]) -> list[_Found]:
    found: dict[Path, _Found] = {}
    for place in places:
        level = [place]
        for depth in range(3):
            for folder in level:
                one = _look(folder)
                if one is not None:
                    found.setdefault(folder, one)
            level = [] if depth == 2 else [inner for folder in level for inner in _folders(folder, found)]
    return list(found.values())


def _look(folder: Path) -> _Found | None:
    try:
        if not (folder / JOB).is_file():
            return None
        return _Found(folder, None, read_job(folder), None)
    except _FAULTS as error:
        return _Found(folder, None, None, str(error))


def _folders(folder: Path, found: dict[Path, _Found]) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        found.setdefault(folder, _Found(folder, None, None, f"{folder}: {error.strerror}"))
        return []


def _in_order(found: Sequence[_Found]) -> list[_Found]:
    """Newest first; elements of an array after it, in their order."""
    places = {_real(one.run_dir): one for one in found}
    elements: dict[Path, list[_Found]] = {}
    taken: set[Path] = set()
    for one in found:
        inner = [] if one.job is None else [places.get(_real(Path(part))) for part in one.job.run_dirs]
        elements[one.run_dir] = [part._replace(parent=one.run_dir) for part in inner if part is not None]
        taken |= {part.run_dir for part in elements[one.run_dir]}
    tops = [one for one in found if one.run_dir not in taken]
    tops.sort(key=lambda one: (0.0 if one.job is None else -one.job.submitted_at, str(one.run_dir)))
    return [row for one in tops for row in (one, *elements[one.run_dir])]


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _answer(one: _Found, ask: Ask) -> State:
    if one.job is None:
        return State("unknown", "")
    try:
        over = ended(one.job, one.run_dir)
        if over is not None and over.word == "done":  # nothing changes that: ask nobody
            return over
        return ask(one.job, one.run_dir)
    except _FAULTS as error:
        return State("unknown", f"{type(error).__name__}: {error}")


def _row(one: _Found, state: State) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(ROW)
    row |= {"run": str(one.run_dir), "parent": None if one.parent is None else str(one.parent)}
    row |= {"state": state.word, "detail": state.detail, "error": one.error}
    if one.job is None:
        return row
    row |= {key: getattr(one.job, key) for key in ("kind", "id", "what", "nodes", "procs_per_node", "submitted_at")}
    try:
        tries = attempts_of_job(one.job, one.run_dir)
        row["attempt"] = len(tries) - 1 if tries else None
        row["life_age_s"] = life_age_s(one.run_dir)
        if one.job.what == "train" and not one.job.run_dirs:
            progress = read_progress(one.run_dir, tries[-1].first_step if tries else 0)
            keys = ("step", "total_steps", "loss", "images_per_s", "eta_s")
            row |= {key: getattr(progress, key) for key in keys}
    except _FAULTS as error:
        row["error"] = f"{type(error).__name__}: {error}"
    return row


def print_table(found: Sequence[dict[str, Any]]) -> None:
    """The list, for people."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # a pipe has no width: one line a job
    table = Table(*COLUMNS, box=None, header_style="bold", pad_edge=False)
    for row in found:
        table.add_row(*_cells(row))
    console.print(table)


def _cells(row: dict[str, Any]) -> list[Text]:
    live = row["state"] == "running"
    step = "" if row["step"] is None else str(row["step"])
    step += f"/{row['total_steps']}" if row["total_steps"] else ""
    texts = [
        row["run"],
        f"{row['kind'] or '?'} {short_id(row['kind'], row['id'])}".rstrip(),
        "" if row["nodes"] is None else f"{row['nodes']} x {row['procs_per_node']}",
        row["state"],
        "" if row["attempt"] is None else str(row["attempt"] + 1),
        step,
        "" if row["loss"] is None else f"{row['loss']:.4f}",
        f"{row['images_per_s']:.0f}" if live and row["images_per_s"] is not None else "",
        "" if row["life_age_s"] is None else ago(row["life_age_s"]),
        "" if row["submitted_at"] is None else when(row["submitted_at"]),
        row["error"] or row["detail"] or "",
    ]
    cells = [Text(one_line(text)) for text in texts]
    if row["parent"]:
        cells[0] = Text("  ") + cells[0]
    cells[3].stylize(COLOURS.get(row["state"], ""))
    return cells


def short_id(kind: str | None, job_id: str | None) -> str:
    """An id as people need it: of a local job, its process."""
    if job_id is None:
        return ""
    return job_id.split(":")[1] if kind == "local" and job_id.count(":") == 2 else job_id


def one_line(text: str) -> str:
    """Text on one line, without what could steer a terminal."""
    return printable(" ".join(text.split()))


def ago(seconds: float) -> str:
    """``12 s ago``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def when(seconds: float) -> str:
    """Local time of a moment in seconds since 1970."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
