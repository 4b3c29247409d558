"""What lies in a scene, and how: each function draws one tile of its kind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from marc_dist.packing.drawn.tile import CLASSES, Tile

SCENES = {
    "residential": 0.20, "farmland": 0.16, "forest": 0.14, "industrial": 0.13, "park": 0.13, "river": 0.11,
    "beach": 0.08, "harbor": 0.05,
}  # fmt: skip
"""How often each scene is drawn."""


def _residential(t: Tile) -> None:
    t.grass(np.ones_like(t.mask, dtype=bool))
    if t.rng.random() < 0.4:
        t.soil(t.region(0.12, 30))
    angle = t.rng.uniform(0, np.pi / 2)
    if t.rng.random() < 0.85:
        t.pavement(t.box(*t.place(0.3), 2 * t.n, 11 * t.scale, angle))
    pitch = 25 * t.scale
    for i in range(-3, 4):
        for j in range(-3, 4):
            if t.rng.random() < 0.55:
                u, v = i * pitch + t.rng.uniform(-3, 3), j * pitch * 1.2 + t.rng.uniform(-3, 3)
                x, y = t.n / 2 + u * np.cos(angle) - v * np.sin(angle), t.n / 2 + u * np.sin(angle) + v * np.cos(angle)
                if t.mask[int(np.clip(y, 0, t.n - 1)), int(np.clip(x, 0, t.n - 1))] != CLASSES.index("pavement"):
                    t.building(x, y, t.rng.uniform(11, 17) * t.scale, t.rng.uniform(9, 13) * t.scale, angle)
    if t.rng.random() < 0.75:
        free = (t.mask == CLASSES.index("grass")) & t.region(0.22, 11)
        t.trees(free)
    if t.rng.random() < 0.45:
        t.cars_on_pavement(int(t.rng.integers(2, 6)), angle)
    if t.rng.random() < 0.12:
        t.court(*t.place(0.25), angle)


def _farmland(t: Tile) -> None:
    t.field(np.ones_like(t.mask, dtype=bool))
    for _ in range(int(t.rng.integers(1, 4))):
        t.field(t.side(t.rng.uniform(0.25, 0.6), 0.0))
    if t.rng.random() < 0.35:
        t.soil(t.side(t.rng.uniform(0.15, 0.4), 0.0))
    if t.rng.random() < 0.3:
        t.grass(t.side(0.2, 0.02))
    if t.rng.random() < 0.4:
        t.trees(t.band(9 * t.scale, 2) | t.region(0.05, 20))
    if t.rng.random() < 0.25:
        t.pavement(t.band(6 * t.scale, 0))
    if t.rng.random() < 0.18:
        t.building(*t.place(0.2), 18 * t.scale, 12 * t.scale, t.rng.uniform(0, np.pi))


def _forest(t: Tile) -> None:
    t.trees(np.ones_like(t.mask, dtype=bool))
    if t.rng.random() < 0.5:
        t.grass(t.region(t.rng.uniform(0.1, 0.35), 35))
    if t.rng.random() < 0.25:
        t.soil(t.band(6 * t.scale, 6))
    if t.rng.random() < 0.2:
        t.water(t.region(0.12, 45))
    if t.rng.random() < 0.15:
        t.pavement(t.band(8 * t.scale, 4))


def _industrial(t: Tile) -> None:
    t.pavement(np.ones_like(t.mask, dtype=bool))
    if t.rng.random() < 0.6:
        t.grass(t.side(t.rng.uniform(0.15, 0.35), 0.01))
    if t.rng.random() < 0.3:
        t.soil(t.region(0.2, 40))
    angle = t.rng.uniform(0, np.pi / 2)
    for _ in range(int(t.rng.integers(1, 4))):
        t.building(*t.place(0.15), t.rng.uniform(28, 60) * t.scale, t.rng.uniform(20, 36) * t.scale, angle)
    if t.rng.random() < 0.3:
        t.trees((t.mask == CLASSES.index("grass")) & t.region(0.35, 12))
    if t.rng.random() < 0.65:
        t.cars_on_pavement(int(t.rng.integers(4, 14)), angle)


def _park(t: Tile) -> None:
    t.grass(np.ones_like(t.mask, dtype=bool))
    t.trees(t.region(t.rng.uniform(0.1, 0.45), 18))
    if t.rng.random() < 0.3:
        t.water(t.region(0.15, 45))
    if t.rng.random() < 0.5:
        t.pavement(t.band(5 * t.scale, 9))
    if t.rng.random() < 0.38:
        angle = t.rng.uniform(0, np.pi)
        x, y = t.place(0.3)
        t.court(x, y, angle)
        if t.rng.random() < 0.5:
            t.court(x - 18 * t.scale * np.sin(angle), y + 18 * t.scale * np.cos(angle), angle)
    if t.rng.random() < 0.15:
        t.sand(t.region(0.05, 25))


def _river(t: Tile) -> None:
    cover: Callable[[NDArray[np.bool_]], None] = [t.grass, t.trees, t.field, t.soil][int(t.rng.integers(4))]
    cover(np.ones_like(t.mask, dtype=bool))
    if t.rng.random() < 0.5:
        t.trees(t.region(0.25, 20))
    width = t.rng.uniform(22, 46) * t.scale
    distance = t.ribbon(14)
    if t.rng.random() < 0.3:
        t.sand(distance < width / 2 + 6)
    t.water(distance < width / 2)
    if t.rng.random() < 0.3:
        t.pavement(t.band(8 * t.scale, 0))
        if t.rng.random() < 0.5:
            t.cars_on_pavement(3, t.rng.uniform(0, np.pi))
    if t.rng.random() < 0.07:
        _ships(t, 1)


def _ships(t: Tile, num: int) -> None:
    ys, xs = np.nonzero(t.mask == CLASSES.index("water"))
    for place in t.rng.integers(0, max(len(ys), 1), num if len(ys) > 400 else 0):
        t.ship(float(xs[place]), float(ys[place]), t.rng.uniform(0, 2 * np.pi))


def _beach(t: Tile) -> None:
    t.sand(np.ones_like(t.mask, dtype=bool))
    angle = t.rng.uniform(0, 2 * np.pi)
    field = (t.xx * np.cos(angle) + t.yy * np.sin(angle)) / t.n + 0.06 * t.noise(t.n / 3)
    level = np.quantile(field, t.rng.uniform(0.35, 0.6))
    t.water(field < level)
    t.rgb[np.abs(field - level) < 0.012] = 232  # surf
    if t.rng.random() < 0.5:
        inland = field > np.quantile(field, t.rng.uniform(0.75, 0.9))
        [t.trees, t.grass][int(t.rng.integers(2))](inland)
    if t.rng.random() < 0.2:
        t.building(*t.place(0.2), 14 * t.scale, 10 * t.scale, angle)
    if t.rng.random() < 0.12:
        _ships(t, 1)


def _harbor(t: Tile) -> None:
    t.pavement(np.ones_like(t.mask, dtype=bool))
    angle = t.rng.uniform(0, 2 * np.pi)
    along = (t.xx - t.n / 2) * np.cos(angle) + (t.yy - t.n / 2) * np.sin(angle)
    shore = t.rng.uniform(-0.28, -0.05) * t.n
    t.water(along > shore)
    if t.rng.random() < 0.4:
        t.building(
            t.n / 2 + (shore - 14) * np.cos(angle), t.n / 2 + (shore - 14) * np.sin(angle), 16, 34 * t.scale, angle
        )
    for offset in np.arange(-0.45, 0.46, 0.3) * t.n:
        if t.rng.random() < 0.7:
            x = t.n / 2 + shore * np.cos(angle) - offset * np.sin(angle)
            y = t.n / 2 + shore * np.sin(angle) + offset * np.cos(angle)
            length = t.rng.uniform(0.3, 0.5) * t.n
            t.dock((x, y), angle, length)
            for step in np.arange(0.3, 0.95, 0.33):
                if t.rng.random() < 0.6:
                    side = 8 * t.scale * (1 if t.rng.random() < 0.5 else -1)
                    t.ship(
                        x + step * length * np.cos(angle) - side * np.sin(angle),
                        y + step * length * np.sin(angle) + side * np.cos(angle),
                        angle + (0.0 if t.rng.random() < 0.5 else np.pi),
                    )


DRAW = {
    "residential": _residential, "farmland": _farmland, "forest": _forest, "industrial": _industrial, "park": _park,
    "river": _river, "beach": _beach, "harbor": _harbor,
}  # fmt: skip
