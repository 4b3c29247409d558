"""``marc-train``: one process of a training run, or one rank of it under marc-launch, torchrun or srun."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from marc_dist.cli.command import run_command
from marc_dist.cli.train.words import config_of, parser
from marc_dist.config import EXIT_USER
from marc_dist.place import place_from_env
from marc_dist.run.attempt_id import attempt_from_env
from marc_dist.run.rank_ends import failures_noted, note_failure
from marc_dist.run.run_lock import RunLock
from marc_dist.training.signals import StopFlag

if TYPE_CHECKING:
    from marc_dist.config import Config


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code. torch is imported when there is something to train."""
    options = parser().parse_intermixed_args(argv)
    return run_command("marc-train", lambda: _train(options))


def _train(options: argparse.Namespace) -> int:
    config = config_of(options)
    if config is None:
        return 0
    if options.profile is not None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch comes: its tracer's talk is not for people
    stop = StopFlag()
    trains = not options.check and options.profile is None and options.lr_find is None
    installed, ours = stop.installed() if trains else nullcontext(), as_rank(config) if trains else failures_noted()
    with installed, ours:  # before torch: no signal is lost
        from marc_dist.cli.train import run

        if options.check:
            return run.check(config)
        if options.profile is not None:
            return run.profile(config, options.profile)
        if options.lr_find is not None:
            return run.lr_find(config, int(options.lr_find))
        return run.train(config, stop)


@contextmanager
def as_rank(config: Config) -> Iterator[None]:
    """The run folder is this run's inside the block; the launcher learns why the rank fails before it tidies up."""
    with failures_noted(), _right_to(config), failures_noted():
        yield


def _right_to(config: Config) -> AbstractContextManager[None]:
    """The run folder is this run's alone while it trains; rank 0 takes it for all.

    Raises:
        LaunchError: another run is live there.
    """
    if place_from_env(os.environ).rank != 0:
        return nullcontext()
    lock = RunLock(Path(config.train.run_dir), attempt_from_env(os.environ), _end)
    return lock.held(lambda text: print(text, flush=True))


def _end(reason: str) -> None:
    """End this rank at once, from another thread: its folder has gone, or is another run's."""
    note_failure(reason)
    print(f"marc-train: error: {reason}", file=sys.stderr, flush=True)
    os._exit(EXIT_USER)
