"""What ``marc-jobs list`` and ``status`` say: gathered as plain values for scripts, shown as text for people."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from marc_dist.cluster.follow import told as in_words
from marc_dist.cluster.job import JOB, OVER, Attempt, Job, State, attempts, ended, read_job
from marc_dist.cluster.progress import (
    Progress,
    clock,
    first_failure,
    life_age_s,
    planned_steps,
    read_progress,
    who_is_late,
)
from marc_dist.config import EXIT_USER, MarcError
from marc_dist.training.runfolder import log_path
from marc_dist.training.signals import EXIT_REQUEUE
from marc_dist.training.watchdog import read_beats

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
        tries = attempts(one.run_dir, one.job.submitted_at)
        row["attempt"] = len(tries) - 1 if tries else None
        row["life_age_s"] = life_age_s(one.run_dir)
        if one.job.what == "train" and not one.job.run_dirs:
            told = read_progress(one.run_dir, tries[-1].started_at if tries else 0.0)
            keys = ("step", "total_steps", "loss", "images_per_s", "eta_s")
            row |= {key: getattr(told, key) for key in keys}
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
    cells = [Text(printable(text)) for text in texts]
    if row["parent"]:
        cells[0] = Text("  ") + cells[0]
    cells[3].stylize(COLOURS.get(row["state"], ""))
    return cells


def short_id(kind: str | None, job_id: str | None) -> str:
    """An id as people need it: of a local job, its process."""
    if job_id is None:
        return ""
    return job_id.split(":")[1] if kind == "local" and job_id.count(":") == 2 else job_id


def printable(text: str) -> str:
    """Text on one line, without what could steer a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def ago(seconds: float) -> str:
    """``12 s ago``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def when(seconds: float) -> str:
    """Local time of a moment in seconds since 1970."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def facts(run_dir: Path, job: Job, state: State) -> dict[str, Any]:
    """All that is known of a job, as JSON values with the same keys every time."""
    tries = attempts(run_dir)
    mine = [one for one in tries if one.started_at >= job.submitted_at]
    began = mine[-1].started_at if mine else job.submitted_at
    progress = _progress(run_dir, job, began)
    alive = state.word in ("running", "unknown") and mine != [] and mine[-1].ended_at is None
    beats = read_beats(run_dir, job.world) if alive else []
    quiet_s = time.time() - max(began, (progress and progress.time) or 0.0)
    return {
        "run": str(run_dir),
        **job.model_dump(mode="json", exclude={"preset"}),
        "state": state.word,
        "detail": state.detail,
        "attempts": [one._asdict() for one in tries],
        "progress": None if progress is None else progress._asdict(),
        "heartbeat": [beat._asdict() for beat in beats if beat is not None],
        "late": who_is_late(run_dir, beats, quiet_s) if state.word == "running" else None,
        "life_age_s": life_age_s(run_dir),
        "failure": _failure(run_dir, job, state, mine),
        "next": what_next(run_dir, job, state, mine),
    }


def _progress(run_dir: Path, job: Job, began: float) -> Progress | None:
    if job.what != "train" or job.run_dirs:
        return None
    progress = read_progress(run_dir, began)
    return progress if progress.total_steps else progress._replace(total_steps=planned_steps(run_dir))


def _failure(run_dir: Path, job: Job, state: State, mine: Sequence[Attempt]) -> dict[str, Any] | None:
    """The rank that failed first in the last attempt, with host and log; what is not known is None."""
    if state.word in ("done", "pending"):
        return None
    first = first_failure(run_dir, job.world)
    text = mine[-1].error if mine else None
    if first is None:
        return None if text is None else {"rank": None, "host": None, "code": None, "log": None, "error": text}
    log = str(log_path(run_dir, first.rank))
    return {"rank": first.rank, "host": first.host, "code": first.code, "log": log, "error": first.error or text}


def what_next(run_dir: Path, job: Job, state: State, mine: Sequence[Attempt]) -> str:
    """What a person does now: the exact command, or what to mend before it."""
    run = shlex.quote(str(run_dir))
    if job.run_dirs:
        again = f"; marc-jobs resume {run} hands in those that are not done" if state.word in OVER - {"done"} else ""
        return f"marc-jobs list {run} shows each of its elements{again}"
    if state.word == "pending":
        return f"marc-jobs logs -f {run} shows it as soon as it starts; marc-jobs cancel {run} takes it back"
    if state.word == "running":
        return f"marc-jobs logs -f {run}"
    if state.word == "done":
        return f"marc-launch local eval {run}" if job.what == "train" else f"marc-jobs logs {run}"
    if state.word == "unknown":
        return f"marc-jobs logs {run}; when it has surely ended: marc-jobs resume --force {run}"
    if state.word == "failed":
        first = first_failure(run_dir, job.world)
        log = f"marc-jobs logs --lines 200 --rank {'all' if first is None else first.rank} {run}"
        if mine and mine[-1].code == EXIT_USER:
            return f"mend what the error names, then marc-jobs resume {run}"
        return f"{log}; then marc-jobs resume {run}"
    return f"marc-jobs resume {run}"


def print_facts(told: dict[str, Any]) -> None:
    """All that is known of a job, for people."""
    lines = [("state", in_words(State(told["state"], told["detail"])))]
    size = f"{told['nodes']} x {told['procs_per_node']} processes"
    lines.append(("job", f"{told['kind']} {told['id'] or '(never handed over)'}, {told['what']}, {size}"))
    lines.append(("command", shlex.join(["python", *told["arguments"]])))
    lines.append(("submitted", f"{when(told['submitted_at'])} by {told['user']} from {told['host']}, in {told['cwd']}"))
    lines += [("element", part) for part in told["run_dirs"]]
    for one in told["attempts"]:
        old = " (an earlier job)" if one["started_at"] < told["submitted_at"] else ""
        last = one is told["attempts"][-1] and not old
        lines.append((f"start {one['number'] + 1}", _attempt(one, told["cancelled_at"] if last else None) + old))
    if told["progress"]:
        lines.append(("progress", _progress_line(told["progress"])))
    if told["life_age_s"] is not None:
        lines.append(("sign of life", ago(told["life_age_s"])))
    if told["heartbeat"]:
        ages = [max(beat["age_s"], 0.0) for beat in told["heartbeat"]]
        world = told["nodes"] * told["procs_per_node"]
        lines.append(("heartbeat", f"{len(ages)} of {world} ranks, the oldest {ago(max(ages))}"))
    if told["late"]:
        lines.append(("late", told["late"]))
    if told["failure"]:
        lines.append(("failure", _failure_line(told["failure"])))
    lines.append(("next", told["next"]))
    print(printable(told["run"]))
    for key, text in lines:
        print(f"  {key:<12}  {printable(text)}")


def _progress_line(progress: dict[str, Any]) -> str:
    total = progress["total_steps"]
    text = f"step {progress['step']}" + (f" of {total} ({progress['step'] / total:.0%})" if total else "")
    shown = (("loss", "loss {:.4f}"), ("lr", "lr {:.2e}"), ("images_per_s", "{:.0f} images/s"))
    text += "".join(", " + form.format(progress[key]) for key, form in shown if progress[key] is not None)
    if progress["loader_wait"] is not None:
        text += f", {progress['loader_wait']:.0%} of the time waiting for pictures"
    return text + (f", {clock(progress['eta_s'])} left" if progress["eta_s"] is not None else "")


def _attempt(one: dict[str, Any], cancelled_at: float | None) -> str:
    hosts = one["hosts"]
    where = " ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")
    begin = f"{when(one['started_at'])} on {where} after step {one['first_step']}"
    if one["ended_at"] is None:
        return f"{begin}; " + ("no word of its end" if cancelled_at is None else f"cancelled {when(cancelled_at)}")
    code = "stopped and saved" if one["code"] == EXIT_REQUEUE else f"code {one['code']}"
    end = f"{begin}, ended {when(one['ended_at'])} after step {one['last_step']}: {code}"
    return end + (f"; {one['why']}" if one["why"] else "") + (f"; {one['error']}" if one["error"] else "")


def _failure_line(failure: dict[str, Any]) -> str:
    if failure["rank"] is None:
        return str(failure["error"])
    error = failure["error"] or f"code {failure['code']}"
    return f"rank {failure['rank']} on {failure['host']}: {error}; log: {failure['log']}"
