"""The next point to try, a pure function of (space, seed, number, observations): the same on every machine and day.

Nothing is kept between calls: every proposal builds its study from the observations and a sampler whose seed depends on
the number. So a search that was killed goes on as if it had not been, with nothing to restore.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from marc_dist.config import ConfigError
from marc_dist.tuning.search_space.space import How, Point, Space

TRIES = 200
"""Draws until one fits schema and constraints; in a space where hardly any does, that is a mistake to tell."""
DIGITS = 4  # of a suggested number: people read them, and no training tells more apart; more in a narrow range
STARTUP = 10
"""Points at random before the model of TPE says anything."""


class Observation(NamedTuple):
    """What is known of an earlier setting.

    Attributes:
        point: its values.
        state: open: no result that may be used yet; done: trained in full; stopped: early; bad: diverged; failed: for
            reasons that say nothing about the point.
        values: of every objective, of a setting that is done or was stopped.
        curve: epoch -> first objective.
    """

    point: Point
    state: Literal["open", "done", "stopped", "bad", "failed"]
    values: tuple[float, ...] = ()
    curve: Mapping[float, float] = {}


def seed_of(*parts: object) -> int:
    """A seed of 32 bits that depends on the text of ``parts`` alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "little")


def propose(
    space: Space, base: Mapping[str, Any], how: How, seed: int, number: int, observations: Sequence[Observation]
) -> Point:
    """The point of setting ``number``.

    Args:
        space: what varies.
        base: the flat run configuration.
        how: tpe or random; a grid is a list, see ``Space.grid``.
        seed: of the search.
        number: from 0.
        observations: settings 0 to number - 1 in order.

    Raises:
        ConfigError: hardly any point of the space fits its constraints and the schema.
    """
    first = space.first_points(base)
    if number < len(first):
        return first[number]
    known = [one.point for one in observations]
    every = space.every_point(base)
    fallback = None if every is None else next((point for point in every if point not in known), None)
    for attempt in range(TRIES):
        point = _ask(space, base, how, seed_of(seed, number, attempt), observations)
        if not space.fits(point, base):
            continue
        if point not in known:
            return point
        fallback = fallback or point  # a small space: seen before, but allowed
        if attempt > TRIES // 4:
            break
    if fallback is None:
        raise ConfigError(
            f"{space.name}: no point out of {TRIES} fits its constraints and the schema; the last one: "
            f"{_why_not(space, base, point)}; widen the constraints, or narrow the ranges"
        )
    return fallback


def _why_not(space: Space, base: Mapping[str, Any], point: Point) -> str:
    try:
        space.config(point, base)
    except ConfigError as error:
        return str(error)
    return "fits"


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's remarks on experimental options are not for people who search."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _ask(space: Space, base: Mapping[str, Any], how: How, seed: int, observations: Sequence[Observation]) -> Point:
    import optuna

    with _quiet():
        if how == "random":
            sampler: Any = optuna.samplers.RandomSampler(seed=seed)
        else:
            # one parameter at a time, as Optuna and Ray do by default: on a known function with an alpha-beta term it
            # did better than the joint model, and left more to early stopping (benchmarks/tune_search.py)
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=STARTUP, multivariate=False, constant_liar=True
            )
        study = new_study(space, observations if how == "tpe" else (), sampler)
        trial = study.ask()
        point: Point = {}
        for parameter in space.parameters:
            if space.is_active(parameter, point, base):
                point[parameter.name] = _suggest(trial, parameter.name, parameter.sampler.distribution())
        return point


def _suggest(trial: Any, name: str, distribution: Any) -> Any:
    import optuna.distributions as d

    if isinstance(distribution, d.CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, d.IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log)
    value = trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
    return rounded(value, distribution.low, distribution.high)


def rounded(value: float, low: float, high: float) -> float:
    """A number of a range to ``DIGITS`` digits, and as many more as all numbers of the range have in common.

    Args:
        value: the number.
        low: least number of the range.
        high: largest one, above ``low``; the result stays between the two.
    """
    shared = max(0, int(math.log10(max(abs(low), abs(high)) / (high - low))))
    return min(max(float(f"{value:.{DIGITS + shared}g}"), low), high)


def new_study(space: Space, observations: Sequence[Observation], sampler: Any = None) -> Any:
    """An Optuna study in memory that knows the observations.

    A stopped setting counts as pruned at its last epoch, so that TPE compares equal budgets. With several objectives
    Optuna has no such state: it counts with its last values, which are lower than those of a whole training. A
    diverged one counts as the worst so far; a failed one not at all; an open one as Optuna's pending.

    Args:
        space: what varies, and the objectives.
        observations: earlier settings; those whose values the space does not hold are left out.
        sampler: Optuna's, for the next point; None = Optuna's default.
    """
    import optuna
    from optuna.trial import TrialState, create_trial

    several = len(space.objectives) > 1
    study = optuna.create_study(directions=["maximize"] * len(space.objectives), sampler=sampler)
    worst = tuple(min(column) for column in zip(*(one.values for one in observations if one.values), strict=True))
    for one in observations:
        names = [parameter for parameter in space.parameters if parameter.name in one.point]
        if one.state == "failed" or not all(p.sampler.contains(one.point[p.name]) for p in names):
            continue
        values, state = one.values, TrialState.COMPLETE
        if one.state == "bad":
            values = worst or (0.0,) * len(space.objectives)
        elif one.state == "open":
            values, state = (), TrialState.RUNNING
        elif one.state == "stopped" and not several:
            values, state = (), TrialState.PRUNED
        study.add_trial(
            create_trial(
                state=state,
                values=list(values) or None,
                params={p.name: one.point[p.name] for p in names},
                distributions={p.name: p.sampler.distribution() for p in names},
                intermediate_values={} if several else {int(epoch): value for epoch, value in one.curve.items()},
            )
        )
    return study
