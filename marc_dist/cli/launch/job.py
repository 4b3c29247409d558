"""The job that the words of ``marc-launch`` mean, and how it is shown without starting it."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from marc_dist.cli.run_words import run_config
from marc_dist.cluster.backends import size_of
from marc_dist.cluster.local import command, rank_environment
from marc_dist.cluster.preset import PREFIX, LocalPreset, RayPreset, SlurmPreset, load_preset
from marc_dist.cluster.slurm import render
from marc_dist.config import Config, ConfigError, LaunchError, dump_yaml, user_path
from marc_dist.run.job import Job, new_job


class PlannedLaunch(NamedTuple):
    """What is about to be started.

    Attributes:
        what: ``train``, ``eval`` or ``check``.
        preset: where it runs.
        config: the settings of the run; of an array, what its runs share.
        runs: the settings of each run; several for an array.
        job: the job, not yet submitted.
        job_dir: where ``job.json`` and ``logs/`` lie.
    """

    what: str
    preset: LocalPreset | SlurmPreset | RayPreset
    config: Config
    runs: list[Config]
    job: Job
    job_dir: Path


def planned_launch(options: argparse.Namespace) -> PlannedLaunch:
    """The job that the words mean; nothing is written or started.

    Raises:
        ConfigError: a fault in the preset or the settings.
        LaunchError: several nodes for a local job.
    """
    what, arguments = "train", list(options.arguments)
    if arguments and arguments[0] in ("train", "eval"):
        what = arguments.pop(0)
    what = "check" if options.check else what
    cluster = [word for word in arguments if word.startswith(PREFIX)]
    arguments = [word for word in arguments if not word.startswith(PREFIX)]
    preset = load_preset(options.preset, cluster, nodes=options.nodes, procs_per_node=options.procs_per_node)
    config = run_config(arguments)
    if isinstance(preset, LocalPreset) and (options.nodes or 1) > 1:
        raise LaunchError(
            f"--nodes: the local preset is this one machine, got {options.nodes}; use --procs-per-node for more "
            "processes here, or the presets slurm and ray"
        )
    job = _job(what, config, arguments, preset)
    runs = [config]
    if isinstance(preset, SlurmPreset) and what == "train" and (preset.array.seeds or preset.array.overrides):
        runs = _elements(config, arguments, preset)
        job = job.model_copy(update={"run_dirs": [str(Path(run.train.run_dir).absolute()) for run in runs]})
    return PlannedLaunch(what, preset, config, runs, job, _job_dir(what, config))


def print_if_asked(planned: PlannedLaunch, options: argparse.Namespace) -> bool:
    """Print the job if ``--print`` or ``--dry-run`` asks for it; whether one of them did: then nothing is started."""
    if options.show:
        for title, section in (("cluster", planned.preset), ("run", planned.config)):
            sys.stdout.write(f"# {title}\n" + dump_yaml(section, comments=True))
    elif options.dry_run:
        _print_commands(planned)
    return bool(options.show or options.dry_run)


def _job_dir(what: str, config: Config) -> Path:
    """The run folder; an evaluation must not take it over."""
    run_dir = user_path(config.train.run_dir).absolute()
    return run_dir if what == "train" else run_dir / what


def _job(what: str, config: Config, arguments: Sequence[str], preset: LocalPreset | SlurmPreset | RayPreset) -> Job:
    """The job that a command line means; a training is always RUN_DIR, its settings lie in the folder."""
    run_dir = str(user_path(config.train.run_dir).absolute())
    check = f"{_job_dir(what, config)}/config.yaml"  # the run's own settings may be those of a job that waits
    rest = {"train": [run_dir], "check": ["--check", check]}.get(what, list(arguments))
    if what == "check" and not isinstance(preset, LocalPreset):
        preset = preset.model_copy(update={"max_restarts": 0, "preflight": False})
    nodes, procs = size_of(preset, config.train.device)
    return new_job(
        preset.kind,
        ["-m", f"marc_dist.cli.{'train' if what == 'check' else what}", *rest],
        what=what,
        nodes=nodes,
        procs_per_node=procs,
        preset=preset.model_dump(mode="json"),
    )


def _elements(config: Config, arguments: Sequence[str], preset: SlurmPreset) -> list[Config]:
    """The runs of an array, each in a folder of its own below ``train.run_dir``.

    Raises:
        ConfigError: seeds and overrides at once, or a fault in one of the runs.
    """
    seeds, overrides = preset.array.seeds, preset.array.overrides
    if seeds and overrides:
        raise ConfigError("cluster.array: expected seeds or overrides, got both; write the seeds into the overrides")
    parts = [(f"seed-{seed}", [f"train.seed={seed}"]) for seed in seeds]
    parts += [(f"{number:03d}", list(words)) for number, words in enumerate(overrides)]
    if len({name for name, _ in parts}) < len(parts):
        raise ConfigError(f"cluster.array.seeds: expected different seeds, got {seeds}")
    rest = [word for word in arguments if not word.startswith("train.run_dir=")]
    runs: list[Config] = []
    for name, words in parts:
        taken = {word.partition("=")[0] for word in words}
        mine = [word for word in rest if word.partition("=")[0] not in taken]
        runs.append(run_config([*mine, *words, f"train.run_dir={config.train.run_dir}/{name}"]))
    return runs


def _print_commands(planned: PlannedLaunch) -> None:
    """The commands of a local job, the batch script, or what Ray is asked for; then the run's settings."""
    preset, job, job_dir = planned.preset, planned.job, planned.job_dir
    if isinstance(preset, LocalPreset):
        _print_local(job, preset, job_dir)
        return
    if isinstance(preset, SlurmPreset):
        print(render(job, preset, job_dir))
    else:
        print(
            f"# Ray at {preset.address}: {job.nodes} nodes x {job.procs_per_node} rank actors, each of them:\n"
            f"{shlex.join([sys.executable, *job.arguments])} >> {job_dir}/logs/rank-K.log"
        )
    sys.stdout.write("# --- the run's settings\n" + dump_yaml(planned.config))


def _print_local(job: Job, preset: LocalPreset, job_dir: Path) -> None:
    shown = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "OMP_NUM_THREADS", *preset.env)
    for rank in range(job.world):
        env = rank_environment(preset, rank, job.world, 0)
        words = " ".join(f"{name}={shlex.quote(env[name])}" for name in shown)
        print(f"{words} MASTER_PORT=<free> {shlex.join(command(job))} >> {job_dir}/logs/rank-{rank}.log")
