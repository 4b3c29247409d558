"""A file system that several machines share, as NFS shows it; in memory, under ``/sim``.

What is assumed of it:

- Creating, renaming, linking and removing a name are single steps of the server, in the order that they come; a name
  is made once only (``O_EXCL``, ``link``), whoever asks from where.
- Bytes reach the server when a file is flushed or closed; whoever opens it later sees them (close to open).
- Names are looked up in what the machine remembers of the folder, which may be ``bound`` seconds old: a file that
  another machine has made may still be missing, one that it has removed may still be listed (opening it finds that it
  is gone). A machine sees its own changes at once, and with a change of its own all others of that folder.
- Appending is a single step among the processes of one machine. From two machines the later one may write over bytes
  that the earlier one added after it was opened.
- ``flock`` holds among all machines (NFS 4), or there is none (``nolock``), or it holds among the processes of one
  machine only (``local_lock``): a setting of the story. It ends with its process.
- Most operations take milliseconds, one in fifty a second or several.
- On a full disk, files do not grow; what is overwritten in place still is.
- A machine that loses its power loses what was not flushed. (What a server loses that crashes: the tests of crash
  states, not these.)
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

from tests.simulation.job_life_kernel import Kernel, Killed

ROOT = "/sim"
_FIRST_FD = 1 << 24


class Inode:
    """A file or a folder on the server."""

    def __init__(self, number: int, folder: bool, when: float) -> None:
        self.number, self.folder, self.mtime = number, folder, when
        self.data = bytearray()
        self.links = 0
        self.last_node = ""
        self.locks: list[SimFile | _Descriptor] = []


class _View:
    """What a machine remembers of a folder: its state at ``seen``, good until ``until``."""

    __slots__ = ("seen", "until")

    def __init__(self) -> None:
        self.seen = self.until = -1.0


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


class SharedFiles:
    """The server, and what each machine remembers.

    Args:
        kernel: whose processes use it.
        bound: oldest that a machine's memory of a folder may be, seconds; 0 = everybody sees everything at once.
        locks: ``all``, ``node`` or ``none``: how far ``flock`` reaches.
    """

    def __init__(self, kernel: Kernel, bound: float, locks: str) -> None:
        self.kernel, self.bound, self.locks = kernel, bound, locks
        self.full = False
        self.latency = 0.002
        self.names: dict[str, list[tuple[float, Inode | None]]] = {}
        self.children: dict[str, set[str]] = {ROOT: set()}
        self.views: dict[tuple[str, str], _View] = {}
        self.watch: Callable[[str, str], None] = lambda action, path: None
        self.opened: dict[int, SimFile] = {}
        self.num_opened = 0
        self._number = 1
        self._set(ROOT, self._inode(True))

    # --- names

    def _inode(self, folder: bool) -> Inode:
        self._number += 1
        return Inode(self._number, folder, self.kernel.now)

    def _set(self, path: str, inode: Inode | None) -> None:
        before = self.true(path)
        if before is not None:
            before.links -= 1
        if inode is not None:
            inode.links += 1
        self.names.setdefault(path, []).append((self.kernel.now, inode))
        parent, _, name = path.rpartition("/")
        self.children.setdefault(parent, set()).add(name)
        if self.kernel.current is not None:
            self._refresh(self._view(parent))

    def true(self, path: str) -> Inode | None:
        """What the server has under a name."""
        history = self.names.get(path)
        return history[-1][1] if history else None

    def _view(self, folder: str) -> _View:
        assert self.kernel.current is not None
        return self.views.setdefault((self.kernel.current.process.node.name, folder), _View())

    def _refresh(self, view: _View) -> None:
        now = self.kernel.now
        view.seen = now
        view.until = now + (self.kernel.rng.uniform(min(3.0, self.bound), self.bound) if self.bound else 0.0)

    def seen(self, path: str) -> Inode | None:
        """What the present machine finds under a name."""
        if self.kernel.current is None or not self.bound:
            return self.true(path)
        view = self._view(path.rpartition("/")[0])
        if self.kernel.now >= view.until:
            self._refresh(view)
        for when, inode in reversed(self.names.get(path, ())):
            if when <= view.seen:
                return inode
        return None

    def _fresh(self, path: str) -> Inode | None:
        """As the server answers; what the machine remembered is renewed."""
        if self.kernel.current is not None:
            self._refresh(self._view(path.rpartition("/")[0]))
        return self.true(path)

    def found(self, path: str) -> Inode:
        """The file that opening a name gives: a remembered one that is gone makes the machine ask again."""
        inode = self.seen(path)
        if inode is not None and inode is not self.true(path):
            inode = self._fresh(path)
        if inode is None:
            raise _error(errno.ENOENT, path)
        return inode

    # --- steps

    def step(self, action: str, path: str, *, change: bool = False) -> None:
        """Before every touch of a file: others may come first; a process may be killed here, between two writes."""
        kernel = self.kernel
        if kernel.current is None:
            return
        slow = kernel.rng.random() < 0.02
        took = kernel.rng.expovariate(0.8) if slow else self.latency
        if took > 0.2:
            kernel.current.process.facts["slow"] = kernel.now + took
        kernel.pause(took)
        process = kernel.live().process
        if change and process.crash_after is not None:
            process.crash_after -= 1
            if process.crash_after < 0:
                kernel.tell(f"killed just before it could {action} {path}")
                kernel.faults_seen.append("crash")
                process.facts.pop("why", None)
                kernel.end(process, -9)
                raise Killed
        if change:
            self.watch(action, path)

    def open(self, path: str, mode: str, encoding: str | None = None, errors: str | None = None) -> Any:
        writes = any(letter in mode for letter in "wax+")
        self.step("write" if writes else "read", path, change=writes)
        if "r" in mode:
            inode = self.found(path)
        else:
            inode = self.made(path, exclusive="x" in mode)
            if "w" in mode:
                inode.data, inode.mtime = bytearray(), self.kernel.now
        if inode.folder:
            raise _error(errno.EISDIR, path)
        raw = SimFile(self, inode, path, mode)
        return raw if "b" in mode else io.TextIOWrapper(raw, encoding=encoding or "utf-8", errors=errors)

    def made(self, path: str, exclusive: bool = False) -> Inode:
        """The file that opening a name for writing gives; the server makes it when there is none."""
        parent = self.true(path.rpartition("/")[0])
        if parent is None or not parent.folder:
            raise _error(errno.ENOENT, path)
        inode = self._fresh(path)
        if inode is not None and exclusive:
            raise _error(errno.EEXIST, path)
        if inode is None:
            inode = self._inode(False)
            self._set(path, inode)
        return inode

    def grow(self, size: int, path: str) -> None:
        if self.full and size > 0:
            self.kernel.tell(f"no space left: {path}")
            self.kernel.faults_seen.append("full")
            raise _error(errno.ENOSPC, path)

    def mkdir(self, path: str) -> None:
        self.step("make", path, change=True)
        if self._fresh(path) is not None:
            raise _error(errno.EEXIST, path)
        if self.true(path.rpartition("/")[0]) is None:
            raise _error(errno.ENOENT, path)
        self._set(path, self._inode(True))
        self.children.setdefault(path, set())

    def unlink(self, path: str) -> None:
        self.step("remove", path, change=True)
        if self._fresh(path) is None:
            raise _error(errno.ENOENT, path)
        self._set(path, None)

    def rmdir(self, path: str) -> None:
        self.step("remove", path, change=True)
        if any(self.true(f"{path}/{name}") is not None for name in self.children.get(path, ())):
            raise _error(errno.ENOTEMPTY, path)
        self._set(path, None)

    def replace(self, source: str, target: str) -> None:
        self.step("rename", f"{source} to {target}", change=True)
        inode = self._fresh(source)
        if inode is None:
            raise _error(errno.ENOENT, source)
        inode.links += 1
        self._set(source, None)
        self._set(target, inode)
        inode.links -= 1

    def link(self, source: str, target: str) -> None:
        self.step("link", target, change=True)
        inode = self._fresh(source)
        if inode is None:
            raise _error(errno.ENOENT, source)
        if self._fresh(target) is not None:
            raise _error(errno.EEXIST, target)
        self._set(target, inode)

    def stat(self, path: str) -> os.stat_result:
        self.kernel.pause(0.0) if self.kernel.current is not None else None
        inode = self.seen(path)
        if inode is None:
            raise _error(errno.ENOENT, path)
        return _facts(inode)

    def listed(self, path: str) -> list[tuple[str, Inode]]:
        """Names in a folder, as the present machine remembers them."""
        folder = self.seen(path)
        if folder is None:
            raise _error(errno.ENOENT, path)
        found = [(name, self.seen(f"{path}/{name}")) for name in sorted(self.children.get(path, ()))]
        return [(name, inode) for name, inode in found if inode is not None]

    # --- for the story's own eyes

    def bytes_of(self, path: str) -> bytes | None:
        """What the server has under a name, None for nothing."""
        inode = self.true(path)
        return None if inode is None or inode.folder else bytes(inode.data)


def _facts(inode: Inode) -> os.stat_result:
    kind = stat.S_IFDIR | 0o755 if inode.folder else stat.S_IFREG | 0o644
    when = 1_800_000_000 + inode.mtime
    return os.stat_result((kind, inode.number, 7, 1, 0, 0, len(inode.data), when, when, when))


class SimFile(io.BytesIO):
    """An open file; its bytes reach the server at ``flush`` and ``close``."""

    def __init__(self, files: SharedFiles, inode: Inode, path: str, mode: str) -> None:
        super().__init__(b"" if "a" in mode else bytes(inode.data))
        self.files, self.inode, self.path, self.mode = files, inode, path, mode
        files.num_opened += 1
        self.number = _FIRST_FD + (files.num_opened << 20)
        files.opened[self.number] = self
        self._dirty, self._lost, self._known = False, False, len(inode.data)
        current = files.kernel.current
        self.process = None if current is None else current.process
        if self.process is not None:
            self.process.files.append(self)

    def write(self, data: Any) -> int:
        self._dirty = True
        return super().write(data)

    def fileno(self) -> int:
        return self.number

    def flush(self) -> None:
        if not self._dirty or self._lost:
            return
        if self.process is not None and not self.process.alive:
            raise Killed
        self.files.step("fill", self.path, change=True)
        self._dirty = False
        inode, files, data = self.inode, self.files, self.getvalue()
        node = self.process.node.name if self.process is not None else ""
        if "a" in self.mode:
            self.seek(0)
            self.truncate()
            at = len(inode.data) if inode.last_node in ("", node) else self._known
            files.grow(at + len(data) - len(inode.data), self.path)
            inode.data[at : at + len(data)] = data
            self._known = len(inode.data)
        else:
            if files.full and len(data) > len(inode.data):
                inode.data[:] = data[: len(inode.data)]
            files.grow(len(data) - len(inode.data), self.path)
            inode.data[:] = data
        inode.mtime, inode.last_node = files.kernel.now, node

    def dropped(self) -> None:
        """Its process is dead: what was not flushed is lost, its locks are free."""
        self._lost = True
        _unlock(self.inode, self)

    def close(self) -> None:
        if not self.closed:
            try:
                self.flush()
            finally:
                super().close()
                self.files.opened.pop(self.number, None)
                if self.process is not None and self in self.process.files:
                    self.process.files.remove(self)


def _unlock(inode: Inode, holder: Any) -> None:
    if holder in inode.locks:
        inode.locks.remove(holder)


class _Descriptor:
    """What ``os.open`` gives a number for."""

    def __init__(self, files: SharedFiles, inode: Inode, path: str, append: bool) -> None:
        self.files, self.inode, self.path, self.position, self.append = files, inode, path, 0, append
        current = files.kernel.current
        self.process = None if current is None else current.process
        if self.process is not None:
            self.process.files.append(self)

    def dropped(self) -> None:
        _unlock(self.inode, self)


class _Entry:
    def __init__(self, folder: str, name: str, inode: Inode) -> None:
        self.name, self.path, self._inode = name, f"{folder}/{name}", inode

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._inode.folder

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return not self._inode.folder

    def is_symlink(self) -> bool:
        return False

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        return _facts(self._inode)


class _Listing:
    def __init__(self, entries: list[_Entry]) -> None:
        self._entries = iter(entries)

    def __enter__(self) -> _Listing:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __iter__(self) -> Iterator[_Entry]:
        return self._entries

    def __next__(self) -> _Entry:
        return next(self._entries)

    def close(self) -> None:
        pass
