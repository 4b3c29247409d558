"""Pictures that are too large to be found as a whole, and their masks, cut into tiles before anything else is read.

A tile lies in a folder that says where it was cut: ``2_Ortho_RGB/x.tif`` -> ``2_Ortho_RGB/y00512_x01024/x.png``. So
names keep their endings, and a picture's tile and its mask's tile lie in parallel trees.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from marc_dist.config import DataError
from marc_dist.data.decode import KINDS, MAX_PIXELS
from marc_dist.packing.reading.archive_kinds import is_archive
from marc_dist.packing.reading.discover import (
    PICTURES,
    File,
    is_mask_by_place,
    is_picture,
    kept_folders,
    pair_key,
    walk,
)
from marc_dist.packing.reading.masks import jpeg_mask
from marc_dist.packing.reading.recipes import Recipe
from marc_dist.packing.worker_pool import PoolTask, work
from marc_dist.progress_bar import Show, quiet

MODES = {"1": 1, "L": 1, "P": 1, "RGB": 3, "RGBA": 4}  # bytes a pixel


def starts(length: int, tile: int) -> list[int]:
    """Where tiles begin along a side: every pixel is in one, all are whole, so the last two may overlap.

    Args:
        length: of the side, pixels.
        tile: side of a tile, pixels.
    """
    return [*range(0, max(length - tile, 0), tile), max(length - tile, 0)]


def cut_tiles(recipe: Recipe, roots: Sequence[Path], folder: Path, workers: int, show: Show = quiet) -> list[Path]:
    """The same download with its pictures and masks cut; other files are linked to.

    Args:
        recipe: whose ``tile`` is set; a picture that is smaller stays whole.
        roots: folders, searched to any depth.
        folder: an empty one, for the tiles.
        workers: processes.
        show: tells how far it is.

    Returns:
        A folder for each root.

    Raises:
        DataError: a picture that cannot be cut, a mask that is not as large as its picture or saved as JPEG, or no room
            for the tiles.
    """
    tile, found, jobs, cut = recipe.tile or 0, [], [], dict[File, _Head]()
    for number, root in enumerate(roots):
        new = folder / str(number)
        new.mkdir()
        found.append(new)
        for file in walk([root], kept_folders(recipe)):
            picture = file.parts[-1].endswith(PICTURES)
            if picture and (head := _head(file, recipe)):
                cut[file] = head
                jobs.append((file.path, new / file.place))
            elif not is_archive(file.parts[-1]):
                (new / file.place).parent.mkdir(parents=True, exist_ok=True)
                (new / file.place).symlink_to(file.path.absolute())
    _same_sizes(recipe, cut)
    need, free = sum(head.num_bytes for head in cut.values()), shutil.disk_usage(folder).free
    if need > free:
        raise DataError(f"{folder}: tiles may need {need / 1e6:.1f} MB, the disk has {free / 1e6:.1f} MB free")
    tasks: Iterator[PoolTask] = ((_cut, (str(path), str(place), tile)) for path, place in jobs)
    done = 0
    with show("cutting tiles", len(jobs), "pictures and masks") as tell:

        def finished(job: PoolTask, result: None) -> list[PoolTask]:
            nonlocal done
            done += 1
            tell(done, 0)
            return []

        work(tasks, finished, workers)
    return found


class _Head(NamedTuple):
    """What a picture's file says of it: pixels, and bytes of all of them."""

    width: int
    height: int
    num_bytes: int


def _head(file: File, recipe: Recipe) -> _Head | None:
    """Of a picture or a mask; None if it cannot be cut, as a model of heights, or refused if the recipe needs it."""
    path, needed = file.path, is_picture(file, recipe)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=KINDS) as image:
                width, height, mode, kind = image.width, image.height, image.mode, image.format
    except Exception as error:  # whatever comes up in Pillow's decoders
        raise DataError(f"{path}: cannot be read ({error or type(error).__name__}); fetch it again") from None
    if kind == "JPEG" and is_mask_by_place(file, recipe):
        raise jpeg_mask(path)
    if (mode not in MODES or width * height > MAX_PIXELS) and not needed:
        return None
    if mode not in MODES or width * height > MAX_PIXELS:
        raise DataError(
            f"{path}: {width}x{height} pixels of mode {mode}; expected at most {MAX_PIXELS} pixels, 8 bits, in 1, 3 or "
            "4 bands; cut it yourself (gdal_retile.py) and leave `tile` out of the recipe"
        )
    return _Head(width, height, width * height * MODES[mode])


def _same_sizes(recipe: Recipe, cut: Mapping[File, _Head]) -> None:
    """Refuse a mask that is not as large as its picture: their tiles would be of different places."""
    told = bool(recipe.masks.folders or recipe.masks.suffix)  # else the masks' content tells them, once they are tiles
    masks = [file for file in cut if (is_mask_by_place(file, recipe) if told else not is_picture(file, recipe))]
    of_key = {pair_key(recipe, file, recipe.masks.suffix): file for file in masks}
    for file, head in cut.items():
        mask = of_key.get(pair_key(recipe, file, recipe.pictures.suffix))
        if mask is not None and is_picture(file, recipe) and cut[mask][:2] != head[:2]:
            raise DataError(
                f"{mask.path}: a mask of {cut[mask].width}x{cut[mask].height} pixels, but {file.origin} has "
                f"{head.width}x{head.height}; expected the mask of the same pixels; fetch both again"
            )


def _cut(path: str, place: str, tile: int) -> None:
    """Cut one picture; masks keep their palette and values."""
    target = PurePosixPath(place)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=KINDS) as image:
                image.load()
                if Path(path).suffix.lower() in (".tif", ".tiff"):  # the tiles' place stands in its tags
                    os.makedirs(target.parent, exist_ok=True)  # noqa: PTH103 - a helper gets texts
                    Path(f"{target.parent}/.{target.stem}.source").write_text(str(Path(path).absolute()), "utf-8")
                for top in starts(image.height, tile):
                    for left in starts(image.width, tile):
                        part = image.crop((left, top, min(left + tile, image.width), min(top + tile, image.height)))
                        folder = f"{target.parent}/y{top:05d}_x{left:05d}"
                        os.makedirs(folder, exist_ok=True)  # noqa: PTH103 - a helper gets texts
                        part.save(f"{folder}/{target.stem}.png", "PNG")
    except Exception as error:  # as in decode_rgb: whatever comes up in Pillow's decoders
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{path}: damaged picture ({error or type(error).__name__}); fetch it again") from None
