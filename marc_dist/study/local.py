"""A study on this machine: as many workers as asked for, looked after until nothing is left.

Workers are process groups of their own: Linux ends them with this process, however it goes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from marc_dist.cluster.local import rank_environment, visible_gpus
from marc_dist.cluster.preset import LocalPreset
from marc_dist.cluster.rank_process import RankProcess, num_cores, tail
from marc_dist.config import EXIT_USER, LaunchError
from marc_dist.run.exit_codes import EXIT_HUNG, EXIT_REQUEUE, exit_text
from marc_dist.study.plan import Plan
from marc_dist.study.state import WORKERS, is_done, mark_failed, note_worker, read_record, read_workers
from marc_dist.study.worker import EXIT_UNSOUND, WORKER
from marc_dist.tuning.local_executor import termination_as_interrupt

POLL_S = 0.2
SAVE_S = 30.0
"""Time to save for workers that are told to stop."""
STARTS = 3
"""A worker that ends so often before it has begun a task, or has brought one to its end, will not do better."""


def jobs_here(threads: int) -> int:
    """Tasks at a time on this machine: one a GPU, else as many as have cores."""
    return visible_gpus(os.environ) or max(1, num_cores() // threads)


@dataclass
class _Seat:
    """A place for a worker.

    Attributes:
        name: under which it says what it does.
        gpu: that it sees; None for all or none.
        process: that sits there now.
        idle: starts in a row that ended before a task was begun, or stopped in one without being asked to.
        over: tasks that were over when it started.
    """

    name: str
    gpu: str | None = None
    process: RankProcess | None = None
    idle: int = 0
    over: int = 0


class LocalStudy:
    """Runs the tasks of a study on this machine.

    Args:
        plan: of the study; its copy lies in the folder.
        jobs: tasks at a time.
        show: called now and then with the names of the workers.
        say: takes one line for people.
    """

    def __init__(
        self, plan: Plan, jobs: int, show: Callable[[list[str]], None], say: Callable[[str], None] = print
    ) -> None:
        self.plan, self.show, self.say = plan, show, say
        gpus = _gpu_names()
        self.seats = [_Seat(f"here-{at}", gpus[at % len(gpus)] if gpus else None) for at in range(jobs)]

    def go(self) -> None:
        """Until nothing is left; every worker is gone when this returns, however it does.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM; the study can go on later.
            LaunchError: workers do not start.
        """
        with termination_as_interrupt():
            try:
                for seat in self.seats:
                    self._start(seat)
                while any(seat.process is not None for seat in self.seats):
                    for seat in self.seats:
                        self._look_after(seat)
                    self.show([seat.name for seat in self.seats])
                    time.sleep(POLL_S)
            except KeyboardInterrupt:
                self._save()
                raise
            finally:
                for seat in self.seats:
                    if seat.process is not None:
                        seat.process.kill()

    def _start(self, seat: _Seat) -> None:
        preset = LocalPreset(threads_per_proc=self.plan.study.threads)
        env = rank_environment(preset, 0, 1, 0) | {WORKER: seat.name}
        if seat.gpu is not None:
            env["CUDA_VISIBLE_DEVICES"] = seat.gpu
        note_worker(self.plan.out, seat.name, "")
        seat.over = self._over()
        command = [sys.executable, "-u", "-m", "marc_dist.study.worker", str(self.plan.out)]
        seat.process = RankProcess(0, command, self._logs(seat), env)

    def _logs(self, seat: _Seat) -> Path:
        return self.plan.out / WORKERS / seat.name

    def _look_after(self, seat: _Seat) -> None:
        process = seat.process
        if process is None or not process.poll():
            return
        seat.process = None
        code = process.code or 0
        if code == 0:
            return
        if code == EXIT_REQUEUE:
            self._stopped(seat, process)
            return
        under_way = read_workers(self.plan.out, [seat.name])
        if code == EXIT_UNSOUND or (code == EXIT_HUNG and not under_way):
            seat.idle = 0  # it has written down what failed; another one goes on with the rest
            self._start(seat)
            return
        if under_way:
            self._lost(under_way[0].task, code)
        if code == EXIT_USER and not under_way:
            told = process.end().error or " ".join(tail(process.log, 1)).removeprefix("marc-study: error: ")
            raise LaunchError(told)
        seat.idle = 0 if under_way else seat.idle + 1
        if seat.idle >= STARTS:
            raise LaunchError(f"workers end before they begin anything ({exit_text(code)}); see {process.log}")
        self._start(seat)

    def _stopped(self, seat: _Seat, process: RankProcess) -> None:
        """A worker has stopped, which nobody here has asked it to: storage did not answer, or it got a signal."""
        over = self._over()
        seat.idle = 1 if over > seat.over else seat.idle + 1
        told = " ".join(tail(process.log, 1)).removeprefix("marc-study: error: ") or "it was told to"
        if seat.idle >= STARTS:
            raise LaunchError(f"worker {seat.name} has stopped {seat.idle} times without a task done: {told}")
        self.say(f"worker {seat.name} stopped: {told}; another one goes on")
        self._start(seat)

    def _over(self) -> int:
        records = [(task, read_record(self.plan.folder(task))) for task in self.plan.tasks.values()]
        return sum(one.word == "failed" or is_done(self.plan, task, one) for task, one in records)

    def _lost(self, name: str, code: int) -> None:
        """A worker has gone in the middle of a task: say so, or the next one would go the same way."""
        task = self.plan.tasks[name]
        folder = self.plan.folder(task)
        record = read_record(folder)
        if record.word != "failed" and not is_done(self.plan, task, record):
            log = folder / "logs" / "study.log"
            said = [line for line in tail(log, 3) if line.startswith("marc-study: error: ")]
            reason = said[-1].removeprefix("marc-study: error: ") if said else f"its process ended: {exit_text(code)}"
            mark_failed(self.plan, task, f"{reason}; log: {log}")

    def _save(self) -> None:
        """Tell all workers to save, and wait a while."""
        alive = [seat.process for seat in self.seats if seat.process is not None and not seat.process.poll()]
        for process in alive:
            process.ask(signal.SIGTERM)
        deadline = time.monotonic() + SAVE_S
        while time.monotonic() < deadline and not all(process.poll() for process in alive):
            time.sleep(POLL_S)


def _gpu_names() -> list[str]:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = listed.split(",") if listed else [str(at) for at in range(visible_gpus(os.environ))]
    return [name.strip() for name in names if name.strip() and name.strip() != "-1"]
