"""What ``marc-eval`` does: embed, search, score, and write tables and report."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from marc_dist.config import Config, printable
from marc_dist.report.run_report import write_report
from marc_dist.report.text_tables import print_tables
from marc_dist.retrieval.evaluate import evaluate_rank
from marc_dist.run.evaluations import METRICS_FILE, evaluation_folder


def evaluate(config: Config, folder: Path, *, report: bool) -> int:
    """Score an encoder as one rank; rank 0 writes and prints; the exit code.

    Args:
        config: the settings, ``eval.*`` first of all.
        folder: where the encoder lies, and where the evaluation is kept.
        report: whether ``report.html`` and ``panel.png`` are written, too.
    """
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    summary, speaks = evaluate_rank(config, folder, lambda line: errors.print(printable(line), markup=False))
    if not speaks:
        return 0
    page = write_report(config, folder) if report else None
    print_tables(summary, Console(highlight=False))
    print(f"scores: {evaluation_folder(folder, config.eval.protocol, config.eval.name) / METRICS_FILE}")
    if page is not None:
        print(f"report: {page}")
    return 0
