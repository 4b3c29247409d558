"""Which images a search looks at, by where and when they were taken: areas, a span of dates, scenes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from marc_dist.config import ConfigError, DataError
from marc_dist.config.suggest import suggestion
from marc_dist.data.columns import Codes, distinct
from marc_dist.data.dataset import Dataset
from marc_dist.geography.acquisition import milliseconds, parse_date
from marc_dist.geography.areas import Area
from marc_dist.geography.places import Places

Int = NDArray[np.int64]
DAY_MS = 86_400_000


@dataclass(frozen=True)
class PlaceFilter:
    """A question about place and time; what is left out lets every image pass.

    Attributes:
        areas: an image passes if its footprint shares at least a point with each of them.
        since: first millisecond from 1970, UTC; None = any.
        until: the millisecond after the last; None = any.
        scenes: an image passes if its scene is one of them; none: any.
        spans: the dates, as they were written.
    """

    areas: tuple[Area, ...] = ()
    since: int | None = None
    until: int | None = None
    scenes: tuple[str, ...] = ()
    spans: tuple[str, ...] = ()

    @property
    def by_date(self) -> bool:
        """Whether it asks for dates."""
        return self.since is not None or self.until is not None

    @property
    def text(self) -> str:
        """The question for people; empty = everything passes."""
        parts = [area.text for area in self.areas] + list(self.spans)
        shown = self.scenes[:3]
        more = f" or {len(self.scenes) - 3} more" if len(self.scenes) > 3 else ""
        return ", ".join([*parts, *([f"scene {' or '.join(shown)}{more}"] if shown else [])])

    def __bool__(self) -> bool:
        return bool(self.areas or self.by_date or self.scenes)

    def passing(self, dataset: Dataset, places: Places, ids: Int) -> tuple[Int, list[str]]:
        """The images that pass, in their order, and what to tell about those that nobody can judge.

        Args:
            dataset: the archive.
            places: of its index.
            ids: the images to look at.

        Raises:
            DataError: a question about what the archive does not hold of any image.
        """
        told = []
        for wanted, known, what in ((self.areas, places.placed, "place"), (self.by_date, places.dated, "date")):
            if not wanted:
                continue
            num = int((~known[ids]).sum())
            if num == len(ids):
                raise DataError(
                    f"{dataset.root}: no image to be searched has a {what}; pack it from GeoTIFFs, or with a table of "
                    "them (docs/place-and-time.md)"
                )
            told += [f"{num} of {len(ids)} images have no {what}; they do not pass"] if num else []
        if self.scenes:
            ids = ids[_of_scene(dataset, ids, self.scenes)]
        if self.since is not None:
            ids = ids[places.dates[ids] >= self.since]
        if self.until is not None:
            ids = ids[places.dated[ids] & (places.dates[ids] < self.until)]
        for area in self.areas:
            ids = area.within(places, ids)
        return ids, told


EVERYWHERE = PlaceFilter()


def _of_scene(dataset: Dataset, ids: Int, scenes: Sequence[str]) -> NDArray[np.bool_]:
    if isinstance(dataset.scene, Codes):
        codes = [number for number, name in enumerate(dataset.scene.names) if name in scenes]
        return np.isin(dataset.scene.codes[ids], codes)
    return np.isin(dataset.scene[ids].astype(str), list(scenes))


def scenes_of(texts: Sequence[str], dataset: Dataset) -> tuple[str, ...]:
    """The scenes of the archive that ``--scene`` names; ``*`` and ``?`` stand for any text and any letter.

    Raises:
        ConfigError: the archive has no such scene, or no scenes.
    """
    if not texts:
        return ()
    known = [name for name in distinct(dataset.scene) if name]
    if not known:
        raise ConfigError(f"--scene: {dataset.root} knows no scenes; pack it with them (recipe: scene)")
    found: dict[str, None] = {}
    for text in texts:
        fits = [name for name in known if name == text] or [name for name in known if fnmatchcase(name, text)]
        if not fits:
            raise ConfigError(
                f"--scene {text}: the archive has no such scene{suggestion(text, known)}; it has {len(known)}, such as "
                f"{', '.join(known[:3])}"
            )
        found |= dict.fromkeys(fits)
    return tuple(found)


def parse_span(since: str | None, until: str | None) -> tuple[int | None, int | None, tuple[str, ...]]:
    """The span of ``--since`` and ``--until``, both included: from the first millisecond of one to the last of other.

    Args:
        since: a year, a month, a day or a time; None = any.
        until: the same.

    Returns:
        The first millisecond, the one after the last, and the span as it was written.

    Raises:
        ConfigError: no date, or none between them.
    """
    first = None if since is None else _span("--since", since)[0]
    last = None if until is None else _span("--until", until)[1]
    if first is not None and last is not None and first >= last:
        raise ConfigError(f"--since {since} --until {until}: expected the earlier date first")
    words = [f"{word} {text}" for word, text in (("since", since), ("until", until)) if text is not None]
    return first, last, tuple(words)


def _span(option: str, text: str) -> tuple[int, int]:
    """The milliseconds of a year, month, day or second: the first, and the one after the last."""
    part = re.fullmatch(r"(\d{4})(?:-(\d{2}))?", text.strip())
    try:
        if part is not None:
            year, month = int(part[1]), int(part[2] or 1)
            first = datetime(year, month, 1, tzinfo=UTC)
            last = datetime(year + 1, 1, 1, tzinfo=UTC) if part[2] is None else _next_month(first)
            return milliseconds(first.isoformat()), milliseconds(last.isoformat())
        date = parse_date(text)
    except ValueError:
        told = "expected e.g. 2020, 2020-06, 2020-06-30 or 2020-06-30T10:20:30Z"
        raise ConfigError(f"{option} {text}: no date; {told}") from None
    start = milliseconds(date)
    whole_day = "T" not in date and ":" not in text
    return start, start + (DAY_MS if whole_day else 1 if start % 1000 else 1000)


def _next_month(first: datetime) -> datetime:
    return (first + timedelta(days=31)).replace(day=1)
