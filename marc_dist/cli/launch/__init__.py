"""``marc-launch``: start a training, an evaluation or a search where a preset says: this machine, Slurm or Ray."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from marc_dist.cli.command import run_command
from marc_dist.cli.launch.words import check_words, read_words


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code. It imports no torch; the processes that it starts do."""
    options, search_words = read_words(argv)
    return run_command("marc-launch", lambda: _launch(options, search_words))


def _launch(options: argparse.Namespace, search_words: list[str] | None) -> int:
    check_words(options)
    if search_words is not None:
        from marc_dist.cli.launch import search_job

        return search_job.launch(options, search_words)
    from marc_dist.cli.launch import job

    planned = job.planned_launch(options)
    if job.print_if_asked(planned, options):
        return 0
    from marc_dist.cli.launch import run

    return run.launch(planned, options)
