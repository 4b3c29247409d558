"""``python -m marc_dist.study.worker OUT [JOB_DIR]``: does the tasks of a study, one by one, until none is left.

As many of these as one likes work on one study, on any machine that sees its folder: each takes the first task that
nobody holds. One process does many cells: loading torch takes longer than training a head.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from marc_dist.cluster.rank_process import RANK_VARIABLES
from marc_dist.config import EXIT_USER, ConfigError, MarcError, first_line
from marc_dist.files import append_line
from marc_dist.run.attempts import STUDY_LINES
from marc_dist.run.exit_codes import EXIT_HUNG, EXIT_REQUEUE
from marc_dist.run.rank_ends import node_name
from marc_dist.study.checks import make_plan
from marc_dist.study.plan import Plan, Task
from marc_dist.study.state import (
    Record,
    begun,
    claim,
    clear_starts,
    folder_size,
    is_done,
    mark_failed,
    missing_evaluations,
    note_start,
    note_worker,
    read_record,
    write_record,
)
from marc_dist.study.training import UnsoundError, chosen, lighten, lost_trials, run_search, train_run
from marc_dist.training.signals import StopFlag

STUDY = "study.yaml"
"""The study as it was when the command began; workers read this copy."""
POLL_S = 1.0
LOST = 2
"""Workers in a row that may vanish in a task without bringing it forward; the next one marks it as failed."""
WORKER = "MARC_STUDY_WORKER"
"""Variable with a worker's name, under which it says what it does."""
EXIT_UNSOUND = 70
"""Exit code of a worker that should not go on after an error in a task (EX_SOFTWARE)."""


class Found(NamedTuple):
    """A task and the right to it."""

    task: Task
    lock: Any


class Bench:
    """What one worker knows of the study.

    Args:
        plan: of the study.
        stop: set when this process is asked to save and stop.
    """

    def __init__(self, plan: Plan, stop: StopFlag) -> None:
        self.plan, self.stop = plan, stop
        self.over: dict[str, bool] = {}

    def next(self) -> Found | None | bool:
        """A task to do; True when some are left that others do or wait for; None when all are over."""
        left = False
        for task in self.plan.tasks.values():
            if task.name in self.over or self._is_over(task):
                continue
            if task.needs is not None and task.needs not in self.over:
                left = True
                continue
            lock = claim(self.plan, task)
            if lock is None:
                left = True
                continue
            if not self._is_over(task):  # somebody may have done it just now
                lost = note_start(self.plan, task)
                if lost < LOST:
                    return Found(task, lock)
                self._failed(
                    task,
                    f"{lost} workers in a row ended in it without a word (killed, or out of memory?); "
                    f"log: {self.plan.folder(task)}/logs/study.log",
                )
            lock.release()
        return True if left else None

    def _is_over(self, task: Task) -> bool:
        record = read_record(self.plan.folder(task))
        if record.word == "failed":
            self.over[task.name] = False
        elif is_done(self.plan, task, record):
            self.over[task.name] = True
        elif task.needs is not None and self.over.get(task.needs) is False:
            self._failed(task, f"its search failed: {task.needs}")
        return task.name in self.over

    def _failed(self, task: Task, reason: str) -> None:
        mark_failed(self.plan, task, reason)
        self.over[task.name] = False

    def do(self, task: Task) -> bool:
        """Do a task and write down how it went; whether this process can do another one."""
        folder = self.plan.folder(task)
        with output_into(folder / "logs" / "study.log"):
            try:
                done = {"cell": self._cell, "search": self._search, "floors": self._floors}[task.kind](task)
            except MarcError as error:
                print(f"marc-study: error: {error}", flush=True)
                if error.passing:  # storage that does not answer: the next start goes on
                    raise
                self._failed(task, str(error))
                return True
            except UnsoundError as error:
                if error.reason:
                    self._failed(task, error.reason)
                return False
            except Exception as error:  # nobody knows what state it leaves behind
                traceback.print_exc()
                self._failed(task, f"{type(error).__name__}: {first_line(error)}; log: {folder}/logs/study.log")
                return False
        if done:
            self.over[task.name] = True
        return not self.stop

    def _cell(self, task: Task) -> bool:
        from marc_dist.retrieval.evaluate import evaluate  # torch and FAISS

        plan, folder = self.plan, self.plan.folder(task)
        record, mine = read_record(folder), plan.fingerprint(task)
        config = plan.config(task, chosen(plan, task))
        if record.fingerprint != mine:
            self._refuse_foreign(task)
            record = Record(fingerprint=mine)
            write_record(folder, record)  # first: checkpoints of other settings are told by it
        if "train" not in record.seconds:
            began = time.monotonic()
            if train_run(config, self.stop):
                return False
            spent = time.monotonic() - began
            record = Record(fingerprint=mine, seconds={"train": spent})
            write_record(folder, record)
        for evaluation in plan.evaluations(task.dataset):
            if evaluation.name not in missing_evaluations(plan, task, record):
                continue
            if self.stop:
                return False
            began = time.monotonic()
            evaluate(plan.eval_config(config, evaluation), folder, _say)
            spent = record.seconds.get("evaluate", 0.0) + time.monotonic() - began
            evaluations = {**record.evaluations, evaluation.name: plan.eval_fingerprint(task, evaluation)}
            record = record._replace(seconds={**record.seconds, "evaluate": spent}, evaluations=evaluations)
            write_record(folder, record)
        if plan.study.keep == "scores":
            lighten(folder)
        write_record(folder, record._replace(word="done", reason="", size=folder_size(folder)))
        return True

    def _refuse_foreign(self, task: Task) -> None:
        """Refuse checkpoints and trials that nobody says are this study's: a training would go on from them."""
        if begun(self.plan, task):
            raise ConfigError(
                f"{self.plan.folder(task)}: holds checkpoints or trials of other settings; start the study again with "
                "--again, which removes them"
            )

    def _search(self, task: Task) -> bool:
        folder, began = self.plan.folder(task), time.monotonic()
        record, mine = read_record(folder), self.plan.fingerprint(task)
        if record.fingerprint != mine:
            self._refuse_foreign(task)
            record = Record()
        write_record(folder, record._replace(fingerprint=mine))
        if run_search(self.plan, task, self.stop):
            return False
        spent = {"search": time.monotonic() - began}
        self._done(task, Record(reason=lost_trials(folder), seconds=spent, size=folder_size(folder)))
        return True

    def _floors(self, task: Task) -> bool:
        from marc_dist.study.floors import score_floors  # torch

        folder, began = self.plan.folder(task), time.monotonic()
        score_floors(self.plan, task, _say)
        made = {one.name: self.plan.eval_fingerprint(task, one) for one in self.plan.evaluations(task.dataset)}
        spent = {"floors": time.monotonic() - began}
        self._done(task, Record(evaluations=made, seconds=spent, size=folder_size(folder)))
        return True

    def _done(self, task: Task, record: Record) -> None:
        write_record(self.plan.folder(task), record._replace(word="done", fingerprint=self.plan.fingerprint(task)))


def _say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def output_into(log: Path) -> Iterator[None]:
    """Append what this process and its libraries print inside the block to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, number)
            os.close(kept)


def work(plan: Plan, stop: StopFlag, name: str, job_dir: Path | None = None) -> int:
    """Do tasks until none is left, or this process is asked to stop.

    Args:
        plan: of the study.
        stop: set when this process is asked to save and stop.
        name: under which this worker says what it does.
        job_dir: of a job that a batch system starts again while it gets on: gets a line a task.

    Returns:
        0; ``EXIT_UNSOUND`` after an error that may have left this process unsound: start another; 75 when what it did
        is to be tried again by another; 85 when asked to stop.
    """
    bench = Bench(plan, stop)
    while not stop:
        found = bench.next()
        if found is None:
            return 0
        if isinstance(found, bool):
            time.sleep(POLL_S)
            continue
        note_worker(plan.out, name, found.task.name)
        try:
            sound = bench.do(found.task)
        finally:  # whatever happens, but for an end without a word
            clear_starts(plan, found.task)
            found.lock.release()
            note_worker(plan.out, name, "")
        if job_dir is not None and found.task.name in bench.over:
            append_line(job_dir / STUDY_LINES, f'{{"task": "{found.task.name}"}}'.encode())
        if not sound and not stop:
            return EXIT_UNSOUND if found.task.name in bench.over else EXIT_HUNG
    return EXIT_REQUEUE


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code."""
    out, *rest = sys.argv[1:] if argv is None else argv
    for name in (*RANK_VARIABLES, "MASTER_ADDR", "MASTER_PORT", "MARC_MASTER_FD"):
        os.environ.pop(name, None)  # a cell is one process, which joins nobody
    stop = StopFlag()
    with stop.installed():
        try:
            plan = make_plan(f"{out}/{STUDY}", out)
            name = os.environ.get(WORKER) or f"{node_name()}-{os.getpid()}"
            return work(plan, stop, name, Path(rest[0]) if rest else None)
        except MarcError as error:
            print(f"marc-study: error: {error}", file=sys.stderr, flush=True)
            return EXIT_REQUEUE if error.passing else EXIT_USER


if __name__ == "__main__":
    sys.exit(main())
