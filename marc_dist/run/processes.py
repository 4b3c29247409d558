"""Whether a process of this machine still runs, and what makes a table of processes this one."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path


def this_machine() -> str:
    """A name of this table of processes: another boot or another namespace has another one."""
    found = []
    with suppress(OSError):
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        found.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(found) or socket.gethostname()


def is_alive(pid: int, ticks: int) -> bool:
    """Whether a process of this machine runs.

    Args:
        pid: its number.
        ticks: see ``start_ticks``; another process that got the number later has others. 0: unknown.
    """
    if ticks:
        return start_ticks(pid) == ticks
    try:  # a system without /proc
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None for none, or a dead one that nobody has fetched."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None
