"""One trial on a Ray cluster: the function that Tune runs, inside the placement group that Tune gave the trial.

Every rank is an actor of ours in a bundle of its own, and the training its child process. When Tune stops the trial, or
whoever drives the search goes, the group goes with its actors, and they with their children: nothing is left. Nothing
is uploaded; every node has marc-dist installed and sees the search's folder under the same path.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marc_dist.cluster.failure import RankEnd, failed
from marc_dist.cluster.rank import SETTLE_S
from marc_dist.cluster.ray_supervisor import ANSWER_S, LOST_S, START_S, Rank, called
from marc_dist.tuning.trial import arguments, reported

POLL_S = 0.2
GRACE_S = 10.0


@dataclass
class _Rank:
    """A rank as its trial sees it."""

    actor: Any
    host: str = "?"
    end: RankEnd | None = None
    asked: bool = False
    answered: float = 0.0


def trial(config: dict[str, Any]) -> None:
    """Train in ``config["run_dir"]`` and pass on what the run reports, one result a row.

    Args:
        config: run_dir, procs, cpus and gpus of a rank, cwd.

    Raises:
        RuntimeError: a rank failed or was lost; the run folder says how.
    """
    import ray
    from ray import tune

    run_dir = Path(config["run_dir"])
    ranks = _actors(ray, config)
    try:
        _start(ray, ranks, config)
        told = 0
        while True:
            over = _poll(ray, ranks)  # first, so that nothing is written after what is read
            rows = reported(run_dir)
            for row in rows[told:]:
                tune.report({"row": json.dumps({**row, "host": ranks[0].host})})
            told = len(rows)
            if over:
                break
            time.sleep(POLL_S)
        codes = [None if rank.end is None else rank.end.code for rank in ranks]
        if any(code != 0 for code in codes):
            raise RuntimeError(f"{run_dir}: ranks ended with {codes}")
    finally:
        for rank in ranks:
            ray.kill(rank.actor)


def _actors(ray: Any, config: dict[str, Any]) -> list[_Rank]:
    from ray.util import get_current_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = get_current_placement_group()
    found = []
    for rank in range(config["procs"]):
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
        options = {"num_cpus": config["cpus"], "num_gpus": config["gpus"], "scheduling_strategy": place}
        found.append(_Rank(ray.remote(Rank).options(**options).remote(rank, config["run_dir"])))
    return found


def _start(ray: Any, ranks: Sequence[_Rank], config: dict[str, Any]) -> None:
    nodes = {str(node["NodeID"]): node for node in ray.nodes()}
    where = [nodes[node] for node in ray.get([rank.actor.node.remote() for rank in ranks], timeout=START_S)]
    master, world = str(where[0]["NodeManagerAddress"]), len(ranks)
    port = ray.get(ranks[0].actor.listen.remote(master), timeout=ANSWER_S) if world > 1 else 0
    ids = [str(node["NodeID"]) for node in where]
    started = []
    for number, (rank, node) in enumerate(zip(ranks, where, strict=True)):
        rank.host, rank.answered = called(node), time.time()
        variables = {
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": str(config["cpus"]),
            "MARC_NODE": rank.host,
            "RANK": str(number),
            "WORLD_SIZE": str(world),
            "LOCAL_RANK": str(ids[:number].count(ids[number])),
            "LOCAL_WORLD_SIZE": str(ids.count(ids[number])),
            "MASTER_ADDR": master,
            "MASTER_PORT": str(port),
        }
        address = str(node["NodeManagerAddress"])
        command = arguments(Path(config["run_dir"]))
        started.append(rank.actor.start.remote(command, config["cwd"], address, variables))
    ray.get(started, timeout=START_S)


def _poll(ray: Any, ranks: Sequence[_Rank]) -> bool:
    """Whether all ranks have ended; when one fails, the others are told to, and then made to."""
    alive = [rank for rank in ranks if rank.end is None]
    refs = {rank.actor.poll.remote(): rank for rank in alive}
    ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=ANSWER_S) if refs else ([], [])
    for ref in ready:
        with suppress(ray.exceptions.ActorUnavailableError):
            try:
                end = ray.get(ref)
            except ray.exceptions.ActorDiedError as error:
                raise RuntimeError(f"an actor of a rank was lost ({type(error).__name__})") from None
            rank = refs[ref]
            rank.end, rank.answered = None if end is None else RankEnd(*end), time.time()
    if any(rank.end is None and time.time() - rank.answered > LOST_S for rank in alive):
        raise RuntimeError(f"a rank's node has been silent for {LOST_S:g} s")
    failures = [rank.end.time for rank in ranks if rank.end is not None and failed(rank.end)]
    late = time.time() - min(failures, default=time.time())
    if late > SETTLE_S:
        number = signal.SIGKILL if late > SETTLE_S + GRACE_S else signal.SIGTERM
        for rank in ranks:
            if rank.end is None and (number == signal.SIGKILL or not rank.asked):
                rank.asked = True
                rank.actor.ask.remote(int(number))
    return all(rank.end is not None for rank in ranks)


def quiet_environment() -> None:
    """What Tune reads from the environment: no records, handlers and messages of its own."""
    for name, value in {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_MAX_PENDING_TRIALS_PG": "1",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
        "TUNE_FORCE_TRIAL_CLEANUP_S": "10",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
    }.items():
        os.environ[name] = value
