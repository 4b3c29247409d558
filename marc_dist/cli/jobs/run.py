"""What ``marc-jobs`` does. Nothing here imports torch: people ask on a login node."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from marc_dist.cli.jobs.listing import Ask, print_table, rows
from marc_dist.cli.jobs.status import facts, print_facts
from marc_dist.cluster import backends
from marc_dist.cluster.follow import follow, follow_job, last_lines
from marc_dist.cluster.preset import KINDS, PREFIX
from marc_dist.cluster.slurm import spans
from marc_dist.config import ConfigError, LaunchError, MarcError, build, load_config, parse_words, user_path
from marc_dist.config.suggest import suggestion
from marc_dist.run.exit_codes import EXIT_INTERRUPTED
from marc_dist.run.folder import log_path
from marc_dist.run.job import OVER, Job, State, new_job, read_job


def _run_dir(text: str) -> Path:
    """A run folder that somebody named.

    Raises:
        LaunchError: no such folder.
    """
    path = user_path(text)
    if not path.is_dir():
        raise LaunchError(f"{path}: no such run folder; marc-jobs list DIR shows those below DIR")
    return path


def _state(job: Job, run_dir: Path, ask: Ask = backends.state) -> State:
    """How a job stands; ``unknown`` with the reason when whoever runs it cannot be asked from here."""
    try:
        return ask(job, run_dir)
    except (MarcError, ImportError) as error:
        return State("unknown", str(error))


def _list(options: argparse.Namespace) -> int:
    places = [Path(place).expanduser() for place in options.dirs or ["runs"]]
    for place in places:
        if options.dirs and not place.is_dir():
            raise LaunchError(f"{place}: no such folder{suggestion(str(place), ACTIONS)}")
    found = rows(places, _state)
    if options.json:
        _print_json(found)
    elif found:
        print_table(found)
    else:
        where = ", ".join(str(place.absolute()) for place in places)
        print(
            f"no job in {where}; start one with marc-launch local run.yaml, or look elsewhere with marc-jobs list DIR"
        )
    return 0


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1))


def _status(options: argparse.Namespace) -> int:
    run_dir = _run_dir(options.run)
    job = read_job(run_dir)
    known = facts(run_dir, job, _state(job, run_dir))
    if options.json:
        _print_json(known)
    else:
        print_facts(known)
    return 0


def _ranks(text: str, job: Job, run_dir: Path) -> list[int] | None:
    if job.run_dirs:
        raise LaunchError(f"{run_dir}: an array of {len(job.run_dirs)} runs; name one, such as {job.run_dirs[0]}")
    if text == "all":
        return None
    if not text.isdigit() or int(text) >= job.world:
        raise LaunchError(f"--rank: expected 0 to {job.world - 1}, or all, got {text}")
    return [int(text)]


def _logs(options: argparse.Namespace) -> int:
    run_dir = _run_dir(options.run)
    job = read_job(run_dir)
    ranks, out = _ranks(options.rank, job, run_dir), sys.stdout.buffer
    missing = not _has_log(run_dir, ranks)
    if not options.follow:
        if missing:
            _tell_missing(run_dir, options.rank, _state(job, run_dir), options.lines)
        follow(run_dir, out, ranks=ranks, over=lambda: True, lines=options.lines)
        return 0
    try:
        state = follow_job(run_dir, job, out, lambda: _state(job, run_dir), ranks=ranks, lines=options.lines)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if missing and not _has_log(run_dir, ranks):
        _tell_missing(run_dir, options.rank, state, options.lines)
    else:
        print(f"{run_dir}: {state}", file=sys.stderr)
    return 0


def _has_log(run_dir: Path, ranks: Sequence[int] | None) -> bool:
    if ranks is None:
        return any((run_dir / "logs").glob("rank-*.log"))
    return any(log_path(run_dir, rank).exists() for rank in ranks)


def _tell_missing(run_dir: Path, rank: str, state: State, lines: int) -> None:
    """Why there is no log yet, and what the batch script said so far."""
    who = "no rank" if rank == "all" else f"rank {rank}"
    print(f"{run_dir}: {who} has {'' if rank == 'all' else 'not '}started: {state}", file=sys.stderr, flush=True)
    batch = sorted((run_dir / "slurm").glob("*.out"), key=lambda path: path.stat().st_mtime)
    if batch:
        print(f"--- {batch[-1]}", file=sys.stderr, flush=True)
        with batch[-1].open("rb") as file:
            file.seek(last_lines(file, lines))
            sys.stdout.buffer.write(file.read())
            sys.stdout.buffer.flush()


def _cancel(options: argparse.Namespace) -> int:
    errors: list[str] = []
    asked: list[tuple[Path, Job]] = []
    for text in options.runs:
        try:
            run_dir = _run_dir(text)
            job = read_job(run_dir)
            state = _state(job, run_dir, backends.own_state)
            if state.word in OVER:
                print(f"{run_dir}: already over: {state}")
                continue
            what = backends.cancel(job, run_dir)
            print(f"{run_dir}: {job.kind} job {job.id or 'without an id'} {what}", flush=True)
            asked.append((run_dir, read_job(run_dir)))  # it says now that it was cancelled: Slurm may forget it at once
        except MarcError as error:  # the others are asked all the same
            errors.append(str(error))
    late = [] if options.no_wait else _wait(asked, options.timeout, errors)
    if errors:
        raise LaunchError("; ".join(errors))
    return 1 if late else 0


def _wait(asked: Sequence[tuple[Path, Job]], limit_s: float, errors: list[str]) -> list[Path]:
    """Wait for the end of jobs; those that are not over in time. What keeps one from its end goes into ``errors``."""
    deadline = time.monotonic() + limit_s
    late = []
    for run_dir, job in asked:
        try:
            backends.end_cancelled(job, run_dir, max(0.0, deadline - time.monotonic()))
        except MarcError as error:  # the others are waited for all the same
            errors.append(str(error))
        state = _state(job, run_dir, backends.own_state)
        while state.word not in OVER and time.monotonic() < deadline:
            time.sleep(0.3 if job.kind == "local" else 2.0)
            state = _state(job, run_dir, backends.own_state)
        if state.word in OVER:
            print(f"{run_dir}: {state}", flush=True)
        else:
            late.append(run_dir)
            print(f"{run_dir}: still {state} after {limit_s:g} s; look again with marc-jobs status {run_dir}")
    return late


def _resume(options: argparse.Namespace) -> int:
    run_dir = _run_dir(options.run).absolute()
    before = read_job(run_dir)
    state, array = _state(before, run_dir, backends.own_state), bool(before.run_dirs)
    watch = f"marc-jobs {'list' if array else 'logs -f'} {options.run}"
    if state.word == "done" and not array:  # of an array, elements may have been started by themselves since
        print(f"{options.run}: already {state}; nothing to go on with")
        return 0
    if state.word in ("pending", "running"):
        raise LaunchError(
            f"{options.run}: {state}; watch it with {watch}, or end it first with marc-jobs cancel {options.run}"
        )
    if state.word == "unknown" and before.id is not None and not options.force:
        raise LaunchError(f"{options.run}: {state}; when it has surely ended, use --force")
    job = _again(before, run_dir, options)
    if array:
        left, others = backends.unfinished(before)
        for folder, how in others.items():
            print(f"{folder}: left out, it is {how}")
        if not left:
            done = len(before.run_dirs) - len(others)
            print(f"{options.run}: {done} of {len(before.run_dirs)} elements are done; nothing to hand in")
            return 0
        job = job.model_copy(update={"elements": left})
    if job.kind == "local":
        if Path(job.cwd).is_dir():  # where relative paths of its settings begin
            os.chdir(job.cwd)
        return backends.run_local(job, run_dir, sys.stdout.buffer)
    job = backends.submit(job, run_dir)
    size = f"{job.nodes} x {job.procs_per_node} processes"
    if array:
        size = f"{_names(job)}, {size} each"
    print(f"{options.run}: {job.kind} job {job.id}, {size}; watch it with {watch}")
    return 0


def _names(job: Job) -> str:
    """``elements 1,4-7 of 9 (seed-1, ...)``."""
    names = [Path(job.run_dirs[number]).name for number in job.numbers]
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"elements {spans(job.numbers)} of {len(job.run_dirs)} ({shown})"


def _again(before: Job, run_dir: Path, options: argparse.Namespace) -> Job:
    """The next job of a run: the same work, with the preset as it was but for what the command line says.

    Raises:
        ConfigError: a word that is not of the preset, or a value outside its range.
        LaunchError: several nodes for a local job.
    """
    strange = [word for word in options.words if not word.startswith(PREFIX)]
    if strange:
        raise ConfigError(f"{strange[0]}: a run goes on with its own settings; expected cluster.key=value words")
    if before.kind == "local" and options.nodes not in (None, 1):
        raise LaunchError(f"--nodes: a local job is this one machine, got {options.nodes}; use --procs-per-node")
    given = {key.removeprefix(PREFIX): value for key, value in parse_words(options.words).items()}
    stronger: dict[str, Any] = {}
    if options.procs_per_node is not None:
        stronger["procs_per_node"] = options.procs_per_node
    if options.nodes is not None and before.kind != "local":
        stronger["nodes"] = options.nodes
    preset = build(KINDS[before.kind], before.preset, given, stronger, place=PREFIX)
    file = run_dir / "config.yaml"
    nodes, procs = backends.size_of(preset, load_config(file if file.is_file() else None).train.device)
    arguments = list(before.arguments)
    if before.what == "train" and not before.run_dirs:
        arguments[-1] = str(run_dir)  # the folder may have been moved
    job = new_job(
        before.kind,
        arguments,
        what=before.what,
        run_dirs=before.run_dirs,
        nodes=nodes,
        procs_per_node=procs,
        preset=preset.model_dump(mode="json"),
    )
    return job.model_copy(update={"cwd": before.cwd})


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "list": _list,
    "status": _status,
    "logs": _logs,
    "cancel": _cancel,
    "resume": _resume,
}
"""What is done for each action of the command line; the exit code."""
