"""How much memory this process may take: of the machine, of its control group (a container, a Slurm job), of /dev/shm.

Also one line for what a program gets to see when it may take no more, which libraries tell in many ways.
"""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import NamedTuple

from marc_dist.config import first_line

SHM = Path("/dev/shm")
UNLIMITED = 1 << 60
"""A control group of version 1 without a limit has one of about 2^63 bytes."""
REFUSALS = (
    "failed to map segment from shared object",
    "cannot allocate memory",
    "can't allocate memory",
    "can't start new thread",
    "bad_alloc",
    "unable to mmap",
)
"""What libraries say when the system gives them no more memory."""


class Room(NamedTuple):
    """Bytes: of a limit, and what is left of it."""

    limit: int
    free: int


def shm_room(place: Path = SHM) -> Room | None:
    """What loader processes pass batches through; None where there is none."""
    try:
        told = os.statvfs(place)
    except OSError:
        return None
    return Room(told.f_blocks * told.f_frsize, told.f_bavail * told.f_frsize)


def group_room(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> Room | None:
    """What this process's control group, or one above it, allows, version 1 or 2; None without a limit.

    Args:
        proc: where the kernel tells of processes.
        groups: where control groups are mounted.
    """
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return None
    found: list[Room] = []
    for line in lines:
        number, kinds, path = (line.split(":", 2) + ["", ""])[:3]
        if number == "0" and not kinds:
            for root in (groups, groups / "unified"):
                found += _rooms(root, path, ("memory.max", "memory.current", "inactive_file"))
        elif "memory" in kinds.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            found += _rooms(groups / "memory", path, names)
    return min(found, key=lambda room: room.free, default=None)


def _rooms(root: Path, path: str, names: tuple[str, str, str]) -> list[Room]:
    """Limits of a group and of those above it. Pages of files count as used, but are given back when wanted."""
    found = []
    place = root / path.lstrip("/")
    for folder in (place, *place.parents):
        if folder != root and root not in folder.parents:
            break
        try:
            limit = int((folder / names[0]).read_text())  # "max": no limit, no number
            used = int((folder / names[1]).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit < UNLIMITED:
            found.append(Room(limit, max(0, limit - used + int(stat.get(names[2], 0)))))
    return found


def free_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that programs may still take here; None where the system does not say."""
    found = []
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    room = group_room(proc, groups)
    return min(found + ([room.free] if room is not None else []), default=None)


def memory_refused(error: BaseException) -> str | None:
    """One line for people on an error that means "no more memory", or None for any other.

    Args:
        error: whatever came up.
    """
    text = str(error).lower()
    if "out of memory" in text and ("cuda" in text or "hip" in text):
        return (
            f"the GPU has no more memory ({first_line(error)}); lower train.global_batch, set train.chunk, or use "
            "more ranks"
        )
    of_system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if not (isinstance(error, MemoryError) or of_system or any(refusal in text for refusal in REFUSALS)):
        return None
    told = first_line(error)
    return (
        f"no more memory{_limits()} ({told}); raise that limit, or lower train.global_batch, data.num_workers or "
        "eval.batch"
    )


def _limits() -> str:
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    room = group_room()
    told = [f"ulimit -v allows {most / 1e9:.1f} GB"] if most != resource.RLIM_INFINITY else []
    told += [f"the control group allows {room.limit / 1e9:.1f} GB"] if room is not None else []
    return f", {' and '.join(told)}" if told else ""
