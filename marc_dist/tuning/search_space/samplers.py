"""The closed table of samplers: what a parameter of a space may be, checked, and in Optuna's terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from marc_dist.config import ConfigError
from marc_dist.config.suggest import suggestion

Value = bool | int | float | str | None
MAX_GRID = 10_000  # points of a grid, and whole numbers of a range that a grid goes through


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _range(values: Any, place: str, what: str) -> tuple[Value, ...]:
    """Two finite numbers, the lower first."""
    if not isinstance(values, list) or len(values) != 2 or not all(map(_is_number, values)):
        raise ConfigError(f"{place}: {what}: expected [low, high], two numbers, got {values!r}")
    low, high = values
    if not low < high:
        raise ConfigError(f"{place}: {what}: empty range [{low}, {high}]; expected low < high")
    return low, high


def _uniform(values: Any, place: str) -> tuple[Value, ...]:
    return _range(values, place, "uniform")


def _positive(values: tuple[Value, ...], place: str, what: str) -> tuple[Value, ...]:
    low, high = values
    assert isinstance(low, int | float)
    if low <= 0:
        raise ConfigError(
            f"{place}: {what}: a logarithmic range cannot contain 0, got [{low}, {high}]; start it above 0, or use "
            f"{what.removeprefix('log')}"
        )
    return values


def _loguniform(values: Any, place: str) -> tuple[Value, ...]:
    return _positive(_range(values, place, "loguniform"), place, "loguniform")


def _int(values: Any, place: str, what: str = "int") -> tuple[Value, ...]:
    low, high = _range(values, place, what)
    if not (isinstance(low, int) and isinstance(high, int)):
        raise ConfigError(f"{place}: {what}: expected whole numbers, got [{low}, {high}]")
    return low, high


def _logint(values: Any, place: str) -> tuple[Value, ...]:
    return _positive(_int(values, place, "logint"), place, "logint")


def _choice(values: Any, place: str, what: str = "choice") -> tuple[Value, ...]:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{place}: {what}: expected a list of values, got {values!r}")
    for value in values:
        if not isinstance(value, Value):
            raise ConfigError(f"{place}: {what}: expected numbers, words, true, false or null, got {value!r}")
    if any(one == other and type(one) is type(other) for at, one in enumerate(values) for other in values[:at]):
        raise ConfigError(f"{place}: {what}: a value appears twice in {values!r}")
    return tuple(values)


def _grid(values: Any, place: str) -> tuple[Value, ...]:
    return _choice(values, place, "grid")


def _fixed(values: Any, place: str) -> tuple[Value, ...]:
    return _choice([values], place, "fixed")


SAMPLERS: dict[str, Callable[[Any, str], tuple[Value, ...]]] = {
    "uniform": _uniform,
    "loguniform": _loguniform,
    "int": _int,
    "logint": _logint,
    "choice": _choice,
    "grid": _grid,
    "fixed": _fixed,
}
"""Name -> check of its values. uniform, loguniform: real numbers; int, logint: whole ones, ends included; choice, grid:
one of a list; fixed: always this."""
LISTED = ("choice", "grid", "fixed")


@dataclass(frozen=True)
class Sampler:
    """One entry of the table with its values.

    Attributes:
        kind: a key of ``SAMPLERS``.
        values: (low, high), or the list.
    """

    kind: str
    values: tuple[Value, ...]

    def contains(self, value: Value) -> bool:
        """Whether it could give this value."""
        if self.kind in LISTED:
            return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in self.values)
        low, high = self.values
        whole = self.kind.endswith("int")
        assert isinstance(low, int | float) and isinstance(high, int | float)
        if not isinstance(value, int | float) or isinstance(value, bool) or (whole and value != int(value)):
            return False
        return low <= value <= high

    def listed(self, place: str) -> tuple[Value, ...]:
        """Every value, for a grid.

        Raises:
            ConfigError: a range of real numbers has no list.
        """
        if self.kind in LISTED:
            return self.values
        low, high = self.values
        if self.kind.endswith("int") and int(str(high)) - int(str(low)) < MAX_GRID:
            return tuple(range(int(str(low)), int(str(high)) + 1))
        raise ConfigError(
            f"{place}: a grid search needs a list, got {self.kind} {list(self.values)}; "
            "write {grid: [...]}, or search with tpe or random"
        )

    @property
    def numeric(self) -> bool:
        """Whether its values are numbers, so that a curve over them makes sense."""
        return all(map(_is_number, self.values))

    @property
    def inside(self) -> float:
        """A number of a range that is neither an end nor, in all likelihood, whole."""
        low, high = (float(str(end)) for end in self.values)
        return low + (high - low) * 0.381966

    @property
    def logarithmic(self) -> bool:
        """Whether its axis should be."""
        return self.kind.startswith("log")

    def distribution(self) -> Any:
        """The same in Optuna's terms."""
        import optuna.distributions as d

        if self.kind in LISTED:
            return d.CategoricalDistribution(self.values)
        make = d.IntDistribution if self.kind.endswith("int") else d.FloatDistribution
        return make(*self.values, log=self.logarithmic)


def parse_sampler(entry: Any, place: str, others: Sequence[str]) -> Sampler:
    """The sampler of ``{loguniform: [0.03, 0.5], when: ...}``.

    Args:
        entry: of the YAML file.
        place: file and key, for messages.
        others: keys beside the sampler that are known.

    Raises:
        ConfigError: none or several samplers, an unknown one, or values that it cannot have.
    """
    if not isinstance(entry, dict):
        raise ConfigError(f"{place}: expected {{sampler: values}}, for example {{uniform: [0, 1]}}, got {entry!r}")
    names = [name for name in entry if name not in others]
    for name in names:
        if name not in SAMPLERS:
            known = [*SAMPLERS, *others]
            raise ConfigError(
                f"{place}: no sampler named {name!r}{suggestion(str(name), known)}; there are {', '.join(SAMPLERS)}"
            )
    if len(names) != 1:
        raise ConfigError(f"{place}: expected one sampler of {', '.join(SAMPLERS)}, got {', '.join(names) or 'none'}")
    return Sampler(names[0], SAMPLERS[names[0]](entry[names[0]], place))
