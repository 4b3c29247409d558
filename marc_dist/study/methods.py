"""The losses of a study as rows of its tables: with what ``like``, ``sweep`` and ``tune.fixed_from`` make of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from marc_dist.config import ConfigError
from marc_dist.config.suggest import suggestion
from marc_dist.study.study_file import RESERVED, Settings, StudyFile, leaves, settings_of

MAX_SWEEP = 1000


@dataclass(frozen=True)
class Method:
    """One row of the tables, one folder below a data set and an encoder.

    Attributes:
        name: of the folder.
        title: in tables.
        loss: entry of the study file that it comes from.
        settings: dotted keys, what the entry says.
        sweep: the point of its sweep; empty for none. Stronger than what was tuned.
        tuned_by: entry whose search gives further settings; None = nothing is tuned.
        tuned_on: data set of that search; None = the one that the method is trained on.
    """

    name: str
    title: str
    loss: str
    settings: Settings
    sweep: Settings
    tuned_by: str | None = None
    tuned_on: str | None = None


def methods(study: StudyFile, place: str) -> list[Method]:
    """All rows, in the order of the file; what is fixed from a data set follows its loss.

    Args:
        study: as read.
        place: of the file, for messages.

    Raises:
        ConfigError: ``like`` of no loss or in a circle, a sweep that is none, losses with unequal budgets.
    """
    found: list[Method] = []
    for loss, entry in study.losses.items():
        first = Method(loss, str(entry.get("title", loss)), loss, _settings(study, loss, place, ()), {})
        root = _root(study, loss, place)
        if study.tune is not None:
            first = replace(first, tuned_by=root)
        parts = list(_swept(first, entry.get("sweep"), f"{place}losses.{loss}.sweep"))
        for one in parts:
            found.append(one)
            if study.tune is not None and study.tune.fixed_from is not None:
                source = study.tune.fixed_from
                name, title = f"{one.name}@{source}", f"{one.title}, settings of {source}"
                found.append(replace(one, name=name, title=title, tuned_on=source))
    if study.tune is not None:
        _check_tune(study, place)
    return found


def tuned_losses(study: StudyFile) -> list[str]:
    """Entries that have a search of their own: all but those that take another one's settings."""
    return [] if study.tune is None else [loss for loss, entry in study.losses.items() if "like" not in entry]


def space_source(study: StudyFile, loss: str) -> dict[str, Any]:
    """What varies for a loss, as the content of a file of ``tune_spaces/``."""
    assert study.tune is not None
    varies: dict[str, Any] = {}
    for part in (study.tune.all, study.tune.losses.get(loss, {})):
        varies |= dict(_parameters(part, ""))
    tune = study.tune
    first: list[dict[str, Any]] = [] if tune.search == "grid" else [{}]
    return {
        "title": f"{loss} in a study",
        "search": tune.search,
        "early_stopping": False,  # every trial in full: equal budgets
        "objectives": [tune.metric],
        "parameters": varies,
        "first": first,
    }


def _parameters(part: Settings, prefix: str) -> Iterator[tuple[str, Any]]:
    """``{loss: {tau: {uniform: ...}}}`` -> ``loss.tau``, ``{uniform: ...}``."""
    for section, values in part.items():
        if isinstance(values, dict) and not prefix:
            yield from _parameters(values, f"{section}.")
        else:
            yield f"{prefix}{section}", values


def _check_tune(study: StudyFile, place: str) -> None:
    assert study.tune is not None
    for loss in study.tune.losses:
        if loss not in study.losses:
            raise ConfigError(
                f"{place}tune.losses: unknown loss {loss}{suggestion(loss, study.losses)}; there are "
                f"{', '.join(study.losses)}"
            )
        if "like" in study.losses[loss]:
            raise ConfigError(
                f"{place}tune.losses.{loss}: has the settings of {study.losses[loss]['like']}; leave like or this out"
            )
    source = study.tune.fixed_from
    if source is not None and source not in study.datasets:
        raise ConfigError(
            f"{place}tune.fixed_from: unknown data set {source}{suggestion(source, study.datasets)}; there are "
            f"{', '.join(study.datasets)}"
        )
    if source is not None and len(study.datasets) < 2:
        raise ConfigError(f"{place}tune.fixed_from={source}: there is no other data set to use these settings on")
    for loss in tuned_losses(study):
        if not study.tune.all and loss not in study.tune.losses:
            raise ConfigError(
                f"{place}tune.losses: nothing varies for {loss}, while other losses have {study.tune.trials} trials; "
                f"give tune.losses.{loss}, or tune.all for every loss"
            )


def _root(study: StudyFile, loss: str, place: str) -> str:
    while "like" in study.losses[loss]:
        loss = str(study.losses[loss]["like"])
    return loss


def _settings(study: StudyFile, loss: str, place: str, below: tuple[str, ...]) -> Settings:
    entry = study.losses[loss]
    own = leaves(settings_of(entry, RESERVED["losses"]))
    like = entry.get("like")
    if like is None:
        if "loss.name" not in own:
            raise ConfigError(f"{place}losses.{loss}: expected loss.name, as macl, or like, another loss of the file")
        return own
    if like not in study.losses:
        raise ConfigError(
            f"{place}losses.{loss}.like: unknown loss {like}{suggestion(str(like), study.losses)}; there are "
            f"{', '.join(study.losses)}"
        )
    if like in (loss, *below):
        raise ConfigError(f"{place}losses.{loss}.like: {' is like '.join((*below, loss, like))}, a circle")
    return {**_settings(study, like, place, (*below, loss)), **own}


def _swept(first: Method, sweep: Any, place: str) -> Iterator[Method]:
    if sweep is None:
        yield first
        return
    points = leaves(sweep) if isinstance(sweep, dict) else {}
    if not points or not all(isinstance(values, list) and values for values in points.values()):
        raise ConfigError(f"{place}: expected key: [values], for example loss.tau: [0.05, 0.1, 0.2], got {sweep!r:.80}")
    combined = list(itertools.product(*points.values()))
    names: set[str] = set()
    if len(combined) > MAX_SWEEP or len(set(map(str, combined))) < len(combined):
        raise ConfigError(f"{place}: expected up to {MAX_SWEEP} different points, got {len(combined)}")
    for values in combined:
        point = dict(zip(points, values, strict=True))
        told = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in point.items())
        plain = re.sub(r"[^A-Za-z0-9_,.=-]", "-", told)
        if plain in names:
            raise ConfigError(
                f"{place}: {told}: another point of it has the same folder, {plain}; change one of the two"
            )
        names.add(plain)
        yield replace(first, name=f"{first.name},{plain}", title=f"{first.title}, {told}", sweep=point)
