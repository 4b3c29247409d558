"""One rank as a child process: its own process group, its own log, killed with whoever started it.

The local launcher, the task under srun and Ray's actors all start ranks through here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from marc_dist.run.attempt_id import attempt_from_env
from marc_dist.run.rank_ends import FAILURE_FILE, RankEnd, end_path, make_room, node_name, note_end, read_end

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK")
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PR_SET_PDEATHSIG = 1
SETTLE_S = 1.0
"""Failures this close together: only what the ranks say themselves tells which was first."""


class RankProcess:
    """A rank that has been started.

    Args:
        rank: its number.
        command: program and arguments.
        log_dir: ``RUN/logs``; its output is appended to ``rank-K.log`` there.
        env: its whole environment; it says which attempt the rank is of.
        listen_fd: a listening socket that it inherits, for rank 0.
        cwd: the folder it starts in; None for ours.
        die_with_parent: Linux kills the rank when the thread that started it ends.

    Attributes:
        ended: when it was seen to have ended, in seconds since 1970.
        noted: its end is noted, too, which takes its time on a slow file system.
        alive_at: when it was last seen alive. A rank that has no time to say so is taken to have failed then: before
            its peers, which hear of it at once.
        asked: it was told to end by us.
    """

    def __init__(
        self,
        rank: int,
        command: Sequence[str],
        log_dir: Path,
        env: Mapping[str, str],
        *,
        listen_fd: int | None = None,
        cwd: str | None = None,
        die_with_parent: bool = True,
    ) -> None:
        self.rank, self.log_dir = rank, log_dir
        self.log, self.end_file = log_dir / f"rank-{rank}.log", end_path(log_dir, rank)
        self.ended: float | None = None
        self.noted = False
        self.alive_at = time.time()
        self.asked = False
        log_dir.mkdir(parents=True, exist_ok=True)
        self.mine = attempt_from_env(env)
        make_room(self.end_file, self.mine)
        full = {**env, FAILURE_FILE: str(self.end_file)}
        if listen_fd is not None:
            full["MARC_MASTER_FD"] = str(listen_fd)
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                list(command),
                env=full,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=() if listen_fd is None else (listen_fd,),
                preexec_fn=_die_with_parent(os.getpid()) if die_with_parent else None,  # noqa: PLW1509 - no threads
            )

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self.process.returncode

    def poll(self, now: float | None = None) -> bool:
        """Whether it has ended; then what it had started ends too, and its end is noted.

        Args:
            now: when this look began, in seconds since 1970; by default, now.
        """
        now = time.time() if now is None else now
        if self.ended is None and not _has_ended(self.process):
            self.alive_at = now
        elif self.ended is None:
            self.ended = time.time()
            self.send(signal.SIGKILL, group=True)  # loader workers that would outlive it
            self.process.wait()
            try:
                note_end(self.end_file, self.process.returncode, self.alive_at, self.mine, asked=self.asked)
            finally:
                self.noted = True
        return self.ended is not None

    def send(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the rank, or to it and its loader workers."""
        with suppress(ProcessLookupError, PermissionError):  # gone already
            (os.killpg if group else os.kill)(self.process.pid, number)

    def ask(self, number: int) -> None:
        """Tell it to end, with its loader workers when killed; its end is not its own failure then."""
        self.asked = True
        self.send(number, group=number == signal.SIGKILL)

    def kill(self) -> None:
        """End it now, with its loader workers."""
        if self.ended is None:
            self.send(signal.SIGKILL, group=True)
            self.process.wait()

    def end(self) -> RankEnd:
        """When and with what it ended; one that had no time to say so failed when it was last seen alive."""
        told = read_end(self.log_dir, self.rank, self.mine)
        return RankEnd(self.rank, self.alive_at, self.code, None, node_name(), self.asked) if told is None else told


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def what_ranks_understand(number: int) -> int:
    """The signal that means "save and go" to a rank."""
    return signal.SIGTERM if number in (signal.SIGINT, signal.SIGHUP) else number


def tail(path: Path, num_lines: int = 20) -> list[str]:
    """The last lines of a log."""
    try:
        return path.read_text(errors="replace").splitlines()[-num_lines:]
    except OSError as error:
        return [f"({error.strerror})"]


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a child has ended; it is not reaped yet, so that nobody else can get its number before its group is."""
    if not hasattr(os, "waitid"):
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _die_with_parent(launcher: int) -> Callable[[], None] | None:
    """What a Linux child calls before it becomes a rank: be killed when the launcher goes, however it goes."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != launcher:  # it went while we were being born
            os._exit(1)

    return bind
