"""What is promised of a job's life, checked after every event of a story and at its end.

The story's own eyes see everything: processes, the server's files, Slurm's table. Promises:

1. One writer: never do two trainings write in a folder at once; a rank 0 that was frozen for so long that another
   training was let in ends itself within ``THAW_S`` seconds of its return. Where locks reach across machines, no job
   is handed in while another one lives there, unless a launch was killed right after sbatch and its job waits.
2. Nothing lost: the newest whole checkpoint never gets older; a start begins at the newest one that was whole ``bound``
   seconds before (the oldest that a machine's memory of a folder may be; 0 on a coherent file system: at the newest).
3. Bounded: a submission trains at most ``1 + max_restarts`` times; the code asks for no further start after more than
   ``max_stalls`` starts without progress; whatever the clocks say.
4. It ends: when faults have stopped, everything comes to an end, and no job is left that nobody goes on with.
5. The truth is told: ``done`` exactly when the last step is saved, ``cancelled`` only after a cancel; a job that is
   over is never called pending or running.
6. A cancelled submission never trains again.
7. The rank named first did fail first, whatever the clocks say: never one that failed because a peer had gone; of ranks
   that failed by themselves within ``SETTLE_S`` seconds, any. Not promised where storage takes a fifth of a second or
   more to write a killed rank's end down: srun may end its task before. A rank that was lost with its machine is not
   named when others fail by themselves before Slurm notices.
8. A command ends with an answer, never with a traceback.
9. A run that nobody ends and nothing harms is trained to its end; so is one that a single fault strikes from which
   there is a way back (``WAY_BACK``), where restarts and stalls allow one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marc_dist.cluster import backends
from marc_dist.config import MarcError
from marc_dist.run.attempt_id import NUMBER, TOKEN
from marc_dist.run.exit_codes import EXIT_HUNG
from marc_dist.run.job import OVER, Job, State, ended, read_job
from marc_dist.run.run_lock import REFRESH_S
from tests.simulation.job_life_kernel import Process
from tests.simulation.job_life_ranks import OF_A_PEER, WITH_NODE, World, named
from tests.simulation.job_life_ray import RayJob
from tests.simulation.job_life_saved import Saved
from tests.simulation.job_life_slurm import LIVE, SlurmJob

if TYPE_CHECKING:
    from tests.simulation.job_life_story import Story

SETTLE_S = 1.3
"""Failures this close together may be taken for each other: a rank's end is seen a moment late."""
THAW_S = 3 * REFRESH_S
"""Longest that a rank 0 writes on that was frozen, while another training was let in."""
HUNG = f"code {EXIT_HUNG}"
WAY_BACK = {
    "kill rank",
    "ask rank",
    "stuck rank",
    "freeze rank",
    "pause rank",
    "lose node",
    "requeue",
    "preempt",
    "kill task",
    "deaf",
}
RAY_WAY_BACK = {"kill supervisor"}
EXCUSES = {"full", "deaf", "crash", "kill batch", "lose node", "time limit", "preempt", "requeue", "kill task"}


class Checks:
    """All promises of one story."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.broken: list[str] = []
        self._saved_in: dict[str, Saved] = {}  # by run folder
        self.commands: set[str] = set()  # beside the first launch
        self.cancelled: dict[str, float] = {}  # Slurm's id -> when its end was asked for
        self.asked: set[str] = set()  # told to save by a user's cancel, by Slurm's id
        story.files.watch = self._touched
        story.ranks.chose = self._begins
        story.ranks.saved = self._saves
        story.slurm.on_requeue = self._asks_again
        story.slurm.on_scancel = lambda job: self.asked.add(job.id)
        story.slurm.on_cancel = lambda job: self.cancelled.setdefault(job.id, story.kernel.now)

    def fail(self, promise: int, text: str) -> None:
        line = f"promise {promise}: {text}"
        if line not in self.broken:
            self.broken.append(line)
            self.story.kernel.story.append((self.story.kernel.now, "BROKEN", line))

    def breaks(self, num: int) -> bool:
        """Whether so many promises were broken."""
        return len(self.broken) >= num

    # --- checkpoints

    def _touched(self, action: str, path: str) -> None:
        folder, found, _ = path.partition("/checkpoints")
        if found:
            self.saved(folder.rpartition(" ")[2]).dirty = True

    def saved(self, folder: str) -> Saved:
        """What a run folder has saved."""
        if folder not in self._saved_in:
            self._saved_in[folder] = Saved(self.story.files, folder, self.fail)
        return self._saved_in[folder]

    def _folder(self) -> str:
        return "/sim/runs/a"

    def after_event(self) -> None:
        for saved in self._saved_in.values():
            saved.look()

    # --- starts

    def _writers(self, folder: str) -> list[World]:
        worlds = [one for one in self.story.ranks.worlds.values() if one.folder == folder]
        return [one for one in worlds if "chosen" in one.box and "left" not in one.box and self._writes(one.ranks[0])]

    def _writes(self, process: Process) -> bool:
        """Whether rank 0 may write; one that was frozen has a moment to find that its folder was given away."""
        thawed = process.facts.get("thawed", -THAW_S)
        return process.alive and not process.frozen and self.story.kernel.now - thawed > THAW_S

    def _begins(self, world: World, step: int) -> None:
        self.after_event()
        kernel = self.story.kernel
        kernel.tell(f"training begins after step {step}")
        self.story.training_began()
        writers = self._writers(world.folder)
        if len(writers) > 1:
            self.fail(1, f"two trainings at once: {' and '.join(one.who for one in writers)}")
        if job_folder(self._job_of(world), world.folder) != world.folder:
            self.fail(1, f"{world.who} trains in {world.folder}, which is not its own")
        self.saved(world.folder).begins(world.who, step)
        job = self._job_of(world)
        if job is None:
            return
        mine = [one for one in self.story.ranks.worlds.values() if self._job_of(one) is job and "chosen" in one.box]
        if len(mine) > 1 + self.story.preset.max_restarts:
            self.fail(
                3, f"job {job.id} trains for the {len(mine)}th time, max_restarts={self.story.preset.max_restarts}"
            )
        if job.id in self.cancelled and kernel.now > self.cancelled[job.id] + 31.0:
            self.fail(6, f"job {job.id} trains after its cancel")

    def _job_of(self, world: World) -> SlurmJob | RayJob | None:
        found = next(iter(world.ranks.values())).parent if world.ranks else None
        key = found.facts.get("start") if found is not None else None
        return None if key is None else self.story.jobs[key[0]]

    def _saves(self, world: World, step: int) -> None:
        num, newest = len(self._writers(world.folder)), self.saved(world.folder).newest()
        if num > 1:
            self.fail(1, f"{world.who} saves while {num} trainings run")
        if newest < step:
            self.fail(2, f"step {step} was saved, but the newest whole checkpoint is {newest}")
        self.story.saved(world, step)

    def starts(self, job: RayJob) -> None:
        """Ray's supervisor asks for nodes; a cancel may reach it in the same moment."""
        if job.start > 1 and self.story.kernel.now - self.cancelled.get(job.id, -9.0) > 1.0:
            self._asks_again(job)

    def is_cancelled(self, job: RayJob) -> None:
        """Ray's supervisor hears that it is to end."""
        self.asked.add(job.id)
        self.cancelled.setdefault(job.id, self.story.kernel.now)

    def _asks_again(self, job: SlurmJob | RayJob) -> None:
        """The batch script asks for a further start."""
        if job.id in self.cancelled:
            self.fail(6, f"job {job.id} asks for another start after its cancel")
        mine = [one for one in self.story.ranks.worlds.values() if self._job_of(one) is job and "chosen" in one.box]
        steps = [*(one.first_step for one in mine), self.saved(job.run_dir).newest()]
        stalls = 0
        while stalls < len(mine) and steps[-2 - stalls] == steps[-1]:
            stalls += 1
        alone = not self.commands & {"train", "launch local"}  # else their progress may be taken for the job's
        if alone and stalls > self.story.preset.max_stalls:
            self.fail(
                3, f"job {job.id} asks for a start after {stalls} stalls, max_stalls={self.story.preset.max_stalls}"
            )

    # --- commands

    def submitting(self, folders: list[str]) -> None:
        """Somebody hands a job in that will train in these folders."""
        if self.story.files.locks != "all":
            return  # two may be taken at the same moment; one of them trains
        crashed = "crash" in self.story.kernel.faults_seen  # a launch after sbatch: its job gives its id when it starts
        jobs = [job for job in self.story.jobs.values() if job.state in LIVE and job.finish is None]
        live = [job.id for job in jobs if job.run_dir in folders and (job.start > 0 or not crashed)]
        writers = [one for folder in folders for one in self._writers(folder)]
        if live:
            self.fail(1, f"a second job of the folder is handed in while job {', '.join(live)} lives")
        elif writers:
            self.fail(1, f"a job is handed in while {writers[0].who} trains in the folder")

    def living(self) -> set[str]:
        """Jobs that are waiting or running, and do not end just now."""
        return {job.id for job in self.story.jobs.values() if job.state in LIVE and job.finish is None}

    def called(self, job: Job, told: State, before: set[str]) -> None:
        """Somebody was told how a job stands; ``before``: what lived when he asked."""
        self.story.kernel.tell(f"sees {told}")
        parts = self._parts(job)
        lived = parts & before & self.living()
        if lived and told.word in OVER:
            self.fail(5, f"job {', '.join(sorted(lived))} lives, and is called {told}")
        gone = job.kind != "local" and parts and not parts & (before | self.living())
        ending = any(self.story.jobs[one].state in LIVE for one in parts)
        others = bool(job.run_dirs) and bool(before | self.living())  # an element may go on as a job of its own
        if gone and not ending and not others and told.word in ("pending", "running"):
            self.fail(5, f"job {job.id} is over, and is called {told}")

    def _parts(self, job: Job) -> set[str]:
        """Slurm's names for a job, or for the elements of an array; of a job of Ray's, its token."""
        jobs = self.story.jobs.values()
        return {
            one.id
            for one in jobs
            if one.id in (job.id, job.token) or (one.array is not None and one.array[0] == job.id)
        }

    def answered(self, what: str, code: int) -> None:
        """A command has ended with a code."""
        self.story.kernel.tell(f"{what} ends with {code}")

    # --- the end

    def at_end(self, quiet: bool) -> None:
        """When nothing happens any more."""
        story, kernel = self.story, self.story.kernel
        self.after_event()
        alive = [p for node in kernel.nodes.values() for p in node.processes if not p.frozen]
        living = [job for job in story.jobs.values() if job.state in LIVE]
        if not quiet or alive or living:
            who = ", ".join(p.name for p in alive) + ", ".join(f"job {job.id} {job.state}" for job in living)
            self.fail(4, f"it does not end: {who or 'events go on'}")
            return
        if story.ray is not None and any(group.state != "removed" for group in story.ray.groups):
            self.fail(4, "nodes of Ray's are not given back")
        for _, who, text in kernel.story:
            if text.startswith("traceback") and "/rank " not in who and "/train" not in who:
                self.fail(8, f"{who}: {text}")
        states: dict[str, list[State]] = {}
        kernel.spawn("judge", kernel.nodes["login2"], lambda: self._judge(states), {}, delay=100.0)
        kernel.run(kernel.now + 400.0)
        if story.jobs and self._folder() not in states:
            self.fail(5, "a job was handed in, and nobody can tell how it stands")
        for folder in story.folders:
            if states.get(folder):
                self._truth(folder, states[folder][0])
                self._culprits(folder)
        if story.elements and self._folder() in states:
            self._array(states)

    def _judge(self, states: dict[str, list[State]]) -> None:
        for folder in dict.fromkeys([self._folder(), *self.story.folders]):
            try:
                job = read_job(Path(folder))
                states[folder] = [backends.state(job, Path(folder)), ended(job, Path(folder)) or State("unknown")]
            except MarcError as error:
                self.story.kernel.tell(f"no state: {error}")

    def _array(self, states: dict[str, list[State]]) -> None:
        """The array's word is that of its elements: done when all are done, never of something that lives."""
        told = states[self._folder()][0]
        words = {states[folder][0].word if folder in states else "unknown" for folder in self.story.folders}
        self.story.kernel.story.append((self.story.kernel.now, "the end", f"the array: {told}"))
        if told.word in ("pending", "running") or (told.word == "done") != (words == {"done"}):
            self.fail(5, f"the array is called {told}, its elements are {', '.join(sorted(words))}")

    def _truth(self, folder: str, told: State) -> None:
        story, durable = self.story, self.saved(folder).durable
        story.kernel.story.append((story.kernel.now, "the end", f"{folder}: {told}; saved: step {durable}"))
        finished = durable >= story.training.last_step
        excuses = EXCUSES & set(story.kernel.faults_seen)
        if told.word in ("pending", "running"):
            self.fail(5, f"called {told} when nothing runs")
        if told.word == "done" and not finished:
            self.fail(5, f"called done after step {durable} of {story.training.last_step}")
        if told.word == "cancelled" and not self.asked and "cancel" not in self.commands:
            self.fail(5, f"called {told}, but nobody cancelled it")
        meddled = story.files.locks != "all" and self.commands - {"status", "cancel"}  # two took the folder at a time
        if told.word == "unknown" and not excuses and not meddled:
            self.fail(5, f"nobody knows how it ended: {told}")
        if told.word != "done" and self._must_be_done():
            self.fail(
                9, f"not trained to the end but {told}; faults: {sorted(set(story.kernel.faults_seen)) or 'none'}"
            )

    def _must_be_done(self) -> bool:
        story = self.story
        faults = story.kernel.faults_seen
        meddled = self.commands & {"cancel", "launch", "launch local", "train", "resume"}
        if not story.jobs or meddled or story.training.poison is not None or story.limit_s < 1000.0:
            return False
        if not faults:
            return True
        enough = story.preset.max_restarts >= 1 and story.preset.max_stalls >= 1
        return len(faults) == 1 and faults[0] in WAY_BACK | RAY_WAY_BACK and enough

    def _culprits(self, folder: str) -> None:
        """The rank that each attempt's line names, against the truth."""
        for line in (self.story.files.bytes_of(f"{folder}/attempts.jsonl") or b"").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            rank = named(record.get("error")) if record.get("event") == "end" else None
            world = self._world_of(record, folder)
            if rank is not None and world is not None and not self._possible(world, rank):
                self.fail(
                    7, f"rank {rank} of {world.who} is said to have failed first; truly {sorted(world.failures)[:3]}"
                )
        for world in self.story.ranks.worlds.values():
            for when, _, reason in world.box.get("late", []) if world.folder == folder else []:
                self._late(world, when, reason)

    def _world_of(self, record: dict[str, Any], folder: str) -> World | None:
        """The training of a folder that a record is about."""
        for world in self.story.ranks.worlds.values():
            if world.folder != folder:
                continue
            env = next(iter(world.ranks.values())).env
            if env.get(TOKEN) == record.get("token") and env.get(NUMBER) == str(record.get("number")):
                return world
        return None

    def _late(self, world: World, when: float, reason: str) -> None:
        """Whom a rank that gives up names, against who was held up."""
        held = {rank for since, rank in world.box.get("held", []) if since <= when}
        gone = {rank for rank, process in world.ranks.items() if not process.alive or not process.node.up}
        lost = {rank for failed, rank, _ in world.failures if failed <= when}
        said = {int(rank) for rank in re.findall(r"rank (\d+)", reason.partition(": rank ")[2].partition(": ")[2])}
        truly = held or (gone & lost)
        if len(world.ranks) == world.size and truly and said - held - lost:
            self.fail(7, f"{sorted(said)} are called late in {world.who}; truly {sorted(truly)}: {reason}")

    def _possible(self, world: World, rank: int) -> bool:
        told = self.story.ray is not None  # Ray's supervisor notices a lost machine; srun does not say which it was
        seen = [one for one in world.failures if told or WITH_NODE not in one[2]]
        own = [one for one in seen if OF_A_PEER not in one[2]]
        first = min(own or seen, default=None)
        mine = min((one for one in world.failures if one[1] == rank), default=None)
        if mine is None or first is None:
            return False
        task = world.ranks[first[1]].parent
        if task is not None and task.facts.get("slow", -1.0) >= first[0]:
            return True  # its end was not yet noted when srun ended its task
        if mine[2].startswith(HUNG):
            return True  # a witness; whom it names in turn is checked by itself
        if OF_A_PEER in mine[2] and OF_A_PEER not in first[2]:
            return False
        return mine[0] - first[0] <= SETTLE_S


def job_folder(job: SlurmJob | RayJob | None, folder: str) -> str:
    """The folder that a job is to train in; ``folder`` where no job of Slurm's trains."""
    return folder if job is None else job.run_dir
