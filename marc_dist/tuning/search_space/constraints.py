"""Linear constraints between numbers of a point: ``loss.alpha + 2 * loss.beta <= 3``. A small grammar, no eval."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from marc_dist.config import ConfigError
from marc_dist.config.suggest import suggestion

SENSES: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt
}  # fmt: skip
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_TERM = re.compile(rf"\s*([+-]?)\s*(?:({_NUMBER})\s*\*\s*)?(?:({_NUMBER})|([A-Za-z_][\w.]*))")


@dataclass(frozen=True)
class Constraint:
    """``sum of factor * name + constant SENSE 0``.

    Attributes:
        terms: (factor, name); the name is empty for a constant.
        sense: a key of ``SENSES``.
        text: as written.
    """

    terms: tuple[tuple[float, str], ...]
    sense: str
    text: str

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether it does, where every name has a number; a name without one (null, a word) makes it hold."""
        total = 0.0
        for factor, name in self.terms:
            value = values.get(name) if name else 1.0
            if not isinstance(value, int | float):
                return True
            total += factor * value
        return SENSES[self.sense](total, 0.0)


def _side(text: str, known: list[str], place: str) -> list[tuple[float, str]]:
    terms: list[tuple[float, str]] = []
    at = 0
    while at < len(text.rstrip()):
        match = _TERM.match(text, at)
        if match is None or (terms and not match[1]):
            raise ConfigError(f"{place}: {text.strip()!r}: expected terms such as loss.alpha + 2 * loss.beta")
        sign, factor, number, name = match.groups()
        size = float(factor or 1.0) * float(number or 1.0) * (-1.0 if sign == "-" else 1.0)
        if name is not None and name not in known:
            raise ConfigError(f"{place}: unknown name {name}{suggestion(name, known)}")
        terms.append((size, name or ""))
        at = match.end()
    if not terms:
        raise ConfigError(f"{place}: expected terms on both sides of the sign")
    return terms


def parse_constraint(text: Any, known: Iterable[str], place: str) -> Constraint:
    """A constraint as written in a space.

    Args:
        text: as YAML gave it; anything but a text is refused.
        known: names that it may use.
        place: file and part, put before every message.

    Raises:
        ConfigError: not of the form ``terms <= terms``, or a name that does not exist.
    """
    pieces = re.split(r"(<=|>=|<|>)", text) if isinstance(text, str) else []
    if len(pieces) != 3:
        raise ConfigError(f"{place}: expected one comparison such as loss.alpha + loss.beta <= 2, got {text!r}")
    names = list(known)
    left, right = _side(pieces[0], names, place), _side(pieces[2], names, place)
    return Constraint((*left, *((-factor, name) for factor, name in right)), pieces[1], text.strip())
