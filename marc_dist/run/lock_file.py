"""The file of the run lock, ``RUN/.run.lock``: what it says of its holder, and how it comes to have another one.

It is made by a hard link and handed on by a rename, so that of several machines that do so at once one succeeds, also
where locks do not reach from one to the other. Its holder writes over it in its place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from marc_dist.files import read_json
from marc_dist.run.attempt_id import AttemptId

RUN_LOCK = ".run.lock"
ROOM = 1024  # bytes; a holder writes over them, so that no reader finds half a line

Verdict = Literal["free", "ours", "held", "watch"]


class Holder(NamedTuple):
    """Who holds a run folder.

    Attributes:
        host: name of its machine.
        machine: what makes its table of processes ours: boot and process namespace.
        pid: its process.
        ticks: when that process started, in clock ticks since boot; 0 where the system does not say.
        attempt: that it belongs to; without a token for a training that nobody launched.
        nonce: random; another one is another holder.
        writes: how often it has written the file; grows while the holder lives.
    """

    host: str
    machine: str
    pid: int
    ticks: int
    attempt: AttemptId
    nonce: str
    writes: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def verdict(held: Holder | None, mine: AttemptId, alive: bool | None) -> Verdict:
    """Whether an attempt may have a run folder. Pure.

    Args:
        held: who holds it; None when nobody does.
        mine: the attempt that asks.
        alive: whether the holder's process runs; None where that cannot be seen from here.

    Returns:
        ``free``; ``ours``: held by the same submission, in this attempt (its launcher, another rank) or an earlier one;
        ``held`` by somebody who lives; ``watch``: look again, and see with ``moved`` whether it lives.
    """
    if held is None or alive is False:
        return "free"
    if mine.token and held.attempt.token == mine.token and held.attempt.number <= mine.number:
        return "ours"
    return "held" if alive else "watch"


def moved(first: Holder, later: Holder | None) -> bool:
    """Whether somebody wrote the lock between two looks. Pure."""
    return later is not None and (later.nonce, later.writes) != (first.nonce, first.writes)


def holder_in(told: Mapping[str, Any]) -> Holder | None:
    """The holder that a lock file tells of; None when it is damaged. Pure."""
    try:
        attempt = AttemptId(str(told["token"]), int(told["attempt"]))
        pid, ticks, writes = (int(told[key]) for key in ("pid", "ticks", "writes"))
        return Holder(str(told["host"]), str(told["machine"]), pid, ticks, attempt, str(told["nonce"]), writes)
    except (KeyError, TypeError, ValueError):
        return None


def read_holder(run_dir: Path) -> Holder | None:
    """Who holds a run folder, by its lock file alone; None when there is none, or a damaged one."""
    return _read(run_dir / RUN_LOCK)


def _read(path: Path) -> Holder | None:
    with suppress(OSError, ValueError):
        return holder_in(read_json(path))
    return None


def write_over(run_dir: Path, holder: Holder, *, make: bool = True) -> None:
    """Write over the file in its place: a rename would need more of a shared file system.

    Args:
        run_dir: the run folder.
        holder: what the file is to say.
        make: also when it is not there.
    """
    _write_to(run_dir / RUN_LOCK, holder, os.O_CREAT if make else 0)


def _write_to(path: Path, holder: Holder, how: int) -> None:
    told = {**holder._asdict(), **holder.attempt.record()}
    fd = os.open(path, os.O_WRONLY | how, 0o666)
    try:
        os.write(fd, (json.dumps(told) + "\n").encode().ljust(ROOM))
    finally:
        os.close(fd)


def _make(run_dir: Path, holder: Holder) -> None:
    """Make the file, whole from its first moment; of two machines that do so at once one succeeds, flock or not.

    Raises:
        FileExistsError: another one was faster.
    """
    whole = run_dir / f"{RUN_LOCK}.{holder.nonce}"
    try:
        _write_to(whole, holder, os.O_CREAT | os.O_EXCL)
        os.link(whole, run_dir / RUN_LOCK)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links, or a full one
        _write_to(run_dir / RUN_LOCK, holder, os.O_CREAT | os.O_EXCL)
    finally:
        with suppress(OSError):
            whole.unlink()


def claim(run_dir: Path, seen: Holder | None, holder: Holder) -> bool:
    """Become the holder where nobody else lives.

    Args:
        run_dir: the run folder.
        seen: whom the file told of before it was found that he does not live, or is of our own submission.
        holder: the new one.

    Returns:
        False when the file has changed hands since: look again.

    Raises:
        OSError: it cannot be written.
    """
    if verdict(seen, holder.attempt, None) == "ours":
        write_over(run_dir, holder)
        return True
    if (run_dir / RUN_LOCK).exists() and not _set_aside(run_dir, seen, holder.nonce):
        return False
    try:
        _make(run_dir, holder)
    except FileExistsError:
        made = read_holder(run_dir)  # NFS may ask its server twice, and be told of the first time
        return made is not None and made.nonce == holder.nonce
    return True


def _set_aside(run_dir: Path, seen: Holder | None, nonce: str) -> bool:
    """Take away the file that a dead holder has left; False when it was another one's, who gets it back."""
    aside = run_dir / f"{RUN_LOCK}.{nonce}"
    try:
        (run_dir / RUN_LOCK).rename(aside)
    except FileNotFoundError:  # somebody else was faster
        return False
    found = _read(aside)
    ours = (found and found.nonce) == (seen and seen.nonce)
    if not ours:
        with suppress(OSError):
            os.link(aside, run_dir / RUN_LOCK)
    with suppress(OSError):
        aside.unlink()
    return ours
