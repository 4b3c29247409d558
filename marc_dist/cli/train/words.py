"""The words of ``marc-train``, and what is answered from them without torch: the settings and their schema."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING

import marc_dist.config as settings
from marc_dist.cli.command import command_parser
from marc_dist.cli.run_words import run_config
from marc_dist.config import ConfigError

if TYPE_CHECKING:
    from marc_dist.config import Config

USAGE = "[RUN_DIR | run.yaml | RECIPE] [key=value ...] [options]"
EPILOG = """\
recipes, run files of the library that a bare name means; copy one to edit it:
  head, head-then-all, scratch

A run goes on by itself from its newest checkpoint: start the same command
again, on any number of processes. SIGTERM, SIGUSR1 or SIGUSR2 make it save.

exit codes:
  0   done
  2   a mistake in the command or its files
  75  storage or a rank did not answer; start again
  85  stopped and saved; start again to go on

examples:
  marc-train data.dir=data/sample train.run_dir=runs/a
  marc-train run.yaml loss.tau=0.07
  marc-train head data.dir=data/whdld train.run_dir=runs/b
  marc-train runs/a                    go on with what runs/a/config.yaml says
  marc-train --profile 20 run.yaml     where the time of a step goes
  marc-train --lr-find run.yaml        which learning rates work
  marc-launch --procs-per-node 2 local run.yaml
"""


DEFAULT_LR_STEPS = "100"
NUMBER = r"[-+]?\d*[\d.,]\d*(?:[eE][-+]?\d+)?"
"""What is meant as a number; anything else after ``--lr-find`` is a run folder, run file, recipe or setting."""


def parser() -> argparse.ArgumentParser:
    """The words that ``marc-train`` takes."""
    words = command_parser("train", USAGE, EPILOG)
    words.add_argument(
        "arguments",
        nargs="*",
        metavar="RUN_DIR | run.yaml | RECIPE | key=value",
        help="a run folder, a run file or a recipe, then any number of settings",
    )
    words.add_argument("--print", action="store_true", dest="show", help="print the resolved settings and stop")
    instead = words.add_mutually_exclusive_group()
    instead.add_argument(
        "--profile",
        type=int,
        metavar="N",
        help="measure N steps from fresh weights, print where their time goes and write a trace to RUN/profile; "
        "the run itself is not touched",
    )
    instead.add_argument(
        "--lr-find",
        nargs="?",
        const=DEFAULT_LR_STEPS,
        metavar="N",
        help="take N steps (default: 100) from fresh weights with a rising learning rate, suggest one, and draw "
        "RUN/lr_find/lr_find.png; the run itself is not touched",
    )
    instead.add_argument(
        "--check",
        action="store_true",
        help="look at all nodes (shards, run folder, versions, clocks, disk, GPUs, network), print a table and stop",
    )
    words.add_argument("--schema", action="store_true", help="print the JSON schema of all settings and stop")
    return words


def config_of(options: argparse.Namespace) -> Config | None:
    """The configuration that the words mean; None when ``--schema`` or ``--print`` has answered them.

    Raises:
        ConfigError: a fault in the words.
    """
    if options.schema:
        print(json.dumps(settings.Config.model_json_schema(), indent=2))
        return None
    arguments = list(options.arguments)
    if options.lr_find is not None and not re.fullmatch(NUMBER, options.lr_find):
        arguments.insert(0, options.lr_find)  # --lr-find run.yaml
        options.lr_find = DEFAULT_LR_STEPS
    config = run_config(arguments)
    if options.show:
        sys.stdout.write(settings.dump_yaml(config, comments=True))
        return None
    if options.profile is not None and not 1 <= options.profile <= 100_000:
        raise ConfigError(f"--profile: expected 1 to 100000 steps, got {options.profile}; 20 are usually enough")
    if options.lr_find is not None and not (options.lr_find.isdecimal() and 10 <= int(options.lr_find) <= 100_000):
        raise ConfigError(
            f"--lr-find: expected a whole number of 10 to 100000 steps in digits, got {options.lr_find}; leave it out "
            f"for {DEFAULT_LR_STEPS} steps"
        )
    return config
