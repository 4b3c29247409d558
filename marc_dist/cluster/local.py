"""All ranks of a job as processes of this machine.

Own subprocesses instead of submitit's LocalExecutor: that one waits for *all* tasks, so one dead rank hangs the rest,
and it overwrites CUDA_VISIBLE_DEVICES (shared/reference/systems-peers.md 1.2).

A rank is a process group of its own, so that its loader workers end with it; Linux kills it when the launcher dies.
Each rank writes to ``RUN/logs/rank-K.log``; rank 0's file is also copied to the terminal as it grows.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from marc_dist.cluster.failure import FAILURE_FILE, ROOM
from marc_dist.cluster.preset import LocalPreset
from marc_dist.config import LaunchError
from marc_dist.training.signals import EXIT_REQUEUE

EXIT_USER = 2
EXIT_INTERRUPTED = 130
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK")
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
POLL_S = 0.1
SETTLE_S = 1.0
"""After the first failure, wait this long for others, to tell which failed first."""
TAIL_LINES = 20
PR_SET_PDEATHSIG = 1


def visible_gpus(env: Mapping[str, str], devices: Path = Path("/dev")) -> int:
    """GPUs that processes started now would see, without importing torch."""
    listed = env.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return len([part for part in listed.split(",") if part.strip() and part.strip() != "-1"])
    return sum(re.fullmatch(r"nvidia\d+", path.name) is not None for path in devices.glob("nvidia*"))


def process_count(preset: LocalPreset, device: str) -> int:
    """How many ranks to start: as asked, else one per GPU, else one."""
    if preset.procs_per_node is not None:
        return preset.procs_per_node
    return max(1, 0 if device == "cpu" else visible_gpus(os.environ))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rank_environment(preset: LocalPreset, rank: int, world: int, port: int) -> dict[str, str]:
    """The variables of torchrun for one rank on loopback, and the preset's own."""
    threads = preset.threads_per_proc or max(1, _cores() // world)
    env = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    loopback = "lo" if sys.platform == "linux" else "lo0"
    env |= {
        "OMP_NUM_THREADS": str(threads),
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        "PYTHONUNBUFFERED": "1",
    }
    env |= preset.env
    return env | {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@dataclass
class _Rank:
    rank: int
    process: subprocess.Popen[bytes]
    log: Path
    failure: Path
    ended: float | None = None
    ended_by_us: bool = False

    def failed_at(self) -> tuple[float, str | None]:
        """When and with what the rank failed; a rank that had no time to say so failed when it was seen dead."""
        try:
            told = json.loads(self.failure.read_text())
            return float(told["time"]), str(told["error"])
        except (OSError, ValueError, KeyError, TypeError):  # killed, or broken before it could tell
            return (self.ended or time.time()) - SETTLE_S / 2, None


@dataclass
class LocalJob:
    """The ranks of one job: start, watch, end.

    Args:
        command: program and arguments of every rank.
        log_dir: where the logs go; made when missing.
        preset: threads, environment, graces.
        world: number of ranks.
        out: where rank 0's output is copied to.
    """

    command: Sequence[str]
    log_dir: Path
    preset: LocalPreset
    world: int
    out: BinaryIO
    ranks: list[_Rank] = field(default_factory=list)
    _asked: float | None = None
    _copied: int = 0
    _overdue: bool = False
    _hurried: bool = False
    _deaf: bool = False

    def run(self) -> int:
        """Run to the end; the job's exit code.

        Returns:
            0; 85 when the ranks were asked to stop and saved; 130 when they were not given the time (second Ctrl-C);
            2 when the first failure was a person's mistake; else 1.
        """
        with self._signals():
            try:
                self._start()
                if self._asked is not None:  # while the ranks were being started
                    for rank in self.ranks:
                        _send(rank.process.pid, signal.SIGTERM, group=False)
                return self._watch()
            finally:
                self._kill_all()
                self._copy()

    def _start(self) -> None:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        first_log = self.log_dir / "rank-0.log"
        self._copied = first_log.stat().st_size if first_log.exists() else 0
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            for rank in range(self.world):
                self.ranks.append(self._start_rank(rank, port, listener.fileno()))

    def _start_rank(self, rank: int, port: int, listen_fd: int) -> _Rank:
        log, failure = self.log_dir / f"rank-{rank}.log", self.log_dir / f".failure-{rank}.json"
        with suppress(OSError):
            failure.write_bytes(b" " * ROOM)
        env = rank_environment(self.preset, rank, self.world, port) | {FAILURE_FILE: str(failure)}
        passed = (listen_fd,) if rank == 0 and self.world > 1 else ()
        if passed:
            env["MARC_MASTER_FD"] = str(listen_fd)
        with log.open("ab") as file:
            process = subprocess.Popen(
                self.command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=passed,
                preexec_fn=_die_with_parent(os.getpid()),  # noqa: PLW1509 - no threads here
            )
        return _Rank(rank, process, log, failure)

    def _watch(self) -> int:
        first_failure: float | None = None
        while True:
            alive = self._poll()
            self._copy()
            now = time.time()
            failed = [r for r in self.ranks if r.process.returncode not in (None, 0, EXIT_REQUEUE)]
            if failed and first_failure is None:
                first_failure = now
            if not alive:
                break
            if first_failure is not None and now - first_failure > SETTLE_S:
                self._end(alive, signal.SIGTERM)
                if now - first_failure > SETTLE_S + self.preset.peer_grace_s:
                    self._end(alive, signal.SIGKILL)
            if self._asked is not None and now - self._asked > self.preset.stop_grace_s:
                self._overdue = True
                self._end(alive, signal.SIGKILL)
            time.sleep(POLL_S)
        return self._verdict()

    def _poll(self) -> list[_Rank]:
        for rank in self.ranks:
            if rank.ended is None and _has_ended(rank.process):
                rank.ended = time.time()
                _send(rank.process.pid, signal.SIGKILL, group=True)  # loader workers that would outlive it
                rank.process.wait()
        return [rank for rank in self.ranks if rank.ended is None]

    def _end(self, ranks: Sequence[_Rank], number: signal.Signals) -> None:
        for rank in ranks:
            if number == signal.SIGKILL or not rank.ended_by_us:
                rank.ended_by_us = True
                _send(rank.process.pid, number, group=number == signal.SIGKILL)

    def _kill_all(self) -> None:
        """End what is left, processes and loader workers, whatever made us leave."""
        for rank in self.ranks:
            if rank.ended is None:
                _send(rank.process.pid, signal.SIGKILL, group=True)
                rank.process.wait()
            rank.failure.unlink(missing_ok=True)

    def _copy(self) -> None:
        """Bring what rank 0 has written since the last call to the terminal."""
        if not self.ranks or self._deaf:
            return
        with self.ranks[0].log.open("rb") as file:
            file.seek(self._copied)
            news = file.read()
        self._copied += len(news)
        if news:
            try:
                self.out.write(news)
                self.out.flush()
            except BrokenPipeError:  # whoever read our output has left; the job goes on, its logs are in the folder
                self._deaf = True

    def _verdict(self) -> int:
        if self._overdue:
            raise LaunchError(f"ranks did not end within cluster.stop_grace_s={self.preset.stop_grace_s:g} s; killed")
        if self._hurried:
            return EXIT_INTERRUPTED
        failed = [rank for rank in self.ranks if self._failed(rank)]
        if failed:
            return self._tell(min(failed, key=lambda rank: rank.failed_at()[0]))
        return 0 if all(rank.process.returncode == 0 for rank in self.ranks) else EXIT_REQUEUE

    def _failed(self, rank: _Rank) -> bool:
        """Whether a rank failed by itself: neither ended by us nor stopped, as asked, before it could listen."""
        code = rank.process.returncode
        if self._asked is not None and code in [-number for number in FORWARDED]:
            return False
        return code not in (0, EXIT_REQUEUE) and not rank.ended_by_us

    def _tell(self, first: _Rank) -> int:
        """Show why the job failed: a person's mistake in one line, anything else with the end of that rank's log."""
        self._copy()
        error, code = first.failed_at()[1], first.process.returncode
        if code == EXIT_USER and error is not None:
            raise LaunchError(error)
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        print(f"--- last lines of {first.log}", *_tail(first.log), sep="\n", file=sys.stderr)
        what = f": {error}" if error else ""
        print(
            f"marc-launch: error: rank {first.rank} of {self.world} failed first ({how}){what}; log: {first.log}",
            file=sys.stderr,
        )
        return EXIT_USER if code == EXIT_USER else 1

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Pass what asks us to stop on to every rank; a second Ctrl-C ends them at once."""

        def forward(number: int, frame: FrameType | None) -> None:
            again = self._asked is not None and number == signal.SIGINT
            self._asked = self._asked or time.time()
            self._hurried |= again
            for rank in self.ranks:
                if rank.ended is None:
                    rank.ended_by_us |= again
                    _send(rank.process.pid, signal.SIGKILL if again else _asking(number), group=again)

        before = {number: signal.signal(number, forward) for number in FORWARDED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a child has ended; it is not reaped yet, so that nobody else can get its number before its group is."""
    if not hasattr(os, "waitid"):
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _asking(number: int) -> int:
    """What a rank understands as "save and go"."""
    return signal.SIGTERM if number in (signal.SIGINT, signal.SIGHUP) else number


def _send(pid: int, number: int, *, group: bool) -> None:
    try:
        (os.killpg if group else os.kill)(pid, number)
    except (ProcessLookupError, PermissionError):  # gone already
        return


def _tail(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()[-TAIL_LINES:]


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
