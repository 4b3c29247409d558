"""How a rank tells its launcher when and why it ended: of many dead ranks, the first one has the cause.

``RUN/logs/.end-K.json`` is made by whoever starts rank K, ``ROOM`` bytes that are overwritten: the reason may be a full
disk. The rank itself notes its error there, whoever started it adds exit code and host. A note says which attempt it is
of: a rank of an earlier attempt that still writes replaces no note of a later one, and its own counts for nobody.

Which rank was first is told by the clock that dates the files, which all of them share: those of two machines may
differ by minutes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from marc_dist.config import EXIT_USER
from marc_dist.files import read_json
from marc_dist.run.attempt_id import AttemptId, attempt_from_env
from marc_dist.run.exit_codes import EXIT_REQUEUE, exit_text

FAILURE_FILE = "MARC_FAILURE_FILE"
ROOM = 8192  # bytes


class RankEnd(NamedTuple):
    """How a rank ended.

    Attributes:
        rank: its number.
        time: when it failed, or ended, in seconds since 1970, by the clock that dates its file.
        code: exit code; negative for a signal; None while nobody has seen it end.
        error: its own words, if it had the time to say any.
        host: where it ran.
        asked: the launcher or the batch system had told it to end before it did.
    """

    rank: int
    time: float
    code: int | None
    error: str | None
    host: str
    asked: bool


def node_name() -> str:
    """This machine's name for people: MARC_NODE, else Slurm's (virtual nodes share a host name), else the host's."""
    return os.environ.get("MARC_NODE") or os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def end_path(log_dir: Path, rank: int) -> Path:
    """The file in which a rank's end is noted."""
    return log_dir / f".end-{rank}.json"


def make_room(path: Path, mine: AttemptId) -> None:
    """Prepare the file of a rank of this attempt; what an earlier attempt left there goes."""
    with suppress(OSError):
        path.write_bytes(json.dumps(mine.record()).encode().ljust(ROOM))


def _note(path: Path, told: Mapping[str, object]) -> None:
    data = json.dumps(told).encode().ljust(ROOM)
    with suppress(OSError), path.open("r+b" if path.exists() else "wb") as file:
        file.write(data)


def file_time(path: Path) -> float:
    """What time it is by the clock that dates a rank's file, in seconds since 1970; ours where it cannot be written.

    Works on a full disk: a byte is written over itself.
    """
    with suppress(OSError), path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(first)
        file.flush()
        os.fsync(file.fileno())
        if first:
            return os.fstat(file.fileno()).st_mtime
    return time.time()


def note_failure(error: str) -> None:
    """Note why this rank ends, in the launcher's file, when there is a launcher; never fails itself.

    Its first words stay: what comes later, while it tidies up, is no cause.
    """
    name = os.environ.get(FAILURE_FILE)
    if not name:
        return
    path, mine = Path(name), attempt_from_env(os.environ)
    before = _read(path)
    if not _is_later(before, mine) and before.get("error") is None:
        asked = mine.wrote(before) and bool(before.get("asked"))
        told = {"time": file_time(path), "error": error[:1000], "host": node_name(), "asked": asked}
        _note(path, {**told, **mine.record()})


def _is_later(told: Mapping[str, object], mine: AttemptId) -> bool:
    """Whether a file belongs to a later attempt of the same submission, or to another submission."""
    token, number = told.get("token", mine.token), told.get("attempt", mine.number)
    return token != mine.token or (isinstance(number, int) and number > mine.number)


@contextmanager
def failures_noted() -> Iterator[None]:
    """Tell of an error that leaves the block, and let it pass."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        name = "" if type(error).__module__.startswith("marc_dist.") else f"{type(error).__name__}: "
        note_failure(name + text)
        raise


def _read(path: Path) -> dict[str, object]:
    try:
        return read_json(path)
    except (OSError, ValueError):  # never made, blank, or broken off
        return {}


def note_end(path: Path, code: int | None, ended: float, mine: AttemptId, *, asked: bool = False) -> None:
    """Add to a rank's file what its starter saw.

    Args:
        path: see ``end_path``.
        code: exit code, negative for a signal; None when it was only asked to end, so far.
        ended: when, in seconds since 1970 by this machine's clock; the rank's own time of failure is kept when it told
            one, the time at which it was asked to end is not.
        mine: the attempt that the rank is of.
        asked: it was told to end.
    """
    told = _read(path)
    if _is_later(told, mine):
        return
    told = told if mine.wrote(told) else {}
    spoke = told.get("error") is not None and "time" in told
    when = told["time"] if spoke else ended + file_time(path) - time.time()
    seen = {"error": None, "host": node_name(), **told, "time": when, "code": code, "asked": asked}
    _note(path, seen | mine.record())


def read_end(log_dir: Path, rank: int, mine: AttemptId | None = None) -> RankEnd | None:
    """How a rank ended; None when nothing is known of it.

    Args:
        log_dir: ``RUN/logs``.
        rank: its number.
        mine: the attempt that is asked for: notes of others do not count. None takes any.
    """
    return end_in(_read(end_path(log_dir, rank)), rank, mine)


def read_ends(log_dir: Path, world: int, mine: AttemptId) -> list[RankEnd | None]:
    """How all ranks of an attempt ended, for whoever decides on it.

    On NFS a machine may remember for a minute that a file of another one is not there; a change of its own to the
    folder makes it forget. So where a note is missing, the folder is changed and looked at again.

    Args:
        log_dir: ``RUN/logs``.
        world: number of ranks.
        mine: the attempt.
    """
    ends = [read_end(log_dir, rank, mine) for rank in range(world)]
    if None in ends:
        with suppress(OSError):
            look = log_dir / ".end-look.json"
            look.write_bytes(b"")
            look.unlink()
        ends = [end or read_end(log_dir, rank, mine) for rank, end in enumerate(ends)]
    return ends


def end_in(told: Mapping[str, object], rank: int, mine: AttemptId | None) -> RankEnd | None:
    """How a rank ended, from the fields of its file. Pure.

    Args:
        told: the fields; none when there is no file.
        rank: its number.
        mine: see ``read_end``.
    """
    if mine is not None and not mine.wrote(told):
        return None
    try:
        code, error = told.get("code"), told.get("error")
        return RankEnd(
            rank,
            float(str(told["time"])),
            None if code is None else int(str(code)),
            None if error is None else str(error),
            str(told.get("host", "")),
            bool(told.get("asked", False)),
        )
    except (KeyError, ValueError):
        return None


def clear_ends(log_dir: Path) -> None:
    """Forget how the ranks of an earlier attempt ended; what cannot be removed says which attempt it is of."""
    with suppress(OSError):
        for path in log_dir.glob(".end-*.json"):
            path.unlink(missing_ok=True)


def failed(end: RankEnd) -> bool:
    """Whether a rank failed by itself: neither done, nor stopped and saved, nor told to end before.

    What a person has to mend counts even after that: it would come again.
    """
    if end.code == EXIT_USER:
        return True
    return not end.asked and (end.error is not None if end.code is None else end.code not in (0, EXIT_REQUEUE))


def first_failed(ends: Sequence[RankEnd | None]) -> RankEnd | None:
    """The rank that failed first, None when none did.

    One that was killed while it saved, as it was asked to, before any other one failed, took the others with it.
    """
    known = [end for end in ends if end is not None]
    first = min((end for end in known if failed(end)), key=lambda end: (end.time, end.rank), default=None)
    if first is None:
        return None
    killed = (end for end in known if end.asked and end.code == -signal.SIGKILL and end.time < first.time)
    return min(killed, key=lambda end: (end.time, end.rank), default=first)


class JobEnd(NamedTuple):
    """How all ranks of a job ended together.

    Attributes:
        code: exit code of the job: of the rank that failed first, 128 + n for signal n; 85 when they were stopped.
        error: what it failed of, with rank, host and log; None when nothing did.
        rank: that failed first, None when none did.
        lost: a rank was killed or vanished: with its machine, or for want of memory; not by a fault of the program.
    """

    code: int
    error: str | None
    rank: int | None
    lost: bool


def job_end(ends: Sequence[RankEnd | None], code: int, log_dir: Path) -> JobEnd:
    """Of many ends, the one that caused the others.

    Args:
        ends: of every rank in order; None where nothing is known.
        code: exit code of what started them all (srun).
        log_dir: where their logs are.
    """
    world = len(ends)
    known = [end for end in ends if end is not None]
    first = first_failed(ends)
    vanished = [rank for rank, end in enumerate(ends) if end is None or (end.code is None and not end.asked)]
    if first is not None:
        lost = bool(vanished) or first.code in (None, -signal.SIGKILL)
        number = 1 if first.code is None else 128 - first.code if first.code < 0 else first.code
        how = "lost" if first.code is None else exit_text(first.code)
        what = f": {first.error}" if first.error else ""
        log = log_dir / f"rank-{first.rank}.log"
        where = f"rank {first.rank} of {world} failed first ({how}) on {first.host}"
        return JobEnd(number, f"{where}{what}; log: {log}", first.rank, lost)
    if vanished and code:
        shown = ", ".join(map(str, vanished[:8])) + (", ..." if len(vanished) > 8 else "")
        return JobEnd(code, f"rank {shown} of {world} vanished without a word (srun: {code})", None, True)
    if any(end.asked or end.code == EXIT_REQUEUE for end in known):
        return JobEnd(EXIT_REQUEUE if any(end.code != 0 for end in known) else 0, None, None, False)
    error = f"srun ended with code {code}; see the log of the batch script" if code else None
    return JobEnd(code, error, None, bool(code))
