"""What ``marc-tune`` does: run the trials of a search on Ray or in processes of this machine, and report."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from marc_dist.cli.tune.plan import planned_search
from marc_dist.cli.tune.words import place_of_trials, where_words
from marc_dist.cluster.local import visible_gpus
from marc_dist.config import Config, ConfigError, build, user_path
from marc_dist.data.dataset import open_dataset
from marc_dist.training.trackers.mirrors import require_trackers
from marc_dist.training.validation.scores import check_groups
from marc_dist.tuning.driver import Recorder, ahead_of, begin, extend, open_search, require_folder
from marc_dist.tuning.journal import SEARCH, Journal, SearchPlan, alone, read_plan, write_rows
from marc_dist.tuning.local_executor import LocalTrials, Size, local_size
from marc_dist.tuning.progress_table import Board, print_end
from marc_dist.tuning.ray_executor import ray_cluster, ray_size, run_on_ray
from marc_dist.tuning.report import write_report
from marc_dist.tuning.state import Search
from marc_dist.tuning.trial import write_best


def tune(options: argparse.Namespace) -> int:
    """Begin a search, go on with one, or report on one; the exit code.

    Raises:
        ConfigError: a fault in the words.
        DataError: no such shards, or too few samples to score trials.
    """
    if options.report:
        return _report(user_path(options.report))
    if options.resume and not options.arguments:
        folder = user_path(options.resume).absolute()
        if options.out:
            raise ConfigError(f"--out: the search lies in {folder}, given with --resume; leave --out away")
        plan = read_plan(folder)
        return _search(options, folder, plan, str(plan.base["train.device"]), known=True)
    folder, plan, device = planned_search(options)
    return 0 if options.show else _search(options, folder, plan, device, known=False)


def _search(options: argparse.Namespace, folder: Path, plan: SearchPlan, device: str, *, known: bool) -> int:
    """Run the trials that are left; the exit code."""
    _check_data(plan)
    require_folder(folder)
    console = Console(highlight=False)
    with alone(folder), ExitStack() as stack:
        if known:
            plan = extend(folder, trials=options.trials, retries=options.retries)
        elif (folder / SEARCH).is_file():  # refused before Ray starts
            plan = begin(folder, plan, resume=options.resume is not None)
            known = True
        ray, size, fit = stack.enter_context(_executor(options, device))
        concurrent = _concurrent(options, fit, plan)
        if not known:
            plan = begin(folder, plan.model_copy(update={"ahead": ahead_of(concurrent)}), resume=False)
        search = open_search(folder, Journal(folder))
        _greet(console, search, folder, concurrent, options)
        recorder = None
        try:
            with Board(search, console) as board:
                recorder = Recorder(search, folder, board.show)
                recorder.show()
                _execute(ray, search, folder, size, concurrent, recorder)
        except KeyboardInterrupt:
            words = shlex.join(["--resume", str(folder), *where_words(options)])
            console.print(f"stopped; go on with: marc-tune {words}", markup=False, soft_wrap=True)
            raise
        finally:
            if recorder is not None:
                recorder.write()
    best = recorder.write()
    report = None if best is None else write_report(search, folder)
    print_end(search, folder, best, report, console)
    return 0 if best is not None else 1


def _report(folder: Path) -> int:
    search = open_search(folder, Journal(folder))
    write_rows(folder, search.rows())
    print_end(search, folder, write_best(search, folder), write_report(search, folder), Console(highlight=False))
    return 0


def _check_data(plan: SearchPlan) -> None:
    """Shards, split, validation samples and trackers are there; reported now, not by every trial."""
    config = build(Config, plan.base)
    require_trackers(config)
    check_groups(open_dataset(config.data.dir), config.data, plan.objectives)


@contextmanager
def _executor(options: argparse.Namespace, device: str) -> Iterator[tuple[Any, Size, int]]:
    """The module ``ray`` connected (None for the local executor), a trial's size, and trials at a time."""
    executor, address = place_of_trials(options, os.environ)
    if executor == "local":
        size = _size(options, device, visible_gpus(os.environ))
        yield None, size, local_size(size)
        return
    with ray_cluster(address, options.connect_timeout) as ray:
        size = _size(options, device, ray.cluster_resources().get("GPU", 0))
        yield ray, size, ray_size(ray, size)


def _size(options: argparse.Namespace, device: str, have_gpus: float) -> Size:
    gpus = options.gpus_per_proc
    if gpus is None:
        gpus = 1.0 if have_gpus and device != "cpu" else 0.0
    return Size(options.procs_per_trial, options.cpus_per_proc, gpus, options.concurrent)


def _concurrent(options: argparse.Namespace, fit: int, plan: SearchPlan) -> int:
    """Trials at a time: as many as fit, but so few by default that later trials learn from earlier ones."""
    if options.concurrent is not None or plan.how == "grid":
        return fit
    return min(fit, max(1, -(-plan.trials // 4)))


def _execute(ray: Any, search: Any, folder: Path, size: Size, concurrent: int, recorder: Any) -> None:
    if ray is not None:
        run_on_ray(search, folder, size, concurrent, recorder.show)
        return
    LocalTrials(search, folder, replace(size, concurrent=concurrent), recorder.show).go()


def _greet(console: Any, search: Search, folder: Path, concurrent: int, options: argparse.Namespace) -> None:
    plan = search.plan
    executor, address = place_of_trials(options, os.environ)
    where = "processes of this machine" if executor == "local" else f"Ray at {address or 'this machine'}"
    early = f"early stopping from epoch {plan.grace} on" if plan.grace else "no early stopping"
    console.print(
        f"{folder}: {plan.space}, {plan.how}, {search.num_settings} settings x {plan.seeds} seed(s) x "
        f"{plan.epochs} epochs, {early}; {concurrent} at a time on {where}",
        markup=False,
        soft_wrap=True,
    )
