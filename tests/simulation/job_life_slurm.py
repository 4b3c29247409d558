"""Slurm as these stories know it: a queue, nodes, batch scripts around our hooks, and the commands that our code calls.

What is assumed of it, after the man pages of Slurm 22.05 and our tests on a real one:

- A job starts when enough nodes are free. Its batch script runs on the first one, tasks of ``srun`` one a rank.
- Whoever ends a job (scancel, the time limit, a preemption, a requeue) has its tasks and its batch script signalled
  with SIGTERM, and killed ``KILL_WAIT_S`` later. The batch shell, with a hook that it runs, dies of the SIGTERM.
- A preemption and the time limit come with a warning: ranks get a signal before, the batch script none.
- A requeued job keeps its id, its restart count grows by one, it starts some seconds or minutes later, on any nodes. It
  does so only when no process of its former start is left on a node that is up.
- The job of a node that is lost is killed on the other nodes and requeued, when Slurm notices, a minute or two later.
  A lost node writes nothing more (no split brain: a partition from Slurm alone is not played).
- ``scontrol requeue`` is refused for a job that is ending or over; after a cancel a job never starts again.
- ``srun --kill-on-bad-exit``: once a task has failed, the others get SIGTERM, and SIGKILL ``KILL_WAIT_S`` later (in
  some stories at once); ``--wait=60`` kills tasks that are left 60 s after the first one has ended. ``srun`` returns
  the largest code, 128 + n for signal n, 137 for a task that it does not hear of any more.
- A job that is over is forgotten after ``MinJobAge``; with accounting, ``sacct`` still knows it.
- slurmctld answers or, for a while, has too much to do: then three of five commands fail, sbatch among them.
- ``scancel --signal`` signals the tasks of the running step, not the batch script.
- An element of an array is a job of its own, ID_NUMBER: queued, started, requeued, cancelled and forgotten by itself;
  at most ``%N`` of an array run at a time. Commands take ID for all elements, ID_NUMBER or ID_[NUMBERS] for some.
"""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.job_life_kernel import Condition, Kernel, Node, Process

KILL_WAIT_S = 30.0
LIVE = ("PENDING", "RUNNING", "COMPLETING")


@dataclass(eq=False)
class SlurmJob:
    """A job of the simulated Slurm, or an element of an array.

    Attributes:
        id: as people write it: 100, 100_1.
        folder: that its script names.
        run_dir: that it trains in; an element's own.
        array: id of its array, its number in it, and how many run at a time; None for a job by itself.
    """

    id: str
    folder: str
    run_dir: str
    num_nodes: int
    procs_per_node: int
    limit_s: float
    array: tuple[str, int, int] | None = None
    env: dict[str, str] = field(default_factory=dict)
    state: str = "PENDING"
    reason: str = "Resources"
    restarts: int = 0
    nodes: list[Node] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)  # of the running start: shell and tasks
    shell: Process | None = None
    finish: str | None = None  # what it becomes once all its processes are gone
    held_until: float = 0.0
    over_at: float | None = None
    start: int = 0  # counts starts, for events that are of one start only


class Slurm:
    """The controller.

    Args:
        kernel: clock and processes.
        nodes: that jobs run on.
        hook: ``hook(word, folder, code)`` runs one of the batch script's hooks in the present process.
        task: the main function of what srun starts.
        element: the run folder of an array's element, by its number.
    """

    def __init__(
        self,
        kernel: Kernel,
        nodes: list[Node],
        hook: Callable[..., int],
        task: Callable[[str], Callable[[], int]],
        element: Callable[[int], str],
        *,
        accounting: bool,
        forget_s: float,
        hard_kill: bool,
    ) -> None:
        self.kernel, self.nodes, self.hook, self.task = kernel, nodes, hook, task
        self.accounting, self.forget_s, self.hard_kill = accounting, forget_s, hard_kill
        self.element = element
        self.jobs: dict[str, SlurmJob] = {}
        self.num_submitted = 0
        self.deaf = False
        self.signal_delay_s = 30.0
        self.queue_s = 15.0  # longest wait for the first start
        self.on_requeue: Callable[[SlurmJob], None] = lambda job: None
        self.on_cancel: Callable[[SlurmJob], None] = lambda job: None
        self.on_scancel: Callable[[SlurmJob], None] = lambda job: None

    # --- life of a job

    def submit(self, folder: str, params: dict[str, Any], limit_s: float) -> str:
        """``sbatch``: the job's id. The script's own exports are evaluated at each start."""
        number = str(100 + self.num_submitted)
        self.num_submitted += 1
        size = params["nodes"], params["ntasks_per_node"]
        env = exports(params["setup"])
        self.kernel.tell(f"Slurm takes job {number} for {folder}")
        spec, _, parallel = params["additional_parameters"].get("array", "").partition("%")
        for task in numbers(spec) if spec else (None,):
            array = None if task is None else (number, task, int(parallel))
            name = number if task is None else f"{number}_{task}"
            run_dir = folder if task is None else self.element(task)
            job = self.jobs[name] = SlurmJob(name, folder, run_dir, *size, limit_s, array, dict(env))
            job.held_until = self.kernel.now + self.kernel.rng.uniform(0.0, self.queue_s)
            self._look_soon(job.held_until - self.kernel.now)
        return number

    def _look_soon(self, delay: float) -> None:
        self.kernel.at(delay, self._schedule)

    def _schedule(self) -> None:
        taken = {node.name for job in self.jobs.values() if job.state in LIVE for node in job.nodes}
        for job in self.jobs.values():
            if job.state != "PENDING":
                continue
            if job.held_until > self.kernel.now:
                continue
            if job.array is not None and self._running_of(job.array[0]) >= job.array[2]:
                continue
            free = [node for node in self.nodes if node.up and node.name not in taken]
            if len(free) < job.num_nodes:
                continue
            self.kernel.rng.shuffle(free)
            job.nodes = free[: job.num_nodes]
            taken |= {node.name for node in job.nodes}
            self._start(job)

    def _running_of(self, array: str) -> int:
        of_it = (job for job in self.jobs.values() if job.array is not None and job.array[0] == array)
        return sum(job.state in ("RUNNING", "COMPLETING") for job in of_it)

    def _start(self, job: SlurmJob) -> None:
        job.state, job.processes, job.finish = "RUNNING", [], None
        job.start += 1
        names = ", ".join(node.name for node in job.nodes)
        self.kernel.tell(f"Slurm starts job {job.id} on {names} (restart {job.restarts})")
        env = {"SLURM_JOB_ID": job.id, "SLURM_JOB_NODELIST": ",".join(node.name for node in job.nodes)}
        env["SLURMD_NODENAME"] = job.nodes[0].name
        if job.array is not None:
            env |= {"SLURM_ARRAY_JOB_ID": job.array[0], "SLURM_ARRAY_TASK_ID": str(job.array[1])}
        if job.restarts:
            env["SLURM_RESTART_COUNT"] = str(job.restarts)
        env |= {name: expanded(text, env) for name, text in job.env.items()}
        job.shell = self.kernel.spawn(f"batch script of {job.id}", job.nodes[0], lambda: self._script(job), env)
        self._watched(job, job.shell)
        start = job.start
        warn = job.limit_s - self.signal_delay_s
        self.kernel.at(warn, lambda: self._same(job, start) and self.warn(job, signal.SIGUSR2))
        self.kernel.at(job.limit_s, lambda: self._same(job, start) and self._time_out(job))

    def _same(self, job: SlurmJob, start: int) -> bool:
        return job.state == "RUNNING" and job.start == start and job.finish is None

    def _watched(self, job: SlurmJob, process: Process) -> None:
        job.processes.append(process)
        process.at_end.append(lambda ended: self.kernel.at(0.2, lambda: self._settle(job)))

    def _script(self, job: SlurmJob) -> int:
        code = self.hook("begin", job.folder)
        if code:
            return code
        code = self._srun(job)
        return self.hook("end", job.folder, str(code))

    def _srun(self, job: SlurmJob) -> int:
        kernel, shell = self.kernel, self.kernel.live().process
        tasks: list[Process] = []
        world = job.num_nodes * job.procs_per_node
        changed = Condition()
        for rank in range(world):
            node = job.nodes[rank // job.procs_per_node]
            env = {**shell.env, "SLURM_PROCID": str(rank), "SLURM_NTASKS": str(world), "SLURM_STEP_ID": "0"}
            env |= {"SLURM_LOCALID": str(rank % job.procs_per_node), "SLURMD_NODENAME": node.name}
            task = kernel.spawn(f"task {rank} of {job.id}", node, self.task(job.folder), env, delay=kernel.rng.random())
            task.facts["start"] = (job.id, job.start)
            self._watched(job, task)
            task.at_end.append(lambda ended: kernel.notify(changed))
            tasks.append(task)
        first_end: float | None = None
        bad: float | None = None
        while True:
            heard = [task for task in tasks if not task.alive and task.node.up]
            if len(heard) == len(tasks):
                break
            if heard and first_end is None:
                first_end = kernel.now
            if bad is None and any(task.code for task in heard):
                bad = kernel.now
                kernel.tell(f"srun ends the other tasks of {job.id}")
                self._signal(tasks, signal.SIGKILL if self.hard_kill else signal.SIGTERM)
                continue
            hard = min((bad or 1e9) + KILL_WAIT_S, (first_end or 1e9) + 60.0)
            if kernel.now >= hard:
                self._signal(tasks, signal.SIGKILL)
                if bad is not None and kernel.now > bad + KILL_WAIT_S + 30.0:
                    break  # of a node that does not answer
                kernel.wait(changed, 5.0)
                continue
            kernel.wait(changed, None if hard > 1e8 else hard - kernel.now)
        kernel.pause(0.1)
        codes = [137 if task.code is None or not task.node.up else _shells(task.code) for task in tasks]
        kernel.tell(f"srun of job {job.id} ends with {max(codes)} ({', '.join(map(str, codes))})")
        return max(codes)

    def _signal(self, processes: list[Process], number: int) -> None:
        for process in list(processes):
            if process.node.up:
                self.kernel.send(process, number)

    # --- ends

    def _settle(self, job: SlurmJob) -> None:
        """Where a start stands once one of its processes has gone."""
        if job.state not in ("RUNNING", "COMPLETING"):
            return
        shell = job.shell
        assert shell is not None
        if shell.node.up and not shell.alive and job.finish is None:
            job.finish = "COMPLETED" if shell.code == 0 else "FAILED"
            job.state = "COMPLETING"
            self.kernel.tell(f"batch script of job {job.id} ended with {_shells(shell.code or 0)}")
            self._signal(job.processes, signal.SIGKILL)
        if job.finish is None or any(one.alive for one in job.processes):
            return
        self._over(job)

    def _over(self, job: SlurmJob) -> None:
        assert job.finish is not None
        job.state, job.finish, job.nodes = job.finish, None, []
        if job.state == "PENDING":
            job.restarts += 1
            job.reason = "BeginTime"
            delay = self.kernel.rng.choice((2.0, 10.0, 130.0))
            job.held_until = self.kernel.now + delay
            self._look_soon(delay + 0.1)
        else:
            job.over_at = self.kernel.now
        self.kernel.tell(f"Slurm: job {job.id} is {job.state}")
        self._look_soon(1.0)

    def finish(self, job: SlurmJob, word: str, *, grace_s: float = KILL_WAIT_S) -> None:
        """End a start from outside: SIGTERM to all, SIGKILL later; then it is ``word``."""
        if job.state == "PENDING":
            if word != "PENDING":
                job.state, job.over_at = word, self.kernel.now
            return
        job.finish = word if job.finish != "CANCELLED" else "CANCELLED"
        job.state = "COMPLETING"
        start = job.start
        self.kernel.at(self.kernel.rng.uniform(0.0, 1.0), lambda: self._terminate(job, start))
        self.kernel.at(grace_s, lambda: self._kill_rest(job, start))
        self.kernel.at(1.1, lambda: self._settle(job))

    def _terminate(self, job: SlurmJob, start: int) -> None:
        if job.state == "COMPLETING" and job.start == start:
            self._signal(job.processes, signal.SIGTERM)

    def _kill_rest(self, job: SlurmJob, start: int) -> None:
        if job.state == "COMPLETING" and job.start == start:
            self._signal(job.processes, signal.SIGKILL)

    def warn(self, job: SlurmJob, number: int) -> None:
        """A signal to the ranks' tasks, not to the batch script."""
        self.kernel.tell(f"Slurm signals the ranks of job {job.id}: {signal.Signals(number).name}")
        self._signal([one for one in job.processes if one is not job.shell], number)

    def _time_out(self, job: SlurmJob) -> None:
        self.kernel.tell(f"Slurm: time limit of job {job.id}")
        self.finish(job, "TIMEOUT")

    def preempt(self, job: SlurmJob, grace_s: float) -> None:
        """Another job wants the nodes: a warning, then the end of this start; it is requeued."""
        if job.state != "RUNNING":
            return
        self.kernel.tell(f"Slurm preempts job {job.id}, in {grace_s:.0f} s")
        self.warn(job, signal.SIGTERM)
        start = job.start
        self.kernel.at(grace_s, lambda: self._same(job, start) and self.finish(job, "PENDING"))

    def lose(self, node: Node, notice_s: float) -> None:
        """A node loses its power; Slurm notices later."""
        self.kernel.tell(f"node {node.name} is lost")
        node.up = False
        for process in list(node.processes):
            self.kernel.end(process, -9)

        def noticed() -> None:
            for job in self.jobs.values():
                if job.state in ("RUNNING", "COMPLETING") and node in job.nodes and job.finish in (None, "PENDING"):
                    self.kernel.tell(f"Slurm: node {node.name} of job {job.id} does not answer")
                    self.finish(job, "PENDING")
                elif job.state == "COMPLETING" and node in job.nodes:
                    self._settle(job)

        self.kernel.at(notice_s, noticed)

        def back() -> None:
            node.up = True
            self._look_soon(0.0)

        self.kernel.at(notice_s + 200.0, back)

    def silent(self) -> bool:
        """Whether a command gets no answer just now."""
        return self.deaf and self.kernel.rng.random() < 0.6

    def requeue(self, job: SlurmJob) -> bool:
        """``scontrol requeue``; whether it was taken."""
        if job.state != "RUNNING" or job.finish is not None:
            return False
        self.kernel.tell(f"Slurm requeues job {job.id}")
        self.finish(job, "PENDING")
        return True

    def cancel(self, job: SlurmJob) -> None:
        if job.state in LIVE:
            self.kernel.tell(f"Slurm cancels job {job.id}")
            self.on_cancel(job)
            self.finish(job, "CANCELLED")


def _shells(code: int) -> int:
    return 128 - code if code < 0 else code


def exports(lines: list[str]) -> dict[str, str]:
    """Variables that a batch script exports, as written."""
    words = [word for line in lines if line.startswith("export ") for word in shlex.split(line)[1:]]
    return {name: text for name, _, text in (word.partition("=") for word in words)}


def expanded(text: str, env: dict[str, str]) -> str:
    """What the shell makes of ``$NAME`` and ``${NAME:-TEXT}``."""
    return re.sub(r"\$\{?(\w+)(?::-([^}]*))?\}?", lambda found: env.get(found[1]) or found[2] or "", text)


def numbers(text: str) -> list[int]:
    """Slurm's ``0,2-4``."""
    spans = [part.partition("-") for part in text.split(",")]
    return [number for low, _, high in spans for number in range(int(low), int(high or low) + 1)]
