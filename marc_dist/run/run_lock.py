"""Who trains in a run folder: ``RUN/.run.lock``, a small file that its holder rewrites every ``REFRESH_S`` seconds.

A holder on this machine is looked up in the table of processes. One on another machine is watched: it writes again
while it lives, which needs neither the same clock nor locks that reach across machines. The next attempt of the same
submission takes over at once; whoever finds its file taken over ends itself, so two never write for long.

``RUN/.launch.lock`` is held while a job is submitted, by flock. On NFS, flock reaches across machines where the server
has locks (NFSv4, or NFSv3 with lockd and without ``local_lock``). Without them two machines that submit at the same
moment may both be accepted, and the run lock then lets one of them train.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from marc_dist.config import LaunchError
from marc_dist.files import locked
from marc_dist.run.attempt_id import AttemptId
from marc_dist.run.lock_file import RUN_LOCK, Holder, claim, moved, read_holder, verdict, write_over
from marc_dist.run.processes import is_alive, start_ticks, this_machine

LAUNCH_LOCK = ".launch.lock"
REFRESH_S = 1.0
WATCH_S = 15.0
"""A holder that has not written for so long is gone."""
LAUNCH_S = 150.0
"""Longest wait for another launch in the same folder; a Ray cluster may take a minute to answer one."""


def me(mine: AttemptId) -> Holder:
    """This process as a holder."""
    pid = os.getpid()
    return Holder(socket.gethostname(), this_machine(), pid, start_ticks(pid) or 0, mine, secrets.token_hex(8), 0)


def seen_alive(held: Holder) -> bool | None:
    """Whether a holder's process runs; None when it cannot be seen: on another machine, or hidden from other users."""
    if held.machine != this_machine():
        return None
    if is_alive(held.pid, held.ticks):
        return True
    try:
        os.kill(held.pid, 0)
    except PermissionError:
        return None
    except OSError:
        pass
    return False


def live_holder(
    run_dir: Path, mine: AttemptId, say: Callable[[str], None], *, over: str = "", watch_s: float = WATCH_S
) -> Holder | None:
    """Who else trains in a run folder; None when this attempt may.

    Args:
        run_dir: the run folder.
        mine: the attempt that asks.
        say: told once when a holder on another machine has to be watched.
        over: token of a submission that is known to be over; its holder is gone.
        watch_s: seconds without a write after which a holder on another machine counts as gone.
    """
    held = read_holder(run_dir)
    for _ in range(5):
        if held is None and (run_dir / RUN_LOCK).exists():  # it may be being written
            time.sleep(0.05)
            held = read_holder(run_dir)
    if held is None or (over and held.attempt.token == over):
        return None
    found = verdict(held, mine, seen_alive(held))
    if found != "watch":
        return held if found == "held" else None
    say(f"{run_dir}: was in use by {held}; looking for up to {watch_s:g} s whether it still runs")
    deadline = time.monotonic() + watch_s
    while time.monotonic() < deadline:
        time.sleep(min(0.2, watch_s))
        later = read_holder(run_dir)
        if later is None and not (run_dir / RUN_LOCK).exists():
            return None
        if moved(held, later):
            return later
    return None


@contextmanager
def launch_lock(folder: Path) -> Iterator[None]:
    """Hold the right to start a job in a folder, inside the block; see above what it is worth on NFS.

    Args:
        folder: made when missing.

    Raises:
        LaunchError: the folder cannot be written, or another launch does not end.
    """
    deadline = time.monotonic() + LAUNCH_S

    def wait() -> None:
        if time.monotonic() > deadline:
            raise LaunchError(f"{folder}: another marc-launch submits here since {LAUNCH_S:g} s; look for its process")
        time.sleep(0.05)

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(f"{folder}: cannot be written ({error.strerror}); choose another train.run_dir") from None
    with _locked_if_possible(folder / LAUNCH_LOCK, wait):
        yield


@contextmanager
def _locked_if_possible(path: Path, wait: Callable[[], None]) -> Iterator[None]:
    """``locked``; without a lock on a file system that has none."""
    try:
        held = locked(path, wait)
        held.__enter__()
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        held.__exit__(None, None, None)


def announce(run_dir: Path, mine: AttemptId, seen: Holder | None = None) -> None:
    """Write the lock for ranks that are about to start: this process holds the folder until rank 0 does.

    Args:
        run_dir: the run folder, under ``launch_lock``.
        mine: the attempt of the ranks.
        seen: whom the file told of before it was found that he does not live.

    Raises:
        LaunchError: somebody else has taken the folder since, where flock does not reach him.
    """
    with suppress(OSError):
        for _ in range(5):
            if claim(run_dir, seen, me(mine)):
                return
            other = read_holder(run_dir)
            if other is not None:
                raise LaunchError(refusal(run_dir, other))


def withdraw(run_dir: Path, mine: AttemptId) -> None:
    """Take the lock away when it is still of this attempt: its ranks have gone."""
    held = read_holder(run_dir)
    if held is not None and held.attempt == mine:
        with suppress(OSError):
            (run_dir / RUN_LOCK).unlink()


class RunLock:
    """The right of this process, rank 0, to train in a run folder.

    Args:
        run_dir: made when missing.
        mine: the attempt that this process is of.
        lost: called in another thread, with the reason in one line, when the folder has gone or was given to somebody
            else; must end the process.
        refresh_s: seconds between two writes.
        watch_s: see ``live_holder``.
    """

    def __init__(
        self,
        run_dir: Path,
        mine: AttemptId,
        lost: Callable[[str], None],
        *,
        refresh_s: float = REFRESH_S,
        watch_s: float = WATCH_S,
    ) -> None:
        self.run_dir, self.lost, self.refresh_s, self.watch_s = run_dir, lost, refresh_s, watch_s
        self.me = me(mine)
        self._written = False  # the run has written its settings: the folder is more than a name
        self._missed = 0
        self._made: list[Path] = []  # folders that were not there before, the run folder first
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="run-lock", daemon=True)

    @contextmanager
    def held(self, say: Callable[[str], None]) -> Iterator[None]:
        """Hold the folder inside the block.

        Args:
            say: see ``live_holder``.

        Raises:
            LaunchError: another run is live there; names its process.
        """
        self.take(say)
        try:
            yield
        finally:
            self.release()

    def take(self, say: Callable[[str], None]) -> None:
        """See ``held``."""
        self._made = [folder for folder in (self.run_dir, *self.run_dir.parents) if not folder.exists()]
        with launch_lock(self.run_dir):
            while not self._taken(say):
                pass
        self._thread.start()

    def _taken(self, say: Callable[[str], None]) -> bool:
        """Write the lock if nobody else lives here; False when another one made it since it was looked for.

        So of two that start at once one gets it, also where flock does not reach across machines.
        """
        seen = read_holder(self.run_dir)
        other = live_holder(self.run_dir, self.me.attempt, say, watch_s=self.watch_s)
        if other is not None:
            raise LaunchError(refusal(self.run_dir, other))
        try:
            return claim(self.run_dir, seen, self.me)
        except OSError as error:
            raise LaunchError(
                f"{self.run_dir / RUN_LOCK}: cannot be written ({error.strerror}); free space or choose another "
                "train.run_dir"
            ) from None

    def release(self) -> None:
        """Give the folder back."""
        self._stop.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        held = read_holder(self.run_dir)
        if held is not None and held.nonce == self.me.nonce:
            with suppress(OSError):
                (self.run_dir / RUN_LOCK).unlink()
                self._tidy()

    def _tidy(self) -> None:
        """Take folders away again that were made for a run which has written nothing."""
        if self._made and [path.name for path in self.run_dir.iterdir()] == [LAUNCH_LOCK]:
            (self.run_dir / LAUNCH_LOCK).unlink()
            for folder in self._made:
                folder.rmdir()

    def _refresh(self) -> None:
        while not self._stop.wait(self.refresh_s):
            try:
                reason = self._look()
            except OSError:  # the storage does not answer just now
                continue
            if reason is not None and not self._stop.is_set():
                self.lost(reason)
                return

    def _look(self) -> str | None:
        """Write again; why that must not be, if so. A full or silent disk is the main thread's to tell."""
        there, held = not was_removed(self.run_dir), read_holder(self.run_dir)
        unlocked = held is None and not (self.run_dir / RUN_LOCK).exists()
        self._written |= there or (self.run_dir / "checkpoints").exists()  # which it makes after its settings
        gone = not self.run_dir.exists() or (self._written and not there)
        self._missed = self._missed + 1 if unlocked or gone else 0
        if self._missed == 1:  # a mount may blink; or the folder is being removed, and must get empty
            return None
        if gone:
            return removal(self.run_dir)
        if held is not None and held.nonce != self.me.nonce and not self._is_earlier(held):
            return f"{self.run_dir}: taken over by {held}; this run ends, it would write into the same files"
        self.me = self.me._replace(writes=self.me.writes + 1)
        with suppress(OSError):
            write_over(self.run_dir, self.me, make=unlocked)
        return None

    def _is_earlier(self, held: Holder) -> bool:
        """Whether an attempt before this one, which does not know yet that it is over, has written the file."""
        mine = self.me.attempt
        return bool(mine.token) and held.attempt.token == mine.token and held.attempt.number < mine.number


def refusal(run_dir: Path, other: Holder) -> str:
    """Why a run may not start in a folder, in one line."""
    return (
        f"{run_dir}: a run is live there, {other}; wait for its end, stop it (kill {other.pid} there, or marc-jobs "
        f"cancel {run_dir}), or choose another train.run_dir"
    )


def removal(run_dir: Path) -> str:
    """Why a run ends whose folder has gone, in one line."""
    return f"{run_dir}: the run folder was removed while the run was in it; start again in a new folder"


def was_removed(run_dir: Path) -> bool:
    """Whether the folder of a run that has begun has gone, or is another one now: its settings lie in it."""
    return not (run_dir / "config.yaml").exists()
