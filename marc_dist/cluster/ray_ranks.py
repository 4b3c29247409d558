"""Ranks on a Ray cluster: an actor of ours each, whose child process the training is.

One mechanism for a job's supervisor and for a trial of a search. An actor dies with its placement group, and the rank
with its actor, so nothing is left, however whoever looks after them goes. Ray is imported inside functions only.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marc_dist.cluster.rank_process import RANK_VARIABLES, SETTLE_S, RankProcess
from marc_dist.config import EXIT_USER
from marc_dist.place import interface_of
from marc_dist.run.rank_ends import RankEnd, clear_ends, failed

WATCH_S = 0.1
"""A rank's actor looks at it so often; which of two ranks failed first is told to this."""
POLL_S = 0.5
LOST_S = 12.0
"""An actor that is silent for so long has gone with its node; Ray itself may take half a minute to say so."""
ANSWER_S = 10.0
START_S = 60.0
"""Longest wait for the rank actors once their nodes are given; a Ray worker takes a second or two to start."""


def one_line(error: BaseException) -> str:
    """What Ray says, which is often a page, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if "Traceback" in str(error) else lines[0])[:300] if lines else type(error).__name__


def node_label(node: dict[str, Any]) -> str:
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
        """Start the rank. Ray runs this in the main thread, so the kernel ends the rank when this process goes.

        Where the run folder or ``cwd`` is missing nothing starts, and ``poll`` says why.

        Args:
            arguments: of the Python interpreter.
            cwd: the folder that the rank starts in; empty for this actor's own, Ray's ``working_dir``.
            address: of this node, as Ray knows it; gloo gets the interface that has it.
            variables: of the rank's environment: torchrun's, and MARC_NODE with the node's name.
        """
        os.environ["MARC_NODE"] = variables["MARC_NODE"]
        for folder in (self.run_dir, *([Path(cwd)] if cwd else [])):
            if not folder.is_dir():
                text = f"{folder}: not seen on node {variables['MARC_NODE']}; expected a folder that all nodes share"
                self.trouble = RankEnd(self.rank, time.time(), EXIT_USER, text, variables["MARC_NODE"], False)
                return
        env = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
        found = interface_of(address) if sys.platform == "linux" else None
        if found is not None:  # else gloo takes what the host's name means, on many machines loopback
            env["GLOO_SOCKET_IFNAME"] = found
        if "PYTHONPATH" in variables and "PYTHONPATH" in env:  # Ray's own, of a working_dir
            variables = {**variables, "PYTHONPATH": os.pathsep.join([variables["PYTHONPATH"], env["PYTHONPATH"]])}
        listen_fd = None if self.listener is None else self.listener.fileno()
        self.process = RankProcess(
            self.rank,
            [sys.executable, *arguments],
            self.run_dir / "logs",
            env | variables,
            listen_fd=listen_fd,
            cwd=cwd or None,
        )
        if self.listener is not None:
            self.listener.close()
        threading.Thread(target=self._look_on, args=(self.process,), daemon=True).start()

    def _look_on(self, process: RankProcess) -> None:
        while not process.poll():
            time.sleep(WATCH_S)

    def poll(self) -> RankEnd | None:
        """How it ended; None while it runs, and while its end is not noted yet: the note tells when it was."""
        if self.process is None or not self.process.noted:
            return self.trouble
        return self.process.end()._replace(code=self.process.code, asked=self.process.asked)

    def ask(self, number: int) -> None:
        """Tell it to end, with its loader workers when killed."""
        if self.process is not None and self.process.ended is None:
            self.process.ask(number)


@dataclass
class _Seen:
    """A rank as whoever looks after it sees it."""

    rank: int
    actor: Any
    node: dict[str, Any] = field(default_factory=dict)
    host: str = "?"
    end: RankEnd | None = None
    asked: float | None = None
    answered: float = 0.0
    ref: Any = None

    def lose(self, why: str) -> None:
        """Its actor or its node has gone; by itself, if it was silent ever since it was told to end."""
        error = f"its node or its actor is gone ({why})"
        asked = self.asked is not None and self.answered > self.asked
        self.end = RankEnd(self.rank, self.answered, None, error, self.host, asked)


class Ranks:
    """All ranks of one start; their actors are made at once.

    Args:
        ray: the module, connected.
        group: the placement group.
        bundles: of the group, the one that each rank is in; as many as ranks.
        run_dir: seen by every node.
        options: of each actor: num_cpus, num_gpus.
    """

    def __init__(self, ray: Any, group: Any, bundles: Sequence[int], run_dir: Path, **options: float) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self.ray, self.run_dir = ray, run_dir
        self.failure: float | None = None
        self.all: list[_Seen] = []
        for rank, bundle in enumerate(bundles):
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
            actor = ray.remote(Rank).options(scheduling_strategy=place, **options).remote(rank, str(run_dir))
            self.all.append(_Seen(rank, actor, answered=time.time()))

    @property
    def ends(self) -> list[RankEnd | None]:
        """How each rank ended; None while it runs.

        A rank that was silent before anybody was seen to fail went first, with its node: what the others told then is
        the connection that broke, and their clocks are not ours.
        """
        found = [rank.end for rank in self.all]
        told = [end.time for end in found if end is not None and end.code is not None]
        if self.failure is not None and told:
            for number, rank in enumerate(self.all):
                end = found[number]
                if end is not None and end.code is None and rank.answered < self.failure - WATCH_S:
                    found[number] = end._replace(time=min(end.time, min(told) - 1.0))
        return found

    @property
    def hosts(self) -> list[str]:
        """Names of the machines, each once, in the order of ranks."""
        return list(dict.fromkeys(rank.host for rank in self.all))

    def find(self) -> None:
        """Wait for all actors, and learn where they are.

        Raises:
            ray.exceptions.RayError: an actor did not start within ``START_S``.
            KeyError: its node has gone already.
        """
        nodes = {str(node["NodeID"]): node for node in self.ray.nodes()}
        where = self.ray.get([rank.actor.node.remote() for rank in self.all], timeout=START_S)
        for rank, node in zip(self.all, where, strict=True):
            rank.node = nodes[node]
            rank.host, rank.answered = node_label(rank.node), time.time()

    def start(self, arguments: Sequence[str], cwd: str, variables: Mapping[str, str]) -> None:
        """Start the ranks, once they are found; what an earlier start noted of its end goes.

        Args:
            arguments: of the Python interpreter.
            cwd: the folder that they start in.
            variables: of their environment; rank, world and rank 0's address are added.

        Raises:
            ray.exceptions.RayError: an actor was lost meanwhile, or its rank cannot be started.
        """
        clear_ends(self.run_dir / "logs")
        addresses = [str(rank.node["NodeManagerAddress"]) for rank in self.all]
        ids = [str(rank.node["NodeID"]) for rank in self.all]
        world, first = len(self.all), self.all[0].actor
        port = self.ray.get(first.listen.remote(addresses[0]), timeout=ANSWER_S) if world > 1 else 0
        started = []
        for number, rank in enumerate(self.all):
            full = {
                "MARC_NODE": rank.host,
                **variables,
                "RANK": str(number),
                "WORLD_SIZE": str(world),
                "LOCAL_RANK": str(ids[:number].count(ids[number])),
                "LOCAL_WORLD_SIZE": str(ids.count(ids[number])),
                "MASTER_ADDR": addresses[0],
                "MASTER_PORT": str(port),
            }
            started.append(rank.actor.start.remote(list(arguments), cwd, addresses[number], full))
        self.ray.get(started, timeout=START_S)

    def lose(self, why: str) -> None:
        """Give all of them up."""
        for rank in self.all:
            rank.lose(why)

    def look(self, grace_s: float) -> bool:
        """Whether all have ended; once one has failed, the others are told to, ``grace_s`` seconds later made to."""
        self._poll([rank for rank in self.all if rank.end is None])
        now = time.time()
        if self.failure is None and any(end is not None and failed(end) for end in self.ends):
            self.failure = now
        if self.failure is not None and now - self.failure > SETTLE_S:
            self.ask(signal.SIGKILL if now - self.failure > SETTLE_S + grace_s else signal.SIGTERM)
        return all(end is not None for end in self.ends)

    def _poll(self, alive: Sequence[_Seen]) -> None:
        for rank in alive:
            rank.ref = rank.ref or rank.actor.poll.remote()
        refs = [rank.ref for rank in alive]
        ready, _ = self.ray.wait(refs, num_returns=len(refs), timeout=POLL_S) if refs else ([], [])
        for rank in alive:
            if rank.ref in ready:
                try:
                    end = self.ray.get(rank.ref)
                    rank.end, rank.answered = None if end is None else RankEnd(*end), time.time()
                except self.ray.exceptions.ActorUnavailableError:
                    pass  # it may come back within LOST_S
                except self.ray.exceptions.RayError as error:
                    rank.lose(one_line(error))
                rank.ref = None
            if rank.end is None and time.time() - rank.answered > LOST_S:
                rank.lose(f"no word for {LOST_S:g} s")

    def ask(self, number: signal.Signals) -> None:
        """Tell those that run to end; once, unless with SIGKILL."""
        for rank in self.all:
            if rank.end is None and (number == signal.SIGKILL or rank.asked is None):
                rank.asked = rank.asked or time.time()
                rank.actor.ask.remote(int(number))

    def close(self) -> None:
        """End the actors, and whatever still runs with them."""
        for rank in self.all:
            self.ray.kill(rank.actor)
