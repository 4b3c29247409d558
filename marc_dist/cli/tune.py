"""``marc-tune``: search settings with Ray Tune; every trial is an ordinary training run."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marc_dist.cli.tune_words import check_numbers, parser, where_words

if TYPE_CHECKING:
    from marc_dist.config import Config
    from marc_dist.tuning.journal import Plan
    from marc_dist.tuning.local import Size
    from marc_dist.tuning.search import Search
    from marc_dist.tuning.space import Space

DEFAULT_SPACE = "macl"
DEMO: dict[str, Any] = {
    "data.dir": "data/sample", "data.image_size": 64, "data.num_workers": 0, "augment.crop_min": 0.6,
    "model.backbone": "resnet10t", "model.head_hidden": 256, "model.head_dim": 64,
    "train.epochs": 18, "train.global_batch": 75, "train.log_every": 6, "train.checkpoint_every": 36,
}  # fmt: skip
"""What is tuned when nobody names a run file or data: the built-in sample and a small encoder, as in
benchmarks/demo.yaml. Loss and learning rate begin with the library's defaults, so that a gain is one over them."""
DEMO_GRACE = 6
"""Its trials run a sixth of their epochs at least: after one epoch of six steps all of them score alike."""


def folder_of(words: Sequence[str]) -> tuple[Path, list[str]]:
    """The folder of the search that these words of a command line mean, and the words that begin it or go on with it.

    Everything is checked that needs no Ray; nothing is written.

    Raises:
        ConfigError: a fault in the words, or options that a cluster job decides.
    """
    from marc_dist.config import ConfigError, user_path

    options = parser().parse_intermixed_args(words)
    if options.address or options.executor != "ray" or options.report or options.show:
        raise ConfigError("tune: --address, --executor, --report and --print are marc-tune's own; leave them away here")
    check_numbers(options)
    if options.resume and not options.arguments:
        from marc_dist.tuning.journal import read_plan

        read_plan(user_path(options.resume))
        return user_path(options.resume).absolute(), list(words)
    folder, _, _ = _new(options)
    more = [] if options.resume is not None else ["--resume", str(folder)]  # a start after the first goes on
    return folder, [*words, *more]


def _is_space(place: str) -> bool:
    """Whether a file is a space, not a run file."""
    from marc_dist.config import load_yaml, user_path

    path = user_path(place)
    return path.is_file() and "parameters" in load_yaml(path)


def _places(arguments: Sequence[str]) -> tuple[str, list[str], bool]:
    """The space, what is left for the run's configuration, and whether any of it names a run or data.

    Raises:
        ConfigError: too many places.
    """
    from marc_dist.cli.common import split_words
    from marc_dist.config import ConfigError, list_presets

    places, words = split_words(arguments)
    if len(places) == 2 and places[1] in list_presets("tune_spaces"):  # run.yaml macl
        places.reverse()
    if len(places) > 2:
        raise ConfigError(f"expected a space, a run file and key=value words, got {' '.join(places)}")
    space = DEFAULT_SPACE
    if places:
        path_like = "/" in places[0] or places[0].endswith((".yaml", ".yml"))
        if len(places) == 2 or not path_like or _is_space(places[0]):
            space = places.pop(0)
    named = bool(places) or any(word.startswith("data.dir=") for word in words)
    return space, [*places, *words], named


def _run_config(rest: Sequence[str], named: bool) -> Config:
    from marc_dist.cli.common import run_config
    from marc_dist.config import Config, build, parse_words

    return run_config(rest) if named else build(Config, DEMO, parse_words(rest))


def _pack_sample(config: Config) -> None:
    """The built-in sample, packed on first use."""
    folder = Path(config.data.dir)
    if config.data.dir == DEMO["data.dir"] and not folder.exists():
        from marc_dist.cli.shard import main as shard
        from marc_dist.config import DataError

        print(f"packing the built-in sample into {folder}", flush=True)
        if shard(["--dataset", "sample", "--out", str(folder)]):
            raise DataError(f"{folder}: the built-in sample could not be packed")


def _check_data(plan: Plan) -> None:
    """Shards, split and validation samples exist; told now, not by every trial."""
    from marc_dist.config import Config, build
    from marc_dist.data.dataset import open_dataset
    from marc_dist.tuning.validate import check_groups

    data = build(Config, plan.base).data
    check_groups(open_dataset(data.dir), data, plan.objectives)


def _size(options: argparse.Namespace, device: str, have_gpus: float) -> Size:
    from marc_dist.tuning.local import Size

    gpus = options.gpus_per_proc
    if gpus is None:
        gpus = 1.0 if have_gpus and device != "cpu" else 0.0
    return Size(options.procs_per_trial, options.cpus_per_proc, gpus, options.concurrent)


@contextmanager
def _executor(options: argparse.Namespace, device: str) -> Iterator[tuple[Any, Size, int]]:
    """The module ``ray`` connected (None for the local executor), a trial's size, and trials at a time."""
    import os

    from marc_dist.cluster.local import visible_gpus
    from marc_dist.tuning.local import local_size

    if options.executor == "local":
        size = _size(options, device, visible_gpus(os.environ))
        yield None, size, local_size(size)
        return
    from marc_dist.tuning.ray_run import ray_cluster, ray_size

    with ray_cluster(options.address, options.connect_timeout) as ray:
        size = _size(options, device, ray.cluster_resources().get("GPU", 0))
        yield ray, size, ray_size(ray, size)


def _concurrent(options: argparse.Namespace, fit: int, plan: Plan) -> int:
    """Trials at a time: as many as fit, but so few by default that later trials learn from earlier ones."""
    if options.concurrent is not None or plan.how == "grid":
        return fit
    return min(fit, max(1, -(-plan.trials // 4)))


def _new(options: argparse.Namespace) -> tuple[Path, Plan, str]:
    """The folder, the plan and the device of the search that the words mean; nothing is written yet."""
    from marc_dist.config import ConfigError, user_path
    from marc_dist.tuning.driver import new_plan, open_search, warm_start
    from marc_dist.tuning.journal import SEARCH, Journal, read_plan
    from marc_dist.tuning.space import load_space, parse_space

    name, rest, named = _places(options.arguments)
    space = load_space(name)
    folder = user_path(options.resume or options.out or f"runs/tune-{space.name}").absolute()
    if options.start_from and options.resume is not None and (folder / SEARCH).is_file():  # what it lent stands there
        first = read_plan(folder).source.get("first", [{}])
        space = parse_space({**space.source, "first": first}, space.name, space.name)
    elif options.start_from:
        earlier = user_path(options.start_from)
        space = warm_start(space, options.search or space.how, open_search(earlier, Journal(earlier)), earlier)
    config = _run_config(rest, named)
    objectives = tuple(part.strip() for part in (options.objectives or "").split(",") if part.strip())
    if len(set(objectives)) < len(objectives):
        raise ConfigError(f"--objectives: a metric appears twice in {options.objectives}")
    plan = new_plan(
        space,
        config,
        trials=options.trials,
        epochs=options.epochs,
        how=options.search,
        objectives=objectives,
        early_stopping=False if options.no_early_stop else True if options.grace else None,
        grace=options.grace or (None if named else max(1, (options.epochs or config.train.epochs) // DEMO_GRACE)),
        eta=options.eta,
        seeds=options.seeds,
        seed=options.seed,
        retries=2 if options.retries is None else options.retries,
    )
    if options.show:
        _print(space, plan)
    elif not named:
        _pack_sample(config)
    return folder, plan, config.train.device


def _print(space: Space, plan: Plan) -> None:
    from marc_dist.config import Config, build, dump_yaml
    from marc_dist.tuning.space import Parameter

    def told(one: Parameter) -> str:
        when = "".join(f", when {name} in {list(values)}" for name, values in one.when)
        other = f", otherwise {one.otherwise[0]}" if one.otherwise else ""
        return f"#   {one.name}: {one.sampler.kind} {list(one.sampler.values)}{when}{other}"

    early = f"early stopping from epoch {plan.grace} on" if plan.grace else "no early stopping"
    lines = [f"# {space.title}", *map(told, space.parameters)]
    lines += [f"#   {constraint.text}" for constraint in space.constraints]
    lines += [f"# {plan.how}, {plan.trials} settings x {plan.seeds} seed(s) x {plan.epochs} epochs, {early}"]
    lines += [f"# objectives: {', '.join(plan.objectives)}", "# --- what all trials share"]
    print("\n".join(lines))
    sys.stdout.write(dump_yaml(build(Config, plan.base)))


def _body(options: argparse.Namespace) -> int:
    from marc_dist.config import ConfigError, user_path

    check_numbers(options)
    if options.report:
        return _report(user_path(options.report))
    if options.resume and not options.arguments:
        from marc_dist.tuning.journal import read_plan

        folder = user_path(options.resume).absolute()
        if options.out:
            raise ConfigError(f"--out: the search lies in {folder}, given with --resume; leave --out away")
        plan = read_plan(folder)
        return _search(options, folder, plan, str(plan.base["train.device"]), known=True)
    folder, plan, device = _new(options)
    return 0 if options.show else _search(options, folder, plan, device, known=False)


def _search(options: argparse.Namespace, folder: Path, plan: Plan, device: str, *, known: bool) -> int:
    """Run the trials that are left; the exit code."""
    from rich.console import Console

    from marc_dist.tuning.board import Board, print_end
    from marc_dist.tuning.driver import Recorder, ahead_of, begin, extend, open_search, require_folder
    from marc_dist.tuning.journal import SEARCH, Journal, alone

    _check_data(plan)
    require_folder(folder)
    console = Console(highlight=False)
    with alone(folder), ExitStack() as stack:
        if known:
            plan = extend(folder, trials=options.trials, retries=options.retries)
        elif (folder / SEARCH).is_file():  # told before Ray starts
            plan = begin(folder, plan, resume=options.resume is not None)
            known = True
        ray, size, fit = stack.enter_context(_executor(options, device))
        concurrent = _concurrent(options, fit, plan)
        if not known:
            plan = begin(folder, plan.model_copy(update={"ahead": ahead_of(concurrent)}), resume=False)
        search = open_search(folder, Journal(folder))
        _greet(console, search, folder, concurrent, options)
        recorder = None
        try:
            with Board(search, console) as board:
                recorder = Recorder(search, folder, board.show)
                recorder.show()
                _execute(ray, search, folder, size, concurrent, recorder)
        except KeyboardInterrupt:
            words = shlex.join(["--resume", str(folder), *where_words(options)])
            console.print(f"stopped; go on with: marc-tune {words}", markup=False, soft_wrap=True)
            raise
        finally:
            if recorder is not None:
                recorder.write()
    best = recorder.write()
    report = None
    if best is not None:
        from marc_dist.tuning.report import write_report

        report = write_report(search, folder)
    print_end(search, folder, best, report, console)
    return 0 if best is not None else 1


def _execute(ray: Any, search: Any, folder: Path, size: Size, concurrent: int, recorder: Any) -> None:
    from dataclasses import replace

    if ray is not None:
        from marc_dist.tuning.ray_run import run_on_ray

        run_on_ray(search, folder, size, concurrent, recorder.show)
        return
    from marc_dist.tuning.local import LocalTrials

    LocalTrials(search, folder, replace(size, concurrent=concurrent), recorder.show).go()


def _greet(console: Any, search: Search, folder: Path, concurrent: int, options: argparse.Namespace) -> None:
    plan = search.plan
    where = (
        "processes of this machine" if options.executor == "local" else f"Ray at {options.address or 'this machine'}"
    )
    early = f"early stopping from epoch {plan.grace} on" if plan.grace else "no early stopping"
    console.print(
        f"{folder}: {plan.space}, {plan.how}, {search.num_settings} settings x {plan.seeds} seed(s) x "
        f"{plan.epochs} epochs, {early}; {concurrent} at a time on {where}",
        markup=False,
        soft_wrap=True,
    )


def _report(folder: Path) -> int:
    from rich.console import Console

    from marc_dist.tuning.board import print_end
    from marc_dist.tuning.driver import open_search
    from marc_dist.tuning.journal import Journal, write_rows
    from marc_dist.tuning.report import write_report
    from marc_dist.tuning.trial import write_best

    search = open_search(folder, Journal(folder))
    write_rows(folder, search.rows())
    print_end(search, folder, write_best(search, folder), write_report(search, folder), Console(highlight=False))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code. ``--help`` is answered before anything of ours is imported."""
    options = parser().parse_intermixed_args(argv)
    from marc_dist.cli.common import run_command

    return run_command("marc-tune", lambda _: _body(options), argv)


if __name__ == "__main__":
    sys.exit(main())
