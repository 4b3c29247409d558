"""``marc-study``: losses x data sets x encoders x seeds, as one folder of runs with tables and tests."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from marc_dist.cli.command import run_command
from marc_dist.cli.study.words import check_words, parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code. It imports no torch; the workers that it starts do."""
    options = parser().parse_args(argv)
    return run_command("marc-study", lambda: _study(options))


def _study(options: argparse.Namespace) -> int:
    check_words(options)
    from marc_dist.cli.study import run

    return run.study(options)
