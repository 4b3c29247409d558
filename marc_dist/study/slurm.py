"""A study as a Slurm array: every element is a worker that takes cells until none is left."""

from __future__ import annotations

import shlex

from rich.console import Console

from marc_dist.cluster.backends import submit
from marc_dist.cluster.preset import SlurmPreset
from marc_dist.config import LaunchError
from marc_dist.run.job import new_job
from marc_dist.study.estimate import estimate
from marc_dist.study.plan import Plan

JOBS = "jobs"
"""Folder of the array, as marc-jobs takes it, with a folder for each element."""
DEFAULT_JOBS = 16


def submit_study(plan: Plan, preset: SlurmPreset, jobs: int | None, console: Console) -> int:
    """Queue the workers; the exit code.

    Args:
        plan: of the study; its copy lies in the folder, which every node sees.
        preset: partition, limits, GPUs of a cell.
        jobs: elements; None = as many as there is to do, ``DEFAULT_JOBS`` at most.
        console: where people are told.

    Raises:
        LaunchError: containers, several processes a cell, or Slurm refuses.
    """
    left = sum(estimate(plan).left.values())
    if not left:
        console.print("nothing is left to do; --report writes the tables", markup=False)
        return 0
    if preset.container.runtime != "none" or preset.nodes > 1 or preset.num_procs > 1:
        raise LaunchError(
            "--on: a cell is one process, without a container; leave nodes, procs_per_node and container of the preset "
            "away, and give gpus_per_node: 1 for one GPU a cell"
        )
    cpus = preset.cpus_per_proc or plan.study.threads
    preset = preset.model_copy(update={"procs_per_node": 1, "cpus_per_proc": cpus, "preflight": False})
    folder = plan.out / JOBS
    elements = [str(folder / f"{number:03d}") for number in range(min(jobs or DEFAULT_JOBS, left))]
    arguments = ["-m", "marc_dist.study.worker", str(plan.out), elements[0]]
    job = new_job(
        "slurm", arguments, what="study", nodes=1, procs_per_node=1, preset=preset.model_dump(mode="json"),
        run_dirs=elements,
    )  # fmt: skip
    job = submit(job, folder)
    shown = shlex.quote(str(folder))
    console.print(f"slurm job {job.id}: {len(elements)} workers, {left} tasks left", markup=False)
    console.print(f"marc-jobs status {shown}; marc-jobs cancel {shown}", markup=False, soft_wrap=True)
    console.print(f"tables, when they are there: marc-study {plan.path} --out {plan.out} --report", markup=False)
    return 0
