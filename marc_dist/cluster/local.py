"""All ranks of a job as processes of this machine.

Own subprocesses instead of submitit's LocalExecutor: that one waits for *all* tasks, so one dead rank hangs the rest,
and it overwrites CUDA_VISIBLE_DEVICES (``docs/design.md``).

A rank is a process group of its own, so that its loader workers end with it; Linux kills it when the launcher dies.
Each rank writes to ``RUN/logs/rank-K.log``; rank 0's file is also copied to the terminal as it grows.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from marc_dist.cluster.preset import LocalPreset
from marc_dist.cluster.rank_process import (
    FORWARDED,
    RANK_VARIABLES,
    SETTLE_S,
    RankProcess,
    num_cores,
    tail,
    what_ranks_understand,
)
from marc_dist.config import EXIT_USER, LaunchError
from marc_dist.run.attempt_id import AttemptId
from marc_dist.run.attempts import Attempt, newest_step
from marc_dist.run.exit_codes import EXIT_INTERRUPTED, EXIT_REQUEUE, exit_text
from marc_dist.run.job import Job, State, attempts_of_job
from marc_dist.run.processes import is_alive, start_ticks

POLL_S = 0.1
GONE = "has ended by itself"


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


def rank_environment(preset: LocalPreset, rank: int, world: int, port: int) -> dict[str, str]:
    """The environment of one rank: the caller's, the preset's, and torchrun's variables for a meeting on loopback.

    Args:
        preset: its ``threads_per_proc`` and ``env``; the latter may replace all but torchrun's variables.
        rank: from 0.
        world: number of ranks, all on this machine.
        port: of rank 0.
    """
    threads = preset.threads_per_proc or max(1, num_cores() // world)
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


def command(job: Job) -> list[str]:
    """What every rank of a job runs on this machine."""
    return [sys.executable, *job.arguments]


@dataclass
class LocalJob:
    """The ranks of one job: start, watch, end.

    Args:
        command: program and arguments of every rank.
        log_dir: where the logs go; made when missing.
        preset: threads, environment, graces.
        world: number of ranks.
        out: where rank 0's output is copied to.
        mine: the attempt that they are of.
    """

    command: Sequence[str]
    log_dir: Path
    preset: LocalPreset
    world: int
    out: BinaryIO
    mine: AttemptId = AttemptId()
    ranks: list[RankProcess] = field(default_factory=list)
    error: str | None = None  # what the first rank that failed died of, with its log
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
                        rank.send(signal.SIGTERM)
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

    def _start_rank(self, rank: int, port: int, listen_fd: int) -> RankProcess:
        env = rank_environment(self.preset, rank, self.world, port) | self.mine.variables()
        passed = listen_fd if rank == 0 and self.world > 1 else None
        return RankProcess(rank, self.command, self.log_dir, env, listen_fd=passed)

    def _watch(self) -> int:
        first_failure: float | None = None
        while True:
            alive = self._poll()
            self._copy()
            now = time.time()
            failed = [r for r in self.ranks if r.code not in (None, 0, EXIT_REQUEUE)]
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

    def _poll(self) -> list[RankProcess]:
        now = time.time()  # one look: of ranks that ended since the last one, the clock does not tell which was first
        return [rank for rank in self.ranks if not rank.poll(now)]

    def _end(self, ranks: Sequence[RankProcess], number: signal.Signals) -> None:
        for rank in ranks:
            if number == signal.SIGKILL or not rank.asked:
                rank.ask(number)

    def _kill_all(self) -> None:
        """End what is left, processes and loader workers, whatever made us leave."""
        for rank in self.ranks:
            rank.kill()
            with suppress(OSError):
                rank.end_file.unlink(missing_ok=True)

    def _copy(self) -> None:
        """Bring what rank 0 has written since the last call to the terminal.

        A log that cannot be read just now ends no training: the next call brings it.
        """
        if not self.ranks or self._deaf:
            return
        try:
            with self.ranks[0].log.open("rb") as file:
                file.seek(self._copied)
                news = file.read()
        except OSError:
            return
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
            # of two that ended between two looks without a word, one whose peer has gone ends with 1
            return self._tell(min(failed, key=lambda rank: (rank.end().time, rank.code == 1)))
        return 0 if all(rank.code == 0 for rank in self.ranks) else EXIT_REQUEUE

    def _failed(self, rank: RankProcess) -> bool:
        """Whether a rank failed by itself: neither ended by us nor stopped, as asked, before it could listen."""
        code = rank.code
        if self._asked is not None and code in [-number for number in FORWARDED]:
            return False
        return code not in (0, EXIT_REQUEUE) and not rank.asked

    def _tell(self, first: RankProcess) -> int:
        """Show why the job failed: a person's mistake in one line, anything else with the end of that rank's log."""
        self._copy()
        error, code = first.end().error, first.process.returncode
        if code == EXIT_USER and error is not None:
            raise LaunchError(error)
        print(f"--- last lines of {first.log}", *tail(first.log), sep="\n", file=sys.stderr)
        what = f": {error}" if error else ""
        how = exit_text(code)
        self.error = f"rank {first.rank} of {self.world} failed first ({how}){what}; log: {first.log}"
        print(f"marc-launch: error: {self.error}", file=sys.stderr)
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
                    rank.asked |= again
                    rank.send(signal.SIGKILL if again else what_ranks_understand(number), group=again)

        before = {number: signal.signal(number, forward) for number in FORWARDED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def local_id() -> str:
    """This process's name as a job: ``HOST:PID:START_TICKS``, which no other process ever has."""
    return f"{socket.gethostname()}:{os.getpid()}:{start_ticks(os.getpid()) or 0}"


def state(job: Job, run_dir: Path) -> State:
    """How a local job stands, from the run folder and the table of processes.

    Args:
        job: of kind local.
        run_dir: its folder.

    Returns:
        ``unknown`` for a job without an end on another machine; ``failed`` when its launcher has gone without a word.
    """
    mine, step = attempts_of_job(job, run_dir), newest_step(run_dir)
    if mine and mine[-1].ended_at is not None:
        return _ended(mine[-1])
    host, pid, ticks = _parse_id(job, run_dir)
    here = socket.gethostname()
    return state_of(mine, host, pid, here, is_alive(pid, ticks) if host == here else None, step)


def state_of(mine: Sequence[Attempt], host: str, pid: int, here: str, alive: bool | None, step: int) -> State:
    """How a local job stands. Pure.

    Args:
        mine: its attempts, oldest first.
        host: where its launcher was started.
        pid: the launcher's process there.
        here: this machine's name.
        alive: whether that process runs; None where it cannot be seen.
        step: of the newest checkpoint.
    """
    if mine and mine[-1].ended_at is not None:
        return _ended(mine[-1])
    if alive is None:
        return State("unknown", f"runs on {host}, whose processes cannot be seen from {here}")
    if alive:
        return State("running" if mine else "pending", f"process {pid} on {host}")
    return State("failed", f"its launcher, process {pid} on {host}, has gone without a word; newest step saved: {step}")


def cancel(job: Job, run_dir: Path) -> str:
    """Ask a local job to save and stop, when it still runs.

    Args:
        job: of kind local.
        run_dir: its folder.

    Returns:
        What becomes of it, in words.

    Raises:
        LaunchError: it runs on another machine, or belongs to another user.
    """
    word = state(job, run_dir).word
    if word not in ("pending", "running", "unknown"):
        return GONE
    host, pid, _ = _parse_id(job, run_dir)
    if word == "unknown":
        raise LaunchError(f"{run_dir}: runs on {host}; there, use marc-jobs cancel {run_dir}")
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:  # it ended by itself meanwhile
        return GONE
    except PermissionError:
        raise LaunchError(f"{run_dir}: process {pid} is not yours to end; ask {job.user}") from None
    return "is asked to save and stop"


def _parse_id(job: Job, run_dir: Path) -> tuple[str, int, int]:
    host, _, rest = (job.id or "").partition(":")
    pid, _, ticks = rest.partition(":")
    if not (host and pid.isdigit() and int(pid) > 1 and ticks.isdigit()):
        raise LaunchError(f"{run_dir}: job.json: id: expected HOST:PID:START_TICKS, got {job.id!r}; start it again")
    return host, int(pid), int(ticks)


def _ended(last: Attempt) -> State:
    saved = f"newest step saved: {last.last_step}"
    if last.code == 0:
        return State("done", saved)
    if last.code == EXIT_REQUEUE:
        return State("stopped", f"asked to stop, and saved; {saved}")
    if last.code == EXIT_INTERRUPTED:
        return State("stopped", f"interrupted before it could save; {saved}")
    return State("failed", last.error or last.why or f"exit code {last.code}")
