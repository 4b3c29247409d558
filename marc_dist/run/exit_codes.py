"""Exit codes of a run's processes, and how a launcher puts them into words.

``EXIT_USER`` (2, a person has to mend something) stands with the errors that it belongs to, in ``marc_dist.config``.
"""

from __future__ import annotations

import signal

EXIT_HUNG = 75
"""A rank gave up waiting for another, or for storage (EX_TEMPFAIL: nothing is wrong with the run, start again)."""

EXIT_REQUEUE = 85
"""The run was asked to stop, saved everything and wants to be started again."""

EXIT_INTERRUPTED = 130
"""Ctrl-C, as shells report it."""


def exit_text(code: int) -> str:
    """``killed by SIGKILL`` or ``exit code 3``."""
    if code > 128 and code - 128 in {int(number) for number in signal.Signals}:  # a shell's word for a signal
        code = 128 - code
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
