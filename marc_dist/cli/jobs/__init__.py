"""``marc-jobs``: what runs, where, how far; its logs, its end, and how it goes on. From the run folders alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from marc_dist.cli.command import run_command
from marc_dist.cli.jobs.words import check_words, read_words


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code. No command of it imports torch."""
    options = read_words(argv)
    return run_command("marc-jobs", lambda: _jobs(options))


def _jobs(options: argparse.Namespace) -> int:
    check_words(options)
    from marc_dist.cli.jobs import run

    return run.ACTIONS[options.action](options)
