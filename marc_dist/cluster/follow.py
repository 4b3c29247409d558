"""The logs of a job's ranks as they grow, merged, with a line of progress on a terminal; no threads.

A log is shown as it is to a file or a pipe. On a terminal, what could steer it (cursor, title, keyboard) is left out;
colours stay.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from marc_dist.run.attempts import attempts
from marc_dist.run.folder import METRICS, log_path
from marc_dist.run.job import OVER, Job, State
from marc_dist.run.progress import life_age_s, read_progress

POLL_S = 0.3
ASK_S = {"local": 1.0, "slurm": 5.0, "ray": 5.0}
"""How often a job's state is asked for: controllers serve everybody."""
FORGOTTEN_S = 600.0
"""A job of which nobody knows anything counts as over when its folder is quiet for so long."""
CHUNK = 1 << 20  # bytes read at a time
LONGEST = 1 << 16  # bytes of a line that is shown before its end has come
_STEERING = re.compile(
    r"(\x1b\[[0-9;:]*m)|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]P_^X][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*.?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def for_terminal(line: bytes) -> bytes:
    """A line of a log without what could steer a terminal; of a line written over itself, the last words."""
    text = line.decode(errors="replace").rstrip("\r")
    text = text.rpartition("\r")[2]
    clean = _STEERING.sub(lambda found: found[1] or "", text)
    return (clean + "\x1b[0m" if "\x1b" in clean else clean).encode()


def last_lines(file: BinaryIO, count: int) -> int:
    """Where the last ``count`` lines of a file begin; reads no more of it than it must."""
    end = position = file.seek(0, os.SEEK_END)
    if count <= 0:
        return end
    wanted = count
    while position > 0:
        size = min(CHUNK, position)
        position -= size
        file.seek(position)
        data = file.read(size)
        at = len(data) - 1 if position + size == end and data.endswith(b"\n") else len(data)  # ends the last line
        while (at := data.rfind(b"\n", 0, at)) >= 0:
            wanted -= 1
            if wanted == 0:
                return position + at + 1
    return 0


class _Log:
    """A file that grows, line by line."""

    def __init__(self, path: Path, lines: int | None) -> None:
        self.path, self.lines = path, lines
        self.position, self.file_number = 0, -1
        self.rest = b""

    def news(self) -> list[bytes]:
        """Whole lines that have come, without their ends."""
        try:
            file = self.path.open("rb")  # each time: network file systems look for news when a file is opened
        except FileNotFoundError:
            return []
        with file:
            facts = os.fstat(file.fileno())
            if self.file_number < 0:
                self.position = 0 if self.lines is None else last_lines(file, self.lines)
            elif facts.st_ino != self.file_number or facts.st_size < self.position:  # another file
                self.position, self.rest = 0, b""
            self.file_number = facts.st_ino
            file.seek(self.position)
            data = file.read(CHUNK)
        self.position += len(data)
        if not data:
            return []
        *whole, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > LONGEST:
            whole += self.flush()
        return whole

    def flush(self) -> list[bytes]:
        """The beginning of a line whose end never came."""
        rest, self.rest = self.rest, b""
        return [rest] if rest else []


class _Follower:
    """What has been shown so far.

    Args:
        run_dir: the run folder.
        out: where lines go.
        ranks: whose; None = all, also those that come later.
        lines: of each log that is there already.
    """

    def __init__(self, run_dir: Path, out: BinaryIO, ranks: Sequence[int] | None, lines: int) -> None:
        self.run_dir, self.out, self.ranks = run_dir, out, ranks
        self.terminal = out.isatty()
        self.logs: dict[int, _Log] = {}
        self._lines: int | None = lines
        self._drawn, self._seen, self._progress = "", 0, ""

    def show(self) -> None:
        """Bring what is new."""
        self._find()
        while any([self._write(rank, log.news()) for rank, log in sorted(self.logs.items())]):
            pass

    def finish(self) -> None:
        """Bring the rest, and leave the terminal as it was."""
        self.show()
        for rank, log in sorted(self.logs.items()):
            self._write(rank, log.flush())
        self.erase()

    def draw(self, waiting: str) -> None:
        """The line of progress, or what the job waits for; only on a terminal."""
        if not self.terminal:
            return
        with suppress(OSError):
            changed = (self.run_dir / METRICS).stat().st_mtime_ns
            if changed != self._seen:
                tries = attempts(self.run_dir)
                self._progress = str(read_progress(self.run_dir, tries[-1].first_step if tries else 0))
            self._seen = changed
        text = (self._progress if self.logs else "") or waiting
        text = "".join(c for c in text if c.isprintable())[: shutil.get_terminal_size().columns - 1]
        if text != self._drawn:
            self.out.write(f"\r\x1b[K{text}".encode())
            self.out.flush()
            self._drawn = text

    def erase(self) -> None:
        """Take the line of progress away."""
        if self._drawn:
            self.out.write(b"\r\x1b[K")
            self.out.flush()
            self._drawn = ""

    def say(self, text: str) -> None:
        """A line that belongs to no log."""
        self.erase()
        print(text, file=sys.stderr, flush=True)

    def _find(self) -> None:
        if self.ranks is None:
            names = (path.stem.removeprefix("rank-") for path in (self.run_dir / "logs").glob("rank-*.log"))
            found = [int(name) for name in names if name.isdigit()]
        else:
            found = [rank for rank in self.ranks if log_path(self.run_dir, rank).exists()]
        for rank in found:
            if rank not in self.logs:
                self.logs[rank] = _Log(log_path(self.run_dir, rank), self._lines)
        self._lines = None  # what comes later is new from its beginning

    def _write(self, rank: int, lines: Sequence[bytes]) -> bool:
        if not lines:
            return False
        self.erase()
        before = b"" if self.ranks is not None and len(self.ranks) == 1 else f"[{rank}] ".encode()
        for line in lines:
            self.out.write(before + (for_terminal(line) if self.terminal else line) + b"\n")
        self.out.flush()
        return True


def follow(
    run_dir: Path, out: BinaryIO, *, ranks: Sequence[int] | None, over: Callable[[], bool], lines: int = 50
) -> None:
    """Show ranks' logs until ``over()``, and all that was written by then.

    With one rank its lines come as they are, with several each begins with ``[rank]``.

    Args:
        run_dir: the run folder.
        out: where lines go; on a terminal also a line of progress.
        ranks: whose logs; None = all, also of ranks that come later.
        over: whether the job has ended; asked after every look.
        lines: last lines of each log that is there already.
    """
    _loop(_Follower(run_dir, out, ranks, lines), over, lambda: "")


def _loop(follower: _Follower, over: Callable[[], bool], waiting: Callable[[], str]) -> None:
    try:
        while not over():
            follower.show()
            follower.draw(waiting())
            time.sleep(POLL_S)
        follower.finish()
    finally:
        follower.erase()


class _Watch:
    """Asks for a job's state now and then, and tells when it changes."""

    def __init__(self, follower: _Follower, job: Job, state_fn: Callable[[], State]) -> None:
        self.follower, self.state_fn, self.every_s = follower, state_fn, ASK_S[job.kind]
        self.state = State("unknown")
        self._next = 0.0
        self._word = ""

    def over(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self.every_s
        self.state = self.state_fn()
        if self.state.word != self._word and self.state.word not in OVER:
            self.follower.say(f"{self.follower.run_dir}: {self.state}")
        self._word = self.state.word
        if self.state.word != "unknown":
            return self.state.word in OVER
        age_s = life_age_s(self.follower.run_dir)
        return age_s is None or age_s > FORGOTTEN_S


def follow_job(
    run_dir: Path,
    job: Job,
    out: BinaryIO,
    state_fn: Callable[[], State],
    *,
    ranks: Sequence[int] | None = (0,),
    lines: int = 0,
) -> State:
    """Follow a job until it is over; its last state.

    A job of which nobody knows (``unknown``) is over when its folder has been quiet for ten minutes.

    Args:
        run_dir: the run folder.
        job: the job.
        out: where lines go; what is said about the job goes to standard error.
        state_fn: asks for its state.
        ranks: see ``follow``.
        lines: see ``follow``.

    Raises:
        KeyboardInterrupt: Ctrl-C; the job goes on, which is said first.
    """
    follower = _Follower(run_dir, out, ranks, lines)
    watch = _Watch(follower, job, state_fn)
    try:
        _loop(follower, watch.over, lambda: str(watch.state))
    except KeyboardInterrupt:
        follower.say(f"detached; the job goes on: marc-jobs logs -f {shlex.quote(str(run_dir))}")
        raise
    return watch.state
