"""``marc-train``: one process of a training run, or one rank of it under marc-launch, torchrun or srun."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from marc_dist.training.signals import EXIT_REQUEUE, StopFlag
from marc_dist.training.watchdog import EXIT_HUNG

if TYPE_CHECKING:
    from marc_dist.config import Config
    from marc_dist.training.profile import Profile
    from marc_dist.training.trainer import Validate

EPILOG = """\
A run goes on by itself from its newest checkpoint: start the same command again, on any number of processes.
SIGTERM, SIGUSR1 or SIGUSR2 make it save and exit with code 85.

examples:
  marc-train data.dir=data/sample train.run_dir=runs/a
  marc-train run.yaml loss.tau=0.07
  marc-train runs/a                       go on with what runs/a/config.yaml says
  marc-train --profile 20 run.yaml        where a step's time goes, without touching the run
  marc-launch --procs-per-node 2 local run.yaml
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="marc-train",
        description="Train an encoder on shards made by marc-shard.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("arguments", nargs="*", metavar="RUN_DIR | run.yaml | key=value", help="settings, any number")
    parser.add_argument("--print", action="store_true", dest="show", help="print the resolved settings and stop")
    parser.add_argument(
        "--profile",
        type=int,
        metavar="N",
        help="measure N steps from fresh weights, print where their time goes and write a trace (RUN/profile)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="look at all nodes (shards, run folder, versions, clocks, disk, GPUs, network), print a table and stop",
    )
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of all settings and stop")
    return parser


def _body(options: argparse.Namespace) -> int:
    from marc_dist.cli.common import run_config
    from marc_dist.config import Config, LaunchError, dump_yaml

    if options.schema:
        print(json.dumps(Config.model_json_schema(), indent=2))
        return 0
    config = run_config(options.arguments)
    if options.show:
        sys.stdout.write(dump_yaml(config, comments=True))
        return 0
    if options.check:
        return _check(config)
    if options.profile is not None:
        return _profile(config, options.profile)
    from marc_dist.cluster.failure import failure_told

    with StopFlag().installed() as stop, failure_told():
        from marc_dist.training.trainer import run_rank  # torch; after the handlers, so that no signal is lost

        try:
            result = run_rank(config, stop=stop, give_up=_give_up, validate=_validate(config))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise LaunchError(
                    f"{config.train.run_dir}: cannot be written ({error.strerror}); free space and start again"
                ) from None
            # what people cause comes as ours; this one needs its traceback
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
    return EXIT_REQUEUE if result.interrupted else 0


def _validate(config: Config) -> Validate | None:
    """What scores the validation samples, if some are kept from training."""
    if not config.data.validation_share:
        return None
    from marc_dist.tuning.validate import validate

    return validate


def _check(config: Config) -> int:
    from marc_dist.cluster.failure import failure_told

    with failure_told():
        from marc_dist.training.preflight import check_rank, show

        here, report = check_rank(config)
        if here.rank == 0:
            show(report)
        report.require()
    return 0


def _profile(config: Config, num_steps: int) -> int:
    from marc_dist.cluster.failure import failure_told
    from marc_dist.config import ConfigError

    if not 1 <= num_steps <= 100_000:
        raise ConfigError(f"--profile: expected 1 to 100000 steps, got {num_steps}")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch comes: its tracer's talk is not for people
    with failure_told():
        from marc_dist.place import place_from_env
        from marc_dist.training.profile import profile_rank

        found = profile_rank(config, num_steps)
    if place_from_env(os.environ).rank == 0:
        _show(found)
    return 0


def _show(found: Profile) -> None:
    from rich.console import Console
    from rich.table import Table

    for note in found.notes:
        print(note)
    total = sum(found.step.values())
    table = Table(title=f"{found.num_steps} steps of {total:.1f} ms, {found.images_per_s:.0f} images/s")
    table.add_column("one after the other")
    for column in ("ms a step", "share", "longest"):
        table.add_column(column, justify="right")
    for label, value in found.step.items():
        rank, most = found.slowest[label]
        table.add_row(label, f"{value:.1f}", f"{value / total:.1%}", f"rank {rank}: {most:.1f}")
    table.add_section()
    for label, value in found.loader.items():
        table.add_row(f"beside it: {label}", f"{value:.1f}", "", "")
    Console().print(table)
    print(f"trace (chrome://tracing or ui.perfetto.dev): {found.trace}")


def _give_up(reason: str) -> None:
    """End this rank, whose main thread waits for another one in vain."""
    from marc_dist.cluster.failure import tell_failure  # loaded long since

    tell_failure(reason)
    print(f"marc-train: error: {reason}", file=sys.stderr, flush=True)
    os._exit(EXIT_HUNG)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code. ``--help`` is answered before anything of ours is imported."""
    options = _parser().parse_intermixed_args(argv)
    from marc_dist.cli.common import run_command

    return run_command("marc-train", lambda _: _body(options), argv)


if __name__ == "__main__":
    sys.exit(main())
