"""The words of ``marc-tune``: what they are, what they may be, and which of them say where trials run."""

from __future__ import annotations

import argparse

EPILOG = """\
spaces: macl (alpha, beta, tau, learning rate), temperature, ablation, surface (alpha x beta), smoke; or a file of
your own (a copy of one). Without a run file and data.dir, the built-in sample is packed and tuned.

examples:
  marc-tune                                                    a first search, on this machine
  marc-tune macl run.yaml --trials 64 --address auto loss.aggregate=anchor_mean
  marc-tune my_space.yaml run.yaml --epochs 9 --seeds 3 --objectives mAP,rare_mAP
  marc-tune surface run.yaml --executor local --concurrent 4
  marc-tune --resume runs/tune-macl                            go on where it was stopped, or killed
  marc-tune --resume runs/tune-macl --trials 128               ... with more trials
  marc-tune macl run.yaml --start-from runs/tune-old           the best 3 of another search are tried first, too
  marc-tune --report runs/tune-macl                            rebuild figures and report.html
  marc-launch --nodes 4 slurm tune macl run.yaml --trials 64   in a Slurm allocation

Trials are scored on a fifth of the training split that none of them trains on (data.validation_share); the test split
is never looked at. DIR holds trials.parquet, best.yaml (a run file), report.html, and a run folder a trial.
"""


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    words = argparse.ArgumentParser(
        prog="marc-tune",
        description="Search settings: a space over config keys, trials that are ordinary runs, early stopping.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument(
        "arguments", nargs="*", metavar="SPACE | run.yaml | key=value", help="space (macl), run file, settings"
    )
    what = words.add_argument_group("what is searched")
    what.add_argument("--trials", type=int, metavar="N", help="settings to try (16; a grid: all of it)")
    what.add_argument("--epochs", type=int, metavar="N", help="epochs of a trial (default: the run's train.epochs)")
    what.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="trainings of every setting kept to the end (1)"
    )
    what.add_argument("--search", choices=["tpe", "random", "grid"], help="default: the space's")
    what.add_argument("--objectives", metavar="M,...", help="metrics to raise; the first decides (the space's, mAP)")
    what.add_argument("--seed", type=int, default=0, help="of the search: the same seed gives the same suggestions (0)")
    what.add_argument("--start-from", metavar="DIR", help="try the best 3 settings of an earlier search first, too")
    what.add_argument("--no-early-stop", action="store_true", help="train every trial in full")
    what.add_argument("--grace", type=int, metavar="N", help="epochs before a trial may be stopped (a 27th)")
    what.add_argument("--eta", type=float, default=4.0, help="one trial in eta goes on at each rung (4)")
    what.add_argument("--retries", type=int, metavar="N", help="further starts of a trial that fails (2)")
    where = words.add_argument_group("where trials run")
    where.add_argument("--executor", choices=["ray", "local"], default="ray", help="Ray Tune, or processes without Ray")
    where.add_argument(
        "--address", metavar="ADDR", help="a Ray cluster: auto, or HOST:PORT (default: Ray on this machine)"
    )
    where.add_argument(
        "--connect-timeout", type=float, default=20.0, metavar="S", help="longest wait for it, seconds (20)"
    )
    where.add_argument(
        "--concurrent", type=int, metavar="N", help="trials at a time (default: a quarter of --trials, if they fit)"
    )
    where.add_argument("--procs-per-trial", type=int, default=1, metavar="N", help="ranks of a trial (1)")
    where.add_argument("--cpus-per-proc", type=int, default=1, metavar="N", help="CPU cores of a rank (1)")
    where.add_argument(
        "--gpus-per-proc", type=float, metavar="X", help="GPUs of a rank; 0.5: two trials share one (1 if any)"
    )
    files = words.add_argument_group("the folder")
    files.add_argument("--out", metavar="DIR", help="of the search (runs/tune-SPACE)")
    files.add_argument("--resume", nargs="?", const="", metavar="DIR", help="go on with the search in DIR, or in --out")
    files.add_argument("--report", metavar="DIR", help="rebuild figures and report.html of DIR, and stop")
    files.add_argument("--print", action="store_true", dest="show", help="print space and settings, then stop")
    return words


def check_numbers(options: argparse.Namespace) -> None:
    """Refuse numbers that nothing could follow.

    Raises:
        ConfigError: names the option and what it may be.
    """
    from marc_dist.config import ConfigError

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
