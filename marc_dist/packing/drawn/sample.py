"""The built-in benchmark as pictures: a tile as a sensor sees it, a download of tiles, a sheet to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from marc_dist.packing.drawn.scenes import DRAW, SCENES
from marc_dist.packing.drawn.tile import PALETTE, SIZE, SUPER, Tile


def _sensor(t: Tile) -> Image.Image:
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
    tile = Tile(rng)
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
