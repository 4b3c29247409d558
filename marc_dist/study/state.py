"""How far a study is, from its folder alone: what each task has left, who is at work, and what does not fit any more.

A task is done when its ``task.json`` says so; that is written last. Whoever works on one holds a lock that ends with
the process, so a killed worker leaves nothing to be tidied.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from marc_dist.config import ConfigError, LaunchError
from marc_dist.files import make_folder, read_json, try_lock, write_atomic
from marc_dist.run.attempts import SEARCH_LINES, newest_step
from marc_dist.run.folder import checkpoints
from marc_dist.study.plan import Plan, Task

TASK = "task.json"
WORKERS = ".workers"
CLAIMS = ".claims"
STARTS = ".starts"
LOCK = ".lock"
Word = Literal["open", "done", "failed"]
SHOWN = 5
"""Names in a message; the number of the others follows."""


class Record(NamedTuple):
    """What a task has left behind.

    Attributes:
        word: open until it is over.
        reason: why it failed.
        fingerprint: of what it computed.
        evaluations: name -> fingerprint of those that are there.
        seconds: what took how long: ``train``, ``evaluate``, ``search``, ``floors``.
        size: bytes that its folder holds.
    """

    word: Word = "open"
    reason: str = ""
    fingerprint: str = ""
    evaluations: Mapping[str, str] = {}
    seconds: Mapping[str, float] = {}
    size: int = 0


def read_record(folder: Path) -> Record:
    """The record of a task; an open one where there is none, or a damaged one."""
    try:
        told = read_json(folder / TASK)
        word: Any = told["state"]
        evaluations, seconds = dict(told["evaluations"]), dict(told["seconds"])
        record = Record(word, str(told["reason"]), str(told["fingerprint"]), evaluations, seconds, int(told["size"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Record()
    return record if word in ("done", "failed", "open") else Record()


def write_record(folder: Path, record: Record) -> None:
    """Write it, completely or not at all."""
    told = {"state": record.word, **{k: v for k, v in record._asdict().items() if k != "word"}}
    write_atomic(folder / TASK, (json.dumps(told, indent=1) + "\n").encode())


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def is_done(plan: Plan, task: Task, record: Record | None = None) -> bool:
    """Whether nothing is left to do: it is done, with the settings and all evaluations that the study wants.

    Args:
        plan: of the study.
        task: of it.
        record: what it has left; None = read now.
    """
    record = read_record(plan.folder(task)) if record is None else record
    same = record.fingerprint == plan.fingerprint(task)
    return record.word == "done" and same and not missing_evaluations(plan, task, record)


def missing_evaluations(plan: Plan, task: Task, record: Record) -> list[str]:
    """Names of evaluations that are not there, or were made otherwise.

    Args:
        plan: of the study.
        task: of it.
        record: what it has left.
    """
    if task.kind == "search":
        return []
    wanted = {one.name: plan.eval_fingerprint(task, one) for one in plan.evaluations(task.dataset)}
    return [name for name, value in wanted.items() if record.evaluations.get(name) != value]


def changed(plan: Plan) -> list[Task]:
    """Tasks whose folder holds what another study made: its settings were others, or its data; or nobody knows."""
    found = []
    for task in plan.tasks.values():
        record = read_record(plan.folder(task))
        if record.fingerprint != plan.fingerprint(task) and (record.fingerprint or begun(plan, task)):
            found.append(task)
    return found


def unscorable(plan: Plan) -> dict[str, list[str]]:
    """Cells that are done, but for evaluations that came later, and whose encoder was not kept: name -> evaluations."""
    found = {}
    for task in plan.tasks.values():
        record = read_record(plan.folder(task))
        if record.word != "done" or record.fingerprint != plan.fingerprint(task) or _can_score(plan, task):
            continue
        if missing := missing_evaluations(plan, task, record):
            found[task.name] = missing
    return found


def _can_score(plan: Plan, task: Task) -> bool:
    """Whether a cell that is done can be scored once more: its encoder is there."""
    return task.kind != "cell" or (plan.folder(task) / "encoder.json").is_file()


def refuse_changed(plan: Plan, *, again: bool) -> list[str]:
    """Refuse a folder whose cells were made with other settings, or clear these; names of what was cleared.

    Args:
        plan: what is to be done now.
        again: remove what does not fit, to be made again.

    Raises:
        ConfigError: names cells, and what to do.
    """
    other, gone = [task.name for task in changed(plan)], unscorable(plan)
    if other and not again:
        raise ConfigError(
            f"{plan.out}: {len(other)} made with other settings than {plan.path} has now, or with unknown ones: "
            f"{_first(other)}; change the file back, choose another --out, or remove and repeat these with --again"
        )
    if gone and not again:
        evaluations = ", ".join(dict.fromkeys(name for names in gone.values() for name in names))
        raise ConfigError(
            f"{plan.out}: evaluations.{evaluations}: new to {len(gone)} cells whose encoders were not kept "
            f"(keep: scores): {_first(list(gone))}; leave it out, choose another --out, or train these again with "
            "--again"
        )
    names = [*other, *gone]
    if names:
        with no_workers(plan):
            for name in names:
                _remove(plan.folder(plan.tasks[name]))
    return names


def _first(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@contextmanager
def no_workers(plan: Plan) -> Iterator[None]:
    """Hold every claim of a study's folder: no worker of a cluster can be at anything meanwhile.

    Raises:
        LaunchError: one is at work.
    """
    with ExitStack() as held:
        for path in sorted((plan.out / CLAIMS).glob("*")):
            if path.suffix == STARTS:
                continue
            lock = try_lock(path)
            if lock is None:
                raise LaunchError(
                    f"{plan.out}: a worker is at {path.name.replace('__', '/')}; wait for it, or end the workers with "
                    f"marc-jobs cancel {plan.out}/jobs"
                )
            held.callback(lock.release)
        yield


def _remove(folder: Path) -> None:
    """Take a task's folder away: at once, so that no crash leaves checkpoints without the record they belong to.

    Raises:
        LaunchError: it cannot be moved.
    """
    away = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(away, ignore_errors=True)
    try:
        folder.rename(away)
    except OSError as error:
        raise LaunchError(f"{folder}: cannot be removed ({error.strerror}); remove it by hand") from None
    shutil.rmtree(away, ignore_errors=True)


def mark_failed(plan: Plan, task: Task, reason: str) -> None:
    """Write down that a task has failed; checkpoints of other settings do not become its own by that.

    Args:
        plan: of the study.
        task: of it.
        reason: for people.
    """
    folder, mine = plan.folder(task), plan.fingerprint(task)
    record = read_record(folder)
    foreign = record.fingerprint != mine and begun(plan, task)
    fingerprint = record.fingerprint if foreign else mine
    write_record(folder, record._replace(word="failed", reason=reason, fingerprint=fingerprint))


def forget_failures(plan: Plan) -> None:
    """Let what failed be tried again, and what workers were lost in."""
    for task in plan.tasks.values():
        clear_starts(plan, task)
        record = read_record(plan.folder(task))
        if record.word == "failed":
            write_record(plan.folder(task), record._replace(word="open", reason=""))


def begun(plan: Plan, task: Task) -> bool:
    """Whether a task has left checkpoints or scored trials: an interrupted one goes on from there."""
    folder = plan.folder(task)
    return bool(checkpoints(folder)) or (folder / SEARCH_LINES).is_file()


@contextmanager
def study_lock(out: Path) -> Iterator[None]:
    """Hold a study's folder against a second command that runs it.

    Raises:
        LaunchError: another one does.
    """
    try:
        make_folder(out)
        lock = try_lock(out / LOCK)
    except OSError as error:
        raise LaunchError(f"{out}: cannot be used ({error.strerror}); choose another --out") from None
    if lock is None:
        raise LaunchError(f"{out}: another marc-study runs here; wait for it, or choose another --out")
    with lock:
        yield


def claim(plan: Plan, task: Task) -> Any | None:
    """The right to work on a task, to be released; None while somebody else has it.

    Raises:
        LaunchError: the folder cannot be written, or has no locks.
    """
    path = _claim_path(plan, task)
    try:
        make_folder(path.parent)
        return try_lock(path)
    except OSError as error:
        raise LaunchError(
            f"{path.parent}: cannot be locked ({error.strerror}); put the study's folder where locks work"
        ) from None


def _claim_path(plan: Plan, task: Task) -> Path:
    return plan.out / CLAIMS / task.name.replace("/", "__")


def _starts_path(plan: Plan, task: Task) -> Path:
    path = _claim_path(plan, task)
    return path.with_name(path.name + STARTS)


def note_start(plan: Plan, task: Task) -> int:
    """Write down that a worker begins a task, which it has claimed.

    Args:
        plan: of the study.
        task: of it.

    Returns:
        How many workers in a row began it before, brought it no further, and ended without ``clear_starts``.
    """
    path, stand = _starts_path(plan, task), _stand(plan.folder(task))
    lost = 0
    with suppress(OSError, ValueError, KeyError, TypeError):
        told = read_json(path)
        lost = int(told["starts"]) if told["stand"] == stand else 0
    write_atomic(path, json.dumps({"starts": lost + 1, "stand": stand}).encode())
    return lost


def _stand(folder: Path) -> list[int]:
    """How far a task is: steps of a cell, its evaluations, steps of all trials of a search, trials that are over."""
    over = 0
    with suppress(OSError):
        over = (folder / SEARCH_LINES).read_bytes().count(b'"event": "end"')
    trials = sum(newest_step(trial) for trial in (folder / "trials").glob("*"))
    steps = max((int(path.stem.rpartition("-")[2]) for path in checkpoints(folder)), default=0)
    return [steps, len(read_record(folder).evaluations), trials, over]


def clear_starts(plan: Plan, task: Task) -> None:
    """Say that whoever began a task has not been lost in it."""
    _starts_path(plan, task).unlink(missing_ok=True)


class Worker(NamedTuple):
    """What a worker says of itself."""

    name: str
    task: str
    since: float


def note_worker(out: Path, name: str, task: str) -> None:
    """Say what a worker does now.

    Args:
        out: of the study.
        name: of the worker.
        task: name of what it does; empty for nothing.
    """
    write_atomic(out / WORKERS / f"{name}.json", json.dumps({"task": task, "since": time.time()}).encode())


def read_workers(out: Path, names: Iterable[str]) -> list[Worker]:
    """What these workers do, those that do something."""
    found = []
    for name in names:
        with suppress(OSError, ValueError, KeyError, TypeError):
            told = read_json(out / WORKERS / f"{name}.json")
            if told["task"]:
                found.append(Worker(name, str(told["task"]), float(told["since"])))
    return found
