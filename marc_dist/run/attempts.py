"""How a job went, start by start: ``attempts.jsonl`` of its run folder, and how far the folder says it is."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from marc_dist.files import append_line
from marc_dist.run.folder import checkpoints, read_lines

ATTEMPTS = "attempts.jsonl"
SEARCH_LINES = "trials.jsonl"
"""What a search has done, a line an event; see ``tuning/journal.py``."""


class Attempt(NamedTuple):
    """One start of a job.

    Attributes:
        number: from 0; Slurm's restart count.
        started_at: seconds since 1970.
        first_step: of the newest checkpoint when it started.
        hosts: names of its machines.
        ended_at: None while it runs, or when it was lost without a word.
        last_step: of the newest checkpoint when it ended.
        code: exit code of the job; None as ``ended_at``.
        error: why it failed, with rank, host and log.
        again: whether it was to be started again, and why (not).
    """

    number: int
    started_at: float
    first_step: int
    hosts: list[str]
    ended_at: float | None = None
    last_step: int = 0
    code: int | None = None
    error: str | None = None
    again: bool = False
    why: str = ""


def newest_step(run_dir: Path) -> int:
    """Global steps in the newest checkpoint, by its name; of a search, the lines of its record; 0 without any."""
    steps = [path.stem.rpartition("-")[2] for path in checkpoints(run_dir)]
    with suppress(OSError):
        steps.append(str((run_dir / SEARCH_LINES).read_bytes().count(b"\n")))
    return max((int(step) for step in steps if step.isdigit()), default=0)


def _append(run_dir: Path, record: dict[str, object]) -> None:
    append_line(run_dir / ATTEMPTS, json.dumps(record).encode())


def begin_attempt(run_dir: Path, number: int, hosts: Sequence[str]) -> None:
    """Note that an attempt begins, with the step that it starts from.

    Args:
        run_dir: made when missing.
        number: of the attempt, from 0.
        hosts: names of its machines.
    """
    _append(
        run_dir,
        {"event": "begin", "number": number, "time": time.time(), "step": newest_step(run_dir), "hosts": list(hosts)},
    )


def end_attempt(run_dir: Path, code: int, error: str | None, again: bool, why: str) -> None:
    """Note how the last attempt ended, and whether there will be another; a full disk does not keep it from ending.

    Args:
        run_dir: the folder that the attempt was begun in.
        code: exit code of the job.
        error: why it failed, with rank, host and log; None where nothing is known, or it did not fail.
        again: whether the job starts again.
        why: why it does, or does not; ``CANCELLED`` of ``job.py`` when a person ended it.
    """
    with suppress(OSError):
        _append(
            run_dir,
            {
                "event": "end",
                "time": time.time(),
                "step": newest_step(run_dir),
                "code": code,
                "error": error,
                "again": again,
                "why": why,
            },
        )


def attempts(run_dir: Path, since: float = 0.0) -> list[Attempt]:
    """All attempts of a run that began after ``since`` (seconds since 1970), oldest first."""
    found: list[Attempt] = []
    for record in read_lines(run_dir / ATTEMPTS):
        if float(record.get("time", 0.0)) < since:
            continue
        step = int(record.get("step", 0))
        if record.get("event") == "begin":
            hosts = [str(host) for host in record.get("hosts", [])]
            found.append(Attempt(int(record.get("number", 0)), float(record["time"]), step, hosts))
        elif record.get("event") == "end" and found:
            found[-1] = found[-1]._replace(
                ended_at=float(record["time"]),
                last_step=step,
                code=record.get("code"),
                error=record.get("error"),
                again=bool(record.get("again")),
                why=str(record.get("why", "")),
            )
    return found
