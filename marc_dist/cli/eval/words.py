"""The words of ``marc-eval``, and the settings that they mean."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import marc_dist.config as settings
from marc_dist.cli.command import command_parser
from marc_dist.cli.run_words import encoder_folder, split_files
from marc_dist.config import ConfigError
from marc_dist.files import read_json
from marc_dist.run.settings import load_run

if TYPE_CHECKING:
    from marc_dist.config import Config

USAGE = """RUN_DIR | encoder.safetensors [key=value ...] [options]
RUN_DIR RUN_DIR ... [key=value ...] [--csv FILE] [options]
RUN_DIR --list
RUN_DIR --export DIR [--onnx] [--license ID]"""
EPILOG = """\
RUN/eval/PROTOCOL holds the results, RUN/eval/PROTOCOL-NAME with --name NAME:
metrics.json, per_label.csv, per_query.parquet, map.parquet, panel.png and
report.html. The next evaluation of that name takes their place. RUN/report.html
is the report of the last one. Vectors are kept in RUN/embeddings: another
evaluation of the same encoder embeds nothing.
Several runs are compared with the first; those without an evaluation of this
protocol and name are evaluated before (docs/comparing.md).
Archives of any size are ranked in full, for mAP, label AP and curves; only an
approximate --index (IVF..., HNSW..., PQ...) ends at the largest of eval.ks.
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
  marc-eval runs/demo --name jaccard eval.gain=jaccard
  marc-eval runs/macl runs/supcon runs/simclr --csv losses.csv
  marc-eval runs/demo --export shared/demo --onnx
                           a folder for the Hugging Face Hub, with a model card
"""
TAKEN = ("eval.", "data.dir", "data.num_workers", "data.verify_crc", "data.features_dir", "train.device")
OPTIONS = {
    "data": "data.dir",
    "archive": "eval.archive_dir",
    "queries": "eval.queries_dir",
    "protocol": "eval.protocol",
    "index": "eval.index",
    "name": "eval.name",
}
"""Options that are short for a setting."""


def parser() -> argparse.ArgumentParser:
    """The words that ``marc-eval`` takes."""
    words = command_parser("eval", USAGE, EPILOG)
    words.add_argument(
        "arguments",
        nargs="+",
        metavar="RUN_DIR | encoder.safetensors | key=value",
        help="a run folder or its encoder, or several, then any number of settings",
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
    words.add_argument("--name", metavar="NAME", help="keep it beside others of its protocol (eval.name)")
    words.add_argument("--list", action="store_true", help="list the evaluations of a run and stop")
    words.add_argument("--csv", metavar="FILE", help="write the comparison of several runs there, too")
    words.add_argument(
        "--export", metavar="DIR", help="write encoder and model card for the Hugging Face Hub there and stop"
    )
    words.add_argument("--onnx", action="store_true", help="with --export: model.onnx, too (marc-dist[onnx])")
    words.add_argument("--license", metavar="ID", help="with --export: such as apache-2.0, for the model card")
    words.add_argument("--print", action="store_true", dest="show", help="print the resolved settings and stop")
    words.add_argument("--no-report", action="store_true", help="write no report.html and panel.png")
    return words


@dataclass(frozen=True)
class Asked:
    """What the words ask for.

    Attributes:
        runs: a run folder each, as it was called, with its settings.
        given: keys that the words give a value.
    """

    runs: list[tuple[str, Path, Config]]
    given: frozenset[str]


def asked(options: argparse.Namespace) -> Asked | None:
    """The runs that the words mean; None when ``--print`` has answered them.

    Raises:
        ConfigError: a fault in the words.
    """
    places, words = split_files(options.arguments)
    if options.csv is not None and (len(places) < 2 or options.list):
        raise ConfigError("--csv: expected several run folders to compare, got one; per_label.csv lies beside each")
    if options.show and len(places) > 1:
        raise ConfigError(f"--print: expected one run folder, got {' '.join(places)}")
    check_export(options, instead=options.list or options.show or options.csv is not None or len(places) > 1)
    if not places:
        raise ConfigError("expected a run folder or encoder.safetensors, got none")
    folders = [encoder_folder([place]) for place in places]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError(f"expected different run folders, got {' '.join(places)}")
    runs = [(place, folder, _config(folder, words, options)) for place, folder in zip(places, folders, strict=True)]
    if options.show:
        sys.stdout.write(settings.dump_yaml(runs[0][2], comments=True))
        return None
    given = {key for name, key in OPTIONS.items() if getattr(options, name) is not None}
    return Asked(runs, frozenset(given | {word.partition("=")[0] for word in words}))


def check_export(options: argparse.Namespace, *, instead: bool) -> None:
    """Refuse words of an export without one, or beside something else.

    Args:
        options: with ``export``, ``onnx`` and ``license``.
        instead: whether something else is asked for.

    Raises:
        ConfigError: names the option.
    """
    if options.export is None and (options.onnx or options.license is not None):
        raise ConfigError(f"{'--onnx' if options.onnx else '--license'}: belongs to an export; give --export DIR, too")
    if options.export is not None and instead:
        raise ConfigError("--export: expected one run folder and nothing else to do; leave the other options out")


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
    if not any(word.startswith("eval.features=") for word in words):
        given |= _features_of(folder)
    return settings.load_config(None, words, moved=moved, place=given)


def _features_of(folder: Path) -> dict[str, str]:
    """The vectors that an exported encoder is made for, as its ``encoder.json`` says."""
    try:
        features = read_json(folder / "encoder.json").get("features")
    except (OSError, ValueError):
        return {}  # whoever loads the encoder names the fault
    return {"eval.features": features} if isinstance(features, str) else {}
