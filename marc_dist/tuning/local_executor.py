"""A search without Ray: trials as processes of this machine, a few at a time; or as calls of a function.

Ranks are children of this process in process groups of their own: Linux ends them with it, however it goes. One
thread looks after all of them.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from marc_dist.cluster.local import rank_environment, visible_gpus
from marc_dist.cluster.preset import LocalPreset
from marc_dist.cluster.rank_process import SETTLE_S, RankProcess, num_cores
from marc_dist.config import ConfigError
from marc_dist.run.attempt_id import AttemptId
from marc_dist.run.rank_ends import clear_ends
from marc_dist.tuning.state import Search, Trial
from marc_dist.tuning.trial import arguments, prepare_trial, reported, search_token, trial_attempt, trial_end

POLL_S = 0.2
GRACE_S = 10.0
"""Longest time that the other ranks of a trial have to end when one has failed."""


@dataclass(frozen=True)
class Size:
    """What a trial takes, and how many there are at a time.

    Attributes:
        procs: ranks of a trial.
        cpus: CPU cores of a rank.
        gpus: GPUs of a rank; below 1, trials share one.
        concurrent: trials at a time; None = as many as fit.
    """

    procs: int = 1
    cpus: int = 1
    gpus: float = 0.0
    concurrent: int | None = None

    def fitting(self, cpus: float, gpus: float) -> int:
        """Trials that fit into so much, at least 0."""
        fit = int(cpus // (self.procs * self.cpus))
        if self.gpus:
            per_gpu = int(1 / self.gpus + 1e-9) if self.gpus < 1 else 1
            whole = max(1, int(self.gpus))
            fit = min(fit, int(gpus) * per_gpu // (self.procs * whole))
        return fit


def own_cores(env: Mapping[str, str]) -> int:
    """CPU cores for trials: in a task of srun as many as Slurm gave it, which without binding only its variables say.

    Args:
        env: of this process.
    """
    given = env.get("SLURM_CPUS_PER_TASK", "") if "SLURM_STEP_NUM_TASKS" in env else ""
    return min(num_cores(), int(given)) if given.isdecimal() and int(given) else num_cores()


def local_size(size: Size) -> int:
    """Trials at a time on this machine.

    Raises:
        ConfigError: not even one fits.
    """
    cpus, gpus = own_cores(os.environ), visible_gpus(os.environ)
    fit = size.fitting(max(cpus, size.procs * size.cpus), gpus)  # cores may be shared, GPUs may not
    if fit < 1:
        raise ConfigError(
            f"--gpus-per-proc {size.gpus:g}: expected at most {gpus} GPUs for {size.procs} process(es) a trial, which "
            "is what this machine has"
        )
    return min(size.concurrent or fit, fit) if size.gpus else size.concurrent or fit


class _Gpus:
    """Which GPUs are free, in shares."""

    def __init__(self) -> None:
        listed = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = listed.split(",") if listed else [str(at) for at in range(visible_gpus(os.environ))]
        self.free = dict.fromkeys((name.strip() for name in names if name.strip()), 1.0)

    def take(self, share: float) -> list[str]:
        """Names for one rank: whole GPUs that nobody uses, or the share of one."""
        need = min(share, 1.0)
        fit = [name for name, free in self.free.items() if free >= need - 1e-9]
        names = sorted(fit, key=lambda name: self.free[name])[: max(1, int(share))]
        for name in names:
            self.free[name] -= need
        return names

    def give(self, names: list[str], share: float) -> None:
        for name in names:
            self.free[name] += min(share, 1.0)


@dataclass
class _Trial:
    """The ranks of one run."""

    run: Trial
    run_dir: Path
    mine: AttemptId
    ranks: list[RankProcess] = field(default_factory=list)
    gpus: list[list[str]] = field(default_factory=list)
    failed_at: float | None = None

    def poll(self) -> bool:
        """Whether all ranks have ended; when one fails, the others are told to, and then made to."""
        alive = [rank for rank in self.ranks if not rank.poll()]
        now = time.monotonic()
        if alive and self.failed_at is None and any(rank.ended is not None and rank.code for rank in self.ranks):
            self.failed_at = now
        if alive and self.failed_at is not None and now - self.failed_at > SETTLE_S:
            number = signal.SIGKILL if now - self.failed_at > SETTLE_S + GRACE_S else signal.SIGTERM
            for rank in alive:
                if number == signal.SIGKILL or not rank.asked:
                    rank.ask(number)
        return not alive

    def kill(self) -> None:
        for rank in self.ranks:
            rank.kill()


class LocalTrials:
    """Runs the trials of a search on this machine.

    Args:
        search: decides.
        folder: of the search.
        size: of a trial.
        show: called after every change and now and then.
    """

    def __init__(self, search: Search, folder: Path, size: Size, show: Callable[[], None]) -> None:
        self.search, self.folder, self.size, self.show = search, folder, size, show
        self.concurrent = local_size(size)
        self.token = search_token(os.environ)
        self.trials: list[_Trial] = []
        self.gpus = _Gpus()

    def go(self) -> None:
        """Until the search is over; every process is gone when this returns, however it does.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM; the search can go on later.
        """
        with termination_as_interrupt():
            try:
                while not self.search.over:
                    self._fill()
                    for trial in list(self.trials):
                        self._look_after(trial)
                    self.show()
                    if self.trials:
                        time.sleep(POLL_S)
            finally:
                for trial in self.trials:
                    trial.kill()

    def _fill(self) -> None:
        while len(self.trials) < self.concurrent and (run := self.search.next()) is not None:
            run_dir = prepare_trial(self.search, run, self.folder)
            self.search.began(run, socket.gethostname())
            trial = _Trial(run, run_dir, trial_attempt(self.token, run))
            self.trials.append(trial)
            self._start(trial)

    def _start(self, trial: _Trial) -> None:
        threads = max(1, own_cores(os.environ) // (self.concurrent * self.size.procs))
        preset = LocalPreset(threads_per_proc=max(threads, self.size.cpus) if threads > 1 else self.size.cpus)
        clear_ends(trial.run_dir / "logs")
        world = self.size.procs
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            for rank in range(world):
                env = rank_environment(preset, rank, world, port) | trial.mine.variables()
                if self.size.gpus:
                    trial.gpus.append(self.gpus.take(self.size.gpus))
                    env["CUDA_VISIBLE_DEVICES"] = ",".join(trial.gpus[-1])
                    env["LOCAL_RANK"] = "0"  # it sees its own GPUs only
                listen_fd = listener.fileno() if rank == 0 and world > 1 else None
                command = [sys.executable, *arguments(trial.run_dir)]
                trial.ranks.append(RankProcess(rank, command, trial.run_dir / "logs", env, listen_fd=listen_fd))

    def _look_after(self, trial: _Trial) -> None:
        over = trial.poll()  # first, so that nothing is written after what is read
        for row in reported(trial.run_dir):
            if self.search.report(trial.run, row) == "stop":
                trial.kill()
                over = True
                break
        if over:
            code = 0 if all(rank.code == 0 for rank in trial.ranks) else 1
            self.search.ended(trial.run, *trial_end(trial.run_dir, self.size.procs, code, trial.mine))
            self.trials.remove(trial)
            for names in trial.gpus:
                self.gpus.give(names, self.size.gpus)


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a search as Ctrl-C does: what runs is ended on the way out.

    One that is ignored stays so: a search under ``nohup`` outlives its terminal.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


Trainer = Callable[[Mapping[str, Any], int], Iterator[Mapping[str, Any]]]
"""(flat settings, seed) -> a row an epoch, each with ``epoch`` and the objectives."""


def call_trials(search: Search, trainer: Trainer, concurrent: int = 1) -> None:
    """Run the trials of a search as calls of a function: the same decisions, without a process or a file.

    Args:
        search: decides.
        trainer: stands for the training.
        concurrent: calls under way at a time, taking turns epoch by epoch.
    """
    under_way: list[tuple[Trial, Iterator[Mapping[str, Any]]]] = []
    while not search.over:
        while len(under_way) < concurrent and (run := search.next()) is not None:
            search.began(run)
            settings = {**search.plan.base, **search.space.settings(run.point)}
            under_way.append((run, trainer(settings, run.seed)))
        for run, rows in list(under_way):
            row = next(rows, None)
            if row is not None and search.report(run, row) == "go":
                continue
            search.ended(run, 0)
            under_way.remove((run, rows))
