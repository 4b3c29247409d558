"""A file that says which labels of different data sets mean the same.

labels:                    # of any data set
  airplane: aircraft
  plane: aircraft          # many names may become one
datasets:
  whdld: {bare soil: soil} # of this data set alone, by its name in dataset.json; goes before labels
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from marc_dist.config import ConfigError, load_yaml, user_path
from marc_dist.config.suggest import suggestion

KEYS = ("labels", "datasets")


def plain_name(name: str) -> str:
    """A class name without case, separators and plural: ``Bare-Soil`` and ``bare soils`` are one."""
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", name).casefold()).removesuffix("s")


@dataclass(frozen=True)
class LabelMap:
    """Names and what they become.

    Attributes:
        place: of the file, for messages.
        labels: of any data set.
        datasets: of one data set, by its name.
    """

    place: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    datasets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def target(self, name: str, dataset: str) -> str | None:
        """What a class of a data set becomes; None where the file does not name it."""
        for table in (self.datasets.get(dataset, {}), self.labels):
            for known, target in table.items():
                if plain_name(known) == plain_name(name):
                    return target
        return None

    def plain(self) -> dict[str, Any]:
        """As JSON has it, without the place; empty for a map of nothing."""
        told = {"labels": dict(self.labels), "datasets": {name: dict(table) for name, table in self.datasets.items()}}
        return {key: value for key, value in told.items() if value}

    def check(self, sides: Iterable[tuple[str, Sequence[str]]]) -> None:
        """Refuse names that none of these data sets has.

        Args:
            sides: name and classes of each.

        Raises:
            ConfigError: the first such name, with the nearest one.
        """
        tables = list(sides)
        every = [name for _, classes in tables for name in classes]
        for name in self.labels:
            self._refuse_unknown(
                "labels",
                name,
                every,
                "none of the data sets has this label; those of one data set alone stand under datasets: NAME",
            )
        for dataset, classes in tables:
            for name in self.datasets.get(dataset, {}):
                self._refuse_unknown(f"datasets.{dataset}", name, list(classes), "the data set has no such label")

    def _refuse_unknown(self, part: str, name: str, known: list[str], why: str) -> None:
        if plain_name(name) not in {plain_name(one) for one in known}:
            more = suggestion(name, known) or f"; there are {', '.join(list(dict.fromkeys(known))[:8])}, ..."
            raise ConfigError(f"{self.place}: {part}.{name}: {why}{more}")


NOTHING = LabelMap()


def read_label_map(path: str) -> LabelMap:
    """The map of a file.

    Raises:
        ConfigError: no such file, or a fault in it: one line.
    """
    values = load_yaml(user_path(path))
    for key in values:
        if key not in KEYS:
            raise ConfigError(f"{path}: {key}: unknown key{suggestion(key, KEYS)}; expected {' and '.join(KEYS)}")
    datasets = values.get("datasets", {})
    if not isinstance(datasets, dict):
        raise ConfigError(f"{path}: datasets: expected a mapping of data sets, got {datasets!r:.80}")
    found = LabelMap(
        path,
        _table(values.get("labels", {}), f"{path}: labels"),
        {str(name): _table(table, f"{path}: datasets.{name}") for name, table in datasets.items()},
    )
    if not found.plain():
        raise ConfigError(f"{path}: maps no label; expected labels: {{from: to}}")
    return found


def map_of(told: Mapping[str, Any] | None) -> LabelMap:
    """The map that ``LabelMap.plain`` has written down."""
    return NOTHING if not told else LabelMap("", told.get("labels", {}), told.get("datasets", {}))


def _table(value: Any, place: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: expected a mapping of labels, got {value!r:.80}")
    seen: dict[str, str] = {}
    for name, target in value.items():
        if not isinstance(name, str) or not isinstance(target, str) or not plain_name(name) or not plain_name(target):
            raise ConfigError(f"{place}: expected names, got {name!r:.40}: {target!r:.40}; put quotes around them")
        if plain_name(name) in seen:
            raise ConfigError(f"{place}: {seen[plain_name(name)]} and {name} are one label; give it once")
        seen[plain_name(name)] = name
    return dict(value)


def groups(classes: Sequence[str], dataset: str, label_map: LabelMap) -> dict[str, tuple[str, list[int]]]:
    """What the classes of a data set mean: plain label -> how it is written, and the places of its classes.

    Classes that the map does not name and that read alike cannot be told apart and join nothing.

    Args:
        classes: names.
        dataset: its name.
        label_map: what they become.
    """
    found: dict[str, tuple[str, list[int]]] = {}
    unnamed: dict[str, int] = {}
    for at, name in enumerate(classes):
        target = label_map.target(name, dataset)
        key = plain_name(name if target is None else target)
        if key:
            written, places = found.get(key, (name if target is None else target, []))
            found[key] = written, [*places, at]
            unnamed[key] = unnamed.get(key, 0) + (target is None)
    return {key: value for key, value in found.items() if unnamed[key] <= 1}
