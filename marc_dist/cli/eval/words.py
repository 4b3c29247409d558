"""The words of ``marc-eval``, and the settings that they mean."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import marc_dist.config as settings
from marc_dist.cli.command import command_parser
from marc_dist.cli.run_words import encoder_folder, split_files
from marc_dist.config import ConfigError
from marc_dist.run.settings import load_run

if TYPE_CHECKING:
    from marc_dist.config import Config

USAGE = "RUN_DIR | encoder.safetensors [key=value ...] [options]"
EPILOG = """\
RUN/eval holds the results: metrics.json, per_label.csv, per_query.parquet,
map.parquet and panel.png. RUN/report.html shows them all. Vectors are kept in
RUN/embeddings: another evaluation of the same encoder embeds nothing.
The metrics are defined in docs/metrics.md.

examples:
  marc-eval runs/demo
  marc-eval runs/demo eval.protocol=leave_one_out
  marc-eval runs/demo/encoder.safetensors --data data/sample
  marc-eval runs/demo eval.gain=jaccard 'eval.ks=[10, 50]' eval.extra=true
  marc-eval runs/demo --index itq64
  marc-eval runs/ml-aid --data data/dlrsd --protocol transfer
  marc-eval runs/demo --queries data/mine --archive data/theirs \\
            --protocol transfer
"""
TAKEN = ("eval.", "data.dir", "data.num_workers", "data.verify_crc", "data.features_dir", "train.device")
OPTIONS = {
    "data": "data.dir",
    "archive": "eval.archive_dir",
    "queries": "eval.queries_dir",
    "protocol": "eval.protocol",
    "index": "eval.index",
}
"""Options that are short for a setting."""


def parser() -> argparse.ArgumentParser:
    """The words that ``marc-eval`` takes."""
    words = command_parser("eval", USAGE, EPILOG)
    words.add_argument(
        "arguments",
        nargs="+",
        metavar="RUN_DIR | encoder.safetensors | key=value",
        help="a run folder or its encoder, then any number of settings",
    )
    words.add_argument(
        "--data", metavar="DIR", help="shard folder of queries and archive, instead of the run's (data.dir)"
    )
    words.add_argument("--archive", metavar="DIR", help="shard folder of the archive alone (eval.archive_dir)")
    words.add_argument(
        "--queries",
        metavar="DIR",
        help="shard folder of the queries; of the archive, too, unless --archive names one (eval.queries_dir)",
    )
    words.add_argument(
        "--protocol", metavar="NAME", help="which images are queries, which are searched (eval.protocol)"
    )
    words.add_argument("--index", metavar="SPEC", help="flat, sign, itq64, IVF256,PQ32, ... (eval.index)")
    words.add_argument("--print", action="store_true", dest="show", help="print the resolved settings and stop")
    words.add_argument("--no-report", action="store_true", help="do not write report.html and panel.png")
    return words


def config_and_folder(options: argparse.Namespace) -> tuple[Config, Path] | None:
    """The settings and the encoder's folder that the words mean; None when ``--print`` has answered them.

    Raises:
        ConfigError: a fault in the words.
    """
    places, words = split_files(options.arguments)
    folder = encoder_folder(places)
    config = _config(folder, words, options)
    if options.show:
        sys.stdout.write(settings.dump_yaml(config, comments=True))
        return None
    return config, folder


def _config(folder: Path, words: Sequence[str], options: argparse.Namespace) -> Config:
    """Settings of the run (defaults where an encoder lies alone), the words and the options on top.

    Raises:
        ConfigError: not a run, or a word that an evaluation cannot follow.
    """
    strange = [word.partition("=")[0] for word in words if not word.startswith(TAKEN)]
    if strange:
        settings.load_config(None, words)  # a misspelt key is reported as such
        raise ConfigError(f"{strange[0]}: belongs to training; marc-eval takes eval.*, {', '.join(TAKEN[1:])}")
    given = {key: getattr(options, name) for name, key in OPTIONS.items() if getattr(options, name) is not None}
    file = folder / "config.yaml"
    if not file.is_file() and not (folder / "encoder.json").is_file():
        raise ConfigError(f"{folder}: neither config.yaml nor encoder.json; expected a folder made by marc-train")
    moved = {"train.run_dir": str(folder)}
    if file.is_file():
        return load_run(folder, words, moved=moved, place=given)
    return settings.load_config(None, words, moved=moved, place=given)
