"""``marc-eval``: search with an encoder, score what it finds, write the report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from marc_dist.cli.command import run_command
from marc_dist.cli.eval.words import asked, parser
from marc_dist.run.rank_ends import failures_noted


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code. torch and FAISS are imported when there is something to score."""
    options = parser().parse_intermixed_args(argv)
    return run_command("marc-eval", lambda: _evaluate(options))


def _evaluate(options: argparse.Namespace) -> int:
    found = asked(options)
    if found is None:
        return 0
    with failures_noted():
        from marc_dist.cli.eval import run

        if options.list:
            return run.show_list(found)
        if len(found.runs) > 1:
            return run.compare(found, csv_file=options.csv, report=not options.no_report)
        _, folder, config = found.runs[0]
        if options.export is not None:
            return run.export(config, folder, options.export, licence=options.license, onnx=options.onnx)
        return run.evaluate(config, folder, report=not options.no_report)
