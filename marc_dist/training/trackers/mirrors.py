"""A run's mirrors in W&B and MLflow, each in a process of its own: the run writes into a pipe and never waits.

What talks to a tracker takes seconds to import, may wait minutes for a server, and may hang when its process ends. So
it is no thread of the rank: ``trackers.process`` does it, and is killed when it does not end. The pipe is the queue;
what does not fit is counted and told at the end. Imports no torch: a login node checks ``train.trackers``, too.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from marc_dist.config import Config, ConfigError, first_line

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}
"""What must be installed; the full MLflow brings mlflow-skinny, too."""
END_S = 30.0
"""Longest wait for trackers at the end of a run; a short one may end before MLflow has made its database."""
STOP_S = 10.0
"""The same when a run was stopped, whose launcher does not wait long, or failed."""
QUEUE_BYTES = 1 << 20
"""Size of the pipe, some 800 log lines; Linux gives an ordinary user that much."""


def require_trackers(config: Config) -> None:
    """Refuse trackers that are not installed.

    Raises:
        ConfigError: names the package to install.
    """
    for name in config.train.trackers:
        try:
            distribution(PACKAGES[name])
        except PackageNotFoundError:
            raise ConfigError(
                f"train.trackers: {name} is not installed; pip install 'marc-dist[{name}]', or leave it out"
            ) from None


class Mirrors:
    """The trackers of one run; only rank 0 has them.

    Args:
        config: the run's settings; ``config.yaml`` lies in the run folder.
        say: takes one line for people.
    """

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        run_dir = Path(config.train.run_dir).absolute()
        self._longest_s = config.train.timeout_s / 2  # after timeout_s the watchdog ends a rank that waits
        self._mirrors = list[_Mirror]()
        for name in config.train.trackers:
            try:
                self._mirrors.append(_Mirror(name, run_dir, say))
            except OSError as error:
                say(f"{name}: its process cannot be started ({first_line(error)}); the run goes on without it")

    def send(self, step: int, at: float, figures: dict[str, float]) -> None:
        """Hand over the figures of a step; never waits.

        Args:
            step: global step.
            at: seconds since 1970.
            figures: by name; all finite.
        """
        for mirror in self._mirrors:
            mirror.send({"step": step, "at": at, "figures": figures})

    def close(self, done: bool) -> None:
        """Let the trackers end, all together within ``END_S`` or ``STOP_S``, or half of ``train.timeout_s``.

        Safe to call twice.

        Args:
            done: the run is over; False when it failed or was stopped.
        """
        deadline = time.monotonic() + min(END_S if done else STOP_S, self._longest_s)
        untold = [mirror for mirror in self._mirrors if not mirror.end(done)]
        while untold and time.monotonic() < deadline:  # a full pipe: its process may still read
            time.sleep(0.05)
            untold = [mirror for mirror in untold if not mirror.end(done)]
        for mirror in self._mirrors:
            mirror.wait(max(0.0, deadline - time.monotonic()))
        self._mirrors = []


class _Mirror:
    """One tracker's process and the pipe to it."""

    def __init__(self, name: str, run_dir: Path, say: Callable[[str], None]) -> None:
        self.name, self._say, self._dropped, self._alive = name, say, 0, True
        self._log = run_dir / "logs" / f"{name}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "marc_dist.training.trackers.process", name, str(run_dir), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=2,  # its lines for people
                stderr=log,
                start_new_session=True,  # no Ctrl-C, and a process group that can be killed as one
            )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin.fileno()
        os.set_blocking(self._pipe, False)
        with suppress(OSError, AttributeError):  # smaller elsewhere than on Linux, and that is enough
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, QUEUE_BYTES)

    def send(self, message: dict[str, Any]) -> None:
        """Write a message, or count it as lost."""
        data = json.dumps(message).encode() + b"\n"
        try:
            # of this size a pipe takes all or nothing
            taken = len(data) <= select.PIPE_BUF and os.write(self._pipe, data) == len(data)
        except BlockingIOError:
            taken = False
        except OSError:
            taken = False
            if self._alive:
                self._say(f"{self.name}: its process has ended, see {self._log}; the run goes on without it")
            self._alive = False
        self._dropped += not taken

    def end(self, done: bool) -> bool:
        """Say how the run ended; False while the pipe is full, then try again."""
        try:
            os.write(self._pipe, json.dumps({"done": done}).encode() + b"\n")
        except BlockingIOError:
            return False
        except OSError:  # its process has ended
            pass
        return True

    def wait(self, seconds: float) -> None:
        """Wait for the process, then kill it and what it has started in its process group.

        W&B's service is in a session of its own and ends by itself once the process that started it is gone.
        """
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            if self._process.wait(seconds) and self._alive:
                self._say(f"{self.name}: its process failed, see {self._log}")
        except subprocess.TimeoutExpired:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._say(f"{self.name}: does not end, so it was killed; see {self._log}")
        if self._dropped:
            self._say(
                f"{self.name}: {self._dropped} log lines were not mirrored, its process was too slow or has ended"
            )
