"""Signals that ask a run to save and go: they set a flag, in the main process only; the ranks agree later.

A handler that saved by itself would run in loader workers too, in the middle of a collective, and on one rank alone.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopFlag:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._pid = os.getpid()

    def __bool__(self) -> bool:
        return self.name is not None

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """The signal handler; a forked child that inherited it ignores the signal."""
        if os.getpid() == self._pid:
            self.name = signal.Signals(number).name

    @contextmanager
    def installed(self) -> Iterator[StopFlag]:
        """Handle the signals inside the block; outside the main thread, where Python forbids it, do nothing.

        Whoever started the process may have blocked them (a fork server, a batch system's wrapper): inside the block
        they get through.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self.ask) for number in STOP_SIGNALS}
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        try:
            yield self
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for number, handler in before.items():
                signal.signal(number, handler)
