"""The built-in benchmark: drawn tiles of land covers with their pixel masks, for demos, tests and first tries.

Not a data set to publish on. Every tile is a function of (seed, number) alone. A scene decides which covers are likely
and how they lie: cars stand on pavement, ships float at docks, so labels co-occur; courts, docks and ships are rare.
Season, light, haze, sensor noise and scale vary from tile to tile, so that mean colour says little.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIZE = 64  # pixels of a tile
SUPER = 2  # drawn larger, then averaged: edges as a sensor sees them
CLASSES = (
    "bare soil", "building", "car", "court", "dock", "field", "grass", "pavement", "sand", "ship", "trees", "water",
)  # fmt: skip
# Colours of the masks' palette; shards/sample.yaml names the same.
PALETTE = (
    (160, 110, 60), (200, 30, 30), (255, 160, 0), (240, 120, 200), (120, 80, 160), (220, 220, 80), (120, 210, 90),
    (130, 130, 130), (240, 220, 170), (255, 255, 255), (20, 110, 40), (40, 90, 220),
)  # fmt: skip
SCENES = {
    "residential": 0.20, "farmland": 0.16, "forest": 0.14, "industrial": 0.13, "park": 0.13, "river": 0.11,
    "beach": 0.08, "harbor": 0.05,
}  # fmt: skip

Array = NDArray[np.float64]


class _Tile:
    """One tile being drawn: float colours and class numbers, both (n, n) at SUPER resolution."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.n = SIZE * SUPER
        self.scale = rng.uniform(0.8, 1.35)  # of objects: ground resolution differs between tiles
        self.rgb: Array = np.zeros((self.n, self.n, 3))
        self.mask = np.zeros((self.n, self.n), dtype=np.uint8)
        self.yy, self.xx = np.mgrid[0 : self.n, 0 : self.n].astype(np.float64)
        self.dry = rng.uniform(0, 1)  # season: 0 lush, 1 parched
        self.sun = rng.uniform(0, 2 * np.pi)

    def noise(self, cell: float) -> Array:
        """Smooth noise of about unit deviation whose features are ``cell`` pixels wide."""
        m = max(2, round(self.n / cell) + 1)
        coarse = Image.fromarray(self.rng.standard_normal((m, m)).astype(np.float32))
        return np.asarray(coarse.resize((self.n, self.n), Image.Resampling.BICUBIC), dtype=np.float64)

    def region(self, share: float, cell: float) -> NDArray[np.bool_]:
        """An irregular region covering about ``share`` of the tile."""
        field = self.noise(cell) + 0.25 * self.noise(cell / 4)
        return field > np.quantile(field, 1 - share)

    def side(self, share: float, wobble: float) -> NDArray[np.bool_]:
        """The part of the tile on one side of a wobbly line of random direction."""
        angle = self.rng.uniform(0, 2 * np.pi)
        field = (self.xx * np.cos(angle) + self.yy * np.sin(angle)) / self.n + wobble * self.noise(self.n / 3)
        return cast(NDArray[np.bool_], field > np.quantile(field, 1 - share))

    def ribbon(self, wobble: float) -> Array:
        """(n, n) distance in pixels to a wobbly line through the tile."""
        angle = self.rng.uniform(0, np.pi)
        across = (self.xx - self.n / 2) * np.cos(angle) + (self.yy - self.n / 2) * np.sin(angle)
        distance: Array = np.abs(across + self.rng.uniform(-0.2, 0.2) * self.n + wobble * self.noise(self.n / 2.5))
        return distance

    def band(self, width: float, wobble: float) -> NDArray[np.bool_]:
        """A wobbly ribbon ``width`` pixels wide through the tile."""
        return self.ribbon(wobble) < width / 2

    def box(self, cx: float, cy: float, w: float, h: float, angle: float) -> NDArray[np.bool_]:
        """A rotated rectangle."""
        u = (self.xx - cx) * np.cos(angle) + (self.yy - cy) * np.sin(angle)
        v = (self.yy - cy) * np.cos(angle) - (self.xx - cx) * np.sin(angle)
        return cast(NDArray[np.bool_], (np.abs(u) < w / 2) & (np.abs(v) < h / 2))

    def paint(self, where: NDArray[np.bool_], name: str, colour: Array) -> None:
        """Give a region its class and its colours, (n, n, 3) or (3,)."""
        self.mask[where] = CLASSES.index(name)
        self.rgb[where] = np.broadcast_to(colour, self.rgb.shape)[where]

    def shade(self, where: NDArray[np.bool_], factor: float) -> None:
        """Darken a region without changing what it is."""
        self.rgb[where] *= factor

    # Land covers: colour and texture

    def grass(self, where: NDArray[np.bool_]) -> None:
        base = np.array([86, 120, 62]) * (1 - self.dry) + np.array([150, 138, 88]) * self.dry
        tone = 1 + 0.10 * self.noise(14) + 0.05 * self.noise(2)
        self.paint(where, "grass", base * tone[..., None])

    def trees(self, where: NDArray[np.bool_]) -> None:
        crown = self.noise(5 * self.scale) + 0.5 * self.noise(2.5)
        light = np.roll(crown, (round(2 * np.sin(self.sun)), round(2 * np.cos(self.sun))), (0, 1))
        base = np.array([46, 78, 42]) * (1 - 0.5 * self.dry) + np.array([92, 84, 50]) * 0.5 * self.dry
        self.paint(where, "trees", base * (1 + 0.28 * np.clip(crown - light, -1.5, 1.5) + 0.15 * crown)[..., None])

    def soil(self, where: NDArray[np.bool_]) -> None:
        base = np.array([150, 122, 92]) * self.rng.uniform(0.8, 1.15)
        self.paint(where, "bare soil", base * (1 + 0.10 * self.noise(9) + 0.06 * self.noise(2))[..., None])

    def sand(self, where: NDArray[np.bool_]) -> None:
        base = np.array([208, 190, 150]) * self.rng.uniform(0.9, 1.1)
        self.paint(where, "sand", base * (1 + 0.04 * self.noise(20) + 0.025 * self.noise(2))[..., None])

    def water(self, where: NDArray[np.bool_]) -> None:
        deep, murky = np.array([38, 66, 92]), np.array([84, 96, 74])
        mix = self.rng.uniform(0, 1)
        ripple = np.sin((self.xx * np.cos(self.sun) + self.yy * np.sin(self.sun)) / self.rng.uniform(1.5, 3))
        tone = 1 + 0.05 * self.noise(30) + 0.03 * ripple
        self.paint(where, "water", (deep * (1 - mix) + murky * mix) * tone[..., None])

    def pavement(self, where: NDArray[np.bool_]) -> None:
        base = np.full(3, self.rng.uniform(105, 165)) + self.rng.uniform(-6, 6, 3)
        self.paint(where, "pavement", base * (1 + 0.04 * self.noise(12) + 0.03 * self.noise(2))[..., None])

    def field(self, where: NDArray[np.bool_]) -> None:
        crops = np.array([[112, 140, 70], [170, 158, 92], [134, 112, 78], [82, 116, 58], [188, 176, 120]])
        base = crops[self.rng.integers(len(crops))] * self.rng.uniform(0.85, 1.1)
        angle, pitch = self.rng.uniform(0, np.pi), self.rng.uniform(4.0, 9.0)
        rows = np.sin((self.xx * np.cos(angle) + self.yy * np.sin(angle)) * 2 * np.pi / pitch + 0.6 * self.noise(25))
        self.paint(where, "field", base * (1 + 0.13 * rows + 0.05 * self.noise(3))[..., None])

    # Objects

    def building(self, cx: float, cy: float, w: float, h: float, angle: float) -> None:
        roofs = np.array([[150, 74, 58], [176, 110, 84], [120, 122, 128], [214, 212, 206], [92, 84, 80]])
        reach = 2.5 * self.scale * SUPER
        self.shade(self.box(cx + reach * np.cos(self.sun), cy + reach * np.sin(self.sun), w, h, angle), 0.45)
        roof = self.box(cx, cy, w, h, angle)
        base = roofs[self.rng.integers(len(roofs))] * self.rng.uniform(0.85, 1.1)
        across = (self.yy - cy) * np.cos(angle) - (self.xx - cx) * np.sin(angle)
        tone = np.where(across > 0, 1.12, 0.86) + 0.03 * self.noise(2)
        self.paint(roof, "building", base * tone[..., None])

    def car(self, cx: float, cy: float, angle: float) -> None:
        paints = np.array([[220, 220, 224], [40, 42, 48], [168, 36, 36], [50, 80, 150], [190, 190, 60]])
        length, width = 4.6 * self.scale * SUPER / 1.3, 2.3 * self.scale * SUPER / 1.3
        self.shade(self.box(cx + np.cos(self.sun), cy + np.sin(self.sun), length, width, angle), 0.6)
        self.paint(self.box(cx, cy, length, width, angle), "car", paints[self.rng.integers(len(paints))] * 1.0)
        self.shade(self.box(cx, cy, length * 0.3, width * 0.8, angle), 0.55)

    def cars_on_pavement(self, num: int, angle: float) -> None:
        ys, xs = np.nonzero(self.mask == CLASSES.index("pavement"))
        for place in self.rng.integers(0, max(len(ys), 1), num if len(ys) > 150 else 0):
            self.car(float(xs[place]), float(ys[place]), angle + np.pi / 2 * self.rng.integers(0, 2))

    def ship(self, cx: float, cy: float, angle: float) -> None:
        length, width = self.rng.uniform(14, 26) * self.scale, self.rng.uniform(4, 6.5) * self.scale
        u = (self.xx - cx) * np.cos(angle) + (self.yy - cy) * np.sin(angle)
        v = (self.yy - cy) * np.cos(angle) - (self.xx - cx) * np.sin(angle)
        hull = (np.abs(u) < length / 2) & (np.abs(v) < width / 2 * np.clip((length / 2 - u) / (length / 4), 0, 1))
        self.paint(hull, "ship", np.array([226, 226, 222]) * self.rng.uniform(0.75, 1.05))
        cabin = (np.abs(u + length * 0.2) < length * 0.13) & (np.abs(v) < width * 0.28)
        self.rgb[cabin & hull] = self.rng.uniform(50, 140, 3)

    def dock(self, start: tuple[float, float], angle: float, length: float) -> None:
        cx, cy = start[0] + np.cos(angle) * length / 2, start[1] + np.sin(angle) * length / 2
        pier = self.box(cx, cy, length, 5.5 * self.scale, angle) & (self.mask == CLASSES.index("water"))
        self.paint(pier, "dock", np.array([146, 126, 104]) * (1 + 0.05 * self.noise(2))[..., None])

    def court(self, cx: float, cy: float, angle: float) -> None:
        w, h = 26 * self.scale, 15 * self.scale
        ground = np.array([[70, 112, 92], [150, 84, 66], [62, 92, 138]])[self.rng.integers(3)]
        self.paint(self.box(cx, cy, w, h, angle), "court", ground * (1 + 0.02 * self.noise(3))[..., None])
        lines = self.box(cx, cy, w * 0.82, h * 0.74, angle) & ~self.box(cx, cy, w * 0.82 - 2.4, h * 0.74 - 2.4, angle)
        self.rgb[lines | self.box(cx, cy, 1.3, h * 0.74, angle)] = 232

    def place(self, margin: float = 0.12) -> tuple[float, float]:
        x, y = self.rng.uniform(margin * self.n, (1 - margin) * self.n, 2)
        return float(x), float(y)


def _residential(t: _Tile) -> None:
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


def _farmland(t: _Tile) -> None:
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


def _forest(t: _Tile) -> None:
    t.trees(np.ones_like(t.mask, dtype=bool))
    if t.rng.random() < 0.5:
        t.grass(t.region(t.rng.uniform(0.1, 0.35), 35))
    if t.rng.random() < 0.25:
        t.soil(t.band(6 * t.scale, 6))
    if t.rng.random() < 0.2:
        t.water(t.region(0.12, 45))
    if t.rng.random() < 0.15:
        t.pavement(t.band(8 * t.scale, 4))


def _industrial(t: _Tile) -> None:
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


def _park(t: _Tile) -> None:
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


def _river(t: _Tile) -> None:
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


def _ships(t: _Tile, num: int) -> None:
    ys, xs = np.nonzero(t.mask == CLASSES.index("water"))
    for place in t.rng.integers(0, max(len(ys), 1), num if len(ys) > 400 else 0):
        t.ship(float(xs[place]), float(ys[place]), t.rng.uniform(0, 2 * np.pi))


def _beach(t: _Tile) -> None:
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


def _harbor(t: _Tile) -> None:
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


def _sensor(t: _Tile) -> Image.Image:
    """Light, colour cast, haze and noise, then the sensor's resolution."""
    rgb = t.rgb * t.rng.uniform(0.62, 1.28) * t.rng.uniform(0.86, 1.14, 3)
    if t.rng.random() < 0.3:  # a cloud's shadow
        rgb = rgb * np.where(t.region(t.rng.uniform(0.1, 0.4), 60), 0.62, 1.0)[..., None]
    haze = t.rng.uniform(0, 0.35)
    rgb = rgb * (1 - haze) + np.array([196, 202, 210]) * haze
    small = rgb.reshape(SIZE, SUPER, SIZE, SUPER, 3).mean(axis=(1, 3))
    small = small + t.rng.normal(0, t.rng.uniform(1, 6), small.shape)
    return Image.fromarray(np.clip(np.round(small), 0, 255).astype(np.uint8))


def draw_tile(seed: int, number: int) -> tuple[str, Image.Image, Image.Image]:
    """One tile.

    Args:
        seed: of the whole set.
        number: of the tile.

    Returns:
        Its scene, its picture (RGB) and its mask (palette image, index = place in ``CLASSES``).
    """
    rng = np.random.Generator(np.random.PCG64([seed, number]))
    scene = list(SCENES)[int(np.searchsorted(np.cumsum(list(SCENES.values())), rng.random(), side="right"))]
    tile = _Tile(rng)
    DRAW[scene](tile)
    mask = Image.fromarray(np.ascontiguousarray(tile.mask[::SUPER, ::SUPER])).convert("P")
    mask.putpalette([value for colour in PALETTE for value in colour])
    return scene, _sensor(tile), mask


def write_sample(folder: Path, *, num: int = 600, seed: int = 0) -> None:
    """Write the benchmark as a download would lie: ``Images/SCENE/NAME.png`` and ``Masks/SCENE/NAME.png``.

    Args:
        folder: made when missing.
        num: tiles.
        seed: other seeds draw other tiles.
    """
    for number in range(num):
        scene, picture, mask = draw_tile(seed, number)
        for kind, image in (("Images", picture), ("Masks", mask)):
            place = folder / kind / scene
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{scene}{number:04d}.png")


def contact_sheet(num: int = 60, seed: int = 0, zoom: int = 2) -> Image.Image:
    """The first tiles beside one another, ten in a row, to look at.

    Args:
        num: tiles.
        seed: of the set, see ``write_sample``.
        zoom: pixels of the sheet for one pixel of a tile, along each side.
    """
    columns = 10
    sheet = Image.new("RGB", (columns * (SIZE * zoom + 4), -(-num // columns) * (SIZE * zoom + 4)), "white")
    drawer = ImageDraw.Draw(sheet)
    for number in range(num):
        scene, picture, _ = draw_tile(seed, number)
        x, y = (number % columns) * (SIZE * zoom + 4), (number // columns) * (SIZE * zoom + 4)
        sheet.paste(picture.resize((SIZE * zoom, SIZE * zoom), Image.Resampling.NEAREST), (x, y))
        drawer.text((x + 2, y + 2), scene[:4], fill="white")
    return sheet
