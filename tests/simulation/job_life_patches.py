"""Python's doors to files, clocks, processes and machines, led into the simulation while a story is played."""

from __future__ import annotations

import builtins
import errno
import io
import os
import secrets
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import SimpleNamespace
from typing import Any
from unittest import mock

import marc_dist.files as marc_files
from marc_dist.cluster.rank_process import RankProcess
from marc_dist.run import run_lock
from marc_dist.training import signals, watchdog
from tests.simulation.job_life_files import (
    _FIRST_FD,
    ROOT,
    SharedFiles,
    SimFile,
    _Descriptor,
    _Entry,
    _error,
    _facts,
    _Listing,
)
from tests.simulation.job_life_kernel import Exit, Kernel, Process
from tests.simulation.job_life_stand_ins import Environment, Event, Lock, Popen, Thread, Told

Run = Callable[[list[str]], tuple[int, str, str]]
"""A program of the batch system: words -> exit code, standard output, standard error."""


def _inside(path: Any) -> str | None:
    """The path of a simulated file, None for a real one."""
    if isinstance(path, int):
        return None
    text = os.fspath(path)
    return text.rstrip("/") if isinstance(text, str) and (text == ROOT or text.startswith(ROOT + "/")) else None


class Patches:
    """Everything that is led into the simulation.

    Args:
        kernel: clock and processes.
        files: what lies under ``/sim``.
        rank: the main function of every rank, of the folder that its command names.
        programs: the batch system's commands, by name.
    """

    def __init__(
        self, kernel: Kernel, files: SharedFiles, rank: Callable[[str], Any], programs: dict[str, Run]
    ) -> None:
        self.kernel, self.files, self.rank, self.programs = kernel, files, rank, programs
        self.descriptors: dict[int, _Descriptor] = {}
        self._next_fd = _FIRST_FD + 1

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside the block, ``/sim`` is ours, and the clocks, and the processes."""
        told = Told(self.kernel)
        with mock.patch.multiple(os, **self._os()), mock.patch.multiple(time, **self._time()):
            with mock.patch.object(io, "open", self._open(io.open)):
                with mock.patch.object(builtins, "open", self._open(builtins.open)), self._machine():
                    with redirect_stdout(told), redirect_stderr(told):  # type: ignore[type-var]
                        yield

    def _time(self) -> dict[str, Any]:
        kernel, strftime = self.kernel, time.strftime

        def written(form: str, *when: Any) -> str:
            return strftime(form, *(when or (time.gmtime(kernel.clock()),)))

        return {"time": kernel.clock, "monotonic": lambda: kernel.now, "sleep": kernel.sleep, "strftime": written}

    @contextmanager
    def _machine(self) -> Iterator[None]:
        kernel = self.kernel
        rng = kernel.rng

        def popen(command: Any, env: dict[str, str], **rest: Any) -> Popen:
            kernel.pause(0.01)
            return Popen(kernel, lambda: self.rank(command[-1]), dict(env))

        poll = RankProcess.poll

        def polled(rank: RankProcess, now: float | None = None) -> bool:
            """A look, after those that a quiet process was spared."""
            rank.alive_at = max(rank.alive_at, kernel.live().process.facts.get("looked", 0.0))
            return poll(rank, now)

        threads = SimpleNamespace(
            Event=lambda: Event(kernel),
            Thread=lambda target, **rest: Thread(kernel, target),
            current_thread=lambda: None,
            main_thread=lambda: None,
        )

        def listener(address: Any, **rest: Any) -> Any:
            found = mock.MagicMock()
            found.__enter__.return_value = SimpleNamespace(getsockname=lambda: ("", 29500), fileno=lambda: 0)
            return found

        with (
            mock.patch.object(subprocess, "run", self._run),
            mock.patch.object(subprocess, "Popen", popen),
            mock.patch.object(socket, "gethostname", lambda: kernel.live().process.node.name),
            mock.patch.object(socket, "create_server", listener),
            mock.patch.object(signal, "signal", self._handle),
            mock.patch.object(signal, "pthread_sigmask", lambda *words: set()),
            mock.patch.object(RankProcess, "poll", polled),
            mock.patch.object(run_lock, "threading", threads),
            mock.patch.object(watchdog, "threading", threads),
            mock.patch.object(signals, "threading", threads),
            mock.patch.object(marc_files, "FileLock", lambda path, **rest: Lock(self.files, path)),
            mock.patch.object(secrets, "token_hex", lambda size=8: f"{rng.getrandbits(8 * size):0{2 * size}x}"),
            mock.patch.object(uuid, "uuid4", lambda: uuid.UUID(int=rng.getrandbits(128), version=4)),
        ):
            yield

    # --- processes

    def _process(self) -> Process:
        return self.kernel.live().process

    def _handle(self, number: int, handler: Any) -> Any:
        process = self._process()
        before = process.handlers.get(number, signal.SIG_DFL)
        if handler == signal.SIG_DFL:
            process.handlers.pop(number, None)
        else:
            process.handlers[int(number)] = handler
        return before

    def _run(self, command: Any, **rest: Any) -> Any:
        self.kernel.pause(0.05 + self.kernel.rng.random() * 0.3)
        code, out, err = self.programs[command[0]](list(command))
        self.kernel.pause(0.01)
        return SimpleNamespace(returncode=code, stdout=out, stderr=err, args=command)

    def _find(self, pid: int) -> Process | None:
        node = self._process().node
        return next((one for one in node.processes if one.pid == pid), None)

    def _kill(self, pid: int, number: int) -> None:
        found = self._find(pid)
        if found is None:
            raise ProcessLookupError(errno.ESRCH, "No such process")
        if number:
            self.kernel.send(found, number)

    def _waitid(self, kind: int, pid: int, options: int) -> Any:
        return None if self._find(pid) is not None else SimpleNamespace(si_pid=pid)

    def _leave(self, code: int) -> None:
        raise Exit(code)

    # --- files

    def _os(self) -> dict[str, Any]:
        files, kernel = self.files, self.kernel

        def two(real: Callable[..., Any], ours: Callable[[str, str], None]) -> Callable[..., Any]:
            def call(source: Any, target: Any, **rest: Any) -> Any:
                one, other = _inside(source), _inside(target)
                return real(source, target, **rest) if one is None or other is None else ours(one, other)

            return call

        def one(real: Callable[..., Any], ours: Callable[[str], Any]) -> Callable[..., Any]:
            def call(path: Any, *words: Any, **rest: Any) -> Any:
                if isinstance(path, int) and path >= _FIRST_FD:
                    return _facts((self.descriptors.get(path) or files.opened[path]).inode)
                found = _inside(path)
                return real(path, *words, **rest) if found is None else ours(found)

            return call

        def scandir(path: str) -> _Listing:
            return _Listing([_Entry(path, name, inode) for name, inode in files.listed(path)])

        return {
            "replace": two(os.replace, files.replace),
            "rename": two(os.rename, files.replace),
            "link": two(os.link, files.link),
            "unlink": one(os.unlink, files.unlink),
            "remove": one(os.remove, files.unlink),
            "mkdir": one(os.mkdir, files.mkdir),
            "rmdir": one(os.rmdir, files.rmdir),
            "stat": one(os.stat, files.stat),
            "lstat": one(os.lstat, files.stat),
            "fstat": one(os.fstat, files.stat),
            "scandir": one(os.scandir, scandir),
            "listdir": one(os.listdir, lambda path: [name for name, _ in files.listed(path)]),
            "utime": one(os.utime, lambda path: None),
            "chmod": one(os.chmod, lambda path: None),
            "access": one(os.access, lambda path: files.seen(path) is not None),
            "open": self._os_open(os.open),
            "read": self._on_fd(os.read, self._fd_read),
            "write": self._on_fd(os.write, self._fd_write),
            "close": self._on_fd(os.close, self._fd_close),
            "ftruncate": self._on_fd(os.ftruncate, self._fd_truncate),
            "fsync": self._on_fd(os.fsync, lambda fd, *rest: None),
            "fchmod": self._on_fd(os.fchmod, lambda fd, *rest: None),
            "lseek": self._on_fd(os.lseek, self._fd_seek),
            "getpid": lambda: kernel.live().process.pid if kernel.current is not None else 1,
            "kill": self._kill,
            "killpg": self._kill,
            "waitid": self._waitid,
            "_exit": self._leave,
            "environ": Environment(kernel),
        }

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None, *rest: Any, **more: Any) -> Any:  # fmt: skip  # noqa: E501
            if more.get("opener") is not None and _inside(file) is not None:
                file = more["opener"](os.fspath(file), os.O_RDWR)
            if isinstance(file, int) and file in self.descriptors:
                held = self.descriptors[file]
                opened = SimFile(self.files, held.inode, held.path, mode)
                opened.number = file
                return opened
            path = _inside(file)
            if path is None and self.kernel.current is not None and str(file).startswith("/proc/"):
                return io.StringIO(self._proc(str(file)))
            if path is None:
                return real(file, mode, buffering, encoding, errors, *rest, **more)
            return self.files.open(path, mode, None if encoding == "locale" else encoding, errors)

        return call

    def _os_open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        files = self.files

        def call(path: Any, flags: int, mode: int = 0o777, **rest: Any) -> int:
            inside = _inside(path)
            if inside is None:
                return real(path, flags, mode, **rest)
            if hasattr(os, "O_TMPFILE") and flags & os.O_TMPFILE == os.O_TMPFILE:
                raise _error(errno.EOPNOTSUPP, inside)  # as NFS says
            writes = flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR) != 0
            files.step("open", inside, change=writes)
            inode = files.made(inside, bool(flags & os.O_EXCL)) if flags & os.O_CREAT else files.found(inside)
            if flags & os.O_TRUNC:
                inode.data = bytearray()
            self._next_fd += 1
            self.descriptors[self._next_fd] = _Descriptor(files, inode, inside, bool(flags & os.O_APPEND))
            return self._next_fd

        return call

    def _on_fd(self, real: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
        def call(fd: int, *words: Any) -> Any:
            return real(fd, *words) if not isinstance(fd, int) or fd < _FIRST_FD else ours(fd, *words)

        return call

    def _fd_read(self, fd: int, size: int) -> bytes:
        found = self.descriptors[fd]
        data = bytes(found.inode.data[found.position : found.position + size])
        found.position += len(data)
        return data

    def _fd_write(self, fd: int, data: bytes) -> int:
        found = self.descriptors[fd]
        self.files.step("write", found.path, change=True)
        at = len(found.inode.data) if found.append else found.position
        self.files.grow(at + len(data) - len(found.inode.data), found.path)
        found.inode.data[at : at + len(data)] = data
        found.position = at + len(data)
        found.inode.mtime = self.kernel.now
        return len(data)

    def _fd_truncate(self, fd: int, size: int) -> None:
        del self.descriptors[fd].inode.data[size:]

    def _fd_seek(self, fd: int, offset: int, whence: int) -> int:
        found = self.descriptors[fd]
        found.position = offset + {0: 0, 1: found.position, 2: len(found.inode.data)}[whence]
        return found.position

    def _fd_close(self, fd: int) -> None:
        found = self.descriptors.pop(fd, None)
        if found is not None:
            found.dropped()
            if found.process is not None and found in found.process.files:
                found.process.files.remove(found)

    def _proc(self, path: str) -> str:
        """What Linux tells of itself and its processes."""
        process = self._process()
        if path.endswith("boot_id"):
            return process.node.name
        words = path.split("/")
        found = self._find(int(words[2])) if words[2].isdigit() else process
        if found is None:
            raise _error(errno.ENOENT, path)
        return f"{found.pid} (python) S " + "0 " * 18 + str(int(found.started * 100) + 1) + " 0"
