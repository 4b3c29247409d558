"""``marc-launch``: start a training, an evaluation or a search where a preset says: this machine, Slurm or Ray."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from marc_dist.cluster.job import Job
    from marc_dist.cluster.preset import LocalPreset, RayPreset, SlurmPreset
    from marc_dist.config import Config

MODULES = {"train": "marc_dist.cli.train", "eval": "marc_dist.cli.evaluate"}

EPILOG = """\
presets: local, slurm, slurm-preemptible, slurm-array, slurm-container, ray; or a file of your own (a copy of one).
A preset's values are words, too: cluster.KEY=value.

examples:
  marc-launch local run.yaml loss.tau=0.07                all GPUs of this machine, or one process without any
  marc-launch --procs-per-node 2 local train run.yaml     two processes
  marc-launch local runs/a                                go on with runs/a
  marc-launch local eval runs/a                           score it
  marc-launch --nodes 4 slurm cluster.partition=gpu cluster.gpus_per_node=8 cluster.time_min=120 run.yaml
  marc-launch --nodes 4 --dry-run slurm run.yaml          the batch script, without Slurm
  marc-launch --nodes 4 --check slurm run.yaml            are all nodes well? no training
  marc-launch --nodes 4 slurm tune macl run.yaml --trials 64   a search on Ray inside the job; then marc-tune's words
  marc-launch --nodes 2 --follow ./mine.yaml run.yaml     show rank 0's log; Ctrl-C leaves the job alone

Slurm and Ray: the command returns with the job's id; it saves, stops and starts again by itself. marc-jobs shows it.
Local: rank 0 is shown; Ctrl-C saves and stops, a second one ends at once. Logs: RUN/logs/rank-K.log.
Exit codes: 0 done (or handed over), 85 stopped and saved (start again to go on), 2 a mistake in the command or its
files, 1 a failure.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="marc-launch",
        usage="marc-launch [--nodes N] [--procs-per-node N] PRESET [train|eval|tune] [RUN_DIR|run.yaml] [key=value]",
        description="Start a run on all processes of a launcher preset.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("preset", metavar="PRESET", help="launchers/PRESET.yaml, or a file")
    parser.add_argument(
        "arguments", nargs="*", metavar="...", help="train (unless said), eval or tune, then its arguments"
    )
    parser.add_argument("--nodes", type=int, help="machines (default: the preset's, 1)")
    parser.add_argument("--procs-per-node", type=int, help="processes on each (default: one per GPU, or one)")
    parser.add_argument("--print", action="store_true", dest="show", help="print preset and settings, then stop")
    parser.add_argument("--dry-run", action="store_true", help="print what would be started, then stop")
    parser.add_argument("--check", action="store_true", help="only look for sick nodes there; trains nothing")
    parser.add_argument("--wait", action="store_true", help="Slurm, Ray: return when it is over, with its exit code")
    parser.add_argument("--follow", action="store_true", help="as --wait, and show rank 0's log")
    return parser


def _check_size(options: argparse.Namespace) -> None:
    from marc_dist.config import LaunchError

    for flag, what, value in (
        ("--nodes", "node", options.nodes),
        ("--procs-per-node", "process", options.procs_per_node),
    ):
        if value is not None and value < 1:
            raise LaunchError(f"{flag}: expected at least 1 {what}, got {value}")


def _check_data(config: Config) -> None:
    """Shards and split exist; told now, not by every rank after seconds of imports."""
    from marc_dist.data.dataset import open_dataset

    here = config.data.reader == "indexed"
    open_dataset(config.data.dir, shards=here).train_rows(config.data)


def _job_dir(what: str, config: Config) -> Path:
    """Where ``job.json`` and ``logs/`` of the job lie: the run folder, which an evaluation must not take over."""
    from marc_dist.config import user_path

    run_dir = user_path(config.train.run_dir).absolute()
    return run_dir if what == "train" else run_dir / what


def _new_job(what: str, config: Config, arguments: Sequence[str], preset: LocalPreset | SlurmPreset | RayPreset) -> Job:
    """The job that a command line means; a training is always RUN_DIR, its settings lie in the folder."""
    from marc_dist.cluster.job import new_job
    from marc_dist.cluster.preset import LocalPreset
    from marc_dist.cluster.submit import size_of
    from marc_dist.config import user_path

    run_dir = str(user_path(config.train.run_dir).absolute())
    rest = {"train": [run_dir], "check": ["--check", run_dir]}.get(what, list(arguments))
    if what == "check" and not isinstance(preset, LocalPreset):
        preset = preset.model_copy(update={"max_restarts": 0, "preflight": False})
    nodes, procs = size_of(preset, config.train.device)
    module = MODULES["train" if what == "check" else what]
    return new_job(
        preset.kind,
        ["-m", module, *rest],
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
    from marc_dist.cli.common import run_config
    from marc_dist.config import ConfigError

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


def _show_local(job: Job, preset: LocalPreset, job_dir: Path) -> None:
    from marc_dist.cluster.local import command, rank_environment

    shown = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "OMP_NUM_THREADS", *preset.env)
    for rank in range(job.world):
        env = rank_environment(preset, rank, job.world, 0)
        words = " ".join(f"{name}={shlex.quote(env[name])}" for name in shown)
        print(f"{words} MASTER_PORT=<free> {shlex.join(command(job))} >> {job_dir}/logs/rank-{rank}.log")


def _dry_run(job: Job, preset: LocalPreset | SlurmPreset | RayPreset, job_dir: Path, config: Config) -> None:
    """What would be started: the commands of a local job, the batch script, or what Ray is asked for."""
    from marc_dist.cluster.preset import LocalPreset, SlurmPreset
    from marc_dist.config import dump_yaml

    if isinstance(preset, LocalPreset):
        _show_local(job, preset, job_dir)
        return
    if isinstance(preset, SlurmPreset):
        from marc_dist.cluster.slurm import render

        print(render(job, preset, job_dir))
    else:
        print(
            f"# Ray at {preset.address}: {job.nodes} nodes x {job.procs_per_node} rank actors, each of them:\n"
            f"{shlex.join([sys.executable, *job.arguments])} >> {job_dir}/logs/rank-K.log"
        )
    sys.stdout.write("# --- the run's settings\n" + dump_yaml(config))


def _tune(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Queue a search: one task a node, which brings up Ray there; see ``marc_dist.tuning.allocation``."""
    from marc_dist.cli.tune import folder_of
    from marc_dist.cluster.job import new_job
    from marc_dist.cluster.preset import PREFIX, SlurmPreset, load_preset
    from marc_dist.config import LaunchError

    _check_size(options)
    cluster = [word for word in words if word.startswith(PREFIX)]
    words = [word for word in words if not word.startswith(PREFIX)]
    preset = load_preset(options.preset, cluster, nodes=options.nodes, procs_per_node=options.procs_per_node)
    if not isinstance(preset, SlurmPreset):
        where = "marc-tune itself" if preset.kind == "local" else "marc-tune --address HOST:PORT"
        raise LaunchError(f"tune: expected a slurm preset, got kind {preset.kind}; use {where}")
    if preset.container.runtime != "none" or preset.array.seeds or preset.array.overrides:
        raise LaunchError("tune: runs without containers and arrays; leave cluster.container and cluster.array away")
    folder, words = folder_of(words)
    cpus = (preset.cpus_per_proc or 1) * preset.num_procs
    preset = preset.model_copy(update={"procs_per_node": 1, "cpus_per_proc": cpus, "preflight": False})
    arguments = ["-m", "marc_dist.tuning.allocation", str(folder), *words]
    values = {"nodes": preset.nodes, "procs_per_node": 1, "preset": preset.model_dump(mode="json")}
    job = new_job(preset.kind, arguments, what="tune", **values)
    if options.show or options.dry_run:
        from marc_dist.cluster.slurm import render

        print(render(job, preset, folder))
        return 0
    return _hand_over(job, folder, options)


def _body(options: argparse.Namespace) -> int:
    from marc_dist.cli.common import run_config
    from marc_dist.cluster.preset import PREFIX, LocalPreset, SlurmPreset, load_preset
    from marc_dist.config import LaunchError, dump_yaml

    _check_size(options)
    what, arguments = "train", list(options.arguments)
    if arguments and arguments[0] in MODULES:
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
    if options.show:
        sys.stdout.write(
            "# cluster\n" + dump_yaml(preset, comments=True) + "# run\n" + dump_yaml(config, comments=True)
        )
        return 0
    job = _new_job(what, config, arguments, preset)
    job_dir = _job_dir(what, config)
    array = isinstance(preset, SlurmPreset) and what == "train" and bool(preset.array.seeds or preset.array.overrides)
    runs = _elements(config, arguments, preset) if array and isinstance(preset, SlurmPreset) else [config]
    if array:
        job = job.model_copy(update={"run_dirs": [str(Path(run.train.run_dir).absolute()) for run in runs]})
    if options.dry_run:
        _dry_run(job, preset, job_dir, config)
        return 0
    _prepare(what, runs)
    if isinstance(preset, LocalPreset):
        from marc_dist.cluster.submit import run_local

        return run_local(job, job_dir, sys.stdout.buffer)
    return _hand_over(job, job_dir, options)


def _prepare(what: str, runs: Sequence[Config]) -> None:
    """Make run folders ready, and refuse what would fail there, before anything is queued."""
    from marc_dist.config import LaunchError
    from marc_dist.training.runfolder import prepare

    if what == "eval":
        run_dir = Path(runs[0].train.run_dir)
        if not run_dir.is_dir():
            raise LaunchError(f"{run_dir}: no such run folder; train first, or name the folder of a run")
        return
    for run in runs:
        _check_data(run)
        prepare(run)


def _hand_over(job: Job, job_dir: Path, options: argparse.Namespace) -> int:
    """Submit to Slurm or Ray; return at once, or when it is over."""
    from marc_dist.cluster.submit import exit_code, state, submit, wait

    job = submit(job, job_dir)
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
            from marc_dist.cluster.follow import follow_job

            found = follow_job(job_dir, job, sys.stdout.buffer, lambda: state(job, job_dir))
    except KeyboardInterrupt:
        print(f"\ndetached; the job goes on: marc-jobs logs -f {shown}")
        return 0
    print(f"{job_dir}: {found.word}{f', {found.detail}' if found.detail else ''}")
    return exit_code(found, job, job_dir)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code. ``--help`` is answered before anything of ours is imported."""
    given = list(sys.argv[1:] if argv is None else argv)
    words: list[str] | None = None
    if "tune" in given and not {"train", "eval"} & set(given[: given.index("tune")]):
        at = given.index("tune")
        given, words = given[:at], given[at + 1 :]  # what follows is for marc-tune, options and all
    options = _parser().parse_intermixed_args(given)
    from marc_dist.cli.common import run_command

    def body(_: Sequence[str]) -> int:
        return _body(options) if words is None else _tune(options, words)

    return run_command("marc-launch", body, argv)


if __name__ == "__main__":
    sys.exit(main())
