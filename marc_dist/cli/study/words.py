"""The words of ``marc-study``."""

from __future__ import annotations

import argparse

from marc_dist.cli.command import command_parser
from marc_dist.config import ConfigError

USAGE = "STUDY [options]"
EPILOG = """\
A study is a YAML file: data sets, encoders, losses, seeds, evaluations; and
what is tuned, with one budget for all. Shipped ones are found by their names:
  smoke, paper, ablation, temperature, transfer, whole-encoder
Copy one to edit it. Every cell is an ordinary run folder:
  OUT/DATASET/ENCODER/LOSS/seed-N
A cell that is done is not run again. Start the same command again after
Ctrl-C, a crash or kill -9: it goes on, and ends with the same tables.

examples:
  marc-study smoke                     the built-in sample, a few minutes
  marc-study ./mine.yaml --dry-run     how many runs, hours and bytes
  marc-study ./mine.yaml --jobs 4      four cells at a time on this machine
  marc-study ./mine.yaml --on slurm --jobs 16
                                       as an array of 16 Slurm jobs
  marc-study ./mine.yaml --report      the tables again, from what is there
  marc-study ./mine.yaml --audit       leaks between splits, doubtful labels
  marc-study ./mine.yaml --export shared --onnx
                                       the best encoders for the Hugging Face
                                       Hub, with model cards

OUT/report holds index.html, a page with everything; tables.md, tables.tex
(booktabs), scores.csv, seeds.csv, pairs.csv (tests), ranks.csv; figures of
ranks and sweeps; and MANIFEST.json.

exit codes:
  0   all cells are done, or the jobs are queued
  1   some have failed, or are missing
  2   a mistake in the command or its files
"""


def parser() -> argparse.ArgumentParser:
    """The words that ``marc-study`` takes."""
    words = command_parser("study", USAGE, EPILOG)
    words.add_argument("study", metavar="STUDY", help="a name of the list below, or a YAML file")
    words.add_argument("--out", metavar="DIR", help="folder of the study (default: runs/study-NAME)")
    words.add_argument("--jobs", type=int, metavar="N", help="cells at a time (default: one a GPU, else one a core)")
    words.add_argument(
        "--on",
        metavar="PRESET",
        default="local",
        help="local, slurm, ray, or the YAML file of a launcher (default: local)",
    )
    words.add_argument("--again", action="store_true", help="remove and repeat cells whose settings have changed")
    instead = words.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="say how many runs, hours and bytes, then stop")
    instead.add_argument("--report", action="store_true", help="write the tables from what is there, then stop")
    instead.add_argument(
        "--audit", action="store_true", help="look for leaks and doubtful labels, write OUT/report/audit*, then stop"
    )
    instead.add_argument(
        "--export", metavar="DIR", help="write the best encoder of each data set for the Hugging Face Hub, then stop"
    )
    words.add_argument("--cell", metavar="NAME", help="with --export: this cell, DATASET/ENCODER/LOSS/seed-N")
    words.add_argument("--onnx", action="store_true", help="with --export: model.onnx, too (marc-dist[onnx])")
    words.add_argument("--license", metavar="ID", help="with --export: such as apache-2.0, for the model cards")
    return words


def check_words(options: argparse.Namespace) -> None:
    """Refuse a number that nothing could follow.

    Raises:
        ConfigError: names the option.
    """
    if options.jobs is not None and not 1 <= options.jobs <= 10_000:
        raise ConfigError(f"--jobs: expected 1 to 10000, got {options.jobs}")
    for name in ("cell", "onnx", "license"):
        if getattr(options, name) and options.export is None:
            raise ConfigError(f"--{name}: belongs to an export; give --export DIR, too")
    others = ("dry_run", "report", "audit", "export")
    other = next((f"--{name.replace('_', '-')}" for name in others if getattr(options, name)), None)
    if options.again and other is not None:
        raise ConfigError(f"--again: removes and repeats cells, but {other} runs none; leave one of the two out")
