"""What runs on the nodes of a Ray cluster: the supervisor of a job, and the actors of its ranks.

See ``marc_dist.cluster.ray``, which starts the supervisor. Ray is imported inside functions only.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marc_dist.cluster.failure import RankEnd, clear_ends, failed, verdict
from marc_dist.cluster.job import (
    CANCELLED,
    Attempt,
    Job,
    State,
    attempts,
    begin_attempt,
    end_attempt,
    newest_step,
    start_again,
)
from marc_dist.cluster.preset import RayPreset
from marc_dist.cluster.rank import RANK_VARIABLES, SETTLE_S, RankProcess
from marc_dist.config import EXIT_USER, build
from marc_dist.place import interface_of
from marc_dist.training.signals import EXIT_REQUEUE

NAMESPACE = "marc-dist"
WATCH_S = 0.1
"""A rank's actor looks at it so often; which of two ranks failed first is told to this."""
POLL_S = 0.5
LOST_S = 12.0
"""An actor that is silent for so long has gone with its node; Ray itself may take half a minute to say so."""
ANSWER_S = 10.0
START_S = 60.0
"""Longest wait for the rank actors once their nodes are given; a Ray worker takes a second or two to start."""
CLOCKS_S = 60.0
"""Longest wait for a clock that is behind the submitting machine's."""


def preset_of(job: Job, run_dir: Path) -> RayPreset:
    """The launcher preset that a job was submitted with."""
    return build(RayPreset, job.preset, place=f"{run_dir}: ")


def one_line(error: BaseException) -> str:
    """What Ray says, which is often a page, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if "Traceback" in str(error) else lines[0])[:300] if lines else type(error).__name__


def needs_of(preset: RayPreset, procs: int) -> dict[str, float]:
    """What one node gives to the job."""
    needs: dict[str, float] = {"CPU": procs * (preset.cpus_per_proc or 1)}
    if preset.num_gpus:
        needs["GPU"] = preset.num_gpus
        kind = str(preset.gpus_per_node).rpartition(":")[0]
        if kind:
            needs[f"accelerator_type:{kind.upper()}"] = 0.001  # Ray's own word for "on such a node"
    return needs


def called(node: dict[str, Any]) -> str:
    """A node as people call it: the name given to ``ray start``, else its host's."""
    given, address = str(node.get("NodeName", "")), str(node["NodeManagerAddress"])
    return given if given and given != address else str(node.get("NodeManagerHostname") or address)


class Rank:
    """The actor of one rank, which is its child process."""

    def __init__(self, rank: int, run_dir: str) -> None:
        self.rank, self.run_dir = rank, Path(run_dir)
        self.process: RankProcess | None = None
        self.listener: socket.socket | None = None
        self.trouble: RankEnd | None = None

    def node(self) -> str:
        """The Ray node it is on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def listen(self, address: str) -> int:
        """Open the port at which the ranks meet, so that nobody takes it between choosing and using."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.listener = socket.create_server((address, 0), family=family, backlog=4096)
        return int(self.listener.getsockname()[1])

    def start(self, arguments: Sequence[str], cwd: str, address: str, variables: dict[str, str]) -> None:
        """Start the rank. Ray runs this in the main thread, so the kernel ends the rank when this process goes."""
        os.environ["MARC_NODE"] = variables["MARC_NODE"]
        for folder in (self.run_dir, Path(cwd)):
            if not folder.is_dir():
                text = f"{folder}: not seen on node {variables['MARC_NODE']}; expected a folder that all nodes share"
                self.trouble = RankEnd(self.rank, time.time(), EXIT_USER, text, variables["MARC_NODE"], False)
                return
        env = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
        found = interface_of(address) if sys.platform == "linux" else None
        if found is not None:  # else gloo takes what the host's name means, on many machines loopback
            env["GLOO_SOCKET_IFNAME"] = found
        listen_fd = None if self.listener is None else self.listener.fileno()
        self.process = RankProcess(
            self.rank,
            [sys.executable, *arguments],
            self.run_dir / "logs",
            env | variables,
            listen_fd=listen_fd,
            cwd=cwd,
        )
        if self.listener is not None:
            self.listener.close()
        threading.Thread(target=self._look_on, args=(self.process,), daemon=True).start()

    def _look_on(self, process: RankProcess) -> None:
        while not process.poll():
            time.sleep(WATCH_S)

    def poll(self) -> RankEnd | None:
        """How it ended; None while it runs."""
        if self.process is None or self.process.ended is None or self.process.code is None:
            return self.trouble
        return self.process.end()._replace(code=self.process.code, asked=self.process.asked)

    def ask(self, number: int) -> None:
        """Tell it to end, with its loader workers when killed."""
        if self.process is not None and self.process.ended is None:
            self.process.ask(number)


@dataclass
class _Seen:
    """A rank as the supervisor sees it."""

    rank: int
    actor: Any
    host: str = "?"
    end: RankEnd | None = None
    asked: bool = False
    answered: float = field(default_factory=time.time)
    ref: Any = None

    def lose(self, why: str) -> None:
        """Its actor or its node has gone."""
        self.end = RankEnd(
            self.rank, self.answered, None, f"its node or its actor is gone ({why})", self.host, self.asked
        )


class Supervisor:
    """Looks after one job until it is over, then goes. Ray starts it again when its node is lost.

    Args:
        job: as in ``job.json``.
        run_dir: the job's folder.
    """

    def __init__(self, job: dict[str, Any], run_dir: str) -> None:
        self.job, self.run_dir = Job.model_validate(job), Path(run_dir)
        self.preset = preset_of(self.job, self.run_dir)
        self.now = State("pending", "starting")
        self.cancelled: float | None = None
        if self.run_dir.is_dir():
            threading.Thread(target=self._run, name="supervisor", daemon=True).start()

    def started(self) -> str | None:
        """None, or why not."""
        if self.run_dir.is_dir():
            return None
        return f"{self.run_dir}: not seen on node {socket.gethostname()} of the Ray cluster; all nodes must share it"

    def state(self) -> tuple[float, str, str]:
        """When the job was submitted, and how it stands."""
        return self.job.submitted_at, *self.now

    def cancel(self, submitted_at: float) -> None:
        """End the job that was submitted then."""
        if submitted_at == self.job.submitted_at:
            self.cancelled = self.cancelled or time.time()

    def _run(self) -> None:
        import ray

        try:
            self._serve(ray)
        except Exception as error:
            self._give_up(
                1, f"the supervisor failed: {type(error).__name__}: {one_line(error)}", "a fault of marc-launch"
            )
        finally:
            _remove_group(str(self.job.id))
            self.now = State("unknown", "over")
            ray.kill(ray.get_actor(str(self.job.id), namespace=NAMESPACE), no_restart=True)

    def _mine(self) -> list[Attempt]:
        return attempts(self.run_dir, self.job.submitted_at)

    def _serve(self, ray: Any) -> None:
        deadline = time.time() + CLOCKS_S
        while time.time() < min(self.job.submitted_at, deadline):  # else our attempts look like an earlier job's
            time.sleep(POLL_S)
        mine = self._mine()
        if mine and mine[-1].ended_at is None:  # of the supervisor before us
            self._conclude(1, "the supervisor or its node was lost", lost=True)
        while not (mine := self._mine()) or mine[-1].again:
            group = self._place(str(self.job.id))
            if group is None:
                return
            self._attempt(ray, group, len(mine))
            _remove_group(str(self.job.id))

    def _give_up(self, code: int, error: str | None, why: str) -> None:
        mine = self._mine()
        if not mine or mine[-1].ended_at is not None:
            begin_attempt(self.run_dir, len(mine), [])
        end_attempt(self.run_dir, code, error, False, why)

    def _conclude(self, code: int, error: str | None, lost: bool) -> None:
        """Write down how an attempt ended, and whether there will be another."""
        begun = [attempt.first_step for attempt in self._mine()]
        limits = self.preset.max_restarts, self.preset.max_stalls
        again, why = start_again(code, lost, begun, newest_step(self.run_dir), *limits)
        if self.cancelled is not None and code != 0:
            again, why = False, CANCELLED
        end_attempt(self.run_dir, code, error, again, why)

    def _place(self, name: str) -> Any:
        """A new placement group; None when the job was cancelled or the cluster has had no room."""
        from ray.util.placement_group import placement_group

        _remove_group(name)  # of a supervisor before us, with the ranks in it
        needs, nodes = needs_of(self.preset, self.job.procs_per_node), self.job.nodes
        asked = f"{nodes} free nodes with {', '.join(f'{much:g} {key}' for key, much in needs.items())} each"
        self.now = State("pending", f"waiting for {asked}")
        group = placement_group([needs] * nodes, strategy="STRICT_SPREAD" if nodes > 1 else "PACK", name=name)
        deadline = time.monotonic() + self.preset.place_timeout_s
        while not group.wait(POLL_S):
            if self.cancelled is not None:
                self._give_up(EXIT_REQUEUE, None, CANCELLED)
                return None
            if time.monotonic() > deadline:
                limit = f"cluster.place_timeout_s={self.preset.place_timeout_s:g}"
                why = f"the Ray cluster did not have {asked} within {limit}; wait for other jobs, or raise it"
                self._give_up(1, why, "no room")
                return None
        return group

    def _attempt(self, ray: Any, group: Any, number: int) -> None:
        ranks = self._actors(ray, group)
        try:
            self._start(ray, ranks, number)
            self._watch(ray, ranks)
        finally:
            for rank in ranks:
                ray.kill(rank.actor)
        done = all(rank.end is not None and rank.end.code == 0 for rank in ranks)
        found = verdict([rank.end for rank in ranks], 0 if done else 1, self.run_dir / "logs")
        self._conclude(found.code, found.error, found.lost)

    def _actors(self, ray: Any, group: Any) -> list[_Seen]:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        procs, preset = self.job.procs_per_node, self.preset
        found = []
        for rank in range(self.job.world):
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank // procs)
            options = {"num_cpus": preset.cpus_per_proc or 1, "num_gpus": preset.num_gpus // procs}
            actor = ray.remote(Rank).options(scheduling_strategy=place, **options).remote(rank, str(self.run_dir))
            found.append(_Seen(rank, actor))
        return found

    def _start(self, ray: Any, ranks: Sequence[_Seen], number: int) -> None:
        """Start all ranks, once all actors are there; a node that is lost meanwhile is seen by ``_watch``."""
        nodes = {str(node["NodeID"]): node for node in ray.nodes()}
        begun = False
        try:
            where = [nodes[node] for node in ray.get([rank.actor.node.remote() for rank in ranks], timeout=START_S)]
            for rank, node in zip(ranks, where, strict=True):
                rank.host, rank.answered = called(node), time.time()
            master = str(where[0]["NodeManagerAddress"])
            hosts = list(dict.fromkeys(rank.host for rank in ranks))
            begin_attempt(self.run_dir, number, hosts)
            begun = True
            clear_ends(self.run_dir / "logs")
            port = ray.get(ranks[0].actor.listen.remote(master), timeout=ANSWER_S) if self.job.world > 1 else 0
            for rank, node in zip(ranks, where, strict=True):
                env = self._variables(rank, master, port)
                address = str(node["NodeManagerAddress"])
                rank.actor.start.remote(self.job.arguments, self.job.cwd, address, env)
            self.now = State(
                "running", f"start {number + 1} on {' '.join(hosts)}, after step {newest_step(self.run_dir)}"
            )
        except (ray.exceptions.RayError, TimeoutError, KeyError) as error:
            if not begun:
                begin_attempt(self.run_dir, number, [])
            for rank in ranks:
                rank.lose(one_line(error))

    def _variables(self, rank: _Seen, master: str, port: int) -> dict[str, str]:
        """The variables of torchrun for one rank, and the preset's own."""
        preset, procs = self.preset, self.job.procs_per_node
        return {
            **preset.rank_variables(),
            "OMP_NUM_THREADS": str(preset.cpus_per_proc or 1),
            "MARC_NODE": rank.host,
            **preset.env,
            "RANK": str(rank.rank),
            "WORLD_SIZE": str(self.job.world),
            "LOCAL_RANK": str(rank.rank % procs),
            "LOCAL_WORLD_SIZE": str(procs),
            "MASTER_ADDR": master,
            "MASTER_PORT": str(port),
        }

    def _watch(self, ray: Any, ranks: Sequence[_Seen]) -> None:
        """Until all have ended: one that fails ends the others, a cancel ends them all."""
        failure: float | None = None
        while any(rank.end is None for rank in ranks):
            self._poll(ray, [rank for rank in ranks if rank.end is None])
            now = time.time()
            if failure is None and any(rank.end is not None and failed(rank.end) for rank in ranks):
                failure = now
            if failure is not None and now - failure > SETTLE_S:
                overdue = now - failure > SETTLE_S + self.preset.peer_grace_s
                self._end(ranks, signal.SIGKILL if overdue else signal.SIGTERM)
            if self.cancelled is not None:
                overdue = now - self.cancelled > self.preset.stop_grace_s
                self._end(ranks, signal.SIGKILL if overdue else signal.SIGTERM)
            time.sleep(POLL_S / 2)

    def _poll(self, ray: Any, alive: Sequence[_Seen]) -> None:
        for rank in alive:
            rank.ref = rank.ref or rank.actor.poll.remote()
        refs = [rank.ref for rank in alive]
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=POLL_S)
        for rank in alive:
            if rank.ref in ready:
                try:
                    end = ray.get(rank.ref)
                    rank.end, rank.answered = None if end is None else RankEnd(*end), time.time()
                except ray.exceptions.ActorUnavailableError:
                    pass  # it may come back within LOST_S
                except ray.exceptions.RayError as error:
                    rank.lose(one_line(error))
                rank.ref = None
            if rank.end is None and time.time() - rank.answered > LOST_S:
                rank.lose(f"no word for {LOST_S:g} s")

    def _end(self, ranks: Sequence[_Seen], number: signal.Signals) -> None:
        for rank in ranks:
            if rank.end is None and (number == signal.SIGKILL or not rank.asked):
                rank.asked = True
                rank.actor.ask.remote(int(number))


def _remove_group(name: str) -> None:
    """Give the nodes back; Ray ends the actors that are left there."""
    from ray.util import get_placement_group, remove_placement_group

    with suppress(ValueError):
        remove_placement_group(get_placement_group(name))
