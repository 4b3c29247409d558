"""Pictures that are too large to be found as a whole, and their masks, cut into tiles before anything else is read.

A tile lies in a folder that says where it was cut: ``2_Ortho_RGB/x.tif`` -> ``2_Ortho_RGB/y00512_x01024/x.png``. So
names keep their endings, and a picture's tile and its mask's tile lie in parallel trees.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from marc_dist.config import DataError
from marc_dist.data.decode import KINDS, MAX_PIXELS
from marc_dist.packing.reading.archive_kinds import is_archive
from marc_dist.packing.reading.discover import PICTURES, is_picture, kept_folders, walk
from marc_dist.packing.reading.recipes import Recipe
from marc_dist.packing.worker_pool import PoolTask, work

MODES = {"1": 1, "L": 1, "P": 1, "RGB": 3, "RGBA": 4}  # bytes a pixel


def starts(length: int, tile: int) -> list[int]:
    """Where tiles begin along a side: every pixel is in one, all are whole, so the last two may overlap.

    Args:
        length: of the side, pixels.
        tile: side of a tile, pixels.
    """
    return [*range(0, max(length - tile, 0), tile), max(length - tile, 0)]


def cut_tiles(recipe: Recipe, roots: Sequence[Path], folder: Path, workers: int) -> list[Path]:
    """The same download with its pictures and masks cut; other files are linked to.

    Args:
        recipe: whose ``tile`` is set; a picture that is smaller stays whole.
        roots: folders, searched to any depth.
        folder: an empty one, for the tiles.
        workers: processes.

    Returns:
        A folder for each root.

    Raises:
        DataError: a picture that cannot be cut, or no room for the tiles.
    """
    tile, found, jobs, need = recipe.tile or 0, [], [], 0
    for number, root in enumerate(roots):
        new = folder / str(number)
        new.mkdir()
        found.append(new)
        for file in walk([root], kept_folders(recipe)):
            picture = file.parts[-1].endswith(PICTURES)
            if picture and (size := _bytes(file.path, needed=is_picture(file, recipe))):
                need += size
                jobs.append((file.path, new / file.place))
            elif not is_archive(file.parts[-1]):
                (new / file.place).parent.mkdir(parents=True, exist_ok=True)
                (new / file.place).symlink_to(file.path.absolute())
    free = shutil.disk_usage(folder).free
    if need > free:
        raise DataError(f"{folder}: tiles may need {need / 1e6:.1f} MB, the disk has {free / 1e6:.1f} MB free")
    tasks: Iterator[PoolTask] = ((_cut, (str(path), str(place), tile)) for path, place in jobs)
    work(tasks, lambda job, result: [], workers)
    return found


def _bytes(path: Path, *, needed: bool) -> int:
    """Bytes of a picture's pixels; 0 if it cannot be cut, as a model of heights, or refused if the recipe needs it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=KINDS) as image:
                width, height, mode = image.width, image.height, image.mode
    except Exception as error:  # whatever comes up in Pillow's decoders
        raise DataError(f"{path}: cannot be read ({error or type(error).__name__}); fetch it again") from None
    if (mode not in MODES or width * height > MAX_PIXELS) and not needed:
        return 0
    if mode not in MODES or width * height > MAX_PIXELS:
        raise DataError(
            f"{path}: {width}x{height} pixels of mode {mode}; expected at most {MAX_PIXELS} pixels, 8 bits, in 1, 3 or "
            "4 bands; cut it yourself (gdal_retile.py) and leave `tile` out of the recipe"
        )
    return width * height * MODES[mode]


def _cut(path: str, place: str, tile: int) -> None:
    """Cut one picture; masks keep their palette and values."""
    target = PurePosixPath(place)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=KINDS) as image:
                image.load()
                for top in starts(image.height, tile):
                    for left in starts(image.width, tile):
                        part = image.crop((left, top, min(left + tile, image.width), min(top + tile, image.height)))
                        folder = f"{target.parent}/y{top:05d}_x{left:05d}"
                        os.makedirs(folder, exist_ok=True)  # noqa: PTH103 - a helper gets texts
                        part.save(f"{folder}/{target.stem}.png", "PNG")
    except OSError as error:
        if error.errno is not None:
            raise
        raise DataError(f"{path}: damaged picture ({error}); fetch it again") from None
