"""A map of where the answers of a query were taken: drawn from plain numbers, no network, no scripts.

Longitudes run straight across and latitudes straight up, with the scales of the middle latitude. A map shows the
answers with some room; a small map of the world shows which part of it that is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from marc_dist.geography.coast import HUNDREDTHS
from marc_dist.geography.grid import middle
from marc_dist.geography.places import Places
from marc_dist.retrieval.archive import Answers

WIDTH, HEIGHT = 860, 420
"""Of a map, in its own pixels."""
LEAST_DEGREES = 1.0
"""Height that a map shows at least: coasts at 1:110m say nothing of less."""
ROOM = 0.18
"""Part of the answers' extent that is left free at each side."""
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60)
NUMBERED = 150
"""Answers of a query that get a number on its map; others get a dot."""
SMALL = 6.0
"""Pixels below which a footprint is not drawn, only its mark."""
Float = NDArray[np.float64]


@dataclass(frozen=True)
class Mark:
    """An answer on a map: its rank, where its mark stands in pixels, its outline, what is told of it."""

    rank: int
    x: float
    y: float
    outline: str
    told: str
    numbered: bool


@dataclass(frozen=True)
class AnswerMap:
    """A map of one query's answers.

    Attributes:
        view: x, y, width and height of what is shown, in the units of ``land_path``.
        copies: shifts of the land that are drawn, in those units: more than one over the date line.
        marks: the answers with a place, the best last, so that it lies on top.
        meridians: x in pixels and name of each.
        parallels: y in pixels and name of each.
        world: the view on the map of the world, pieces of x, y, width, height; none where it is the world.
        missing: answers without a place.
        told: one line of what is shown.
    """

    view: tuple[float, float, float, float]
    copies: tuple[int, ...]
    marks: tuple[Mark, ...]
    meridians: tuple[tuple[float, str], ...]
    parallels: tuple[tuple[float, str], ...]
    world: tuple[tuple[float, float, float, float], ...] = field(default=())
    missing: int = 0
    told: str = ""


def answer_map(answers: Answers, places: Places, keys: Sequence[str], most: int) -> AnswerMap | None:
    """The map of a query's answers; None where none of them has a place.

    Args:
        answers: of the query.
        places: of the archive.
        keys: of the answers, in their order.
        most: so many of them are on the page.
    """
    hits = answers.hits[:most]
    rows = np.array([hit.id for hit in hits], dtype=np.int64)
    placed = np.flatnonzero(places.placed[rows]) if len(rows) else rows
    if not len(placed):
        return None
    centres = np.array([middle(places.wkb[int(rows[at])].as_py()) for at in placed])
    west = _start(centres[:, 0])
    lons = west + (centres[:, 0] - west) % 360
    shapes = places.shapes(rows[placed])
    left, top, wide, high = _extent(lons, centres[:, 1], shapes)
    scale_x, scale_y = WIDTH / wide, HEIGHT / high
    marks = []
    for at, lon, lat, shape in zip(placed.tolist(), lons.tolist(), centres[:, 1].tolist(), shapes, strict=True):
        date = places.date(int(rows[at]))
        told = f"{at + 1}. {keys[at]}, {hits[at].score:.4f}{f', {date}' if date else ''}, {_degrees(lon, lat)}"
        outline = _outline(shape, lon, left, top, scale_x, scale_y)
        x, y = (lon - left) * scale_x, (top - lat) * scale_y
        marks.append(Mark(at + 1, round(x, 1), round(y, 1), outline, told, at < NUMBERED))
    missing = len(hits) - len(placed)
    told = f"{len(placed)} of {len(hits)} answers have a place" if missing else f"{len(placed)} answers"
    return AnswerMap(
        (left * HUNDREDTHS, -top * HUNDREDTHS, wide * HUNDREDTHS, high * HUNDREDTHS),
        tuple(
            360 * HUNDREDTHS * turn
            for turn in (-1, 0, 1, 2)
            if left < 180 + 360 * turn and left + wide > 360 * turn - 180
        ),
        tuple(reversed(marks)),
        _lines(left, left + wide, scale_x, left, "EW"),
        _lines(top - high, top, -scale_y, top, "NS"),
        _on_world(left, top, wide, high),
        missing,
        told,
    )


def _start(lons: Float) -> float:
    """The western end of the shortest arc that holds all longitudes."""
    around = np.unique(lons % 360)
    gaps = np.diff(np.append(around, around[0] + 360))
    start = float(around[(int(gaps.argmax()) + 1) % len(around)])
    return start - 360 if start >= 180 else start


def _extent(lons: Float, lats: Float, shapes: NDArray[Any]) -> tuple[float, float, float, float]:
    """West, north, width and height in degrees of a map of the given proportions, at most the world."""
    bounds = shapely.bounds(shapes)
    plain = bounds[:, 2] - bounds[:, 0] < 180  # not in parts at the date line
    half_x = float(np.where(plain, bounds[:, 2] - bounds[:, 0], 0).max()) / 2
    south = max(min(float(lats.min()), float(bounds[:, 1].min())), -90.0)
    north = min(max(float(lats.max()), float(bounds[:, 3].max())), 90.0)
    squeeze = max(math.cos(math.radians((south + north) / 2)), 0.2)
    across = (float(lons.max() - lons.min()) + 2 * half_x) * (1 + 2 * ROOM)
    high = max((north - south) * (1 + 2 * ROOM), LEAST_DEGREES, across * squeeze * HEIGHT / WIDTH)
    wide = high * WIDTH / HEIGHT / squeeze
    if wide >= 360 or high >= 180:
        return -180.0 if lons.max() <= 180 else float((lons.min() + lons.max()) / 2 - 180), 90.0, 360.0, 180.0
    top = min(max((south + north) / 2 + high / 2, high - 90.0), 90.0)
    return float((lons.min() + lons.max()) / 2 - wide / 2), top, wide, high


def _outline(shape: Any, lon: float, left: float, top: float, scale_x: float, scale_y: float) -> str:
    """A footprint as data of an SVG path, near to its mark; empty where it is too small to be seen, or a point."""
    if shape.geom_type == "Point":
        return ""
    west, south, east, north = shape.bounds
    if (north - south) * scale_y < SMALL:
        return ""
    pieces = []
    for ring in shapely.get_rings(shapely.get_parts(shape)):
        points = shapely.get_coordinates(ring)
        shift = 360 * np.rint((lon - points[:, 0].mean()) / 360)
        x, y = (points[:, 0] + shift - left) * scale_x, (top - points[:, 1]) * scale_y
        corners = " ".join(f"{a:.1f} {b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))
        pieces.append(f"M{corners}z")
    return "".join(pieces)


def _lines(low: float, high: float, scale: float, origin: float, letters: str) -> tuple[tuple[float, str], ...]:
    """Where meridians or parallels lie in pixels, and their names: four to eight of them."""
    step = next((step for step in STEPS if (high - low) / step <= 8), STEPS[-1])
    values = np.arange(math.ceil(low / step) * step, high + step * 1e-6, step)
    return tuple((round((value - origin) * scale, 1), _name(float(value), letters)) for value in values.tolist())


def _name(value: float, letters: str) -> str:
    value = (value + 180) % 360 - 180 if letters == "EW" else value
    text = f"{abs(value):.1f}".removesuffix(".0")
    return f"{text}°" if text in ("0", "180") else f"{text}°{letters[0] if value > 0 else letters[1]}"


def _degrees(lon: float, lat: float) -> str:
    lon = (lon + 180) % 360 - 180
    return f"{abs(lat):.3f}°{'N' if lat >= 0 else 'S'} {abs(lon):.3f}°{'E' if lon >= 0 else 'W'}"


def _on_world(left: float, top: float, wide: float, high: float) -> tuple[tuple[float, float, float, float], ...]:
    """The view on a map of the world in units of the land; in two pieces over the date line; none if it is large."""
    if wide >= 200:
        return ()
    start = (left + 180) % 360 - 180
    pieces = [(start, min(wide, 180 - start)), (-180.0, start + wide - 180)]
    return tuple((x * HUNDREDTHS, -top * HUNDREDTHS, w * HUNDREDTHS, high * HUNDREDTHS) for x, w in pieces if w > 0)
