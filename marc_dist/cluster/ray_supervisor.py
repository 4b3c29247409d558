"""What looks after a job on the nodes of a Ray cluster; the ranks themselves are in ``ray_ranks.py``.

See ``marc_dist.cluster.ray``, which starts the supervisor. Ray is imported inside functions only.
"""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from marc_dist.cluster.code_snapshot import import_path
from marc_dist.cluster.preset import RayPreset
from marc_dist.cluster.ray_ranks import POLL_S, Ranks, node_label, one_line
from marc_dist.config import LaunchError, build
from marc_dist.files import read_json, write_atomic
from marc_dist.run.attempt_id import AttemptId
from marc_dist.run.attempts import Attempt, begin_attempt, end_attempt, first_steps, newest_step
from marc_dist.run.exit_codes import EXIT_REQUEUE
from marc_dist.run.job import CANCELLED, Job, State, attempts_of_job, start_again
from marc_dist.run.rank_ends import job_end

NAMESPACE = "marc-dist"
OVER = State("unknown", "over")
"""As soon as the end is written down: whoever reads it there may submit the next job at once."""


def ray_preset(job: Job, run_dir: Path) -> RayPreset:
    """The launcher preset that a job was submitted with."""
    return build(RayPreset, job.preset, place=f"{run_dir}: ")


def needs_of(preset: RayPreset, procs: int) -> dict[str, float]:
    """What one node gives to the job."""
    needs: dict[str, float] = {"CPU": procs * (preset.cpus_per_proc or 1)}
    if preset.num_gpus:
        needs["GPU"] = preset.num_gpus
        kind = str(preset.gpus_per_node).rpartition(":")[0]
        if kind:
            needs[f"accelerator_type:{kind.upper()}"] = 0.001  # Ray's own word for "on such a node"
    return needs


class Supervisor:
    """Looks after one job until it is over, then goes. Ray starts it again when its node is lost.

    Args:
        job: as in ``job.json``.
        run_dir: the job's folder.
    """

    def __init__(self, job: dict[str, Any], run_dir: str) -> None:
        self.job, self.run_dir = Job.model_validate(job), Path(run_dir)
        self.preset = ray_preset(self.job, self.run_dir)
        self.now = State("pending", "starting")
        self.cancelled: float | None = None
        if self.run_dir.is_dir():
            threading.Thread(target=self._run, name="supervisor", daemon=True).start()

    def started(self) -> str | None:
        """None, or why not."""
        if self.run_dir.is_dir():
            return None
        return f"{self.run_dir}: not seen on node {socket.gethostname()} of the Ray cluster; all nodes must share it"

    def state(self) -> tuple[str, str, str]:
        """The token of the job, and how it stands."""
        return self.job.token, self.now.word, self.now.detail

    def cancel(self, token: str) -> None:
        """End the job with this token."""
        if token == self.job.token:
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
            self.now = OVER
            ray.kill(ray.get_actor(str(self.job.id), namespace=NAMESPACE), no_restart=True)

    def _mine(self) -> list[Attempt]:
        return attempts_of_job(self.job, self.run_dir)

    def _serve(self, ray: Any) -> None:
        mine = self._mine()
        if mine and mine[-1].ended_at is None:  # of the supervisor before us
            self._conclude(1, self._how_lost(ray), lost=True)
        self._note_node(ray)
        while not (mine := self._mine()) or mine[-1].again:
            group = self._place(str(self.job.id))
            if group is None:
                return
            self._attempt(ray, group, len(mine))
            _remove_group(str(self.job.id))

    def _newest(self) -> AttemptId:
        return self.job.attempt(self._mine()[-1].number)

    def _note_node(self, ray: Any) -> None:
        """Where this supervisor runs, for the one that may come after it."""
        mine = ray.get_runtime_context().get_node_id()
        names = [node_label(node) for node in ray.nodes() if node["NodeID"] == mine]
        with suppress(OSError, LaunchError):
            write_atomic(self._place_file, json.dumps({"id": mine, "name": names[0] if names else mine}).encode())

    def _how_lost(self, ray: Any) -> str:
        """What became of the supervisor before us."""
        with suppress(OSError, ValueError, KeyError):
            where = read_json(self._place_file)
            if not any(node["Alive"] for node in ray.nodes() if node["NodeID"] == where["id"]):
                return f"node {where['name']} was lost, and the supervisor on it"
        return "the supervisor or its node was lost"

    @property
    def _place_file(self) -> Path:
        return self.run_dir / "logs" / ".supervisor.json"

    def _give_up(self, code: int, error: str | None, why: str) -> None:
        with suppress(OSError):  # a full disk does not keep it from ending; marc-jobs says that nobody knows the job
            mine = self._mine()
            if not mine or mine[-1].ended_at is not None:
                begin_attempt(self.run_dir, self.job.attempt(len(mine)), [])
            end_attempt(self.run_dir, self._newest(), code, error, False, why)
        self.now = OVER

    def _conclude(self, code: int, error: str | None, lost: bool) -> None:
        """Write down how an attempt ended, and whether there will be another."""
        begun = first_steps(self._mine())
        limits = self.preset.max_restarts, self.preset.max_stalls
        again, why = start_again(code, lost, begun, newest_step(self.run_dir), *limits)
        if self.cancelled is not None and code != 0:
            again, why = False, CANCELLED
        end_attempt(self.run_dir, self._newest(), code, error, again, why)
        self.now = self.now if again else OVER

    def _place(self, name: str) -> Any:
        """A new placement group; None when the job was cancelled or the cluster has had no room."""
        from ray.util.placement_group import placement_group

        _remove_group(name)  # of a supervisor before us, with the ranks in it
        needs, nodes = needs_of(self.preset, self.job.procs_per_node), self.job.nodes
        asked = f"{nodes} free nodes with {', '.join(f'{much:g} {key}' for key, much in needs.items())} each"
        self.now = State("pending", f"waiting for {asked}")
        group = placement_group([needs] * nodes, strategy="STRICT_SPREAD" if nodes > 1 else "PACK", name=name)
        deadline = time.monotonic() + self.preset.place_timeout_s
        while self.cancelled is not None or not group.wait(POLL_S):
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
        procs, preset = self.job.procs_per_node, self.preset
        size = {"num_cpus": preset.cpus_per_proc or 1, "num_gpus": preset.num_gpus // procs}
        ranks = Ranks(ray, group, [rank // procs for rank in range(self.job.world)], self.run_dir, **size)
        try:
            self._start(ray, ranks, number)
            while not ranks.look(preset.peer_grace_s):
                if self.cancelled is not None:
                    overdue = time.time() - self.cancelled > preset.stop_grace_s
                    ranks.ask(signal.SIGKILL if overdue else signal.SIGTERM)
                time.sleep(POLL_S / 2)
        finally:
            ranks.close()
        done = all(end is not None and end.code == 0 for end in ranks.ends)
        found = job_end(ranks.ends, 0 if done else 1, self.run_dir / "logs")
        self._conclude(found.code, found.error, found.lost)

    def _start(self, ray: Any, ranks: Ranks, number: int) -> None:
        """Start all ranks, once all actors are there."""
        preset, mine, begun = self.preset, self.job.attempt(number), False
        variables = {**preset.rank_variables(), "OMP_NUM_THREADS": str(preset.cpus_per_proc or 1), **preset.env}
        variables |= mine.variables()
        if preset.snapshot:
            variables |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": import_path(self.run_dir, self.job.cwd)}
        try:
            ranks.find()
            begin_attempt(self.run_dir, mine, ranks.hosts)
            begun = True
            ranks.start(self.job.arguments, "" if "working_dir" in preset.runtime_env else self.job.cwd, variables)
            where, step = " ".join(ranks.hosts), newest_step(self.run_dir)
            self.now = State("running", f"start {number + 1} on {where}, after step {step}")
        except (ray.exceptions.RayError, TimeoutError, KeyError) as error:
            if not begun:
                begin_attempt(self.run_dir, mine, [])
            ranks.lose(one_line(error))


def _remove_group(name: str) -> None:
    """Give the nodes back; Ray ends the actors that are left there."""
    from ray.util import get_placement_group, remove_placement_group

    with suppress(ValueError):
        remove_placement_group(get_placement_group(name))
