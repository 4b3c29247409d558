"""A study on a cluster: workers that take cells until none is left, elements of a Slurm array or ranks on Ray."""

from __future__ import annotations

import shlex

from rich.console import Console

from marc_dist.cluster.backends import submit
from marc_dist.cluster.preset import RayPreset, SlurmPreset
from marc_dist.config import LaunchError
from marc_dist.run.job import Job, new_job
from marc_dist.study.estimate import estimate
from marc_dist.study.plan import Plan

JOBS = "jobs"
"""Folder of the job, as marc-jobs takes it; that of an array has a folder for each element."""
DEFAULT_JOBS = 16


def workers_of(plan: Plan, preset: SlurmPreset | RayPreset, jobs: int | None, left: int) -> int:
    """How many workers a cluster would be asked for.

    Args:
        plan: of the study.
        preset: where it would run.
        jobs: as on the command line; None = on Slurm ``DEFAULT_JOBS`` at most, on Ray as the preset says.
        left: tasks to do.
    """
    if isinstance(preset, SlurmPreset):
        return min(jobs or DEFAULT_JOBS, left)
    return preset.nodes * (-(-min(jobs, left) // preset.nodes) if jobs is not None else preset.num_procs)


def submit_study(plan: Plan, preset: SlurmPreset | RayPreset, jobs: int | None, console: Console) -> int:
    """Hand the workers over; the exit code.

    Args:
        plan: of the study; its copy lies in the folder, which every node sees.
        preset: partition, limits, GPUs of a cell.
        jobs: workers; None = as many as there is to do: on Slurm ``DEFAULT_JOBS`` at most, on Ray as the preset says.
        console: where people are told.

    Raises:
        LaunchError: containers, several processes a cell, or the cluster refuses.
    """
    left = sum(estimate(plan).left.values())
    if not left:
        console.print("nothing is left to do; --report writes the tables", markup=False)
        return 0
    folder = plan.out / JOBS
    job = _array(plan, preset, jobs, left) if isinstance(preset, SlurmPreset) else _ranks(plan, preset, jobs, left)
    job = submit(job, folder)
    num = len(job.run_dirs) or job.world
    shown = shlex.quote(str(folder))
    console.print(f"{job.kind} job {job.id}: {num} workers, {left} tasks left", markup=False, soft_wrap=True)
    console.print(f"marc-jobs status {shown}; marc-jobs cancel {shown}", markup=False, soft_wrap=True)
    console.print(
        f"tables, when they are there: marc-study {plan.path} --out {plan.out} --report", markup=False, soft_wrap=True
    )
    return 0


def _array(plan: Plan, preset: SlurmPreset, jobs: int | None, left: int) -> Job:
    if preset.container.runtime != "none" or preset.nodes > 1 or preset.num_procs > 1:
        raise LaunchError(
            "--on: a cell is one process, without a container; leave nodes, procs_per_node and container of the preset "
            "away, and give gpus_per_node: 1 for one GPU a cell"
        )
    cpus = preset.cpus_per_proc or plan.study.threads
    preset = preset.model_copy(update={"procs_per_node": 1, "cpus_per_proc": cpus, "preflight": False})
    folder = plan.out / JOBS
    elements = [str(folder / f"{number:03d}") for number in range(workers_of(plan, preset, jobs, left))]
    return new_job(
        "slurm", _arguments(plan, elements[0]), what="study", preset=preset.model_dump(mode="json"), run_dirs=elements
    )


def _ranks(plan: Plan, preset: RayPreset, jobs: int | None, left: int) -> Job:
    """One worker a rank; a worker joins nothing, and does with one of the node's shares of GPUs."""
    nodes = preset.nodes
    procs = workers_of(plan, preset, jobs, left) // nodes
    cpus = preset.cpus_per_proc or plan.study.threads
    preset = preset.model_copy(update={"procs_per_node": procs, "cpus_per_proc": cpus, "preflight": False})
    arguments = _arguments(plan, str(plan.out / JOBS))
    values = {"nodes": nodes, "procs_per_node": procs, "preset": preset.model_dump(mode="json")}
    return new_job("ray", arguments, what="study", **values)


def _arguments(plan: Plan, folder: str) -> list[str]:
    return ["-m", "marc_dist.study.worker", str(plan.out), folder]
