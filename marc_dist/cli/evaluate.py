"""``marc-eval``: search with an encoder, score what it finds, write the report."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from marc_dist.config import Config

EPILOG = """\
RUN/eval then holds metrics.json, per_label.csv, per_query.parquet, map.parquet and panel.png; RUN/report.html shows it
all. Vectors are kept in RUN/embeddings: another evaluation of the same encoder embeds nothing.
Definitions of the metrics: docs/metrics.md.

examples:
  marc-eval runs/demo
  marc-eval runs/demo eval.protocol=leave_one_out
  marc-eval runs/demo/encoder.safetensors --data data/sample
  marc-eval runs/demo eval.gain=jaccard eval.relevance=0.6 'eval.ks=[10, 50]' eval.extra=true
  marc-eval runs/demo --index itq64
  marc-eval runs/ml-aid --data data/dlrsd --protocol transfer
  marc-eval runs/demo --queries data/mine --archive data/theirs --protocol transfer
"""
TAKEN = ("eval.", "data.dir", "data.num_workers", "data.verify_crc", "train.device")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="marc-eval",
        description="Score a trained encoder by exact retrieval, beside the same encoder before training.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "arguments", nargs="+", metavar="RUN_DIR | encoder.safetensors | key=value", help="a run, then settings"
    )
    parser.add_argument("--data", metavar="DIR", help="shard folder to search, instead of the run's own")
    parser.add_argument("--archive", metavar="DIR", help="shard folder that answers (eval.archive_dir)")
    parser.add_argument("--queries", metavar="DIR", help="shard folder that asks (eval.queries_dir)")
    parser.add_argument("--protocol", metavar="NAME", help="who asks whom (eval.protocol): docs/metrics.md")
    parser.add_argument("--index", metavar="SPEC", help="flat, sign, itq64, IVF256,PQ32, ... (eval.index)")
    parser.add_argument("--print", action="store_true", dest="show", help="print the resolved settings and stop")
    parser.add_argument("--no-report", action="store_true", help="leave report.html and panel.png alone")
    return parser


def encoder_folder(places: Sequence[str]) -> Path:
    """The folder of the encoder that the command line names.

    Raises:
        ConfigError: none or several places, or one that is not there.
    """
    from marc_dist.config import ConfigError, user_path

    if len(places) != 1:
        raise ConfigError(f"expected one run folder or encoder.safetensors, got {' '.join(places) or 'none'}")
    path = user_path(places[0])
    if path.is_file() and path.name != "encoder.safetensors":
        raise ConfigError(f"{path}: expected a run folder or its encoder.safetensors")
    if not path.exists():
        raise ConfigError(f"{path}: no such run; make one with marc-train train.run_dir={path}")
    return path.parent if path.is_file() else path


OPTIONS = {
    "data": "data.dir",
    "archive": "eval.archive_dir",
    "queries": "eval.queries_dir",
    "protocol": "eval.protocol",
    "index": "eval.index",
}


def _config(folder: Path, words: Sequence[str], options: argparse.Namespace) -> Config:
    """Settings of the run (defaults where an encoder lies alone), the words and the options on top.

    Raises:
        ConfigError: not a run, or a word that an evaluation cannot follow.
    """
    from marc_dist.config import ConfigError, load_config

    strange = [word.partition("=")[0] for word in words if not word.startswith(TAKEN)]
    if strange:
        load_config(None, words)  # a misspelt key is told as such
        raise ConfigError(f"{strange[0]}: belongs to training; marc-eval takes eval.*, {', '.join(TAKEN[1:])}")
    place = {key: getattr(options, name) for name, key in OPTIONS.items() if getattr(options, name) is not None}
    file = folder / "config.yaml"
    if not file.is_file() and not (folder / "encoder.json").is_file():
        raise ConfigError(f"{folder}: neither config.yaml nor encoder.json; expected a folder made by marc-train")
    return load_config(file if file.is_file() else None, words, moved={"train.run_dir": str(folder)}, place=place)


def _body(options: argparse.Namespace) -> int:
    places = [word for word in options.arguments if "=" not in word or os.path.lexists(word)]  # false if too long
    words = [word for word in options.arguments if word not in places]
    folder = encoder_folder(places)
    config = _config(folder, words, options)
    if options.show:
        from marc_dist.config import dump_yaml

        sys.stdout.write(dump_yaml(config, comments=True))
        return 0
    from rich.console import Console

    from marc_dist.cluster.failure import failure_told
    from marc_dist.config import printable

    with failure_told():
        from marc_dist.retrieval.evaluate import evaluate_rank  # torch and faiss
        from marc_dist.retrieval.tables import print_tables

        errors = Console(stderr=True, highlight=False, soft_wrap=True)
        summary, speaks = evaluate_rank(config, folder, lambda line: errors.print(printable(line), markup=False))
        if speaks and not options.no_report:
            from marc_dist.retrieval.report import write_report

            path = write_report(config, folder)
    if speaks:
        print_tables(summary, Console(highlight=False))
        print(f"scores: {folder / 'eval' / 'metrics.json'}")
        if not options.no_report:
            print(f"report: {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code. ``--help`` is answered before anything of ours is imported."""
    options = _parser().parse_intermixed_args(argv)
    from marc_dist.cli.common import run_command

    return run_command("marc-eval", lambda _: _body(options), argv)


if __name__ == "__main__":
    sys.exit(main())
