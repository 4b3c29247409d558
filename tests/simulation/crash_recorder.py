"""What a protocol does to its folder, call by call, recorded while the real code runs.

Every call of Python that may change a folder (open for writing, write, truncate, fsync, close, rename, replace, link,
unlink, mkdir, rmdir) is wrapped; after each, the folder is compared with what was known of it, and the difference is
the operation. So a write by a library that Python does not see (NumPy's ``tofile``, a memory map, pyarrow's own files)
is found by its effect, at the next wrapped call, as one write.

Not seen: the order and the sizes of such a library's writes; an fsync that it calls itself; what other processes write.
"""

from __future__ import annotations

import builtins
import fcntl
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

ROOT = 0
"""Number of the recorded folder itself."""


class Entry(NamedTuple):
    """Names that changed in one step: ``changes`` are (folder, name, file now or None, file before or None)."""

    changes: tuple[tuple[int, str, int | None, int | None], ...]
    open_files: frozenset[int] = frozenset()


class Write(NamedTuple):
    """Bytes of a file that changed."""

    file: int
    offset: int
    data: bytes


class Truncate(NamedTuple):
    """A file's length that changed; what is new is zeros."""

    file: int
    size: int


class Sync(NamedTuple):
    """fsync of a file or a folder."""

    file: int


class Close(NamedTuple):
    """A file that was open for writing is closed."""

    file: int


class Mark(NamedTuple):
    """The caller was told that step ``number`` is done."""

    number: int


Op = Entry | Write | Truncate | Sync | Close | Mark


@dataclass
class Tree:
    """Folders (name -> number) and files (content) by number; what hangs under ``ROOT`` is seen."""

    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    files: dict[int, bytes] = field(default_factory=dict)

    def copy(self) -> Tree:
        """Another one, to be changed."""
        return Tree({number: dict(names) for number, names in self.folders.items()}, dict(self.files))

    def paths(self) -> dict[str, bytes | None]:
        """What a person sees: relative path -> content, None for a folder."""
        found: dict[str, bytes | None] = {}

        def walk(folder: int, prefix: str) -> None:
            for name, number in sorted(self.folders[folder].items()):
                if number in self.folders:
                    found[prefix + name] = None
                    walk(number, f"{prefix}{name}/")
                else:
                    found[prefix + name] = self.files[number]

        walk(ROOT, "")
        return found


class Trace(NamedTuple):
    """What was there before, all of it durable, and what was done."""

    before: Tree
    ops: list[Op]
    folders: frozenset[int]


class Recorder:
    """Records one folder; see ``recording``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ops: list[Op] = []
        self._lock = threading.RLock()
        self._numbers: dict[int, int] = {root.stat().st_ino: ROOT}
        self._next = ROOT + 1
        self._opened: dict[int, int] = {}
        self.tree = Tree()
        self.folders: set[int] = {ROOT}
        self.look()
        self.before, self.ops = self.tree.copy(), []

    def inside(self, path: Any, dir_fd: int | None = None) -> bool:
        """Whether a path, as a call gives it, lies in the folder."""
        if isinstance(path, int):
            path = str(Path(f"/proc/self/fd/{path}").readlink())
        path = os.fsdecode(path)
        if dir_fd is not None and not path.startswith("/"):
            path = os.path.join(str(Path(f"/proc/self/fd/{dir_fd}").readlink()), path)
        return os.path.abspath(path).startswith(str(self.root))

    def number_of(self, fd: int) -> int | None:
        """The file behind a descriptor, if it is one of the folder's."""
        return self._numbers.get(os.fstat(fd).st_ino)

    @property
    def trace(self) -> Trace:
        """What was recorded."""
        return Trace(self.before, self.ops, frozenset(self.folders))

    def mark(self, number: int) -> None:
        """The caller is told that step ``number`` is done."""
        with self._lock:
            self.look()
            self.ops.append(Mark(number))

    def note(self, op: Op) -> None:
        """Note a call that changes nothing to be seen."""
        with self._lock:
            self.look()
            if isinstance(op, Close):
                self._opened[op.file] = self._opened.get(op.file, 1) - 1
            self.ops.append(op)

    def opened(self, number: int) -> None:
        """A file is open for writing."""
        self._opened[number] = self._opened.get(number, 0) + 1

    def look(self) -> None:
        """Note what differs from what is known."""
        with self._lock:
            now, kinds = self._scan()
            self._note_names(now, kinds)
            self._note_contents(kinds)

    def _scan(self) -> tuple[dict[int, dict[str, int]], dict[int, Path]]:
        now: dict[int, dict[str, int]] = {}
        files: dict[int, Path] = {}
        todo = [(ROOT, self.root)]
        while todo:
            folder, path = todo.pop()
            names = now[folder] = {}
            try:
                entries = sorted(_scandir(path), key=lambda one: one.name)
            except FileNotFoundError:
                continue
            for entry in entries:
                inode = entry.inode()
                if inode not in self._numbers:
                    self._numbers[inode] = self._next
                    self._next += 1
                names[entry.name] = number = self._numbers[inode]
                if entry.is_dir(follow_symlinks=False):
                    todo.append((number, Path(entry.path)))
                else:
                    files[number] = Path(entry.path)
        return now, files

    def _note_names(self, now: dict[int, dict[str, int]], files: dict[int, Path]) -> None:
        changes = []
        for folder in {**self.tree.folders, **now}:
            before, after = self.tree.folders.get(folder, {}), now.get(folder, {})
            for name in sorted(set(before) | set(after)):
                if before.get(name) != after.get(name):
                    changes.append((folder, name, after.get(name), before.get(name)))
        if not changes:
            return
        for number in now:
            self.tree.folders.setdefault(number, {})
            self.folders.add(number)
        for number in files:
            self.tree.files.setdefault(number, b"")
        for folder, name, after, _ in changes:
            if after is None:
                self.tree.folders[folder].pop(name, None)
            else:
                self.tree.folders[folder][name] = after
        held = frozenset(number for number, times in self._opened.items() if times > 0)
        moved = {change[2] for change in changes} & {change[3] for change in changes} - {None}
        if moved:  # a rename or an exchange: one step
            self.ops.append(Entry(tuple(changes), held))
        else:
            self.ops += [Entry((change,), held) for change in changes]
        named = {number for names in now.values() for number in names.values()} | {ROOT}
        self._numbers = {inode: number for inode, number in self._numbers.items() if number in named}
        self.tree.folders = {number: names for number, names in self.tree.folders.items() if number in named}

    def _note_contents(self, files: dict[int, Path]) -> None:
        for number, path in files.items():
            try:
                with _open(path, "rb") as file:
                    data = file.read()
            except OSError:
                continue
            before = self.tree.files[number]
            if data == before:
                continue
            self.tree.files[number] = data
            if len(data) < len(before):
                self.ops.append(Truncate(number, len(data)))
                before = before[: len(data)]
            elif len(data) > len(before) and not data[len(before) :].strip(b"\0"):
                self.ops.append(Truncate(number, len(data)))
                before = before.ljust(len(data), b"\0")
            if data != before:
                first = _first_difference(before, data)
                last = len(data)
                if len(data) == len(before):
                    last -= _first_difference(before[::-1], data[::-1])
                self.ops.append(Write(number, first, data[first:last]))


_open, _os_open, _scandir = io.open, os.open, os.scandir


def _first_difference(one: bytes, two: bytes) -> int:
    size = min(len(one), len(two))
    different = np.frombuffer(one, np.uint8, size) != np.frombuffer(two, np.uint8, size)
    return int(different.argmax()) if different.any() else size


@contextmanager
def recording(root: Path) -> Iterator[Recorder]:
    """Record what happens to a folder inside the block; ``Recorder.ops`` and ``Recorder.before`` hold it afterwards."""
    recorder = Recorder(root)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "replace", "link", "symlink", "unlink", "remove", "mkdir", "rmdir", "truncate",
                     "ftruncate", "write", "pwrite", "copy_file_range", "sendfile"):  # fmt: skip
            patch.setattr(os, name, _looked_after(recorder, getattr(os, name)))
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, _synced(recorder, getattr(os, name)))
        patch.setattr(os, "open", _opening(recorder))
        patch.setattr(os, "close", _closing(recorder, os.close))
        for module in (io, builtins):
            patch.setattr(module, "open", _python_open(recorder))
        patch.setattr(np.memmap, "flush", _flushing(recorder, np.memmap.flush))
        from marc_dist.packing import publish

        patch.setattr(publish, "_exchange", _looked_after(recorder, publish._exchange))
        yield recorder
        recorder.look()


def _looked_after(recorder: Recorder, call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        recorder.look()
        return result

    return wrapped


def _synced(recorder: Recorder, call: Callable[[int], None]) -> Callable[[int], None]:
    def wrapped(fd: int) -> None:
        recorder.look()  # what a library wrote since
        call(fd)
        number = recorder.number_of(fd if isinstance(fd, int) else fd.fileno())  # type: ignore[attr-defined]
        if number is not None:
            recorder.note(Sync(number))

    return wrapped


def _flushing(recorder: Recorder, flush: Callable[[Any], None]) -> Callable[[Any], None]:
    def wrapped(array: Any) -> None:
        recorder.look()
        flush(array)  # msync(MS_SYNC), which Linux does as an fsync of the mapped range
        if getattr(array, "filename", None):
            inode = os.stat(array.filename).st_ino
            if inode in recorder._numbers:
                recorder.note(Sync(recorder._numbers[inode]))

    return wrapped


def _opening(recorder: Recorder) -> Callable[..., int]:
    def wrapped(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        fd = _os_open(path, flags, mode, dir_fd=dir_fd)
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and recorder.inside(fd):
            recorder.look()
            number = recorder.number_of(fd)
            if number is not None:
                recorder.opened(number)
        return fd

    return wrapped


def _closing(recorder: Recorder, close: Callable[[int], None]) -> Callable[[int], None]:
    def wrapped(fd: int) -> None:
        try:
            writing = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR)
            number = recorder.number_of(fd) if writing and stat.S_ISREG(os.fstat(fd).st_mode) else None
        except OSError:
            number = None
        close(fd)
        if number is not None:
            recorder.note(Close(number))

    return wrapped


def _python_open(recorder: Recorder) -> Callable[..., Any]:
    class File(io.FileIO):
        """A file that tells of every write that reaches the system."""

        def write(self, data: Any) -> int:
            count = super().write(data)
            recorder.look()
            return count

        def truncate(self, size: int | None = None) -> int:
            result = super().truncate(size)
            recorder.look()
            return result

        def close(self) -> None:
            number = None if self.closed else recorder.number_of(self.fileno())
            super().close()
            if number is not None:
                recorder.note(Close(number))

    def wrapped(file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None,
                errors: str | None = None, newline: str | None = None, closefd: bool = True,
                opener: Any = None) -> Any:  # fmt: skip
        if not set(mode) & set("wax+") or not recorder.inside(file):
            return _open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = File(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        recorder.look()
        number = recorder.number_of(raw.fileno())
        if number is not None:
            recorder.opened(number)
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        binary = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline, buffering == 1)

    return wrapped
