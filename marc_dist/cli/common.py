"""What every command shares: one line and exit 2 for people's mistakes, the run file and its words."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from marc_dist.config import EXIT_USER, Config, ConfigError, MarcError, load_config, printable, user_path

EXIT_INTERRUPTED = 130


def run_command(name: str, body: Callable[[Sequence[str]], int], argv: Sequence[str] | None) -> int:
    """Run a command's body and turn what people can cause into one line and an exit code.

    Args:
        name: the command, put before the message.
        body: takes the arguments, returns the exit code.
        argv: the arguments, or None for those of the process.
    """
    # Threads that wait for each other sleep (read when torch is loaded): where loader processes or other ranks share
    # the cores, spinning made a step 2 to 7 times as slow; on idle cores it is the same (benchmarks/busy_cores.py).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return body(sys.argv[1:] if argv is None else argv)
    except MarcError as error:
        return _told(name, str(error))
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        return 0
    except OSError as error:
        if error.filename is None:  # not about a path that somebody gave
            raise
        return _told(name, f"{error.filename}: {error.strerror or error}")
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _reader_has_left() -> bool:
    """Whether nobody reads our output any more (head, less); then it goes nowhere from now on."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _say_no_more()
        return True
    return False


def _say_no_more() -> None:
    """Send all output nowhere, or Python would try again at its end, and fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


def _told(name: str, text: str) -> int:
    line = printable(" ".join(text.split()))
    try:
        print(f"{name}: error: {line}", file=sys.stderr, flush=True)
    except OSError:  # what is full may be the disk of the log, too: the exit code still says what happened
        _say_no_more()
    return EXIT_USER


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
    path = user_path(places[0])
    if path.is_dir():
        if not (path / "config.yaml").is_file():
            raise ConfigError(f"{path}: no config.yaml; a run folder is made by marc-train train.run_dir={path}")
        if any(word.startswith("train.run_dir=") for word in words):
            raise ConfigError(f"train.run_dir: given twice on the command line, {path} is a run folder")
        return load_config(path / "config.yaml", words, moved={"train.run_dir": str(path)})
    return load_config(path, words)
