"""A made-up archive of Sentinel-2 tiles whose labels only near infrared tells: real GeoTIFFs, 12 bands of 16 bits.

As a script: ``python -m tests.band_archive FOLDER --num 1000 --side 120``; then
``marc-shard --dataset FOLDER/recipe.yaml --source FOLDER``.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import rasterio
import yaml
from numpy.typing import NDArray

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
RESOLUTION_M = dict(zip(BANDS, (60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 20, 20), strict=True))
LABELS = ("water", "soil", "forest", "crops")
NIR = {"water": 600, "soil": 2200, "forest": 4200}
"""Reflectance times 10,000 in B08; crops are stripes upon it."""


def tile(number: int, side: int, seed: int = 0) -> tuple[NDArray[np.uint16], list[str]]:
    """A tile and its labels: all bands but B08 are clouds of noise of one kind, whatever the labels.

    Args:
        number: of the tile; equal numbers and seeds give equal tiles.
        side: pixels.
        seed: of the archive.
    """
    rng = np.random.default_rng([seed, number])
    coarse = rng.normal(0, 400, (len(BANDS), 4, 4)).repeat(-(-side // 4), 1).repeat(-(-side // 4), 2)
    planes = 1500 + coarse[:, :side, :side] + rng.normal(0, 60, (len(BANDS), side, side))
    ground = ("water", "soil", "forest")[int(rng.integers(3))]
    labels = [ground]
    nir = NIR[ground] + rng.normal(0, 80, (side, side))
    if rng.random() < 0.4:
        labels.append("crops")
        nir += 500 * np.sign(np.sin(np.arange(side) * np.pi / 4 + rng.uniform(0, 6)))[None, :]
    planes[BANDS.index("B08")] = nir
    return planes.clip(1, 65535).astype(np.uint16), labels


def write(
    path: Path,
    planes: NDArray[np.uint16],
    *,
    names: tuple[str, ...] = (),
    number: int = 0,
    pixel_m: float = 10.0,
    nodata: float | None = 0,
) -> None:
    """A GeoTIFF in UTM zone 33 N, with its date, at a place that its number gives.

    Args:
        path: of the new file.
        planes: (C, H, W).
        names: of the bands, written as descriptions.
        number: of the tile.
        pixel_m: metres a pixel.
        nodata: the value that stands for none, or None.
    """
    num, height, width = planes.shape
    east, north = 300_000 + 1200 * (number % 100), 5_300_000 - 1200 * (number // 100)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", count=num, height=height, width=width, dtype=planes.dtype, nodata=nodata,
        crs="EPSG:32633", transform=rasterio.Affine(pixel_m, 0, east, 0, -pixel_m, north), compress="deflate",
    ) as file:  # fmt: skip
        file.write(planes)
        if names:
            file.descriptions = names
        file.update_tags(TIFFTAG_DATETIME=f"2021:{1 + number % 12:02d}:{1 + number % 28:02d} 10:10:31")


def recipe(**more: object) -> dict[str, object]:
    """A recipe for the archive."""
    return {
        "title": "made-up Sentinel-2 tiles",
        "labels": ["table"],
        "tables": ["labels.csv"],
        "separator": " ",
        "classes": [{"name": name} for name in LABELS],
        "bands": list(BANDS),
        "splits": {"shares": {"train": 0.7, "test": 0.3}, "source": "70 / 30 by hash"},
        "policies": {"duplicates": "warn"},
        **more,
    }


def make(folder: Path, num: int, side: int, *, files: str = "one", seed: int = 0) -> Path:
    """Write an archive; the path of its recipe.

    Args:
        folder: a new one.
        num: tiles.
        side: pixels of the bands of 10 m.
        files: ``one`` a picture, or one a ``band``, each with the pixels of its own resolution.
        seed: of the archive.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "labels.csv").open("w", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(["image", "labels"])
        for number in range(num):
            planes, labels = tile(number, side, seed)
            rows.writerow([f"tile_{number:06d}", " ".join(labels)])
            place = folder / f"tiles/tile_{number:06d}"
            if files == "one":
                write(place.with_suffix(".tif"), planes, names=BANDS, number=number)
                continue
            for name, plane in zip(BANDS, planes, strict=True):
                step = RESOLUTION_M[name] // 10
                target = place / f"{place.name}_{name}.tif"
                write(target, plane[None, ::step, ::step], number=number, pixel_m=RESOLUTION_M[name])
    told = recipe(**({} if files == "one" else {"band_files": "_{band}"}))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(told, sort_keys=False))
    return folder / "recipe.yaml"


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("folder", type=Path)
    words.add_argument("--num", type=int, default=1000)
    words.add_argument("--side", type=int, default=120)
    words.add_argument("--files", choices=("one", "band"), default="one")
    given = words.parse_args()
    print(make(given.folder, given.num, given.side, files=given.files))
