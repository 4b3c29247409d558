"""The words of ``marc-launch``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from marc_dist.cli.command import command_parser
from marc_dist.config import LaunchError

USAGE = """\
PRESET [train] [RUN_DIR | run.yaml] [key=value ...] [options]
PRESET eval RUN_DIR [key=value ...] [options]
[options] PRESET tune [the words of marc-tune]"""
EPILOG = """\
presets:
  local, slurm, slurm-preemptible, slurm-array, slurm-container, ray; or a file
  of your own (a copy of one). Values of the preset are settings, too:
  cluster.KEY=value.

examples:
  marc-launch local run.yaml loss.tau=0.07
        on all GPUs of this machine, or in one process where there is none
  marc-launch --procs-per-node 2 local train run.yaml
  marc-launch local head data.dir=data/whdld train.run_dir=runs/b
        a recipe in place of a run file; marc-train --help names them
  marc-launch local runs/a
        go on with runs/a
  marc-launch local eval runs/a
        evaluate runs/a
  marc-launch --nodes 4 slurm cluster.partition=gpu cluster.gpus_per_node=8 \\
              cluster.time_min=120 run.yaml
  marc-launch --nodes 4 --dry-run slurm run.yaml
        print the batch script, without Slurm
  marc-launch --nodes 4 --check slurm run.yaml
        check the nodes and stop
  marc-launch --nodes 4 slurm tune macl run.yaml --trials 64
        a search over settings, on Ray inside the job
  marc-launch --nodes 2 --follow ./mine.yaml run.yaml
        print rank 0's log; Ctrl-C leaves the job running

Slurm and Ray: the command returns with the job's id; the job saves, stops and
starts again by itself. marc-jobs shows it.
Local: the log of rank 0 is printed. Ctrl-C saves and stops, a second one ends
at once. The other logs are RUN/logs/rank-K.log.

exit codes:
  0   done, or submitted
  1   a failure
  2   a mistake in the command or its files
  75  storage or a rank did not answer; start again
  85  stopped and saved; start again to go on
"""


def parser() -> argparse.ArgumentParser:
    """The words that ``marc-launch`` takes, but for those behind ``tune``."""
    words = command_parser("launch", USAGE, EPILOG)
    words.add_argument("preset", metavar="PRESET", help="a name of the list below, or a YAML file")
    words.add_argument(
        "arguments", nargs="*", metavar="...", help="train (the default), eval or tune, then its own words"
    )
    words.add_argument("--nodes", type=int, metavar="N", help="machines (default: the preset's, 1)")
    words.add_argument(
        "--procs-per-node", type=int, metavar="N", help="processes on each (default: one for each GPU, or one)"
    )
    words.add_argument("--print", action="store_true", dest="show", help="print preset and settings, then stop")
    words.add_argument("--dry-run", action="store_true", help="print what would be started, then stop")
    words.add_argument("--check", action="store_true", help="check the nodes and stop")
    words.add_argument(
        "--wait", action="store_true", help="Slurm, Ray: return when the job is over, with its exit code"
    )
    words.add_argument("--follow", action="store_true", help="as --wait, and print rank 0's log")
    return words


def read_words(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str] | None]:
    """The options on a command line, and the words behind ``tune``; None where it starts no search.

    Args:
        argv: the words, or None for those of the process.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    search_words: list[str] | None = None
    if "tune" in given and not {"train", "eval"} & set(given[: given.index("tune")]):
        at = given.index("tune")
        given, search_words = given[:at], given[at + 1 :]  # what follows is for marc-tune, options and all
    return parser().parse_intermixed_args(given), search_words


def check_words(options: argparse.Namespace) -> None:
    """Refuse sizes that no job has.

    Raises:
        LaunchError: names the option and what it may be.
    """
    for flag, what, value in (
        ("--nodes", "node", options.nodes),
        ("--procs-per-node", "process", options.procs_per_node),
    ):
        if value is not None and value < 1:
            raise LaunchError(f"{flag}: expected at least 1 {what}, got {value}")
