"""The words of ``marc-tune``: what they are, what they may be, and which of them say where trials run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from marc_dist.cli.command import command_parser
from marc_dist.config import ConfigError

USAGE = """\
[SPACE] [RUN_DIR | run.yaml | RECIPE] [key=value ...] [options]
--resume DIR [options]
--report DIR"""
EPILOG = """\
spaces:
  macl (alpha, beta, tau, learning rate), temperature, ablation, smoke,
  surface (alpha x beta); or a file of your own (a copy of one). Without a run
  file and data.dir, the built-in sample is packed and tuned.

examples:
  marc-tune                      a first search, on this machine
  marc-tune macl run.yaml --trials 64 --address auto loss.aggregate=anchor_mean
  marc-tune my_space.yaml run.yaml --epochs 9 --seeds 3 \\
            --objectives mAP,rare_mAP
  marc-tune surface run.yaml --concurrent 4
  marc-tune --resume runs/tune-macl
                                 go on where it was stopped, or killed
  marc-tune --resume runs/tune-macl --trials 128
                                 go on with more trials
  marc-tune macl run.yaml --start-from runs/tune-old
                                 try the best 3 of another search first
  marc-tune --report runs/tune-macl
                                 write figures and report.html again
  marc-launch --nodes 4 slurm tune macl run.yaml --trials 64
                                 in a Slurm job

Trials are scored on a fifth of the training split that none of them trains on
(data.validation_share); the test split is never looked at. The folder of
the search holds trials.parquet, best.yaml (a run file), report.html, and a run
folder for each trial.
"""


def parser() -> argparse.ArgumentParser:
    """The words that ``marc-tune`` takes."""
    words = command_parser("tune", USAGE, EPILOG)
    words.add_argument(
        "arguments",
        nargs="*",
        metavar="SPACE | run.yaml | RECIPE | key=value",
        help="a space (default: macl), a run file or recipe (see marc-train --help), then any number of settings",
    )
    what = words.add_argument_group("what is searched")
    what.add_argument("--trials", type=int, metavar="N", help="settings to try (default: 16; of a grid: all)")
    what.add_argument("--epochs", type=int, metavar="N", help="epochs of a trial (default: train.epochs of the run)")
    what.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="how often a setting that was not stopped early is trained, with different seeds (default: 1)",
    )
    what.add_argument(
        "--search", choices=["tpe", "random", "grid"], help="how settings are chosen (default: the space's)"
    )
    what.add_argument(
        "--objectives", metavar="M,...", help="metrics to maximise; the first decides (default: the space's, or mAP)"
    )
    what.add_argument(
        "--seed", type=int, default=0, metavar="N", help="equal seeds give equal suggestions (default: 0)"
    )
    what.add_argument("--start-from", metavar="DIR", help="try the best 3 settings of an earlier search first, too")
    what.add_argument("--no-early-stop", action="store_true", help="train every trial in full")
    what.add_argument(
        "--grace", type=int, metavar="N", help="epochs before a trial may be stopped (default: a 27th of all)"
    )
    what.add_argument(
        "--eta", type=float, default=4.0, metavar="X", help="one trial in X goes on at each rung (default: 4)"
    )
    what.add_argument("--retries", type=int, metavar="N", help="restarts of a trial that failed (default: 2)")
    where = words.add_argument_group("where trials run")
    where.add_argument(
        "--executor",
        choices=["ray", "local"],
        help="Ray Tune, or processes of this machine (default: processes, and Ray where --address or RAY_ADDRESS names "
        "a cluster)",
    )
    where.add_argument(
        "--address", metavar="ADDR", help="a Ray cluster: auto, or HOST:PORT (default: RAY_ADDRESS, or none)"
    )
    where.add_argument(
        "--connect-timeout",
        type=float,
        default=20.0,
        metavar="S",
        help="longest wait for that cluster, in s (default: 20)",
    )
    where.add_argument(
        "--concurrent", type=int, metavar="N", help="trials at a time (default: a quarter of --trials, if they fit)"
    )
    where.add_argument("--procs-per-trial", type=int, default=1, metavar="N", help="ranks of a trial (default: 1)")
    where.add_argument("--cpus-per-proc", type=int, default=1, metavar="N", help="CPU cores of a rank (default: 1)")
    where.add_argument(
        "--gpus-per-proc",
        type=float,
        metavar="X",
        help="GPUs of a rank; with 0.5 two trials share one (default: 1, if there is any)",
    )
    files = words.add_argument_group("the folder of the search")
    files.add_argument("--out", metavar="DIR", help="folder to make (default: runs/tune-SPACE)")
    files.add_argument("--resume", nargs="?", const="", metavar="DIR", help="go on with the search in DIR, or in --out")
    files.add_argument("--report", metavar="DIR", help="write figures and report.html of DIR again, and stop")
    files.add_argument("--print", action="store_true", dest="show", help="print space and settings, then stop")
    return words


def check_words(options: argparse.Namespace) -> None:
    """Refuse numbers that nothing could follow.

    Raises:
        ConfigError: names the option and what it may be.
    """
    least = {"trials": 1, "epochs": 1, "seeds": 1, "grace": 1, "retries": 0, "concurrent": 1, "procs_per_trial": 1}
    for name, low in {**least, "cpus_per_proc": 1, "seed": 0}.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise ConfigError(f"--{name.replace('_', '-')}: expected {low} or more, got {value}")
    if not 1 < options.eta <= 100:
        raise ConfigError(f"--eta: expected more than 1 and at most 100, got {options.eta:g}")
    gpus = options.gpus_per_proc
    if gpus is not None and not (0 <= gpus <= 1 or (gpus == int(gpus) and gpus <= 64)):
        raise ConfigError(f"--gpus-per-proc: expected 0 to 1 or a whole number, got {gpus:g}")
    if gpus and gpus < 1 and options.procs_per_trial > 1:
        raise ConfigError(
            f"--gpus-per-proc {gpus:g}: expected whole GPUs for {options.procs_per_trial} processes a trial, because "
            "NCCL wants one for each; use --procs-per-trial 1"
        )
    if not 0 < options.connect_timeout <= 3600:
        raise ConfigError(f"--connect-timeout: expected seconds above 0, got {options.connect_timeout:g}")
    if options.no_early_stop and options.grace:
        raise ConfigError(f"--grace {options.grace}: is for early stopping, which --no-early-stop leaves out; keep one")
    if options.executor == "local" and options.address:
        raise ConfigError("--address: names a Ray cluster, but --executor local runs without Ray; leave one out")


def place_of_trials(options: argparse.Namespace, env: Mapping[str, str]) -> tuple[str, str | None]:
    """What runs the trials, and the Ray cluster that they run on.

    This machine's own processes do the same as Ray on this machine, and start sooner; so Ray runs them where a cluster
    is named, or where somebody asks for it.

    Args:
        options: of the command line.
        env: of this process; ``RAY_ADDRESS`` names a cluster, as for Ray's own commands.

    Returns:
        ``local`` or ``ray``; and the address, None for a Ray of this machine alone.
    """
    if options.executor == "local":
        return "local", None
    address = options.address or env.get("RAY_ADDRESS") or None
    return ("ray", address) if address or options.executor == "ray" else ("local", None)


def where_words(options: argparse.Namespace) -> list[str]:
    """The words that say where trials run, which a search does not remember: another machine may go on with it."""
    names = (
        "executor",
        "address",
        "connect_timeout",
        "concurrent",
        "procs_per_trial",
        "cpus_per_proc",
        "gpus_per_proc",
    )
    usual = parser()
    given = {name: getattr(options, name) for name in names if getattr(options, name) != usual.get_default(name)}
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", f"{value}")]
