"""``marc-train``: one process of a training run, or one rank of it under marc-launch, torchrun or srun."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import nullcontext

from marc_dist.cli.command import run_command
from marc_dist.cli.train.words import config_of, parser
from marc_dist.run.rank_ends import failures_noted
from marc_dist.training.signals import StopFlag


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
    with stop.installed() if trains else nullcontext(), failures_noted():  # before torch comes: no signal is lost
        from marc_dist.cli.train import run

        if options.check:
            return run.check(config)
        if options.profile is not None:
            return run.profile(config, options.profile)
        if options.lr_find is not None:
            return run.lr_find(config, int(options.lr_find))
        return run.train(config, stop)
