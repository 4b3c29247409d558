"""What a run says: on the terminal, in ``metrics.jsonl``, to TensorBoard and trackers. Only rank 0 speaks."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from marc_dist.config import LaunchError
from marc_dist.files import sync_file, sync_folder
from marc_dist.progress_bar import bar, shown_time
from marc_dist.run.folder import BAD, METRICS, SKIPPED, VALIDATION, truncate_lines
from marc_dist.training.trackers.event_files import EventFiles
from marc_dist.training.trackers.mirrors import Mirrors


def console(speaks: bool) -> Console:
    """Where a run's lines for people go; a rank that does not speak prints nothing."""
    return Console(stderr=True, quiet=not speaks, highlight=False, markup=False, soft_wrap=True)


class RunLog:
    """The log of one run on one rank.

    Args:
        run_dir: the run folder.
        first_step: global steps done so far; lines of later steps, left by an interrupted run, are dropped.
        last_step: where the progress bar ends.
        speaks: whether this is the rank that writes.
        mirrors: the run's trackers, of the rank that writes.
    """

    def __init__(
        self, run_dir: Path, first_step: int, last_step: int, speaks: bool, mirrors: Mirrors | None = None
    ) -> None:
        self.run_dir = run_dir
        self._mirrors = mirrors
        self.speaks = speaks
        self._last_step = last_step
        self._console = console(speaks)
        self._events: EventFiles | None = None
        self._unsynced: set[str] = set()
        self._progress: Progress | None = None
        self._started, self._first_step = time.monotonic(), first_step
        if not speaks:
            return
        for name in (METRICS, SKIPPED, BAD, VALIDATION):
            truncate_lines(run_dir / name, first_step)
        self._events = EventFiles(run_dir, first_step, self.say)
        if self._console.is_terminal:
            self._progress = bar(self._console)
            self._task = self._progress.add_task("step", total=last_step, completed=first_step, figures="")
            self._progress.start()

    def say(self, message: str) -> None:
        """One line for people."""
        self._console.print(message, markup=False)

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def metrics(self, record: dict[str, Any]) -> None:
        """Write one step's figures everywhere; numbers that are not finite become null in the file."""
        if not self.speaks:
            return
        self.append(METRICS, record)
        self._scalars("train", record, ("step", "time"))
        step = int(record["step"])
        figures = (
            f"loss {_figure(record['loss'])}  lr {record['lr']:.2e}  {record['images_per_s']:.0f} images/s  "
            f"wait {100 * record['loader_wait']:.0f} %"
        )
        if self._progress is not None:
            self._progress.update(self._task, completed=step, figures=figures)
        else:
            self.say(f"step {step}/{self._last_step}  epoch {record['epoch']}  {figures}  left {self._left(step)}")

    def validation(self, record: dict[str, Any]) -> None:
        """Write the scores of the validation samples everywhere."""
        if not self.speaks:
            return
        self.append(VALIDATION, record)
        self._scalars("validation", record, ("step", "time", "epoch", "seconds"))

    def _scalars(self, group: str, record: dict[str, Any], other: tuple[str, ...]) -> None:
        """The finite numbers of a record, but for what is no figure, for TensorBoard and trackers."""
        chosen = {f"{group}/{name}": value for name, value in record.items() if name not in other}
        figures = {name: x for name, x in chosen.items() if isinstance(x, int | float) and math.isfinite(x)}
        if self._events is not None:
            self._events.add(figures, record["step"], record["time"])
        if self._mirrors is not None:
            self._mirrors.send(record["step"], record["time"], figures)

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Append one line to a ``.jsonl`` file of the run folder.

        Raises:
            LaunchError: the disk is full, or the folder has gone.
        """
        if not self.speaks:
            return
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        path = self.run_dir / name
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(clean) + "\n")
            self._unsynced.add(name)
        except OSError as error:
            raise LaunchError(f"{path}: cannot be written ({error.strerror}); free space and start again") from None

    def sync(self) -> None:
        """What was appended survives a power cut from now on: called before a checkpoint, which must not outlive it.

        Raises:
            LaunchError: the disk is full or fails.
        """
        try:
            for name in sorted(self._unsynced):
                sync_file(self.run_dir / name)
            if self._unsynced:
                sync_folder(self.run_dir)
        except OSError as error:
            raise LaunchError(
                f"{self.run_dir}: cannot be written ({error.strerror}); free space and start again"
            ) from None
        self._unsynced.clear()

    def _left(self, step: int) -> str:
        share = (time.monotonic() - self._started) / max(step - self._first_step, 1)
        return shown_time(share * max(self._last_step - step, 0))

    def close(self, done: bool = False) -> None:
        """Flush and release; safe to call twice.

        Args:
            done: the run is over; False when it failed or was stopped.
        """
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        if self._events is not None:
            self._events.close()
        if self._mirrors is not None:
            self._mirrors.close(done)


def _figure(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"
