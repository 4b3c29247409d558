"""TensorBoard's event files: written beside the log, and left alone when they cannot be written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any


class EventFiles:
    """The event files of one run; a file that fails ends them, and never the run.

    Args:
        run_dir: the run folder.
        first_step: global steps done so far; figures of later steps are dropped.
        say: takes one line for people.
    """

    def __init__(self, run_dir: Path, first_step: int, say: Callable[[str], None]) -> None:
        self._say = say
        self._writer: Any = None
        self._failed: BaseException | None = None
        self._hook = threading.excepthook
        threading.excepthook = self._without_traceback
        self._try(lambda: self._open(run_dir, first_step))

    def _open(self, run_dir: Path, first_step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(run_dir), purge_step=first_step + 1)

    def add(self, figures: dict[str, float], step: int, time_s: float) -> None:
        """Figures of one step.

        Args:
            figures: by name.
            step: global steps done.
            time_s: seconds since 1970.
        """
        for name, value in figures.items():
            if self._writer is not None:
                self._try(lambda: self._writer.add_scalar(name, value, step, walltime=time_s))  # noqa: B023

    def close(self) -> None:
        """Flush and release; safe to call twice."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._try(writer.close)
        if self._failed is not None:  # in its last moment
            self._tell(self._failed)
        if threading.excepthook == self._without_traceback:
            threading.excepthook = self._hook

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except OSError as error:
            self._writer = None
            self._tell(error)

    def _tell(self, error: BaseException) -> None:
        self._failed = None
        reason = getattr(error, "strerror", None) or error
        self._say(f"TensorBoard: its file cannot be written ({reason}); the run goes on without it")

    def _without_traceback(self, failure: threading.ExceptHookArgs) -> None:
        """The thread that writes the files fails first; the next call here tells of it in one line."""
        if type(failure.thread).__module__.startswith("tensorboard"):
            self._failed = failure.exc_value
        else:
            self._hook(failure)
