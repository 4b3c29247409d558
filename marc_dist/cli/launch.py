"""``marc-launch``: start a training or evaluation on as many processes as there are, watch it, end it cleanly."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from marc_dist.cluster.preset import LocalPreset
    from marc_dist.config import Config

MODULES = {"train": "marc_dist.cli.train", "eval": "marc_dist.cli.evaluate"}

EPILOG = """\
examples:
  marc-launch local run.yaml loss.tau=0.07                all GPUs of this machine, or one process without any
  marc-launch --procs-per-node 2 local train run.yaml     two processes
  marc-launch local runs/a                                go on with runs/a
  marc-launch local eval runs/a                           score it
  marc-launch ./mine.yaml run.yaml cluster.stop_grace_s=30

Logs: RUN/logs/rank-K.log; rank 0 is shown. Ctrl-C saves and stops, a second one ends at once.
Exit codes: 0 done, 85 stopped and saved (start again to go on), 2 a mistake in the command or its files, 1 a failure.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="marc-launch",
        usage="marc-launch [--nodes N] [--procs-per-node N] PRESET [train|eval] [RUN_DIR|run.yaml] [key=value ...]",
        description="Start a run on all processes of a launcher preset (local, or a file).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("preset", metavar="PRESET", help="launchers/PRESET.yaml, or a file")
    parser.add_argument("arguments", nargs="*", metavar="...", help="train (unless said) or eval, then its arguments")
    parser.add_argument("--nodes", type=int, default=1, help="machines (default 1)")
    parser.add_argument("--procs-per-node", type=int, help="processes on each (default: one per GPU, or one)")
    parser.add_argument("--print", action="store_true", dest="show", help="print preset and settings, then stop")
    parser.add_argument("--dry-run", action="store_true", help="print what would be started, then stop")
    return parser


def _check_size(nodes: int, procs_per_node: int | None) -> None:
    from marc_dist.config import LaunchError

    if nodes < 1:
        raise LaunchError(f"--nodes: expected at least 1, got {nodes}")
    if procs_per_node is not None and procs_per_node < 1:
        raise LaunchError(f"--procs-per-node: expected at least 1 process, got {procs_per_node}")
    if nodes > 1:
        raise LaunchError(
            f"--nodes: the local preset is this one machine, got {nodes}; use --procs-per-node for more processes here"
        )


def _command(what: str, config: Config, arguments: Sequence[str]) -> list[str]:
    """What every rank runs. A training is always RUN_DIR: its settings lie in the folder."""
    rest = [config.train.run_dir] if what == "train" else list(arguments)
    return [sys.executable, "-m", MODULES[what], *rest]


def _check_data(config: Config) -> None:
    """Shards and split exist; told now, not by every rank after seconds of imports."""
    from marc_dist.data.dataset import open_dataset

    here = config.data.reader == "indexed"
    open_dataset(config.data.dir, shards=here).rows(config.data.train_split)


def _dry_run(command: Sequence[str], preset: LocalPreset, world: int, run_dir: Path) -> None:
    from marc_dist.cluster.local import rank_environment

    shown = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "OMP_NUM_THREADS", *preset.env)
    for rank in range(world):
        env = rank_environment(preset, rank, world, 0)
        words = " ".join(f"{name}={shlex.quote(env[name])}" for name in shown)
        print(f"{words} MASTER_PORT=<free> {shlex.join(command)} >> {run_dir}/logs/rank-{rank}.log")


def _body(options: argparse.Namespace) -> int:
    from marc_dist.cli.common import run_config
    from marc_dist.cluster.local import LocalJob, process_count
    from marc_dist.cluster.preset import PREFIX, load_preset
    from marc_dist.config import LaunchError, dump_yaml
    from marc_dist.training.runfolder import prepare

    _check_size(options.nodes, options.procs_per_node)
    what, arguments = "train", list(options.arguments)
    if arguments and arguments[0] in MODULES:
        what = arguments.pop(0)
    cluster = [word for word in arguments if word.startswith(PREFIX)]
    arguments = [word for word in arguments if not word.startswith(PREFIX)]
    preset = load_preset(options.preset, cluster, options.procs_per_node)
    config = run_config(arguments)
    if options.show:
        sys.stdout.write(
            "# cluster\n" + dump_yaml(preset, comments=True) + "# run\n" + dump_yaml(config, comments=True)
        )
        return 0
    world = process_count(preset, config.train.device)
    run_dir = Path(config.train.run_dir)
    command = _command(what, config, arguments)
    if options.dry_run:
        _dry_run(command, preset, world, run_dir)
        return 0
    if what == "train":
        _check_data(config)
        prepare(config)
    elif not run_dir.is_dir():
        raise LaunchError(f"{run_dir}: no such run folder; train first, or name the folder of a run")
    return LocalJob(command, run_dir / "logs", preset, world, sys.stdout.buffer).run()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code. ``--help`` is answered before anything of ours is imported."""
    options = _parser().parse_intermixed_args(argv)
    from marc_dist.cli.common import run_command

    return run_command("marc-launch", lambda _: _body(options), argv)


if __name__ == "__main__":
    sys.exit(main())
