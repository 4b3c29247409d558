"""One story, drawn from a seed: a cluster, users, faults; played with the code of marc-dist that decides.

Run for real in it: ``submit``, ``state``, ``cancel``, ``refuse_second``, ``run_local`` of ``cluster/backends.py``, the
batch script's hooks, the tasks under srun, ``marc-jobs cancel|resume|status``, ``start_again``, ``job_end``, ``ended``,
the watchdog, the choice and the writing of checkpoints. Simulated: Python's doors to files, clocks, processes and
programs (``job_life_patches.py``), Slurm, the ranks' training, the file system, power.
"""

from __future__ import annotations

import signal
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import submitit

from marc_dist.cli.jobs import run as jobs_command
from marc_dist.cluster import backends, sbatch_hooks, srun_task
from marc_dist.cluster.preset import LocalPreset, RayPreset, SlurmPreset
from marc_dist.config import EXIT_USER, MarcError
from marc_dist.run.job import new_job, read_job
from tests.simulation.job_life_checks import Checks
from tests.simulation.job_life_files import SharedFiles
from tests.simulation.job_life_kernel import Kernel, Process
from tests.simulation.job_life_patches import Patches
from tests.simulation.job_life_plans import plan
from tests.simulation.job_life_ranks import Ranks, Training, World
from tests.simulation.job_life_ray import RayCluster
from tests.simulation.job_life_slurm import Slurm, SlurmJob, numbers
from tests.simulation.job_life_slurm_commands import SlurmCommands

FOLDER = "/sim/runs/a"
MANY = 5
"""Broken promises after which a story need not go on."""
PATIENCE_S = 20_000.0
"""Longer than all faults, restarts and time limits together: what still lives then never ends."""


@dataclass
class Told:
    """How a story ended.

    Attributes:
        broken: promises that were broken, in words; empty when all were kept.
        faults: that came.
        lines: the story, event by event.
    """

    seed: int
    broken: list[str]
    faults: list[str]
    lines: list[str] = field(repr=False)
    counts: dict[str, int] = field(default_factory=dict)


class Story:
    """Everything of one seed.

    Args:
        seed: of all draws.
        theme: what it is about; drawn when None.
    """

    def __init__(self, seed: int, theme: str | None = None) -> None:
        self.seed, self.theme = seed, theme
        self.kernel = kernel = Kernel(seed)
        rng = self.rng = kernel.rng
        skewed = rng.random() < 0.6
        for name in ("login1", "login2", "n1", "n2", "n3", "n4"):
            kernel.node(name, rng.uniform(-300.0, 300.0) if skewed else rng.uniform(-0.01, 0.01))
        self.files = SharedFiles(kernel, rng.choice((0.0, 0.0, 5.0, 30.0, 60.0)), rng.choice(("all", "all", "node")))
        self.training = Training(
            last_step=rng.choice((6, 10, 15)),
            every=rng.choice((2, 3, 5)),
            step_s=rng.choice((2.0, 5.0)),
            keep=rng.choice((1, 2, 3)),
            poison=(rng.randrange(1, 7), rng.choice((1, 2, -9))) if rng.random() < 0.1 else None,
        )
        self.ranks = Ranks(kernel, lambda folder: self.training, lambda: rng.random() < 0.7)
        self.slurm = Slurm(
            kernel,
            [kernel.nodes[name] for name in ("n1", "n2", "n3", "n4")],
            self._hook,
            self._task,
            lambda number: self.elements[number],
            accounting=rng.random() < 0.3,
            forget_s=rng.choice((300.0, 1e9)),
            hard_kill=rng.random() < 0.5,
        )
        self.limit_s = rng.choice((40.0, 90.0)) if rng.random() < 0.15 else 2000.0
        size = rng.choice(((1, 2), (2, 1), (2, 2), (3, 1)))
        self.preset: SlurmPreset | RayPreset = SlurmPreset(
            nodes=size[0],
            procs_per_node=size[1],
            max_restarts=rng.choice((0, 1, 2, 5)),
            max_stalls=rng.choice((0, 1, 2)),
            stop_grace_s=rng.choice((0.0, 20.0, 120.0)),
            preflight=False,
        )
        self.crashes: dict[str, int] = {}
        self.waiting: list[tuple[int, float, str]] = []  # faults of the n-th training that begins, seconds later
        self.trainings = 0
        self.elements: list[str] = []  # run folders of the array's elements, where the job is one
        self.parallel = 1
        self.hangs_at_end = False  # a rank of the first training that saves its last step
        self.patches = Patches(kernel, self.files, self._rank, SlurmCommands(self.slurm).programs())
        self.ray: RayCluster | None = None
        self.checks = Checks(self)

    # --- what processes run

    @property
    def folders(self) -> list[str]:
        """Folders that are trained in."""
        return self.elements or [FOLDER]

    def make_array(self, num: int, parallel: int) -> None:
        """Have the job be an array of so many elements, of which so many run at a time."""
        self.elements, self.parallel = [f"{FOLDER}/seed-{number}" for number in range(num)], parallel

    @property
    def jobs(self) -> dict[str, Any]:
        """Jobs that the batch system has taken, by its name for them."""
        return dict(self.slurm.jobs) if self.ray is None else dict(self.ray.jobs)

    def use_ray(self) -> None:
        """Have the job be one of Ray's."""
        slurm = self.preset
        keys = ("nodes", "procs_per_node", "max_restarts", "max_stalls", "stop_grace_s")
        self.preset = RayPreset(**{key: getattr(slurm, key) for key in keys}, preflight=False)
        nodes = [self.kernel.nodes[name] for name in ("n1", "n2", "n3", "n4")]
        self.ray = RayCluster(self.kernel, self.files, nodes)
        self.ray.on_submit = lambda run_dir: self.checks.submitting([run_dir])
        self.ray.on_start = self.checks.starts
        self.ray.on_cancel = self.checks.is_cancelled

    def _rank(self, folder: str) -> int:
        self._may_crash("rank")
        return self.ranks.rank(folder)

    def _hook(self, word: str, folder: str, *code: str) -> int:
        self._may_crash(word)
        ended = sbatch_hooks.main([word, folder, *code])
        self.kernel.live().process.crash_after = None
        return ended

    def _task(self, folder: str) -> Callable[[], int]:
        def main() -> int:
            self.kernel.live().quiet = True
            return srun_task.main([folder])

        return main

    def _may_crash(self, role: str) -> None:
        if role in self.crashes:
            self.kernel.live().process.crash_after = self.crashes.pop(role)

    def _sbatch(self, params: dict[str, Any], folder: str) -> Any:
        self.kernel.pause(self.rng.choice((0.2, 3.0)))
        if self.slurm.silent():
            raise submitit.core.utils.FailedJobError("sbatch: error: Batch job submission failed: Socket timed out")
        spec = params["additional_parameters"].get("array", "").partition("%")[0]
        self.checks.submitting([self.elements[number] for number in numbers(spec)] if spec else [folder])
        number = self.slurm.submit(folder, params, self.limit_s)
        self.kernel.pause(0.05)
        return SimpleNamespace(job_id=number)

    # --- users

    def user(self, node: str, what: str, delay: float) -> None:
        """A user types a command; of an array, for the whole or for one of its elements."""
        if delay > 0.0:
            self.checks.commands.add(what)
        whole = not self.elements or (
            what not in ("train", "launch local") and (delay == 0.0 or self.rng.random() < 0.6)
        )
        folder = FOLDER if whole else self.rng.choice(self.elements)
        self.kernel.at(delay, lambda: self._type(node, what, folder))

    def _type(self, node: str, what: str, folder: str) -> None:
        commands: dict[str, Callable[[], Any]] = {
            "launch": self._launch,
            "launch local": lambda: self._launch_local(folder),
            "train": lambda: self.ranks.rank(folder),
            "cancel": lambda: jobs_command._cancel(
                Namespace(runs=[folder], no_wait=self.rng.random() < 0.5, timeout=90.0)
            ),
            "resume": lambda: self._resume(folder),
            "status": lambda: self._status(folder),
        }

        def main() -> int:
            self.kernel.live().quiet = what == "launch local"
            self._may_crash({"launch": "submit", "resume": "submit"}.get(what, what))
            self.kernel.tell("types the command")
            try:
                code = int(commands[what]() or 0)
            except MarcError as error:
                self.kernel.tell(f"is refused: {error}")
                code = EXIT_USER
            self.checks.answered(what, code)
            return code

        self.kernel.spawn(f"{what} ({node})", self.kernel.nodes[node], main, {"PATH": "/usr/bin"})

    def _job(self, kind: Any, preset: SlurmPreset | LocalPreset | RayPreset, nodes: int, procs: int) -> Any:
        arguments = ["-m", "marc_dist.cli.train", FOLDER]
        values: dict[str, Any] = {"nodes": nodes, "procs_per_node": procs, "preset": preset.model_dump(mode="json")}
        if kind == "slurm":
            values["run_dirs"] = self.elements
        return new_job(kind, arguments, **values)

    def _launch(self) -> int:
        backends.submit(
            self._job(self.preset.kind, self.preset, self.preset.nodes, self.preset.num_procs), Path(FOLDER)
        )
        return 0

    def _launch_local(self, folder: str) -> int:
        job = self._job("local", LocalPreset(procs_per_node=2), 1, 2)
        job = job.model_copy(update={"arguments": [*job.arguments[:-1], folder]})
        return backends.run_local(job, Path(folder), BytesIO())

    def _resume(self, folder: str) -> int:
        return jobs_command._resume(Namespace(run=folder, force=False, words=[], nodes=None, procs_per_node=None))

    def _status(self, folder: str) -> int:
        before = self.checks.living()
        job = read_job(Path(folder))
        now = backends.state(job, Path(folder))
        self.checks.called(job, now, before)
        return jobs_command._status(Namespace(run=folder, json=False))

    # --- faults

    def fault(self, what: str, delay: float) -> None:
        self.kernel.at(delay, lambda: self._strike(what))

    def training_began(self) -> None:
        """Strike those faults that wait for a training."""
        self.trainings += 1
        for number, delay, what in self.waiting:
            if number == self.trainings:
                self.fault(what, delay)

    def saved(self, world: World, step: int) -> None:
        """Strike the fault that waits for a last step."""
        if self.hangs_at_end and step == self.training.last_step and world.size > 1:
            self.hangs_at_end = False
            late = world.ranks[self.rng.randrange(world.size)]
            self.kernel.tell(f"fault: {late.name} hangs")
            self.kernel.faults_seen.append("stuck rank")
            late.facts.update(stuck=True)
            self._held(late)

    def _strike(self, what: str) -> None:
        role = what.removeprefix("crash ")
        if role != what:
            self.crashes[role] = self.rng.randrange(1, 12)
            return
        if what == "full disk":
            self._for_a_while(self.files, "full", self.rng.uniform(5.0, 60.0))
        elif what == "deaf slurm":
            self._for_a_while(self.slurm, "deaf", self.rng.uniform(5.0, 40.0))
        else:
            self._strike_somebody(what)

    def _for_a_while(self, thing: Any, name: str, seconds: float) -> None:
        self.kernel.tell(f"begins: {name}, for {seconds:.0f} s")
        self.kernel.faults_seen.append(name)
        setattr(thing, name, True)
        self.kernel.at(seconds, lambda: setattr(thing, name, False))

    def _strike_somebody(self, what: str) -> None:
        rng, kernel = self.rng, self.kernel
        ranks = [p for node in kernel.nodes.values() for p in node.processes if "world" in p.facts]
        if what in ("stuck rank", "freeze rank"):  # nobody looks after a single process but its user
            ranks = [p for p in ranks if p.facts["world"].size > 1]
        if self.ray is not None and what in ("lose node", "kill supervisor"):
            self._strike_ray(self.ray, what)
            return
        jobs = [job for job in self.slurm.jobs.values() if job.state == "RUNNING" and job.finish is None]
        rank: Process | None = rng.choice(ranks) if ranks else None
        job: SlurmJob | None = rng.choice(jobs) if jobs else None
        by_rank: dict[str, Callable[[Process], Any]] = {
            "kill rank": lambda one: kernel.end(one, -9),
            "exit 1": lambda one: one.facts.update(fail=1),
            "exit 2": lambda one: one.facts.update(fail=EXIT_USER),
            "ask rank": lambda one: kernel.send(one, signal.SIGTERM),
            "stuck rank": lambda one: (one.facts.update(stuck=True), self._held(one)),
            "freeze rank": lambda one: (kernel.freeze(one), self._held(one)),
            "pause rank": self._pause,
            "kill task": lambda one: kernel.end(one.parent or one, -9),
        }
        by_job: dict[str, Callable[[SlurmJob], Any]] = {
            "lose node": lambda one: self.slurm.lose(rng.choice(one.nodes), rng.uniform(20.0, 120.0)),
            "kill batch": lambda one: kernel.end(one.shell, -9) if one.shell is not None else None,
            "requeue": self.slurm.requeue,
            "preempt": lambda one: self.slurm.preempt(one, rng.choice((5.0, 30.0))),
            "time limit": lambda one: self.slurm._time_out(one),
        }
        if what in by_rank and rank is not None:
            kernel.tell(f"fault: {what}: {rank.name} on {rank.node.name}")
            kernel.faults_seen.append(what)
            by_rank[what](rank)
        elif what in by_job and job is not None:
            kernel.tell(f"fault: {what}: job {job.id}")
            kernel.faults_seen.append(what)
            by_job[what](job)

    def _strike_ray(self, ray: RayCluster, what: str) -> None:
        """A node on which something of a job runs is lost, or its supervisor is killed."""
        running = [one for one in ray.actors if one.process is not None and one.process.alive]
        chosen = [one for one in running if what == "lose node" or one.name is not None]
        if chosen:
            one = self.rng.choice(chosen)
            self.kernel.tell(f"fault: {what}: {one.process.name} on {one.process.node.name}")
            self.kernel.faults_seen.append(what)
            if what == "lose node":
                ray.lose(one.where, self.rng.uniform(5.0, 40.0))
            else:
                self.kernel.end(one.process, -9)

    def _pause(self, process: Process) -> None:
        """It stands still for a while, as when its storage does not answer, or somebody sends SIGSTOP."""
        self._held(process)
        self.kernel.freeze(process)

        def thaw() -> None:
            process.facts["thawed"] = self.kernel.now
            self.kernel.thaw(process)

        self.kernel.at(self.rng.uniform(3.0, 60.0), thaw)

    def _held(self, process: Process) -> None:
        process.facts["world"].box.setdefault("held", []).append((self.kernel.now, process.facts["rank"]))

    # --- the whole

    def play(self) -> Told:
        """From the first command until nothing happens any more."""
        with ExitStack() as stack:
            stack.enter_context(self.patches.installed())
            stack.enter_context(mock.patch.object(submitit, "SlurmExecutor", self._executor))
            stack.enter_context(mock.patch("shutil.which", lambda name, **rest: f"/usr/bin/{name}"))
            stack.enter_context(mock.patch.object(sbatch_hooks, "WAIT_S", 40.0))
            plan(self)
            if self.ray is not None:
                stack.enter_context(self.ray.installed())
            for path in ("/sim/runs", FOLDER, *self.elements):
                self.files.mkdir(path)
            for path in self.folders:
                Path(path, "config.yaml").write_text("{}\n")
            self.kernel.after_event = self.checks.after_event
            enough = partial(self.checks.breaks, MANY)  # a job that starts for ever would take minutes
            quiet = self.kernel.run(PATIENCE_S, enough)
            if not enough():
                self.checks.at_end(quiet)
            self._tidy()
        lines = [f"{when:9.3f} s  {who}: {text}" for when, who, text in self.kernel.story]
        counts = {"events": self.kernel.num_events, "starts": len(self.ranks.worlds)}
        return Told(self.seed, self.checks.broken, sorted(set(self.kernel.faults_seen)), lines, counts)

    def _executor(self, folder: Path) -> Any:
        params: dict[str, Any] = {}
        return SimpleNamespace(
            update_parameters=params.update,
            parameters={},
            _submit_command=lambda command: self._sbatch(params, str(Path(folder).parent)),
        )

    def _tidy(self) -> None:
        """End what is left, so that its threads can carry others."""
        self.kernel.after_event = lambda: None
        for node in self.kernel.nodes.values():
            for process in list(node.processes):
                self.kernel.end(process, -9)
        self.kernel.run(self.kernel.now + 1.0)
