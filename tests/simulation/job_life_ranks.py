"""Ranks: what ``marc-train`` does for the life of a job, without the training.

What is assumed of it: a step takes seconds; every step ends with an all-reduce, which also says whether a rank was
asked to stop; rank 0 chooses the checkpoint for all, and saves. A rank whose peer dies hears it within a second, often
within milliseconds (a closed connection) or, in some stories and always when a machine is lost, nothing: then its
watchdog ends it. Checkpoints are chosen and saved, ends noted, beats written and hangs explained by
the code of marc-dist.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from marc_dist.cli.train import as_rank
from marc_dist.config import EXIT_USER, DataError, MarcError
from marc_dist.run.exit_codes import EXIT_HUNG, EXIT_REQUEUE
from marc_dist.run.rank_ends import note_failure
from marc_dist.training.checkpoint import newest_checkpoint, save_checkpoint
from marc_dist.training.signals import StopFlag
from marc_dist.training.watchdog import Watchdog
from tests.simulation.job_life_kernel import Condition, Exit, Kernel, Process


@dataclass
class Training:
    """What is trained in a folder, and how it goes by itself.

    Attributes:
        poison: step at which a rank fails every time, and how: an exit code, or -9.
    """

    last_step: int = 12
    every: int = 3
    step_s: float = 4.0
    keep: int = 2
    timeout_s: float = 60.0
    poison: tuple[int, int] | None = None


@dataclass(eq=False)
class World:
    """The ranks of one start, as they really are."""

    folder: str
    size: int
    who: str
    began: float
    training: Training
    loud: bool  # peers hear of a death
    ranks: dict[int, Process] = field(default_factory=dict)
    at: dict[str, set[int]] = field(default_factory=dict)
    changed: Condition = field(default_factory=Condition)
    box: dict[str, Any] = field(default_factory=dict)
    failures: list[tuple[float, int, str]] = field(default_factory=list)  # true time, rank, how
    first_step: int = 0
    stop_asked: bool = False
    finished: bool = False
    broken: bool = False

    @property
    def alive(self) -> bool:
        """Whether a rank of it runs."""
        return any(process.alive for process in self.ranks.values())


class Ranks:
    """All worlds of a story.

    Args:
        kernel: clock and processes.
        watch: told of a world that begins, ``(world, step)``, and of one that saves or has finished.
    """

    def __init__(self, kernel: Kernel, training: Callable[[str], Training], loud: Callable[[], bool]) -> None:
        self.kernel, self.training, self.loud = kernel, training, loud
        self.worlds: dict[Any, World] = {}
        self.began: Callable[[World, Process], None] = lambda world, process: None
        self.chose: Callable[[World, int], None] = lambda world, step: None
        self.saved: Callable[[World, int], None] = lambda world, step: None

    def rank(self, folder: str) -> int:
        """The main function of a rank; its exit code."""
        process = self.kernel.live().process
        rank = int(process.env.get("RANK") or process.env.get("SLURM_PROCID") or 0)
        size = int(process.env.get("WORLD_SIZE") or process.env.get("SLURM_NTASKS") or 1)
        parent = process.parent
        key: Any = ("alone", process.pid)
        if parent is not None:
            key = parent.facts.get("start", ("local", parent.pid))
        world = self.worlds.get(key)
        if world is None:
            world = World(folder, size, str(key), self.kernel.now, self.training(folder), self.loud())
            self.worlds[key] = world
        world.ranks[rank] = process
        process.facts["world"], process.facts["rank"] = world, rank
        process.at_end.append(lambda ended: self._ended(world, rank, ended))
        self.began(world, process)
        stop = StopFlag()
        config: Any = SimpleNamespace(train=SimpleNamespace(run_dir=folder))
        with stop.installed():
            try:
                with as_rank(config):
                    try:
                        return _Rank(self, world, rank, process, stop).go()
                    finally:
                        if rank == 0:
                            world.box["left"] = True  # it writes nothing any more but why it ended
            except MarcError as error:
                self.kernel.tell(f"ends with 2: {error}")
                return EXIT_USER

    def _ended(self, world: World, rank: int, process: Process) -> None:
        """The truth of how a rank ended; its peers hear of it, or not."""
        if process.code not in (0, EXIT_REQUEUE):
            asked = process.facts.get("asked")
            how = f"code {process.code}" + (" when asked" if asked else "") + process.facts.get("why", "")
            how += "" if process.node.up else WITH_NODE
            world.failures.append((process.facts.get("failed", self.kernel.now), rank, how))
            world.broken = True
            self.kernel.tell(f"rank {rank} of {world.who} ends: {how}")
            if world.loud and process.node.up:
                soon = self.kernel.rng.choice((0.03, 0.8))
                self.kernel.at(self.kernel.rng.uniform(0.001, soon), lambda: self.kernel.notify(world.changed))


class _Rank:
    def __init__(self, ranks: Ranks, world: World, rank: int, process: Process, stop: StopFlag) -> None:
        self.kernel, self.ranks, self.world, self.rank, self.process = ranks.kernel, ranks, world, rank, process
        self.stop, self.run_dir, self.training = stop, Path(world.folder), world.training
        self.dog: Watchdog | None = None

    def go(self) -> int:
        self._watchdog()
        self.meet("join")
        if self.rank == 0:
            try:
                path = newest_checkpoint(self.run_dir, self.kernel.tell)
                self.world.box["chosen"] = 0 if path is None else int(path.stem.rpartition("-")[2])
            except MarcError as error:
                self.world.box["error"] = error
            else:
                self.world.first_step = self.world.box["chosen"]
                self.ranks.chose(self.world, self.world.first_step)
        self.meet("agree")
        if "error" in self.world.box:
            raise self.world.box["error"]
        code = self._steps(self.world.box["chosen"])
        if self.dog is not None:
            self.dog.stop()
        return code

    def _steps(self, step: int) -> int:
        plan = self.training
        while step < plan.last_step:
            self.at(step + 1, "encoding")
            self.kernel.pause(plan.step_s * self.kernel.rng.uniform(0.8, 1.2))
            self._fail_if_told(step + 1)
            if self.stop:
                self.world.box[f"stop {step + 1}"] = True
            self.at(step + 1, "agreeing")
            self.meet(f"step {step + 1}")
            step += 1
            stop = bool(self.world.box.get(f"stop {step}")) and step < plan.last_step
            self.at(step, "saving")
            if self.rank == 0 and (stop or step % plan.every == 0 or step == plan.last_step):
                save_checkpoint(self.run_dir, step, {}, plan.keep)
                self.ranks.saved(self.world, step)
            if stop:
                self.meet("leave")
                return EXIT_REQUEUE
        self.meet("leave")
        self.world.finished = True
        return 0

    def _fail_if_told(self, step: int) -> None:
        how = self.process.facts.pop("fail", None)
        if self.training.poison is not None and self.training.poison[0] == step and self.rank == self.world.size - 1:
            how = self.training.poison[1]
        if how is None:
            return
        self.process.facts["failed"] = self.kernel.now
        self.kernel.tell(f"rank {self.rank} fails by itself ({how})")
        if how == -9:
            self.kernel.end(self.process, -9)
            self.kernel.live()
        if how == EXIT_USER:
            raise DataError(f"{self.run_dir}: step {step}: a sample cannot be read")
        raise RuntimeError(f"step {step}: something broke")

    def at(self, step: int, phase: str) -> None:
        if self.dog is not None:
            self.dog.at(step, phase)

    def meet(self, what: str) -> None:
        """A collective: returns when all ranks are there; a peer that is gone is an error, or silence."""
        world = self.world
        world.at.setdefault(what, set()).add(self.rank)
        if len(world.at[what]) == world.size:
            self.kernel.notify(world.changed)
        while self.process.facts.get("stuck"):
            self.kernel.wait(Condition())
        while len(world.at[what]) < world.size:
            self.kernel.wait(world.changed)
            if len(world.at[what]) < world.size and world.broken and world.loud and self._heard():
                self.process.facts.setdefault("failed", self.kernel.now)
                self.process.facts["why"] = OF_A_PEER
                raise RuntimeError("connection closed by peer")

    def _heard(self) -> bool:
        return any(
            not one.alive and one.code not in (0, EXIT_REQUEUE) and one.node.up for one in self.world.ranks.values()
        )

    def _watchdog(self) -> None:
        if self.world.size > 1:
            plan = self.training
            self.dog = Watchdog(self.run_dir, self.rank, self.world.size, plan.timeout_s, self._give_up)
            self.dog.start()

    def _give_up(self, reason: str) -> None:
        self.process.facts.setdefault("failed", self.kernel.now)
        self.process.facts["late"] = reason
        self.world.box.setdefault("late", []).append((self.kernel.now, self.rank, reason))
        note_failure(reason)
        self.kernel.tell(f"rank {self.rank} gives up: {reason}")
        raise Exit(EXIT_HUNG)


WITH_NODE = ", with its machine"
OF_A_PEER = ", because a peer had gone"
NAMED = re.compile(r"rank (\d+) of \d+ failed first")


def named(error: str | None) -> int | None:
    """The rank that a job's error calls the first one."""
    found = NAMED.search(error or "")
    return None if found is None else int(found[1])
