"""What every command shares: one line and exit 2 for people's mistakes, the run file and its words."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from marc_dist.config import Config, ConfigError, MarcError, load_config

EXIT_USER = 2
EXIT_INTERRUPTED = 130


def run_command(name: str, body: Callable[[Sequence[str]], int], argv: Sequence[str] | None) -> int:
    """Run a command's body and turn what people can cause into one line and an exit code.

    Args:
        name: the command, put before the message.
        body: takes the arguments, returns the exit code.
        argv: the arguments, or None for those of the process.
    """
    try:
        return body(sys.argv[1:] if argv is None else argv)
    except MarcError as error:
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USER
    except BrokenPipeError:  # the reader of our output (head, less) has left; nothing to tell anybody
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def split_words(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Positional arguments -> (places, words): whatever holds ``=`` is a ``key=value`` word."""
    places = [argument for argument in arguments if "=" not in argument]
    return places, [argument for argument in arguments if "=" in argument]


def run_config(arguments: Sequence[str]) -> Config:
    """The configuration of ``[RUN_DIR | run.yaml] [key=value ...]``.

    A run folder means its own ``config.yaml``, and the run stays in that folder even when the folder was moved.

    Raises:
        ConfigError: more than one place, no such file, or a fault in the settings.
    """
    places, words = split_words(arguments)
    if len(places) > 1:
        raise ConfigError(f"expected one run folder or file and key=value words, got {' '.join(places)}")
    if not places:
        return load_config(None, words)
    path = Path(places[0]).expanduser()
    if path.is_dir():
        if not (path / "config.yaml").is_file():
            raise ConfigError(f"{path}: no config.yaml; a run folder is made by marc-train train.run_dir={path}")
        return load_config(path / "config.yaml", [*words, f"train.run_dir={path}"])
    return load_config(path, words)
