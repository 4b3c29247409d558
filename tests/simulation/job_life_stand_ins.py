"""What stands in for Python's own objects in a simulated process: environment, output, child, thread, event, lock."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from filelock import Timeout

from tests.simulation.job_life_files import SharedFiles, _Descriptor
from tests.simulation.job_life_kernel import Condition, Kernel, Tasklet


class Environment(MutableMapping[str, str]):
    """``os.environ`` of the present process."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def _now(self) -> dict[str, str]:
        current = self._kernel.current
        return {} if current is None else current.process.env

    def __getitem__(self, key: str) -> str:
        return self._now()[key]

    def __setitem__(self, key: str, value: str) -> None:
        self._now()[key] = value

    def __delitem__(self, key: str) -> None:
        del self._now()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())

    def copy(self) -> dict[str, str]:
        return dict(self._now())


class Told(io.TextIOBase):
    """Standard output: lines of the story."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.buffer = io.BytesIO()

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                self._kernel.tell(f"says: {line.strip()}")
        return len(text)

    def isatty(self) -> bool:
        return False


class Popen:
    """A rank as a child of the present process, started by its real starter."""

    def __init__(self, kernel: Kernel, rank: Callable[[], Any], env: dict[str, str]) -> None:
        assert kernel.current is not None
        parent = kernel.current.process
        number = env.get("RANK") or env.get("SLURM_PROCID", "?")
        self.child = kernel.spawn(
            f"rank {number}", parent.node, rank, env, parent=parent, dies_with_parent=True, delay=kernel.rng.random()
        )
        self.pid = self.child.pid

    @property
    def returncode(self) -> int | None:
        return self.child.code if not self.child.alive else None

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        return self.returncode


class Event:
    """A ``threading.Event`` in simulated time."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.condition, self.on = kernel, Condition(), False

    def wait(self, limit: float) -> bool:
        return self.on or self.kernel.wait(self.condition, limit) or self.on

    def is_set(self) -> bool:
        return self.on

    def set(self) -> None:
        self.on = True
        self.kernel.notify(self.condition)


class Thread:
    """A ``threading.Thread`` of a simulated process."""

    def __init__(self, kernel: Kernel, target: Callable[[], None], *, quiet: bool = False) -> None:
        self.kernel, self.target, self.over, self.quiet = kernel, target, Condition(), quiet
        self.tasklet: Tasklet | None = None

    def start(self) -> None:
        self.tasklet = self.kernel.thread(self._run)
        self.tasklet.quiet = self.quiet

    def _run(self) -> None:
        self.target()
        self.kernel.notify(self.over)

    def is_alive(self) -> bool:
        return self.tasklet is not None and not self.tasklet.done

    def join(self) -> None:
        while self.is_alive():
            self.kernel.wait(self.over, 1.0)


class Lock:
    """``filelock.FileLock``: flock, as far as it reaches on this file system."""

    def __init__(self, files: SharedFiles, path: Any) -> None:
        self.files, self.path = files, os.fspath(path)
        self.held: _Descriptor | None = None

    def acquire(self) -> None:
        files = self.files
        files.step("lock", self.path, change=True)
        if files.locks == "none":
            raise NotImplementedError("no locks here")
        held = _Descriptor(files, files.made(self.path), self.path, False)
        here = files.kernel.live().process.node
        for other in held.inode.locks:
            if files.locks == "all" or other.process is None or other.process.node is here:
                raise Timeout(self.path)
        held.inode.locks.append(held)
        self.held = held

    def release(self) -> None:
        files = self.files
        files.kernel.pause(files.latency)
        if self.held is not None:
            self.held.dropped()
