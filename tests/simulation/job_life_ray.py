"""Ray as these stories know it: actors, placement groups, nodes; our supervisor and rank actors run in it unchanged.

What is assumed of it, after Ray's documentation and our tests on a real cluster:

- The head never fails. Calls of an actor are served one after the other, milliseconds after they were made.
- An actor lives in a process on a node. When that is killed, callers hear of it within a second; when its node is lost,
  after 5 to 40 s, and hear nothing until then. What was asked and not answered fails.
- A detached actor with ``max_restarts=-1`` is made again on any node, 1 to 8 s after its end was noticed; calls fail
  with ActorUnavailableError meanwhile. Any other actor ends for good, and soon after the process that made it.
- A name is given to one living actor; asking for one that nobody has is a ValueError.
- A placement group waits until enough nodes are free. Ray asks each of them first: a lost one does not answer, and the
  group waits until that is noticed. Removing a group ends the actors in it.
- A node that comes back is another node. A lost one writes nothing more (no split brain).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

from marc_dist.cluster import ray_ranks, ray_supervisor
from tests.simulation.job_life_files import SharedFiles
from tests.simulation.job_life_kernel import Condition, Kernel, Node, Process
from tests.simulation.job_life_stand_ins import Thread

NUM_CPUS = 2.0


class RayError(Exception):
    """``ray.exceptions.RayError``."""


class ActorDiedError(RayError):
    """The actor is gone for good."""


class ActorUnavailableError(RayError):
    """The actor is being made again, or does not answer."""


class GetTimeoutError(RayError, TimeoutError):
    """No answer in time."""


class RayTaskError(RayError):
    """The method has failed."""


class Ref:
    """An answer that will come."""

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.error: RayError | None = None
        self.condition = Condition()


@dataclass(eq=False)
class RayNode:
    """A node while Ray knows it under one id; ``known`` until its loss is noticed."""

    id: str
    node: Node
    known: bool = True


@dataclass(eq=False)
class Group:
    """A placement group: ``state`` is waiting, ready or removed."""

    name: str
    needs: Sequence[dict[str, float]]
    places: list[RayNode] = field(default_factory=list)
    state: str = "waiting"
    ready: Condition = field(default_factory=Condition)


@dataclass(eq=False)
class Actor:
    """An actor: ``state`` is new, alive, restarting or dead."""

    cls: type
    args: tuple[Any, ...]
    name: str | None
    owner: Process | None
    job: RayJob | None = None
    group: Group | None = None
    where: RayNode | None = None
    process: Process | None = None
    state: str = "new"
    calls: list[tuple[Ref, str, tuple[Any, ...]]] = field(default_factory=list)
    open: list[Ref] = field(default_factory=list)  # not answered yet
    called: Condition = field(default_factory=Condition)


class RayJob:
    """A job: what its supervisor, in all its lives, looks after.

    Attributes:
        id: its token; the job's own id is the folder, which later jobs have, too.
        start: counts placement groups that were asked for.
    """

    array = None

    def __init__(self, token: str, run_dir: str, supervisor: Actor, files: SharedFiles) -> None:
        self.id, self.run_dir, self.supervisor, self._files = token, run_dir, supervisor, files
        self.start = 0

    @property
    def state(self) -> str:
        return "OVER" if self.supervisor.state == "dead" else "RUNNING"

    @property
    def finish(self) -> str | None:
        """What it becomes, once its end is written down."""
        for line in reversed((self._files.bytes_of(f"{self.run_dir}/attempts.jsonl") or b"").splitlines()):
            try:
                told = json.loads(line)
            except ValueError:
                continue
            if told.get("token") == self.id:
                return "OVER" if told["event"] == "end" and not told["again"] else None
        return None


class _Handle:
    def __init__(self, cluster: RayCluster, actor: Actor) -> None:
        self._cluster, self._actor = cluster, actor

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *args: self._cluster.call(self._actor, name, args))


class RayCluster:
    """The cluster, and the module ``ray`` for those who speak to it.

    Args:
        kernel: clock and processes.
        files: the shared file system.
        nodes: of the cluster, beside its head.
    """

    def __init__(self, kernel: Kernel, files: SharedFiles, nodes: list[Node]) -> None:
        self.kernel, self.files = kernel, files
        self.nodes = [RayNode(f"{node.name}-0", node) for node in nodes]
        self.actors: list[Actor] = []
        self.groups: list[Group] = []
        self.jobs: dict[str, RayJob] = {}
        self.on_submit: Callable[[str], None] = lambda run_dir: None
        self.on_start: Callable[[RayJob], None] = lambda job: None
        self.on_cancel: Callable[[RayJob], None] = lambda job: None

    def _soon(self, least: float, most: float, fn: Callable[[], None]) -> None:
        self.kernel.at(self.kernel.rng.uniform(least, most), fn)

    # --- actors

    def _make(self, cls: type, options: dict[str, Any], args: tuple[Any, ...]) -> _Handle:
        kernel = self.kernel
        kernel.pause(0.005)
        name = options.get("name")
        if name is not None and any(one.name == name and one.state != "dead" for one in self.actors):
            raise ValueError(f"The name {name} is already taken")
        me = kernel.live().process
        actor = Actor(cls, args, name, None if options.get("lifetime") == "detached" else me)
        self.actors.append(actor)
        if name is not None:
            actor.job = RayJob(args[0]["token"], args[1], actor, self.files)
            self.on_submit(args[1])
            self.jobs[actor.job.id] = actor.job
            kernel.tell(f"Ray takes a job for {args[1]}")
        else:
            actor.job = me.facts["job"]
            place = options["scheduling_strategy"]
            actor.group, actor.where = place.group, place.group.places[place.bundle]
        self._begin(actor)
        return _Handle(self, actor)

    def _begin(self, actor: Actor) -> None:
        """Start its process, where its node has power; else it never starts there."""
        if actor.state == "dead":
            return
        if actor.group is None:
            up = [one for one in self.nodes if one.known and one.node.up]
            if not up:
                self.kernel.at(10.0, lambda: self._begin(actor))
                return
            actor.where = self.kernel.rng.choice(up)
        assert actor.where is not None
        if not actor.where.node.up or (actor.group is not None and actor.group.state == "removed"):
            return
        name = "supervisor" if actor.name is not None else f"actor {actor.args[0]}"
        delay = self.kernel.rng.uniform(0.3, 2.0)
        process = self.kernel.spawn(
            name, actor.where.node, lambda: self._serve(actor), {"PATH": "/usr/bin"}, delay=delay
        )
        actor.process, actor.state = process, "alive"
        process.facts["job"] = actor.job
        if actor.name is None and actor.job is not None:
            process.facts["start"] = (actor.job.id, actor.job.start)
        process.at_end.append(lambda ended: self._soon(0.05, 0.8, lambda: self._heard_of_end(actor, ended)))

    def _heard_of_end(self, actor: Actor, process: Process) -> None:
        if process.node.up:
            self._ended(actor, process)

    def _serve(self, actor: Actor) -> None:
        thing = actor.cls(*actor.args)
        while True:
            while not actor.calls:
                self.kernel.wait(actor.called)
            ref, name, args = actor.calls.pop(0)
            if name == "cancel" and actor.job is not None and args[0] == actor.job.id:
                self.on_cancel(actor.job)
            value, error = None, None
            try:
                value = getattr(thing, name)(*args)
            except Exception as failed:
                error = RayTaskError(f"{type(failed).__name__}: {failed}")
                self.kernel.tell(f"{name} fails: {error}")
            self._soon(0.001, 0.01, lambda ref=ref, value=value, error=error: self._answer(actor, ref, value, error))

    def _answer(self, actor: Actor, ref: Ref, value: Any, error: RayError | None) -> None:
        if ref.done:
            return
        ref.done, ref.value, ref.error = True, value, error
        if ref in actor.open:
            actor.open.remove(ref)
        self.kernel.notify(ref.condition)

    def _ended(self, actor: Actor, process: Process) -> None:
        """Ray notices that an actor's process has gone."""
        if actor.process is not process or actor.state == "dead":
            return
        for other in self.actors:
            if other.owner is process:
                self._soon(0.05, 2.0, lambda other=other: self.end(other))
        if actor.name is None:
            self.end(actor)
            return
        actor.state = "restarting"
        self.kernel.tell("Ray makes the supervisor again")
        self._fail(actor, ActorUnavailableError("The actor is temporarily unavailable"))
        self._soon(1.0, 8.0, lambda: self._begin(actor))

    def _fail(self, actor: Actor, error: RayError) -> None:
        actor.calls.clear()
        for ref in list(actor.open):
            self._answer(actor, ref, None, error)

    def end(self, actor: Actor) -> None:
        """An actor ends for good."""
        actor.state = "dead"
        self._fail(actor, ActorDiedError("The actor died"))
        if actor.process is not None and actor.process.node.up:
            self.kernel.end(actor.process, -9)

    def call(self, actor: Actor, name: str, args: tuple[Any, ...]) -> Ref:
        """``actor.NAME.remote(*ARGS)``."""
        ref = Ref()
        actor.open.append(ref)
        self._soon(0.001, 0.02, lambda: self._deliver(actor, ref, name, args))
        return ref

    def _deliver(self, actor: Actor, ref: Ref, name: str, args: tuple[Any, ...]) -> None:
        if actor.state == "dead":
            self._answer(actor, ref, None, ActorDiedError("The actor died"))
        elif actor.state == "restarting":
            self._answer(actor, ref, None, ActorUnavailableError("The actor is temporarily unavailable"))
        elif actor.state == "new" or (actor.process is not None and actor.process.alive):
            actor.calls.append((ref, name, args))
            self.kernel.notify(actor.called)

    # --- placement groups

    def _group(self, needs: Sequence[dict[str, float]], strategy: str, name: str) -> Any:
        self.kernel.pause(0.01)
        group = Group(name, needs)
        self.groups.append(group)
        job: RayJob = self.kernel.live().process.facts["job"]
        job.start += 1
        self.on_start(job)
        self._soon(0.05, 0.3, self._place)
        return SimpleNamespace(group=group, wait=lambda limit: self._wait_for(group, limit))

    def _place(self) -> None:
        for group in self.groups:
            if group.state != "waiting":
                continue
            free = [one for one in self.nodes if one.known and self._left(one) >= group.needs[0]["CPU"]]
            asked = [one for one in group.places if one.known and not one.node.up]
            if len(free) >= len(group.needs) and not asked:
                self.kernel.rng.shuffle(free)
                group.places = free[: len(group.needs)]
                if not all(one.node.up for one in group.places):
                    continue
                group.state = "ready"
                self.kernel.tell(f"Ray gives {', '.join(one.node.name for one in group.places)} to {group.name}")
                self.kernel.notify(group.ready)

    def _left(self, node: RayNode) -> float:
        taken = [g.needs[0]["CPU"] for g in self.groups if g.state == "ready" for place in g.places if place is node]
        return NUM_CPUS - sum(taken)

    def _wait_for(self, group: Group, limit: float) -> bool:
        if group.state == "waiting":
            self.kernel.wait(group.ready, limit)
        return group.state == "ready"

    def _find_group(self, name: str) -> Group:
        self.kernel.pause(0.01)
        found = [one for one in self.groups if one.name == name and one.state != "removed"]
        if not found:
            raise ValueError(f"Failed to look up placement group with name: {name}")
        return found[-1]

    def _remove(self, group: Group) -> None:
        group.state = "removed"
        for actor in self.actors:
            if actor.group is group and actor.state != "dead":
                self._soon(0.02, 0.5, lambda actor=actor: self.end(actor))
        self._soon(0.1, 1.0, self._place)

    # --- nodes

    def lose(self, node: RayNode, notice_s: float) -> None:
        """A node loses its power; Ray notices later."""
        self.kernel.tell(f"node {node.node.name} is lost")
        node.node.up = False
        for process in list(node.node.processes):
            self.kernel.end(process, -9)

        def noticed() -> None:
            self.kernel.tell(f"Ray: node {node.node.name} is dead")
            node.known = False
            self._soon(0.1, 1.0, self._place)
            for actor in self.actors:
                if actor.where is node and actor.process is not None and actor.state == "alive":
                    self._ended(actor, actor.process)
                elif actor.where is node and actor.state == "new":
                    self.end(actor)

        def back() -> None:
            node.node.up = True
            self.nodes.append(RayNode(f"{node.node.name}-{len(self.nodes)}", node.node))
            self._place()

        self.kernel.at(notice_s, noticed)
        self.kernel.at(notice_s + 200.0, back)

    # --- the module

    def _get(self, refs: Any, timeout: float | None = None) -> Any:
        if isinstance(refs, list):
            until = None if timeout is None else self.kernel.now + timeout
            return [self._get(one, None if until is None else until - self.kernel.now) for one in refs]
        until = None if timeout is None else self.kernel.now + timeout
        while not refs.done:
            if until is not None and self.kernel.now >= until:
                raise GetTimeoutError("Get timed out: some object(s) not ready.")
            self.kernel.wait(refs.condition, None if until is None else until - self.kernel.now)
        if refs.error is not None:
            raise type(refs.error)(*refs.error.args)
        return refs.value

    def _wait(self, refs: list[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        assert num_returns == len(refs)
        until = self.kernel.now + timeout
        for ref in refs:
            while not ref.done and self.kernel.now < until:
                self.kernel.wait(ref.condition, until - self.kernel.now)
        return [ref for ref in refs if ref.done], [ref for ref in refs if not ref.done]

    def _named(self, name: str, namespace: str) -> _Handle:
        self.kernel.pause(0.01)
        for actor in self.actors:
            if actor.name == name and actor.state != "dead":
                return _Handle(self, actor)
        raise ValueError(f"Failed to look up actor with name '{name}'")

    def _my_node(self) -> str:
        here = self.kernel.live().process.node
        return next(one.id for one in reversed(self.nodes) if one.node is here)

    def _nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "NodeID": one.id,
                "Alive": one.known,
                "NodeName": one.node.name,
                "NodeManagerAddress": f"address-of-{one.node.name}",
                "NodeManagerHostname": one.node.name,
                "Resources": {"CPU": NUM_CPUS},
            }
            for one in self.nodes
        ]

    def _modules(self) -> dict[str, ModuleType]:
        names = ("ray", "ray.exceptions", "ray.util", "ray.util.placement_group", "ray.util.scheduling_strategies")
        found = {name: ModuleType(name) for name in names}
        ray, errors, util, groups, strategies = found.values()
        for error in (RayError, ActorDiedError, ActorUnavailableError, GetTimeoutError, RayTaskError):
            setattr(errors, error.__name__, error)
        context = SimpleNamespace(get_node_id=self._my_node, gcs_address="head:6379", runtime_env={})

        def remote(cls: type) -> Any:
            return SimpleNamespace(
                options=lambda **options: SimpleNamespace(remote=lambda *args: self._make(cls, options, args))
            )

        told: dict[ModuleType, dict[str, Any]] = {
            ray: {
                "exceptions": errors,
                "util": util,
                "remote": remote,
                "get": self._get,
                "wait": self._wait,
                "kill": lambda handle, no_restart=True: self._soon(0.01, 0.3, lambda: self.end(handle._actor)),
                "get_actor": self._named,
                "nodes": self._nodes,
                "get_runtime_context": lambda: context,
                "is_initialized": lambda: True,
            },
            util: {"get_placement_group": self._find_group, "remove_placement_group": self._remove},
            groups: {"placement_group": self._group},
            strategies: {
                "PlacementGroupSchedulingStrategy": lambda made, placement_group_bundle_index: SimpleNamespace(
                    group=made.group, bundle=placement_group_bundle_index
                )
            },
        }
        for module, names_of in told.items():
            for name, thing in names_of.items():
                setattr(module, name, thing)
        return found

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside the block, ``import ray`` gives this cluster, and threads of its actors are the kernel's."""

        def thread(target: Callable[..., None], args: tuple[Any, ...] = (), **rest: Any) -> Thread:
            looks_on = target.__name__ == "_look_on"  # it only looks whether the actor's child has ended
            return Thread(self.kernel, lambda: target(*args), quiet=looks_on)

        threads = SimpleNamespace(Thread=thread)
        with (
            mock.patch.dict(sys.modules, self._modules()),
            mock.patch.object(ray_supervisor, "threading", threads),
            mock.patch.object(ray_ranks, "threading", threads),
            mock.patch.object(ray_ranks, "interface_of", lambda address: None),
        ):
            yield
