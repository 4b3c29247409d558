"""Downloads that say where and when: real GeoTIFFs with CRS and tags, tables beside JPEGs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import Affine

PIXELS, METRES = 32, 10.0


def geotiff(
    path: Path,
    *,
    crs: str | None = "EPSG:32633",
    west: float = 500_000,
    north: float = 5_300_000,
    step: float = METRES,
    colour: tuple[int, int, int] = (90, 120, 60),
    seed: int = 0,
    **tags: str,
) -> Path:
    """An RGB picture of 32 x 32 pixels whose upper left corner lies at ``west``, ``north`` of its CRS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 20, (3, PIXELS, PIXELS))
    pixels = (np.array(colour)[:, None, None] + noise).astype(np.uint8)
    more = {} if crs is None and west == 0 else {"transform": Affine(step, 0, west, 0, -step, north)}
    kinds = {"driver": "GTiff", "width": PIXELS, "height": PIXELS, "count": 3, "dtype": "uint8", "photometric": "RGB"}
    with rasterio.open(path, "w", crs=crs, **kinds, **more) as file:
        file.write(pixels)
        file.update_tags(**tags)
    return path


def jpeg(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (PIXELS, PIXELS, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path, quality=95)
    return path


def table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def recipe(path: Path, text: str = "", **keys: object) -> str:
    """A recipe of pictures in a folder for each class, with more keys as YAML text."""
    lines = {"title": "Earth", "labels": "[folders]", "splits": "{shares: {train: 0.5, test: 0.5}}"}
    lines |= {name: str(value) for name, value in keys.items()}
    path.write_text("".join(f"{name}: {value}\n" for name, value in lines.items()) + text)
    return str(path)


def tiles(root: Path, num: int, *, km: float = 0.32, classes: Sequence[str] = ("sea", "land"), **tags: str) -> None:
    """A square of neighbouring GeoTIFF tiles, ``km`` apart, in a folder for each class."""
    side = int(np.ceil(np.sqrt(num)))
    for at in range(num):
        row, column = divmod(at, side)
        west, north = 500_000 + column * km * 1000, 5_300_000 - row * km * 1000
        told: Mapping[str, str] = {"ACQUISITION_DATE": f"2020-{1 + at % 12:02d}-15", "SCENE_ID": f"S{row}", **tags}
        geotiff(root / classes[at % len(classes)] / f"t{at:03d}.tif", west=west, north=north, seed=at, **told)
