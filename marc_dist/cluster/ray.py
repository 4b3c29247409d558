"""A job on an existing Ray cluster: one actor for each rank, all in one placement group, looked after by a supervisor.

``submit`` leaves a detached, named actor behind, the supervisor, and returns: the job goes on without whoever started
it. The supervisor asks for the placement group, starts the rank actors, ends them all when one fails, and starts again
from the newest checkpoint when that helps. A rank is a child process of its actor and dies with it, however it goes.
When the supervisor's own node is lost, Ray starts it on another one, and it goes on from what the run folder says.

Nothing is uploaded unless ``cluster.runtime_env`` says so: every node has marc-dist installed and sees the run folder
and the shards under the same paths. Variables of the submitting shell do not come along; ``cluster.env`` does. A
cluster with token authentication lets in whoever has its token (RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH), on the submitting
machine too.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from marc_dist.cluster.code_snapshot import copy_code
from marc_dist.cluster.preset import RayPreset
from marc_dist.cluster.ray_ranks import ANSWER_S, LOST_S, POLL_S, node_label, one_line
from marc_dist.cluster.ray_supervisor import NAMESPACE, Supervisor, needs_of, ray_preset
from marc_dist.config import LaunchError
from marc_dist.run.job import Job, State, ended

LEAVE_S = 30.0
"""To leave: a job that is over, its actors, its name."""


def actor_name(run_dir: Path) -> str:
    """The supervisor's name, which is the job's id."""
    return str(run_dir.resolve())


def submit(job: Job, preset: RayPreset, run_dir: Path) -> Job:
    """Hand a job to the cluster and return; nothing stays behind when that fails.

    Args:
        job: nodes, ranks and arguments.
        preset: of the job.
        run_dir: the job's folder, which every node sees.

    Returns:
        The job with its id, the supervisor's name, and with the address that was found.

    Raises:
        LaunchError: the cluster cannot be reached or is too small, a job of this folder is active there, or its nodes
            lack marc-dist or do not see the folder.
    """
    name = actor_name(run_dir)
    with connected(preset.address, preset.connect_timeout_s, preset.runtime_env) as ray:
        _check_size(job, preset, [node for node in ray.nodes() if node["Alive"]])
        address = cluster_address(preset.address)
        if not address.startswith("ray://"):
            address = ray.get_runtime_context().gcs_address  # what "auto" means here and today
        job = job.model_copy(
            update={"id": name, "preset": {**preset.model_dump(mode="json"), "address": address}},
        )
        if preset.snapshot:
            copy_code(run_dir)
        _start_supervisor(ray, job, preset, run_dir)
    return job


def state(job: Job, run_dir: Path) -> State:
    """How a job stands: what the run folder says of its end, else what the supervisor says."""
    over = ended(job, run_dir)
    if over is not None:
        return over
    preset = ray_preset(job, run_dir)
    try:
        with connected(preset.address, preset.connect_timeout_s) as ray:
            token, word, detail = ray.get(_supervisor(ray, job).state.remote(), timeout=ANSWER_S)
    except LaunchError as error:
        return State("unknown", str(error))
    except ValueError:  # nobody has the name
        lost = f"the Ray cluster knows no such job any more; marc-jobs resume {run_dir} starts it again"
        return ended(job, run_dir) or State("failed", lost)
    except Exception as error:  # of Ray: its own errors have names only where it is installed
        silent = f"the supervisor does not answer ({one_line(error)}); it may be moving to another node, ask again"
        return ended(job, run_dir) or State("unknown", silent)
    if token != job.token:
        return State("unknown", "another job of this run folder has taken its place")
    return State(word, detail)


def cancel(job: Job, run_dir: Path) -> str:
    """End a job for good: its ranks are told to save, and killed ``stop_grace_s`` later; returns when all are gone.

    Returns:
        What has become of it, in words.

    Raises:
        LaunchError: the cluster cannot be reached, or the job does not end.
    """
    if ended(job, run_dir) is not None:
        return "has ended by itself"
    preset = ray_preset(job, run_dir)
    with connected(preset.address, preset.connect_timeout_s) as ray:
        deadline = time.monotonic() + preset.stop_grace_s + LEAVE_S + LOST_S
        while time.monotonic() < deadline:
            try:
                actor = _supervisor(ray, job)
                ray.get(actor.cancel.remote(job.token), timeout=ANSWER_S)  # again: it may have been restarted
            except ValueError:
                return "was asked to save and stop, and its actors are gone"
            except (ray.exceptions.RayError, TimeoutError):  # on its way out, or being restarted
                pass
            time.sleep(POLL_S)
    raise LaunchError(f"{run_dir}: the job {job.id} was told to end and has not; look at logs/ there and at ray status")


def cluster_address(given: str) -> str:
    """What ``auto`` means: RAY_ADDRESS, as for Ray's own commands, else the cluster that this machine belongs to.

    Raises:
        LaunchError: RAY_ADDRESS is that of the Jobs API, which only ``ray job submit`` speaks.
    """
    found = os.environ.get("RAY_ADDRESS", "") if given == "auto" else given
    if given == "auto" and found.startswith(("http://", "https://")):
        raise LaunchError(
            f"RAY_ADDRESS={found}: expected HOST:PORT of the head or ray://HEAD:10001, got the address of Ray's Jobs "
            "API; use cluster.address=HOST:PORT, or ray job submit -- marc-launch ray ..."
        )
    return found or "auto"


@contextmanager
def connected(address: str, timeout_s: float, runtime_env: Mapping[str, Any] | None = None) -> Iterator[Any]:
    """The module ``ray``, connected; left as it was found.

    Args:
        address: of the cluster; see ``cluster_address`` for ``auto``.
        timeout_s: longest wait for it to answer, in seconds.
        runtime_env: what Ray prepares for the actors that are started from here, and for those that they start.

    Raises:
        LaunchError: Ray is not installed, or the cluster is out of reach.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of what it will do one day
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise LaunchError(
            "Ray is not installed here; expected the version that the cluster runs: pip install ray"
        ) from None
    if ray.is_initialized():
        yield ray
        return
    address = cluster_address(address)
    _reach(address, timeout_s)
    before = signal.getsignal(signal.SIGTERM)
    try:
        env = {"runtime_env": dict(runtime_env)} if runtime_env else {}
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False, **env)
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
        raise LaunchError(
            f"Ray cluster {address}: out of reach ({one_line(error)}); expected this machine to be one of its "
            "nodes, or cluster.address=ray://HEAD:10001"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():  # Ray has put its own there
            signal.signal(signal.SIGTERM, before)


def _reach(address: str, timeout_s: float) -> None:
    """See that a cluster answers, within a limit: ray.init waits two minutes and then ends the process."""
    try:
        if address.startswith("ray://"):
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
            return
        which = [] if address == "auto" else ["--address", address]
        command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", *which]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        reason = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it is not healthy"])[-1]
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", None) or f"no answer within {timeout_s:g} s"
    if reason:
        raise LaunchError(
            f"Ray cluster {address}: cluster out of reach ({reason[:300]}); expected the address of its head: "
            "cluster.address=HOST:PORT, or more time: cluster.connect_timeout_s"
        )


def _check_size(job: Job, preset: RayPreset, nodes: Sequence[dict[str, Any]]) -> None:
    """Refuse what the nodes that are there could never hold, however long it waits."""
    procs = job.procs_per_node
    if preset.num_gpus % procs:
        raise LaunchError(
            f"cluster.gpus_per_node={preset.gpus_per_node}: expected as many for every process, got {procs} processes "
            "a node; NCCL wants a GPU for each"
        )
    if preset.autoscale:
        return
    needs = needs_of(preset, procs)
    fits = [node for node in nodes if all(node["Resources"].get(key, 0) >= much for key, much in needs.items())]
    if len(fits) < job.nodes:
        asked = ", ".join(f"{much:g} {key}" for key, much in needs.items())
        there = "; ".join(
            f"{node_label(node)}: " + ", ".join(f"{node['Resources'].get(key, 0):g} {key}" for key in needs)
            for node in nodes[:16]
        )
        raise LaunchError(
            f"cluster.nodes={job.nodes}: expected as many nodes with {asked} each, the Ray cluster {preset.address} "
            f"has {len(fits)} ({there}); ask for less, add nodes, or cluster.autoscale=true where it adds them itself"
        )


def _start_supervisor(ray: Any, job: Job, preset: RayPreset, run_dir: Path) -> None:
    """Start the supervisor. Ray gives a name once: of two submissions at a time one is refused."""
    deadline = time.monotonic() + LEAVE_S
    settings: dict[str, Any] = {
        "name": job.id,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": -1,
    }
    if preset.runtime_env and not ray.get_runtime_context().runtime_env:  # somebody else has connected this process
        settings["runtime_env"] = preset.runtime_env
    while True:
        with suppress(ValueError):  # the name is taken, says .remote() or, of a ray:// address, the first call
            actor = ray.remote(Supervisor).options(**settings).remote(job.model_dump(mode="json"), job.id)
            try:
                trouble = ray.get(actor.started.remote(), timeout=preset.connect_timeout_s)
            except ValueError:  # which is one of Ray's errors, too
                raise
            except (ray.exceptions.RayError, TimeoutError) as error:
                trouble = (
                    f"the supervisor does not start: {one_line(error)}; is this marc-dist installed on every node?"
                )
            if trouble is None:
                return
            ray.kill(actor, no_restart=True)
            raise LaunchError(trouble)
        told = "it does not answer"
        with suppress(ValueError, TimeoutError, ray.exceptions.RayError):
            other = _supervisor(ray, job)
            _, word, told = ray.get(other.state.remote(), timeout=ANSWER_S)
            if word in ("pending", "running"):
                told = f"{word}: {told}"
                deadline = 0.0
        if time.monotonic() > deadline:
            raise LaunchError(
                f"{run_dir}: a job of this run is active on the Ray cluster, {job.id} ({told}); wait for it, or end it "
                f"with marc-jobs cancel {run_dir}"
            )
        time.sleep(POLL_S / 2)  # one that is over is about to give the name back


def _supervisor(ray: Any, job: Job) -> Any:
    return ray.get_actor(job.id, namespace=NAMESPACE)
