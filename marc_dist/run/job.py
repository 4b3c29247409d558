"""What a run folder knows about its job: ``job.json``, how it was submitted, and how it stands.

Everything that ``marc-jobs`` needs lies here, so that it works on another day and from another login node.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from marc_dist.config import EXIT_USER, LaunchError, first_line
from marc_dist.config.section import Section
from marc_dist.files import read_json, write_atomic
from marc_dist.run.attempt_id import AttemptId, new_token
from marc_dist.run.attempts import Attempt, attempts, attempts_of, newest_step
from marc_dist.run.exit_codes import EXIT_HUNG, EXIT_REQUEUE

JOB = "job.json"

Word = Literal["pending", "running", "done", "stopped", "failed", "cancelled", "unknown"]
OVER = frozenset({"done", "stopped", "failed", "cancelled"})
"""Words of a job that does not go on by itself."""
CANCELLED = "cancelled"
ORDER: tuple[Word, ...] = ("running", "pending", "unknown", "failed", "cancelled", "stopped", "done")
"""Which word stands for many elements together: what still moves comes first, then what went wrong."""


class Job(Section):
    """One submitted job; frozen."""

    kind: Literal["local", "slurm", "ray"] = Field(description="what runs it")
    id: str | None = Field(None, description="Slurm's job id, Ray's actor name, HOST:PID:START of a local launcher")
    token: str = Field("", description="random name of this submission, on all its records; empty: older than tokens")
    what: str = Field("train", description="train, eval, tune or study")
    arguments: list[str] = Field(description="of the Python interpreter of every rank: -m MODULE RUN_DIR ...")
    run_dirs: list[str] = Field(default_factory=list, description="run folders of an array's elements, in order")
    elements: list[int] = Field(default_factory=list, description="which of them it runs, ascending; empty = all")
    nodes: int = Field(1, ge=1, description="machines")
    procs_per_node: int = Field(1, ge=1, description="ranks on each")
    preset: dict[str, Any] = Field(default_factory=dict, description="the launcher preset, resolved")
    submitted_at: float = Field(description="seconds since 1970")
    host: str = Field(description="submitted from")
    cwd: str = Field(".", description="folder that relative paths of the settings start from")
    user: str = Field(description="submitted by")
    cancelled_at: float | None = Field(None, description="when marc-jobs ended it for good; seconds since 1970")

    @property
    def world(self) -> int:
        """The number of ranks."""
        return self.nodes * self.procs_per_node

    def attempt(self, number: int) -> AttemptId:
        """One of its attempts, by number from 0."""
        return AttemptId(self.token, number)

    @property
    def numbers(self) -> list[int]:
        """Places in ``run_dirs`` of the elements that this job runs, ascending; empty when it is no array."""
        return self.elements or list(range(len(self.run_dirs)))


class State(NamedTuple):
    """How a job stands.

    Attributes:
        word: in one word.
        detail: the batch system's own word and reason, or what the run folder says.
        silent: the batch system is there and does not answer just now: the job may live.
    """

    word: Word
    detail: str = ""
    silent: bool = False

    def __str__(self) -> str:
        """``pending (Resources)``; the batch system's word is left out where it is the same as ours."""
        detail = self.detail
        if detail.partition(" ")[0] == self.word.upper():
            detail = detail.partition(" ")[2].strip("()") if detail.endswith(")") else detail.partition(" ")[2]
        return f"{self.word} ({detail})" if detail else self.word


def new_job(kind: Literal["local", "slurm", "ray"], arguments: Sequence[str], **values: Any) -> Job:
    """A job submitted now, by this user from this machine and folder.

    Args:
        kind: what runs it.
        arguments: of the Python interpreter of every rank.
        values: further fields of ``Job``, by name.
    """
    return Job(
        kind=kind,
        arguments=list(arguments),
        token=new_token(),
        submitted_at=time.time(),
        host=socket.gethostname(),
        cwd=str(Path.cwd()),
        user=_user(),
        **values,
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        return str(os.getuid())


def write_job(run_dir: Path, job: Job) -> None:
    """Write ``job.json``, completely or not at all."""
    write_atomic(run_dir / JOB, (json.dumps(job.model_dump(), indent=1) + "\n").encode())


def read_job(run_dir: Path) -> Job:
    """The job of a run folder.

    Raises:
        LaunchError: there is none, or the file is not one.
    """
    path = run_dir / JOB
    try:
        return Job.model_validate(read_json(path))
    except FileNotFoundError:
        raise LaunchError(f"{run_dir}: no {JOB}; expected the folder of a run that marc-launch has started") from None
    except (ValueError, ValidationError) as error:
        raise LaunchError(
            f"{path}: cannot be read ({first_line(error)}); start the run again with marc-launch"
        ) from None


def element_dir(job_dir: Path, env: Mapping[str, str]) -> Path:
    """The folder of this process's run: an array's element by Slurm's number, else the job's own folder."""
    number = env.get("SLURM_ARRAY_TASK_ID", "")
    run_dirs = read_job(job_dir).run_dirs
    return Path(run_dirs[int(number)]) if run_dirs and number.isdigit() else job_dir


def attempts_of_job(job: Job, run_dir: Path) -> list[Attempt]:
    """The attempts of this job in its folder, oldest first, without those of other jobs there."""
    return attempts_of(attempts(run_dir), job.token, job.submitted_at)


def ended(job: Job, run_dir: Path) -> State | None:
    """How a job ended, by its folder alone; see ``end_of``."""
    return end_of(job, attempts_of_job(job, run_dir), newest_step(run_dir))


def end_of(job: Job, mine: Sequence[Attempt], step: int) -> State | None:
    """How a job ended; None while it goes on, or when nobody could write it down. Pure.

    The job's own last word counts, whoever else asked it to end meanwhile.

    Args:
        job: what ``job.json`` says.
        mine: its attempts, oldest first.
        step: of the newest checkpoint.
    """
    last = mine[-1] if mine else None
    if last is not None and last.ended_at is not None and not last.again:
        if last.why == CANCELLED:
            return State("cancelled", last.error or f"after step {last.last_step}")
        if last.code == 0:
            return State("done")
        word: Word = "stopped" if last.code == EXIT_REQUEUE else "failed"
        return State(word, last.error or last.why or f"exit code {last.code}")
    return None if job.cancelled_at is None else State("cancelled", f"after step {step}")


def array_state(parts: Sequence[State]) -> State:
    """How an array stands, by its elements, in the order of ``ORDER``. Pure.

    Args:
        parts: of every element, whichever job ran it last.
    """
    counts = {word: sum(part.word == word for part in parts) for word in ORDER}
    found = [word for word in ORDER if counts[word]]
    if not found:
        return State("unknown", "no elements")
    if len(found) == 1 and found[0] != "unknown":
        details = {part.detail for part in parts}
        return State(found[0], details.pop() if len(details) == 1 else "")
    told = ", ".join(f"{counts[word]} {word}" for word in reversed(found))
    why = next((part.detail for part in parts if part.word == "unknown" and part.detail), "")
    return State(found[0], f"elements: {told}" + (f"; {why}" if why and found[0] == "unknown" else ""))


def note_cancel(job: Job, run_dir: Path) -> None:
    """Write into ``job.json`` that a job was ended for good, unless another one has taken its place.

    For jobs that cannot write down their own end, because the batch system ends whoever would; ``attempts.jsonl``
    stays theirs, so that two machines never write one file. Of an array, its elements are told, too.
    """
    whose = {job.id: run_dir} | {f"{job.id}_{number}": Path(job.run_dirs[number]) for number in job.numbers}
    now = time.time()
    for name, folder in whose.items():
        with suppress(LaunchError):  # a folder that is gone or full does not keep the job from its end
            found = read_job(folder)
            if found.id == name:
                write_job(folder, found.model_copy(update={"cancelled_at": now}))


def start_again(
    code: int, lost: bool, first_steps: Sequence[int], step: int, max_restarts: int, max_stalls: int
) -> tuple[bool, str]:
    """Whether a job that ended should be started again, and why (not).

    A pure rule, for Slurm's batch script and Ray's supervisor alike. What a person has to mend does not start again;
    what moves on may, up to ``max_restarts``; what does not move stops after ``max_stalls``.

    Args:
        code: exit code of the attempt that ended; of the rank that failed first.
        lost: a rank vanished without a word, with its machine or by SIGKILL.
        first_steps: of the newest checkpoint when each attempt of this submission began, the last is the one that
            ended.
        step: of the newest checkpoint now.
        max_restarts: attempts after the first.
        max_stalls: attempts in a row that may end without a newer checkpoint.
    """
    if code == 0:
        return False, "done"
    if code == EXIT_USER:
        return False, "a mistake in settings or data; starting again would not help"
    if len(first_steps) > max_restarts:
        return False, f"cluster.max_restarts={max_restarts} used up"
    begun = [*first_steps, step]
    stalls = 0
    while stalls < len(first_steps) and begun[-2 - stalls] == step:
        stalls += 1
    if stalls and not lost and code not in (EXIT_REQUEUE, EXIT_HUNG):
        return False, "it failed without a newer checkpoint; starting again would fail alike"
    if stalls > max_stalls:
        return False, f"no newer checkpoint in {stalls} attempts in a row (cluster.max_stalls={max_stalls})"
    return True, "asked to stop, and saved" if code == EXIT_REQUEUE else "to go on from the newest checkpoint"
