"""What a run folder knows about its job: ``job.json`` (how it was submitted) and ``attempts.jsonl`` (how it went).

Everything that ``marc-jobs`` needs lies here, so that it works on another day and from another login node.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from marc_dist.config import EXIT_USER, LaunchError
from marc_dist.config.schema import Section
from marc_dist.training.runfolder import checkpoints, write_atomic
from marc_dist.training.signals import EXIT_REQUEUE
from marc_dist.training.watchdog import EXIT_HUNG

JOB = "job.json"
ATTEMPTS = "attempts.jsonl"
SEARCH_LINES = "trials.jsonl"
"""What a search has done, a line an event; see ``tuning/journal.py``."""

Word = Literal["pending", "running", "done", "stopped", "failed", "cancelled", "unknown"]
OVER = frozenset({"done", "stopped", "failed", "cancelled"})
"""Words of a job that does not go on by itself."""
CANCELLED = "cancelled"


class Job(Section):
    """One submitted job; frozen."""

    kind: Literal["local", "slurm", "ray"] = Field(description="what runs it")
    id: str | None = Field(None, description="Slurm's job id, Ray's actor name, HOST:PID:START of a local launcher")
    what: str = Field("train", description="train, eval or tune")
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

    @property
    def numbers(self) -> list[int]:
        """Places in ``run_dirs`` of the elements that this job runs, ascending; empty when it is no array."""
        return self.elements or list(range(len(self.run_dirs)))


class State(NamedTuple):
    """How a job stands.

    Attributes:
        word: in one word.
        detail: the batch system's own word and reason, or what the run folder says.
    """

    word: Word
    detail: str = ""


def new_job(kind: Literal["local", "slurm", "ray"], arguments: Sequence[str], **values: Any) -> Job:
    """A job submitted now, by this user from this machine."""
    return Job(
        kind=kind,
        arguments=list(arguments),
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
        return Job.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        raise LaunchError(f"{run_dir}: no {JOB}; expected the folder of a run that marc-launch has started") from None
    except (OSError, ValueError, ValidationError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise LaunchError(f"{path}: cannot be read ({reason}); start the run again with marc-launch") from None


def element_dir(job_dir: Path, env: Mapping[str, str]) -> Path:
    """The folder of this process's run: an array's element by Slurm's number, else the job's own folder."""
    number = env.get("SLURM_ARRAY_TASK_ID", "")
    run_dirs = read_job(job_dir).run_dirs
    return Path(run_dirs[int(number)]) if run_dirs and number.isdigit() else job_dir


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
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ATTEMPTS).open("a") as file:
        file.write(json.dumps(record) + "\n")


def begin_attempt(run_dir: Path, number: int, hosts: Sequence[str]) -> None:
    """Note that an attempt begins."""
    _append(
        run_dir,
        {"event": "begin", "number": number, "time": time.time(), "step": newest_step(run_dir), "hosts": list(hosts)},
    )


def end_attempt(run_dir: Path, code: int, error: str | None, again: bool, why: str) -> None:
    """Note how the last attempt ended, and whether there will be another; a full disk does not keep it from ending."""
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


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict):
                    yield record


def attempts(run_dir: Path, since: float = 0.0) -> list[Attempt]:
    """All attempts of a run that began after ``since`` (seconds since 1970), oldest first."""
    found: list[Attempt] = []
    for record in _lines(run_dir / ATTEMPTS):
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


def ended(job: Job, run_dir: Path) -> State | None:
    """How a job ended, by its folder alone; None while it goes on, or when nobody could write it down.

    The job's own last word counts, whoever else asked it to end meanwhile.
    """
    mine = attempts(run_dir, job.submitted_at)
    last = mine[-1] if mine else None
    if last is not None and last.ended_at is not None and not last.again:
        if last.why == CANCELLED:
            return State("cancelled", last.error or f"after step {last.last_step}")
        if last.code == 0:
            return State("done")
        word: Word = "stopped" if last.code == EXIT_REQUEUE else "failed"
        return State(word, last.error or last.why or f"exit code {last.code}")
    return None if job.cancelled_at is None else State("cancelled", f"after step {newest_step(run_dir)}")


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
