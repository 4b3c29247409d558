"""One training or one search inside this process: what ``marc-train`` and ``marc-tune`` do, without starting Python."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from marc_dist.config import EXIT_USER, Config, LaunchError, MarcError, first_line, load_config
from marc_dist.run.attempt_id import AttemptId
from marc_dist.run.exit_codes import EXIT_HUNG
from marc_dist.run.folder import prepare
from marc_dist.run.rank_ends import node_name, note_failure
from marc_dist.run.run_lock import RunLock
from marc_dist.study.plan import Plan, Task
from marc_dist.study.study_file import Settings
from marc_dist.training.signals import StopFlag
from marc_dist.tuning.driver import Recorder, begin, open_search
from marc_dist.tuning.journal import Journal, alone
from marc_dist.tuning.state import DIVERGED, Search, Trial
from marc_dist.tuning.trial import prepare_trial, reported

HEAVY = ("encoder.safetensors", "head.safetensors", "encoder.json", "checkpoints", "embeddings")
"""What a cell that is scored can do without."""


def train_run(config: Config, stop: StopFlag) -> bool:
    """Train a run as ``marc-train`` would, from its newest checkpoint; whether it was asked to stop before its end.

    Args:
        config: of the run.
        stop: set when this process is asked to save and stop.

    Raises:
        MarcError: what a person can mend.
    """
    from marc_dist.training.trainer import run_rank  # torch

    lock = RunLock(Path(config.train.run_dir), AttemptId(), _leave(EXIT_USER))
    with lock.held(_say):
        prepare(config)
        return run_rank(config, stop=stop, give_up=_leave(EXIT_HUNG)).interrupted


def _say(text: str) -> None:
    print(text, flush=True)


def _leave(code: int) -> Callable[[str], None]:
    def leave(reason: str) -> None:
        """End this process at once, from another thread."""
        note_failure(reason)
        print(f"marc-study: error: {reason}", file=sys.stderr, flush=True)
        os._exit(code)

    return leave


STARTS = 3
"""Errors of a trial that nobody can explain, each in a process of its own, before its search is given up."""


class UnsoundError(Exception):
    """A trial ended by an error that may have left this process unsound; another one tries it again.

    Args:
        reason: why it is not tried again; empty where it is.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


def run_search(plan: Plan, task: Task, stop: StopFlag) -> bool:
    """Run the trials of a search that are left, one after the other; whether it was asked to stop before its end.

    A trial whose loss was not finite is a result, a bad one. Any other failure ends the search for now: with fewer
    trials a loss would have a smaller budget than the others. The next start of the study tries that trial again.

    Args:
        plan: of the study.
        task: a search.
        stop: see ``train_run``.

    Raises:
        MarcError: of a trial, which keeps the search from going on; or no trial was trained to its end.
        UnsoundError: of a trial, something else.
    """
    folder = plan.folder(task)
    _, wanted = plan.search_plan(task)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        begin(folder, wanted, resume=True)
        search = open_search(folder, Journal(folder))
        recorder = Recorder(search, folder, lambda: None)
        while (run := search.next()) is not None:
            if _run_trial(search, run, folder, stop):
                return True
            recorder.show()
        recorder.write()
        if plan.study.keep == "scores":
            for trial in sorted((folder / "trials").iterdir()):
                lighten(trial)
    lost = [run for run in search.runs.values() if run.state == "failed" and not run.diverged]
    if lost:
        raise LaunchError(
            f"{folder}: trial {lost[0].name} has failed: {lost[0].reason}; remove the folder to search anew"
        )
    if not search.finished():
        reasons = [run.reason for run in search.runs.values() if run.reason]
        raise LaunchError(f"{folder}: no trial was trained to its end; {reasons[-1] if reasons else 'see its logs'}")
    return False


def _run_trial(search: Search, run: Trial, folder: Path, stop: StopFlag) -> bool:
    """Train a trial and write down how it went; whether it was asked to stop before its end."""
    run_dir = prepare_trial(search, run, folder)
    search.began(run, node_name())
    interrupted, code, reason = False, 0, ""
    try:
        interrupted = train_run(load_config(run_dir / "config.yaml"), stop)
    except MarcError as error:
        if DIVERGED not in str(error):
            raise type(error)(f"trial {run.name}: {error}") from error
        code, reason = EXIT_USER, str(error)
    except Exception as error:
        traceback.print_exc()
        search.ended(run, 1, reason := f"{type(error).__name__}: {first_line(error)}")
        told = f"trial {run.name}: failed {STARTS} times in a row: {reason}; log: {folder}/logs/study.log"
        raise UnsoundError("" if run.faults % STARTS else told) from error
    for row in reported(run_dir):
        search.report(run, row)
    if interrupted:
        return True
    search.ended(run, code, reason)
    if run.state == "open":
        raise LaunchError(f"trial {run.name}: {run.reason}; log: {folder}/logs/study.log")
    return False


def lost_trials(folder: Path) -> str:
    """One line on the trials of a search whose loss was not finite; empty where there are none."""
    search = open_search(folder, Journal(folder))
    failed = [run for run in search.runs.values() if run.state == "failed"]
    return f"{len(failed)} of {len(search.runs)} trials failed, the last: {failed[-1].reason}" if failed else ""


def chosen(plan: Plan, task: Task) -> Settings:
    """What the search that a cell needs has chosen; nothing where it needs none.

    Raises:
        ConfigError: there is no such search yet.
        LaunchError: it has found nothing.
    """
    if task.needs is None:
        return {}
    folder = plan.out / task.needs
    search = open_search(folder, Journal(folder))
    ranked = search.finished()
    if not ranked:
        raise LaunchError(f"{folder}: no trial was trained to its end")
    return search.space.settings(search.points[ranked[0]])


def lighten(run_dir: Path) -> None:
    """Take away what only a further training or search of this encoder would need."""
    for name in HEAVY:
        path = run_dir / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                path.unlink()
