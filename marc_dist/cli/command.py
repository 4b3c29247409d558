"""What every command shares: the shape of its ``--help``, ``--version``, one line and exit 2 for people's mistakes."""

from __future__ import annotations

import argparse
import os
import select
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from marc_dist import __version__
from marc_dist.cli import COMMANDS
from marc_dist.config import EXIT_USER, MarcError, is_passing, printable
from marc_dist.memory_limits import memory_refused
from marc_dist.run.exit_codes import EXIT_HUNG, EXIT_INTERRUPTED

HELP_WIDTH = 80
"""Columns of a help page at most. The examples below the options are written for it, however wide the terminal is."""


class HelpLayout(argparse.RawDescriptionHelpFormatter):
    """Options in two columns; description and examples as they are written."""

    def __init__(self, prog: str) -> None:
        width = min(HELP_WIDTH, shutil.get_terminal_size().columns) - 2
        super().__init__(prog, max_help_position=26, width=width)


def command_parser(command: str, usage: str, epilog: str) -> argparse.ArgumentParser:
    """The parser of one command, with ``--help`` and ``--version`` only.

    Args:
        command: its name in ``COMMANDS``.
        usage: what follows its name on the command line; further lines are further ways to call it.
        epilog: examples and notes below the options, at most 80 columns wide.
    """
    name = f"marc-{command}"
    parser = argparse.ArgumentParser(
        prog=name,
        usage="\n       ".join(f"{name} {line}" for line in usage.splitlines()),
        description=COMMANDS[command],
        epilog=epilog,
        formatter_class=HelpLayout,
    )
    parser.add_argument(
        "--version", action="version", version=f"marc-dist {__version__}", help="print the version and exit"
    )
    return parser


def run_command(name: str, body: Callable[[], int]) -> int:
    """Run a command's body and turn what people can cause into one line and an exit code.

    Args:
        name: the command, put before the message.
        body: does the work and returns the exit code.
    """
    # Threads that wait for each other sleep (read when torch is loaded): where loader processes or other ranks share
    # the cores, spinning made a step 2 to 7 times as slow; on idle cores it is the same (benchmarks/busy_cores.py).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = body()
        _reader_has_left()  # else Python finds out at its end, and complains
        return code
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        return 0
    except (Exception, KeyboardInterrupt) as error:
        answer = _answer(name, error)
        if answer is None:
            raise
        return answer


def _answer(name: str, error: BaseException) -> int | None:
    """Say in one line what people can cause; the exit code. None for a fault of ours, which keeps its traceback."""
    if isinstance(error, MarcError):
        code = _told(name, str(error), EXIT_HUNG if error.passing else EXIT_USER)
        if error.next_command:
            with suppress(OSError):
                print(printable(error.next_command), file=sys.stderr, flush=True)
        return code
    if _came_of_ctrl_c(error):
        return _interrupted(name)
    told = memory_refused(error) if isinstance(error, ImportError | MemoryError | OSError | RuntimeError) else None
    if told is not None:
        return _told(name, told)
    if isinstance(error, OSError) and is_passing(error):
        return _told(name, f"{error.filename or 'storage'}: {error.strerror or error}; start again later", EXIT_HUNG)
    if isinstance(error, OSError) and error.filename is not None:  # about a path that somebody gave
        return _told(name, f"{error.filename}: {error.strerror or error}")
    return None


def _interrupted(name: str) -> int:
    """Say so in one line, where somebody still reads; the exit code."""
    with suppress(OSError):
        print(f"{name}: interrupted", file=sys.stderr, flush=True)
    _reader_has_left()
    return EXIT_INTERRUPTED


def _came_of_ctrl_c(error: BaseException | None) -> bool:
    """Whether an error is what a library made of Ctrl-C, as while its modules are loaded."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _told(name: str, text: str, code: int = EXIT_USER) -> int:
    """Print what went wrong in one line; the exit code."""
    line = printable(" ".join(text.split()))
    try:
        print(f"{name}: error: {line}", file=sys.stderr, flush=True)
    except OSError:  # what is full may be the disk of the log, too: the exit code still says what happened
        _discard(sys.stdout, sys.stderr)
    return code


def _reader_has_left() -> bool:
    """Whether nobody reads our output any more (head, less); then it goes nowhere from now on."""
    broken = []
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
            left = _is_broken(stream.fileno())
        except BrokenPipeError:
            left = True
        except (OSError, ValueError):  # a full disk, or no file at all
            left = False
        broken += [stream] if left else []
    _discard(*broken)
    return bool(broken)


def _is_broken(fd: int) -> bool:
    """Whether a pipe has no reader."""
    poll = select.poll()
    poll.register(fd, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _discard(*streams: TextIO) -> None:
    """Send output nowhere, or Python would try again at its end, and fail again."""
    if streams:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in streams:
            os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
