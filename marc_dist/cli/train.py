"""``marc-train``: one process of a training run, or one rank of it under marc-launch, torchrun or srun."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from marc_dist.cluster.failure import failure_told, tell_failure
from marc_dist.training.signals import EXIT_REQUEUE, StopFlag
from marc_dist.training.watchdog import EXIT_HUNG

EPILOG = """\
A run goes on by itself from its newest checkpoint: start the same command again, on any number of processes.
SIGTERM, SIGUSR1 or SIGUSR2 make it save and exit with code 85.

examples:
  marc-train data.dir=data/sample train.run_dir=runs/a
  marc-train run.yaml loss.tau=0.07
  marc-train runs/a                       go on with what runs/a/config.yaml says
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
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of all settings and stop")
    return parser


def _body(options: argparse.Namespace) -> int:
    from marc_dist.cli.common import run_config
    from marc_dist.config import Config, dump_yaml

    if options.schema:
        print(json.dumps(Config.model_json_schema(), indent=2))
        return 0
    config = run_config(options.arguments)
    if options.show:
        sys.stdout.write(dump_yaml(config, comments=True))
        return 0
    with StopFlag().installed() as stop, failure_told():
        from marc_dist.training.trainer import run_rank  # torch; after the handlers, so that no signal is lost

        result = run_rank(config, stop=stop, give_up=_give_up)
    return EXIT_REQUEUE if result.interrupted else 0


def _give_up(reason: str) -> None:
    """End this rank, whose main thread waits for another one in vain."""
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
