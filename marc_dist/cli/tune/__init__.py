"""``marc-tune``: search settings with Ray Tune; every trial is an ordinary training run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from marc_dist.cli.command import run_command
from marc_dist.cli.tune.words import check_words, parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code. The search is imported once the words are sound; Ray only if it runs there."""
    options = parser().parse_intermixed_args(argv)
    return run_command("marc-tune", lambda: _tune(options))


def _tune(options: argparse.Namespace) -> int:
    check_words(options)
    from marc_dist.cli.tune import run

    return run.tune(options)
