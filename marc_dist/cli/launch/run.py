"""What ``marc-launch`` does: check and prepare the run folders, then start the job here or hand it over."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from marc_dist.cli.launch.job import PlannedLaunch
from marc_dist.cli.sample_data import pack_sample
from marc_dist.cluster.backends import exit_code, run_local, state, submit, wait
from marc_dist.cluster.follow import follow_job
from marc_dist.cluster.preset import LocalPreset, SlurmPreset
from marc_dist.cluster.slurm_commands import require_slurm
from marc_dist.config import Config, LaunchError
from marc_dist.data.dataset import open_dataset
from marc_dist.run.folder import prepare, refuse_other_run, write_config
from marc_dist.run.job import Job
from marc_dist.training.trackers.mirrors import require_trackers


def launch(planned: PlannedLaunch, options: argparse.Namespace) -> int:
    """Start a job; the exit code.

    Args:
        planned: the job.
        options: whether to wait and what to show.

    Raises:
        DataError: no such shards.
        LaunchError: it cannot be started.
    """
    if isinstance(planned.preset, SlurmPreset):
        slurm_is_here(options)
    _check(planned)

    def prepare() -> None:
        _prepare(planned)

    if isinstance(planned.preset, LocalPreset):
        return run_local(planned.job, planned.job_dir, sys.stdout.buffer, prepare)
    return hand_over(planned.job, planned.job_dir, options, prepare)


def slurm_is_here(options: argparse.Namespace, *more: str) -> None:
    """Refuse a machine without Slurm before data is packed or a folder made for the job.

    Args:
        options: the words of ``marc-launch``.
        more: further words of the command line, behind ``tune``.

    Raises:
        LaunchError: no Slurm here; the next command shows the batch script without it.
    """
    try:
        require_slurm()
    except LaunchError as error:
        sizes = {"--nodes": options.nodes, "--procs-per-node": options.procs_per_node}
        given = [word for flag, num in sizes.items() if num is not None for word in (flag, str(num))]
        shown = ["marc-launch", *given, "--dry-run", options.preset, *options.arguments, *more]
        raise LaunchError(str(error), next_command=shlex.join(shown)) from None


def hand_over(job: Job, job_dir: Path, options: argparse.Namespace, prepare: Callable[[], None] = lambda: None) -> int:
    """Submit to Slurm or Ray; return at once, or when it is over, with the exit code.

    Args:
        job: what is submitted.
        job_dir: where ``job.json`` and ``logs/`` go.
        options: whether to wait for the end, and to show the log of rank 0.
        prepare: see ``submit``.
    """
    job = submit(job, job_dir, prepare)
    shown = shlex.quote(str(job_dir))
    many = f", {len(job.run_dirs)} runs" if job.run_dirs else ""
    print(f"{job.kind} job {job.id}: {job.nodes} node(s) x {job.procs_per_node} process(es){many}, in {job_dir}")
    if not (options.wait or options.follow or options.check):
        print(f"marc-jobs status {shown}; marc-jobs logs -f {shown}; marc-jobs cancel {shown}")
        return 0
    sys.stdout.flush()
    try:
        if options.wait:
            found = wait(job, job_dir)
        else:
            found = follow_job(job_dir, job, sys.stdout.buffer, lambda: state(job, job_dir))
    except KeyboardInterrupt:
        print(f"\ndetached; the job goes on: marc-jobs logs -f {shown}")
        return 0
    print(f"{job_dir}: {found.word}{f', {found.detail}' if found.detail else ''}")
    return exit_code(found, job, job_dir)


def check_data(config: Config) -> None:
    """Shards and split exist; reported now, not by every rank after seconds of imports.

    Without any data, the built-in sample is packed, as marc-tune does.

    Raises:
        DataError: no such shard folder, or no such split.
    """
    pack_sample(config)
    here = config.data.reader == "indexed"
    open_dataset(config.data.dir, shards=here).train_rows(config.data)


def _check(planned: PlannedLaunch) -> None:
    """Refuse what would fail there, before anything is queued; nothing is written into a run folder."""
    if planned.what == "eval":
        run_dir = Path(planned.config.train.run_dir)
        if not run_dir.is_dir():
            raise LaunchError(f"{run_dir}: no such run folder; train first, or name the folder of a run")
        return
    preset = planned.preset
    contained = isinstance(preset, SlurmPreset) and preset.container.runtime != "none"  # with packages of its own
    for run in planned.runs:
        if not contained:
            require_trackers(run)
        check_data(run)
        refuse_other_run(run)


def _prepare(planned: PlannedLaunch) -> None:
    """Write the settings, once the folders are this job's; those of a check into its own folder, not into the run's."""
    if planned.what == "check":
        write_config(planned.config, planned.job_dir)
    elif planned.what == "train":
        for run in planned.runs:
            prepare(run)
