"""The search that the words of ``marc-tune`` mean: its space, its run file, its plan."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marc_dist.cli.run_words import is_bare, run_config, split_words
from marc_dist.cli.sample_data import pack_sample
from marc_dist.cli.tune.words import check_words, parser
from marc_dist.config import (
    Config,
    ConfigError,
    build,
    dump_yaml,
    list_presets,
    load_yaml,
    parse_words,
    user_path,
)
from marc_dist.tuning.driver import new_plan, open_search, warm_start
from marc_dist.tuning.journal import SEARCH, Journal, SearchPlan, read_plan
from marc_dist.tuning.search_space.space import Parameter, Space, load_space, parse_space

DEFAULT_SPACE = "macl"
DEMO: dict[str, Any] = {
    "data.dir": "data/sample", "data.image_size": 64, "data.num_workers": 0, "model.freeze": "backbone",
    "train.epochs": 40, "train.global_batch": 150, "train.log_every": 12,
}  # fmt: skip
"""What is tuned when nobody names a run file or data: a head on the built-in sample, as in benchmarks/demo.yaml."""
DEMO_GRACE = 6
"""Epochs that its trials run at least: after one epoch of three steps all of them score alike."""


def checked_words(words: Sequence[str]) -> argparse.Namespace:
    """The options of a search that a cluster job runs, with every mistake told that shows without data and cluster.

    Raises:
        ConfigError: a fault in the words, or options that a cluster job decides.
    """
    options = parser().parse_intermixed_args(words)
    if options.address or options.executor or options.report or options.show:
        raise ConfigError("tune: --address, --executor, --report and --print are marc-tune's own; leave them away here")
    check_words(options)
    if options.arguments:
        load_space(split_places(options.arguments)[0])
    return options


def folder_and_words(words: Sequence[str]) -> tuple[Path, list[str]]:
    """The folder of the search that these words of a command line mean, and the words that begin it or go on with it.

    Everything is checked that needs no Ray; nothing of the search is written.

    Raises:
        ConfigError: a fault in the words, or options that a cluster job decides.
    """
    options = checked_words(words)
    if options.resume and not options.arguments:
        read_plan(user_path(options.resume))
        return user_path(options.resume).absolute(), list(words)
    folder, _, _ = planned_search(options)
    more = [] if options.resume is not None else ["--resume", str(folder)]  # a start after the first goes on
    return folder, [*words, *more]


def planned_search(options: argparse.Namespace) -> tuple[Path, SearchPlan, str]:
    """The folder, the plan and the device of a new search.

    Nothing of the search is written yet. ``--print`` shows the plan; otherwise the built-in sample is packed when the
    words name no data.

    Raises:
        ConfigError: a fault in the words.
    """
    name, rest, named = split_places(options.arguments)
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
        _print_plan(space, plan)
    elif not named:
        pack_sample(config)
    return folder, plan, config.train.device


def split_places(arguments: Sequence[str]) -> tuple[str, list[str], bool]:
    """The space, what is left for the run's configuration, and whether any of it names a run or data.

    Raises:
        ConfigError: too many places.
    """
    places, words = split_words(arguments)
    if len(places) == 2 and places[1] in list_presets("tune_spaces"):  # run.yaml macl
        places.reverse()
    if len(places) > 2:
        raise ConfigError(f"expected a space, a run file and key=value words, got {' '.join(places)}")
    space = DEFAULT_SPACE
    if len(places) == 2 or (places and (_is_space(places[0]) if not is_bare(places[0]) else not _is_recipe(places[0]))):
        space = places.pop(0)
    named = bool(places) or any(word.startswith("data.dir=") for word in words)
    return space, [*places, *words], named


def _is_recipe(place: str) -> bool:
    """Whether a bare name is a recipe, and no space."""
    return place in list_presets("recipes") and place not in list_presets("tune_spaces")


def _is_space(place: str) -> bool:
    """Whether a file is a space, not a run file."""
    path = user_path(place)
    return path.is_file() and "parameters" in load_yaml(path)


def _run_config(rest: Sequence[str], named: bool) -> Config:
    return run_config(rest) if named else build(Config, DEMO, parse_words(rest))


def _print_plan(space: Space, plan: SearchPlan) -> None:
    def line(one: Parameter) -> str:
        when = "".join(f", when {name} in {list(values)}" for name, values in one.when)
        other = f", otherwise {one.otherwise[0]}" if one.otherwise else ""
        return f"#   {one.name}: {one.sampler.kind} {list(one.sampler.values)}{when}{other}"

    early = f"early stopping from epoch {plan.grace} on" if plan.grace else "no early stopping"
    lines = [f"# {space.title}", *map(line, space.parameters)]
    lines += [f"#   {constraint.text}" for constraint in space.constraints]
    lines += [f"# {plan.how}, {plan.trials} settings x {plan.seeds} seed(s) x {plan.epochs} epochs, {early}"]
    lines += [f"# objectives: {', '.join(plan.objectives)}", "# --- what all trials share"]
    print("\n".join(lines))
    sys.stdout.write(dump_yaml(build(Config, plan.base)))
