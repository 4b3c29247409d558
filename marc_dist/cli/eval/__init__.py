"""``marc-eval``: search with an encoder, score what it finds, write the report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from marc_dist.cli.command import run_command
from marc_dist.cli.eval.words import config_and_folder, parser
from marc_dist.run.rank_ends import failures_noted


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code. torch and FAISS are imported when there is something to score."""
    options = parser().parse_intermixed_args(argv)
    return run_command("marc-eval", lambda: _evaluate(options))


def _evaluate(options: argparse.Namespace) -> int:
    found = config_and_folder(options)
    if found is None:
        return 0
    with failures_noted():
        from marc_dist.cli.eval import run

        return run.evaluate(*found, report=not options.no_report)
