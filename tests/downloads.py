"""Tiny downloads in the exact layouts of the real ones, written by the tests."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

UCM = (
    "airplane", "bare-soil", "buildings", "cars", "chaparral", "court", "dock", "field", "grass", "mobile-home",
    "pavement", "sand", "sea", "ship", "tanks", "trees", "water",
)  # fmt: skip
DLRSD_COLOURS = (
    (166, 202, 240), (128, 128, 0), (0, 0, 128), (255, 0, 0), (0, 128, 0), (128, 0, 0), (255, 233, 233),
    (160, 160, 164), (0, 128, 128), (90, 87, 255), (255, 255, 0), (255, 192, 0), (0, 0, 255), (255, 0, 192),
    (128, 0, 128), (0, 255, 0), (0, 255, 255),
)  # fmt: skip
WHDLD_COLOURS = {
    "building": (255, 0, 0), "road": (255, 255, 0), "pavement": (192, 192, 0), "vegetation": (0, 255, 0),
    "bare soil": (128, 128, 128), "water": (0, 0, 255),
}  # fmt: skip
OFFICIAL = ("building", "road", "pavement", "vegetation", "bare soil", "water")
ALPHABETICAL = ("bare soil", "building", "pavement", "road", "vegetation", "water")


def picture(seed: int, size: tuple[int, int] = (256, 256)) -> Image.Image:
    """A smooth random RGB picture; equal seeds give equal pixels."""
    rng = np.random.Generator(np.random.PCG64(seed))
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def mask(values: Iterable[int], palette: list[tuple[int, int, int]] | None, size: int = 256) -> Image.Image:
    """Vertical stripes of the values; palette PNG when there is a palette, else single-channel."""
    stripes = list(values)
    rows = np.repeat(np.array(stripes, dtype=np.uint8), -(-size // len(stripes)))[:size]
    image = Image.fromarray(np.tile(rows, (size, 1)))
    if palette is not None:
        image = image.convert("P")
        image.putpalette([channel for colour in palette for channel in colour])
    return image


def whdld_labels(number: int) -> list[str]:
    """What the stripes of picture ``number`` show."""
    return sorted({OFFICIAL[(number + shift) % 6] for shift in range(1 + number % 3)})


def whdld(root: Path, num: int = 12, order: tuple[str, ...] = OFFICIAL, palette: bool = True) -> Path:
    """Images/wh0001.jpg and ImagesPNG/wh0001.png; index values follow ``order``, colours do not."""
    colours = [(0, 0, 0), *(WHDLD_COLOURS[name] for name in order)] if palette else None
    for number in range(1, num + 1):
        save(picture(number), root / "Images" / f"wh{number:04d}.jpg", quality=90)
        stripes = [order.index(name) + 1 for name in whdld_labels(number)]
        save(mask(stripes, colours), root / "ImagesPNG" / f"wh{number:04d}.png")
    (root / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    return root


def table_rows(names: Iterable[str], seed: int = 0) -> dict[str, list[int]]:
    """A row of 17 labels, at least one and at most seven, for each name."""
    rng = np.random.Generator(np.random.PCG64(seed))
    rows = {}
    for name in names:
        chosen = rng.choice(17, size=int(rng.integers(1, 8)), replace=False)
        rows[name] = [int(label in chosen) for label in range(17)]
    return rows


def write_csv(path: Path, header: list[str], rows: dict[str, list[int]], delimiter: str = ",", end: str = "\n") -> Path:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=end)
    writer.writerow(header)
    writer.writerows([name, *row] for name, row in rows.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue().encode())
    return path


def dlrsd_masks(root: Path, folder: str, rows: dict[str, list[int]]) -> None:
    """Palette masks, values 1 to 17 in alphabetical order."""
    for name, row in rows.items():
        stripes = [label + 1 for label, on in enumerate(row) if on]
        image = mask(stripes, [(0, 0, 0), *DLRSD_COLOURS])
        save(image, root / folder / name.rstrip("0123456789") / f"{name}.png")


def dlrsd_names() -> list[str]:
    return [f"{scene}{number:02d}" for scene in ("agricultural", "airplane", "harbor") for number in range(4)]


def dlrsd(root: Path) -> dict[str, list[int]]:
    """Layout A, as in torchgeo's zip: tif pictures, masks in Labels, multilabels.csv; one picture of another size."""
    rows = table_rows(dlrsd_names(), seed=1)
    for seed, name in enumerate(rows):
        size = (253, 256) if name == "airplane01" else (256, 256)
        save(picture(seed, size), root / "DLRSD" / "Images" / name.rstrip("0123456789") / f"{name}.tif")
    dlrsd_masks(root / "DLRSD", "Labels", rows)
    header = ["image", *(name.replace("-", "") for name in UCM)]
    write_csv(root / "DLRSD" / "multilabels.csv", header, rows)
    (root / "DLRSD" / "README.pdf").write_bytes(b"%PDF-1.4")
    save(picture(99, (40, 40)), root / "DLRSD" / "legend.png")
    return rows


def dlrsd_older(root: Path) -> dict[str, list[int]]:
    """Layout B: the folder Images holds the MASKS; pictures are UC Merced's, in a download of their own."""
    rows = table_rows(dlrsd_names(), seed=1)
    dlrsd_masks(root / "DLRSD", "Images", rows)
    for seed, name in enumerate(rows):
        scene = name.rstrip("0123456789")
        save(picture(seed), root / "UCMerced_LandUse" / "Images" / scene / f"{name}.tif")
    (root / "UCMerced_LandUse" / "readme.txt").write_text("UC Merced Land Use Dataset\n")
    return rows


def ml_aid_names() -> dict[str, list[str]]:
    """Split -> names; numbers 81 to 100 are test, except Park, which uses 101 to 200 with 181 to 200 for test."""
    return {
        "train": ["bareland_1", "bareland_80", "forest_2", "forest_10", "park_101", "park_180"],
        "test": ["bareland_81", "bareland_100", "forest_81", "park_181", "park_200"],
    }


def ml_aid(root: Path, kind: str = "csv") -> dict[str, list[int]]:
    """images_tr/<Scene>/<scene>_<n>.jpg, images_test/..., and the table as csv or mat; forest_2 without a label."""
    scenes = {"bareland": "BareLand", "forest": "Forest", "park": "Park"}
    names = ml_aid_names()
    rows = table_rows([name for split in names.values() for name in split], seed=2)
    rows["forest_2"] = [0] * 17
    seed = 0
    for split, folder in (("train", "images_tr"), ("test", "images_test")):
        for name in names[split]:
            seed += 1
            save(picture(seed, (600, 600)), root / folder / scenes[name.split("_")[0]] / f"{name}.jpg", quality=85)
    if kind == "csv":
        write_csv(root / "multilabel.csv", ["IMAGE\\LABEL", *UCM], rows)
    else:
        import scipy.io

        ordered = sorted(rows, key=lambda name: (name.split("_")[0], int(name.split("_")[1])))
        matrix = np.array([rows[name] for name in ordered], dtype=np.uint8).T
        scipy.io.savemat(root / "multilabel.mat", {"labels": matrix})
    return rows
