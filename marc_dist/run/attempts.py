"""How a job went, start by start: ``attempts.jsonl`` of its run folder, and how far the folder says it is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from marc_dist.files import append_line
from marc_dist.run.attempt_id import AttemptId
from marc_dist.run.folder import checkpoints, read_lines

ATTEMPTS = "attempts.jsonl"
SEARCH_LINES = "trials.jsonl"
"""What a search has done, a line an event; see ``tuning/journal.py``."""
STUDY_LINES = "tasks.jsonl"
"""What a job of a study has done, a line a task; see ``study/worker.py``."""


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
        token: of the submission that it belongs to; empty in folders older than tokens.
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
    token: str = ""


def newest_step(run_dir: Path) -> int:
    """Global steps in the newest checkpoint, by its name; of a search or study, lines of its record; 0 without any."""
    steps = [path.stem.rpartition("-")[2] for path in checkpoints(run_dir)]
    for record in (SEARCH_LINES, STUDY_LINES):
        with suppress(OSError):
            steps.append(str((run_dir / record).read_bytes().count(b"\n")))
    return max((int(step) for step in steps if step.isdigit()), default=0)


def _append(run_dir: Path, record: dict[str, object]) -> None:
    append_line(run_dir / ATTEMPTS, json.dumps(record).encode())


def begin_attempt(run_dir: Path, mine: AttemptId, hosts: Sequence[str]) -> None:
    """Note that an attempt begins, with the step that it starts from.

    Args:
        run_dir: made when missing.
        mine: the attempt.
        hosts: names of its machines.
    """
    step = newest_step(run_dir)
    _append(
        run_dir,
        {
            "event": "begin",
            "token": mine.token,
            "number": mine.number,
            "time": time.time(),
            "step": step,
            "hosts": list(hosts),
        },
    )


def end_attempt(run_dir: Path, mine: AttemptId, code: int, error: str | None, again: bool, why: str) -> None:
    """Note how an attempt ended, and whether there will be another; a full disk does not keep it from ending.

    Args:
        run_dir: the folder that the attempt was begun in.
        mine: the attempt.
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
                "token": mine.token,
                "number": mine.number,
                "time": time.time(),
                "step": newest_step(run_dir),
                "code": code,
                "error": error,
                "again": again,
                "why": why,
            },
        )


def attempts(run_dir: Path) -> list[Attempt]:
    """All attempts of all jobs that a run folder has had, oldest first."""
    return attempts_in(read_lines(run_dir / ATTEMPTS))


def attempts_in(records: Iterable[Mapping[str, Any]]) -> list[Attempt]:
    """The attempts that the lines of ``attempts.jsonl`` tell of, in the order in which they began. Pure.

    An end belongs to the newest attempt with its token and number. One without a number, of a folder older than tokens,
    belongs to the attempt before it.
    """
    found: list[Attempt] = []
    for record in records:
        token, step = str(record.get("token", "")), int(record.get("step", 0))
        if record.get("event") == "begin":
            hosts = [str(host) for host in record.get("hosts", [])]
            number, begun = int(record.get("number", 0)), float(record.get("time", 0.0))
            found.append(Attempt(number, begun, step, hosts, token=token))
        elif record.get("event") == "end" and found:
            number = int(record.get("number", found[-1].number))
            places = [place for place, one in enumerate(found) if (one.token, one.number) == (token, number)]
            if places:
                found[places[-1]] = found[places[-1]]._replace(
                    ended_at=float(record.get("time", 0.0)),
                    last_step=step,
                    code=record.get("code"),
                    error=record.get("error"),
                    again=bool(record.get("again")),
                    why=str(record.get("why", "")),
                )
    return found


def attempts_of(found: Iterable[Attempt], token: str, submitted_at: float) -> list[Attempt]:
    """Those attempts that belong to one submission. Pure.

    Args:
        found: of all jobs of a folder.
        token: of the submission; clocks do not matter then.
        submitted_at: of a job older than tokens, which has an empty one: seconds since 1970, and its attempts are those
            without a token that began later.
    """
    mine = [one for one in found if one.token == token]
    return mine if token else [one for one in mine if one.started_at >= submitted_at]


def first_steps(mine: Sequence[Attempt]) -> list[int]:
    """The step at which each attempt of a submission began, never before one at which an earlier one began or ended.

    Checkpoints do not get older: what began sooner was read by a machine that remembered the folder as it had been, as
    NFS allows. Pure.

    Args:
        mine: attempts of the submission, oldest first.
    """
    steps: list[int] = []
    known = 0
    for one in mine:
        known = max(known, one.first_step)
        steps.append(known)
        known = max(known, one.last_step)
    return steps
