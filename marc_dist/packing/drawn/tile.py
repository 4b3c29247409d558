"""A drawn tile: regions, land covers with their colours and textures, and the objects that stand on them."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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

Array = NDArray[np.float64]


class Tile:
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
        """A rotated rectangle.

        Args:
            cx: place of its centre.
            cy: place of its centre.
            w: its width.
            h: its depth.
            angle: by which it is turned, radians.
        """
        u = (self.xx - cx) * np.cos(angle) + (self.yy - cy) * np.sin(angle)
        v = (self.yy - cy) * np.cos(angle) - (self.xx - cx) * np.sin(angle)
        return cast(NDArray[np.bool_], (np.abs(u) < w / 2) & (np.abs(v) < h / 2))

    def paint(self, where: NDArray[np.bool_], name: str, colour: Array) -> None:
        """Give a region its class and its colours.

        Args:
            where: (n, n) the region.
            name: of the class.
            colour: (n, n, 3) or (3,).
        """
        self.mask[where] = CLASSES.index(name)
        self.rgb[where] = np.broadcast_to(colour, self.rgb.shape)[where]

    def shade(self, where: NDArray[np.bool_], factor: float) -> None:
        """Darken a region without changing what it is."""
        self.rgb[where] *= factor

    # Land covers: colour and texture

    def grass(self, where: NDArray[np.bool_]) -> None:
        """Cover a region with grass, greener or drier by season."""
        base = np.array([86, 120, 62]) * (1 - self.dry) + np.array([150, 138, 88]) * self.dry
        tone = 1 + 0.10 * self.noise(14) + 0.05 * self.noise(2)
        self.paint(where, "grass", base * tone[..., None])

    def trees(self, where: NDArray[np.bool_]) -> None:
        """Cover a region with crowns, lit from where the sun stands."""
        crown = self.noise(5 * self.scale) + 0.5 * self.noise(2.5)
        light = np.roll(crown, (round(2 * np.sin(self.sun)), round(2 * np.cos(self.sun))), (0, 1))
        base = np.array([46, 78, 42]) * (1 - 0.5 * self.dry) + np.array([92, 84, 50]) * 0.5 * self.dry
        self.paint(where, "trees", base * (1 + 0.28 * np.clip(crown - light, -1.5, 1.5) + 0.15 * crown)[..., None])

    def soil(self, where: NDArray[np.bool_]) -> None:
        """Cover a region with bare soil."""
        base = np.array([150, 122, 92]) * self.rng.uniform(0.8, 1.15)
        self.paint(where, "bare soil", base * (1 + 0.10 * self.noise(9) + 0.06 * self.noise(2))[..., None])

    def sand(self, where: NDArray[np.bool_]) -> None:
        """Cover a region with sand."""
        base = np.array([208, 190, 150]) * self.rng.uniform(0.9, 1.1)
        self.paint(where, "sand", base * (1 + 0.04 * self.noise(20) + 0.025 * self.noise(2))[..., None])

    def water(self, where: NDArray[np.bool_]) -> None:
        """Cover a region with water, deep or murky, with ripples."""
        deep, murky = np.array([38, 66, 92]), np.array([84, 96, 74])
        mix = self.rng.uniform(0, 1)
        ripple = np.sin((self.xx * np.cos(self.sun) + self.yy * np.sin(self.sun)) / self.rng.uniform(1.5, 3))
        tone = 1 + 0.05 * self.noise(30) + 0.03 * ripple
        self.paint(where, "water", (deep * (1 - mix) + murky * mix) * tone[..., None])

    def pavement(self, where: NDArray[np.bool_]) -> None:
        """Cover a region with pavement."""
        base = np.full(3, self.rng.uniform(105, 165)) + self.rng.uniform(-6, 6, 3)
        self.paint(where, "pavement", base * (1 + 0.04 * self.noise(12) + 0.03 * self.noise(2))[..., None])

    def field(self, where: NDArray[np.bool_]) -> None:
        """Cover a region with a crop in rows."""
        crops = np.array([[112, 140, 70], [170, 158, 92], [134, 112, 78], [82, 116, 58], [188, 176, 120]])
        base = crops[self.rng.integers(len(crops))] * self.rng.uniform(0.85, 1.1)
        angle, pitch = self.rng.uniform(0, np.pi), self.rng.uniform(4.0, 9.0)
        rows = np.sin((self.xx * np.cos(angle) + self.yy * np.sin(angle)) * 2 * np.pi / pitch + 0.6 * self.noise(25))
        self.paint(where, "field", base * (1 + 0.13 * rows + 0.05 * self.noise(3))[..., None])

    # Objects

    def building(self, cx: float, cy: float, w: float, h: float, angle: float) -> None:
        """Put up a building and its shadow.

        Args:
            cx: place of its centre, as all lengths in pixels at SUPER resolution.
            cy: place of its centre.
            w: its width.
            h: its depth.
            angle: by which it is turned, radians.
        """
        roofs = np.array([[150, 74, 58], [176, 110, 84], [120, 122, 128], [214, 212, 206], [92, 84, 80]])
        reach = 2.5 * self.scale * SUPER
        self.shade(self.box(cx + reach * np.cos(self.sun), cy + reach * np.sin(self.sun), w, h, angle), 0.45)
        roof = self.box(cx, cy, w, h, angle)
        base = roofs[self.rng.integers(len(roofs))] * self.rng.uniform(0.85, 1.1)
        across = (self.yy - cy) * np.cos(angle) - (self.xx - cx) * np.sin(angle)
        tone = np.where(across > 0, 1.12, 0.86) + 0.03 * self.noise(2)
        self.paint(roof, "building", base * tone[..., None])

    def car(self, cx: float, cy: float, angle: float) -> None:
        """Put a car and its shadow somewhere.

        Args:
            cx: place of its centre.
            cy: place of its centre.
            angle: by which it is turned, radians.
        """
        paints = np.array([[220, 220, 224], [40, 42, 48], [168, 36, 36], [50, 80, 150], [190, 190, 60]])
        length, width = 4.6 * self.scale * SUPER / 1.3, 2.3 * self.scale * SUPER / 1.3
        self.shade(self.box(cx + np.cos(self.sun), cy + np.sin(self.sun), length, width, angle), 0.6)
        self.paint(self.box(cx, cy, length, width, angle), "car", paints[self.rng.integers(len(paints))] * 1.0)
        self.shade(self.box(cx, cy, length * 0.3, width * 0.8, angle), 0.55)

    def cars_on_pavement(self, num: int, angle: float) -> None:
        """Put cars on the pavement, if there is enough of it.

        Args:
            num: of cars.
            angle: of half of them, radians; the others stand across.
        """
        ys, xs = np.nonzero(self.mask == CLASSES.index("pavement"))
        for place in self.rng.integers(0, max(len(ys), 1), num if len(ys) > 150 else 0):
            self.car(float(xs[place]), float(ys[place]), angle + np.pi / 2 * self.rng.integers(0, 2))

    def ship(self, cx: float, cy: float, angle: float) -> None:
        """Put a ship somewhere.

        Args:
            cx: place of its centre.
            cy: place of its centre.
            angle: by which it is turned, radians.
        """
        length, width = self.rng.uniform(14, 26) * self.scale, self.rng.uniform(4, 6.5) * self.scale
        u = (self.xx - cx) * np.cos(angle) + (self.yy - cy) * np.sin(angle)
        v = (self.yy - cy) * np.cos(angle) - (self.xx - cx) * np.sin(angle)
        hull = (np.abs(u) < length / 2) & (np.abs(v) < width / 2 * np.clip((length / 2 - u) / (length / 4), 0, 1))
        self.paint(hull, "ship", np.array([226, 226, 222]) * self.rng.uniform(0.75, 1.05))
        cabin = (np.abs(u + length * 0.2) < length * 0.13) & (np.abs(v) < width * 0.28)
        self.rgb[cabin & hull] = self.rng.uniform(50, 140, 3)

    def dock(self, start: tuple[float, float], angle: float, length: float) -> None:
        """Build a pier; only what stands in water is seen.

        Args:
            start: where it begins, x and y.
            angle: in which it goes, radians.
            length: of the pier.
        """
        cx, cy = start[0] + np.cos(angle) * length / 2, start[1] + np.sin(angle) * length / 2
        pier = self.box(cx, cy, length, 5.5 * self.scale, angle) & (self.mask == CLASSES.index("water"))
        self.paint(pier, "dock", np.array([146, 126, 104]) * (1 + 0.05 * self.noise(2))[..., None])

    def court(self, cx: float, cy: float, angle: float) -> None:
        """Lay out a court with its lines.

        Args:
            cx: place of its centre.
            cy: place of its centre.
            angle: by which it is turned, radians.
        """
        w, h = 26 * self.scale, 15 * self.scale
        ground = np.array([[70, 112, 92], [150, 84, 66], [62, 92, 138]])[self.rng.integers(3)]
        self.paint(self.box(cx, cy, w, h, angle), "court", ground * (1 + 0.02 * self.noise(3))[..., None])
        lines = self.box(cx, cy, w * 0.82, h * 0.74, angle) & ~self.box(cx, cy, w * 0.82 - 2.4, h * 0.74 - 2.4, angle)
        self.rgb[lines | self.box(cx, cy, 1.3, h * 0.74, angle)] = 232

    def place(self, margin: float = 0.12) -> tuple[float, float]:
        """A random place, at least a share of the side away from each border."""
        x, y = self.rng.uniform(margin * self.n, (1 - margin) * self.n, 2)
        return float(x), float(y)
