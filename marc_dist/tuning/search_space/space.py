"""A search space: YAML over config keys, checked against the schema before anything starts. See ``docs/tuning.md``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from marc_dist.config import Config, ConfigError, build, find_preset, flatten, load_yaml
from marc_dist.config.load import schema_keys
from marc_dist.config.suggest import suggestion
from marc_dist.run.folder import HARMLESS
from marc_dist.tuning.search_space.constraints import Constraint, parse_constraint
from marc_dist.tuning.search_space.samplers import MAX_GRID, Sampler, Value, parse_sampler

Point = dict[str, Value]
"""A setting: every parameter and switch that is active there, by name."""
How = Literal["tpe", "random", "grid"]
HOW: tuple[How, ...] = ("tpe", "random", "grid")
MAX_EVERY = 256  # points of a space of lists up to which a search knows when it has tried them all
PARTS = ("title", "search", "early_stopping", "objectives", "switches", "parameters", "first", "constraints")
OWN = {
    "train.run_dir": "every trial has a folder of its own",
    "train.seed": "use --seeds, which repeats every setting",
    "train.epochs": "all trials have the same budget; use --epochs",
    "train.max_steps": "all trials have the same budget; use --epochs",
    "train.validate_every": "all trials are scored alike; give it as a word",
    "data.dir": "all trials use the same data; give it as a word",
    "data.train_split": "all trials use the same data; give it as a word",
    "data.validation_share": "all trials are scored on the same samples; give it as a word",
    "data.validation_seed": "all trials are scored on the same samples; give it as a word",
}


@dataclass(frozen=True)
class Parameter:
    """One thing that varies.

    Attributes:
        name: a config key, or a switch, which conditions look at and the run never sees.
        sampler: its values.
        when: (name, values): active where each of these has one of its values.
        otherwise: (value,) that the key has where it is not active; () leaves it to the run file.
        switch: whether it is one.
    """

    name: str
    sampler: Sampler
    when: tuple[tuple[str, tuple[Value, ...]], ...] = ()
    otherwise: tuple[Value, ...] = ()
    switch: bool = False


@dataclass(frozen=True)
class Space:
    """A checked space.

    Attributes:
        name: of its file.
        title: one line.
        how: the search that suits it.
        early_stopping: whether trials may be stopped early by default.
        objectives: metrics to be made as high as possible; the first decides about early stopping and the best.
        parameters: in the file's order, switches first; a condition looks at earlier ones only.
        first: points to try first; what they leave out has the run file's value.
        constraints: that every point keeps.
        source: the file's content, for the record.
    """

    name: str
    title: str
    how: How
    early_stopping: bool
    objectives: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    first: tuple[Point, ...]
    constraints: tuple[Constraint, ...]
    source: dict[str, Any]

    def __getitem__(self, name: str) -> Parameter:
        return next(parameter for parameter in self.parameters if parameter.name == name)

    def is_active(self, parameter: Parameter, point: Mapping[str, Value], base: Mapping[str, Any]) -> bool:
        """Whether a parameter counts, given the earlier ones.

        Args:
            parameter: of this space.
            point: values of at least the earlier parameters that are active.
            base: the flat run configuration.
        """
        before = self.parameters[: self.parameters.index(parameter)]
        seen = {**base, **{one.name: None for one in self.parameters if one.switch}}
        seen |= {one.name: one.otherwise[0] for one in before if one.otherwise}
        seen |= {one.name: point[one.name] for one in before if one.name in point}
        return all(
            any(seen.get(name) == value and isinstance(seen[name], bool) == isinstance(value, bool) for value in values)
            for name, values in parameter.when
        )

    def settings(self, point: Mapping[str, Value]) -> dict[str, Any]:
        """What a point sets in the run's configuration, by key: what the point lacks is inactive there."""
        out: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.switch:
                continue
            if parameter.name in point:
                out[parameter.name] = point[parameter.name]
            elif parameter.otherwise:
                out[parameter.name] = parameter.otherwise[0]
        return out

    def config(self, point: Mapping[str, Value], base: Mapping[str, Any], *layers: Mapping[str, Any]) -> Config:
        """The run configuration of a point.

        Args:
            point: every active parameter's value.
            base: the flat run configuration.
            layers: dotted keys that are stronger than the point, the last one strongest.

        Raises:
            ConfigError: values that the schema refuses together, or a constraint that the point breaks.
        """
        config = build(Config, base, self.settings(point), *layers)
        values = {**flatten(config), **point}
        for constraint in self.constraints:
            if not constraint.holds(values):
                raise ConfigError(f"breaks the constraint {constraint.text}")
        return config

    def fits(self, point: Mapping[str, Value], base: Mapping[str, Any]) -> bool:
        """Whether schema and constraints allow a point."""
        try:
            self.config(point, base)
        except ConfigError:
            return False
        return True

    def grid(self, base: Mapping[str, Any]) -> list[Point]:
        """Every point of the product of all lists, in the file's order, once each, that keeps the constraints.

        Raises:
            ConfigError: a parameter without a list, too many points, or one that the schema refuses.
        """
        lists = [one.sampler.listed(f"{self.name}: {one.name}") for one in self.parameters]
        total = math.prod(map(len, lists))
        if total > MAX_GRID:
            raise ConfigError(f"{self.name}: expected a grid of at most {MAX_GRID} points, got {total}; shorten lists")
        points = [point for point in self._product(lists, base) if self._keeps_constraints(point, base)]
        for point in points:
            self.config(point, base)
        return points

    def every_point(self, base: Mapping[str, Any]) -> list[Point] | None:
        """All points that there are to try, the first ones first; None where there are many, or numbers vary freely."""
        try:
            lists = [one.sampler.listed(one.name) for one in self.parameters]
        except ConfigError:
            return None
        if math.prod(map(len, lists)) > MAX_EVERY:
            return None
        points = self.first_points(base)
        points += [point for point in self._product(lists, base) if point not in points]
        return [point for point in points if self.fits(point, base)]

    def _keeps_constraints(self, point: Point, base: Mapping[str, Any]) -> bool:
        values = {**base, **self.settings(point), **point}
        return all(constraint.holds(values) for constraint in self.constraints)

    def _product(self, lists: Sequence[tuple[Value, ...]], base: Mapping[str, Any]) -> list[Point]:
        """Every point of the product of ``lists``, without what is inactive there, in order, once each."""
        points: list[Point] = []
        for values in itertools.product(*lists):
            point: Point = {}
            for parameter, value in zip(self.parameters, values, strict=True):
                if self.is_active(parameter, point, base):
                    point[parameter.name] = value
            if point not in points:
                points.append(point)
        return points

    def first_points(self, base: Mapping[str, Any]) -> list[Point]:
        """``first``, completed from the run configuration; a switch that is not given has its first value."""
        points: list[Point] = []
        for given in self.first:
            point: Point = {}
            for parameter in self.parameters:
                if self.is_active(parameter, point, base):
                    usual = parameter.sampler.values[0] if parameter.switch else base[parameter.name]
                    point[parameter.name] = given.get(parameter.name, usual)
            if point not in points:
                try:
                    self.config(point, base)
                except ConfigError as error:
                    told = " ".join(f"{name}={value}" for name, value in point.items())
                    raise ConfigError(f"{self.name}: first: {told}: {error}; change it, or the run file") from None
                points.append(point)
        return points


def load_space(name: str) -> Space:
    """The space that a bare name (``macl``) or a file means.

    Raises:
        ConfigError: no such space, or a fault in it; names file, key, what was expected, and what to do.
    """
    path = find_preset("tune_spaces", name)
    place = name if path.stem == name else str(path)
    return parse_space(load_yaml(path), path.stem, place)


def parse_space(source: Mapping[str, Any], name: str, place: str) -> Space:
    """A space from the content of its file.

    Args:
        source: what YAML gave.
        name: of the space.
        place: put before every message, for people who look for the file.

    Raises:
        ConfigError: see ``load_space``.
    """
    for part in source:
        if part not in PARTS:
            raise ConfigError(f"{place}: {part}: unknown part{suggestion(part, PARTS)}; there are {', '.join(PARTS)}")
    how = source.get("search", "tpe")
    if how not in HOW:
        raise ConfigError(f"{place}: search: expected {', '.join(HOW)}, got {how!r}{suggestion(str(how), HOW)}")
    parameters = (*_parameters(source, "switches", place), *_parameters(source, "parameters", place))
    if not any(not one.switch for one in parameters):
        raise ConfigError(
            f"{place}: parameters: expected at least one, for example loss.tau: {{loguniform: [0.03, 1]}}"
        )
    _check_order(parameters, place)
    early = source.get("early_stopping", how != "grid")
    if not isinstance(early, bool):
        raise ConfigError(f"{place}: early_stopping: expected true or false, got {early!r}")
    names = [one.name for one in parameters]
    return Space(
        name=name,
        title=str(source.get("title", name)),
        how=how,
        early_stopping=early,
        objectives=_objectives(source.get("objectives", ["mAP"]), place),
        parameters=parameters,
        first=tuple(_first(source.get("first", [{}] if how != "grid" else []), parameters, place)),
        constraints=tuple(_constraints(source.get("constraints", []), names, place)),
        source=dict(source),
    )


def _parameters(source: Mapping[str, Any], part: str, place: str) -> Iterator[Parameter]:
    entries = source.get(part, {})
    if not isinstance(entries, dict):
        raise ConfigError(f"{place}: {part}: expected a mapping of names, got {entries!r}")
    flat: dict[Any, Any] = {}
    for key, value in entries.items():  # nested sections are welcome, as in run files
        nested = part == "parameters" and key in Config.model_fields and isinstance(value, dict)
        flat |= {f"{key}.{leaf}": one for leaf, one in value.items()} if nested else {key: value}
    for key, entry in flat.items():
        here = f"{place}: {key}"
        if part == "switches":
            if "." in str(key):
                raise ConfigError(f"{here}: a switch has no dot in its name; settings belong to parameters")
        else:
            _check_key(key, here)
        sampler = parse_sampler(entry, here, ("when", "otherwise"))
        otherwise = (entry["otherwise"],) if "otherwise" in entry else ()
        when = tuple(_when(entry.get("when", {}), here))
        if otherwise and not when:
            raise ConfigError(f"{here}: otherwise: expected beside when only; what would it be otherwise of?")
        if part == "parameters":
            for value in (*sampler.values, *otherwise):
                _check_value(key, value, place)
            if sampler.kind in ("uniform", "loguniform"):
                _check_value(key, sampler.inside, place, "; between whole numbers use int or logint")
        yield Parameter(key, sampler, when, otherwise, part == "switches")


def _check_key(key: Any, here: str) -> None:
    known = schema_keys(Config)
    if key not in known:
        raise ConfigError(f"{here}: unknown key{suggestion(str(key), known)}")
    if key in OWN:
        raise ConfigError(f"{here}: cannot vary: {OWN[key]}")
    if key in HARMLESS or key.startswith("eval."):
        raise ConfigError(f"{here}: cannot vary: it does not change what a run computes")


def _check_value(key: str, value: Value, place: str, remedy: str = "") -> None:
    """Refuse what the key's own field refuses; what settings say together is seen when a point is made."""
    try:
        build(Config, {key: value})
    except ConfigError as error:
        if str(error).startswith(f"{key}:"):
            raise ConfigError(f"{place}: {error}{remedy}") from None


def _when(entry: Any, here: str) -> Iterator[tuple[str, tuple[Value, ...]]]:
    if not isinstance(entry, dict):
        raise ConfigError(f"{here}: when: expected {{name: value or [values]}}, got {entry!r}")
    for name, values in entry.items():
        yield name, tuple(values) if isinstance(values, list) else (values,)


def _check_order(parameters: tuple[Parameter, ...], place: str) -> None:
    """Conditions look at earlier parameters, or at settings that do not vary."""
    names = [one.name for one in parameters]
    known = schema_keys(Config)
    for at, one in enumerate(parameters):
        if names.count(one.name) > 1:
            raise ConfigError(f"{place}: {one.name}: appears twice")
        for name, values in one.when:
            if name not in names and name not in known:
                raise ConfigError(f"{place}: {one.name}: when: unknown name {name}{suggestion(name, names + known)}")
            if name in names[at:]:
                raise ConfigError(f"{place}: {one.name}: when: {name} must come before it")
            if name in names:
                for value in values:
                    sampler = parameters[names.index(name)].sampler
                    if not sampler.contains(value):
                        raise ConfigError(f"{place}: {one.name}: when: {name} is never {value!r}")


def _objectives(entry: Any, place: str) -> tuple[str, ...]:
    if not isinstance(entry, list) or not entry or not all(isinstance(name, str) for name in entry):
        raise ConfigError(f"{place}: objectives: expected a list of metrics such as [mAP, rare_mAP], got {entry!r}")
    if len(set(entry)) < len(entry):
        raise ConfigError(f"{place}: objectives: a metric appears twice in {entry!r}")
    return tuple(entry)


def _first(entry: Any, parameters: tuple[Parameter, ...], place: str) -> Iterator[Point]:
    if not isinstance(entry, list) or not all(isinstance(point, dict) for point in entry):
        raise ConfigError(f"{place}: first: expected a list of points, [{{}}] for the run file's values, got {entry!r}")
    by_name = {one.name: one for one in parameters}
    for point in entry:
        for name, value in point.items():
            if name not in by_name:
                raise ConfigError(f"{place}: first: {name} does not vary{suggestion(name, by_name)}")
            if not by_name[name].sampler.contains(value):
                sampler = by_name[name].sampler
                raise ConfigError(f"{place}: first: {name}={value!r} is not in {sampler.kind} {list(sampler.values)}")
        yield dict(point)


def _constraints(entry: Any, names: list[str], place: str) -> Iterator[Constraint]:
    if not isinstance(entry, list):
        raise ConfigError(f"{place}: constraints: expected a list such as [loss.alpha + loss.beta <= 2], got {entry!r}")
    for text in entry:
        yield parse_constraint(text, [*names, *schema_keys(Config)], f"{place}: constraints")
