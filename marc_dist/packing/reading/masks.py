"""Pixel masks -> the labels of a picture: by the mask's own palette first, by an index table only without one.

Published masks of one set disagree about index values but agree about colours, hence that order.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from marc_dist.config import DataError
from marc_dist.data.decode import MAX_PIXELS

T = TypeVar("T")
Colour = tuple[int, int, int]
SHOWN = 20  # values that a message lists
FORMATS = ("PNG", "TIFF", "BMP", "GIF")  # what keeps every pixel's value


@dataclass(frozen=True)
class MaskRule:
    """How to read one set's masks.

    Attributes:
        colours: colour -> class number.
        indices: grey value -> class number, for masks without a palette; empty when the set has no single order.
        ignore_colours: colours that mean nothing.
        ignore_indices: grey values that mean nothing.
        min_area_px: pixels from which a class counts as present.
        orders: names of the index orders to choose from when ``indices`` is empty.
        min_share: share of a mask's pixels from which a class counts as present.
    """

    colours: Mapping[Colour, int]
    indices: Mapping[int, int]
    ignore_colours: frozenset[Colour]
    ignore_indices: frozenset[int]
    min_area_px: int
    orders: tuple[str, ...] = ()
    min_share: float = 0.0


def is_mask(path: Path, rule: MaskRule | None = None) -> bool:
    """Whether a PNG holds a mask, told by its content: a palette, or nothing but the colours or values of the classes.

    Args:
        path: the file.
        rule: how this set's masks are read; without it only a palette tells.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("PNG",)) as image:
                if image.mode == "P":
                    return True
                if rule is None or image.mode not in ("L", "RGB") or image.width * image.height > MAX_PIXELS:
                    return False
                colours = len(rule.colours) + len(rule.ignore_colours)
                found = image.getcolors(colours + 1 if image.mode == "RGB" else 256)
    except Exception:  # whatever comes up in Pillow's decoders; told when the file is read in earnest
        return False
    known = {*rule.colours, *rule.ignore_colours} if image.mode == "RGB" else {*rule.indices, *rule.ignore_indices}
    return bool(found) and {colour for _, colour in found or []} <= known


def read_mask(path: Path, rule: MaskRule) -> frozenset[int]:
    """Class numbers present in a mask.

    Raises:
        DataError: damaged, or a colour or value that the rule does not know; names file and value.
    """
    values = mask_values(path)
    least = max(rule.min_area_px, rule.min_share * values.num_pixels)
    if values.colours is None:
        return _by_index(path, values.indices, values.areas, rule, least)
    if values.indices and not rule.colours:
        return _by_index(path, values.indices, values.areas, rule, least)
    ramp = bool(values.indices) and all(c == (i, i, i) for c, i in zip(values.colours, values.indices, strict=True))
    if not ramp or set(values.colours) <= {*rule.colours, *rule.ignore_colours}:
        return _by_colour(path, values.colours, values.areas, rule, least)
    return _by_index(path, values.indices, values.areas, rule, least)  # a grey ramp: written for want of a palette


class MaskValues(NamedTuple):
    """What a mask holds: its values, ascending, and the pixels of each.

    Attributes:
        mode: as Pillow calls it.
        indices: values of a mask of one band; empty for RGB.
        colours: colour of each value, of RGB masks and of those with a palette; else None.
        areas: pixels of each.
        num_pixels: of the whole mask.
    """

    mode: str
    indices: list[int]
    colours: list[Colour] | None
    areas: list[int]
    num_pixels: int


def mask_values(path: Path) -> MaskValues:
    """Every value of a mask.

    Args:
        path: a PNG, TIFF, BMP or GIF file.

    Raises:
        DataError: damaged, too large, or of another kind.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(
                        f"{path}: a mask of {image.width}x{image.height} pixels, expected at most {MAX_PIXELS}"
                    )
                image.load()
                mode = image.mode
                pixels = np.asarray(image.convert("RGB") if mode == "RGBA" else image)
                palette = image.getpalette("RGB") if mode == "P" else None
    except DataError:
        raise
    except Exception as error:
        with suppress(OSError), path.open("rb") as file:
            if file.read(2) == b"\xff\xd8":
                raise jpeg_mask(path) from None
        # as in decode_rgb: whatever comes up in Pillow's decoders
        raise DataError(f"{path}: damaged mask ({error or type(error).__name__}); fetch it again") from None
    if mode in ("RGB", "RGBA"):
        flat = pixels.reshape(-1, 3).astype(np.int64) @ np.array([65536, 256, 1])
        values, areas = np.unique(flat, return_counts=True)
        colours = [(int(v) >> 16, int(v) >> 8 & 255, int(v) & 255) for v in values]
        return MaskValues(mode, [], colours, areas.tolist(), flat.size)
    if mode not in ("P", "L", "1"):
        raise DataError(f"{path}: expected a mask of 8-bit indices or RGB colours, got mode {mode}")
    histogram = np.bincount(pixels.ravel().astype(np.uint8), minlength=256)
    indices = np.flatnonzero(histogram).tolist()
    entries = [_entry(path, palette, value) for value in indices] if palette is not None else None
    return MaskValues(mode, indices, entries, histogram[indices].tolist(), pixels.size)


def jpeg_mask(path: Path) -> DataError:
    """The error of a mask that was saved as JPEG."""
    return DataError(
        f"{path}: a mask saved as JPEG, whose colours are blurred at every edge; expected PNG, TIFF, BMP or GIF: get "
        "the lossless masks"
    )


def _entry(path: Path, palette: list[int], value: int) -> Colour:
    if 3 * value + 3 > len(palette):
        raise DataError(f"{path}: value {value}, but its palette has {len(palette) // 3} colours; fetch it again")
    return palette[3 * value], palette[3 * value + 1], palette[3 * value + 2]


def _by_colour(path: Path, colours: list[Colour], areas: list[int], rule: MaskRule, least: float) -> frozenset[int]:
    return _large(path, "colour", list(zip(colours, areas, strict=True)), rule.colours, rule.ignore_colours, least)


class UnknownValues(DataError):
    """Colours or values of a mask that no class has.

    Attributes:
        pixels: of each.
    """

    pixels: Mapping[Any, int] = {}


def _large(
    path: Path,
    kind: str,
    found: Sequence[tuple[T, int]],
    numbers: Mapping[T, int],
    ignored: frozenset[T],
    least: float,
) -> frozenset[int]:
    """The classes that have at least ``least`` pixels, from what a mask holds: (colour or value, pixels).

    Raises:
        UnknownValues: something belongs to no class.
    """
    unknown = {value: area for value, area in found if value not in numbers and value not in ignored}
    if unknown:
        value, area = next(iter(unknown.items()))
        error = UnknownValues(
            f"{path}: {kind} {value} ({area} pixels) belongs to no class of this set; is it its mask?"
        )
        error.pixels = unknown
        raise error
    total: dict[int, int] = {}
    for value, area in found:
        if value not in ignored:
            total[numbers[value]] = total.get(numbers[value], 0) + area
    return frozenset(number for number, area in total.items() if area >= least)


def all_unknown(errors: Sequence[UnknownValues]) -> DataError:
    """One error for many masks: the first one's, then every value that no class has, as a recipe would list it.

    Args:
        errors: at least one.
    """
    pixels: Counter[Any] = Counter()
    masks: Counter[Any] = Counter()
    for error in errors:
        pixels.update(error.pixels)
        masks.update(list(error.pixels))
    shown = sorted(pixels, key=lambda value: -pixels[value])[:SHOWN]
    told = ", ".join(f"{value} in {masks[value]} masks ({pixels[value]} pixels)" for value in shown)
    colours = [value for value in shown if isinstance(value, tuple)]
    entries = ", ".join(f"{{name: NAME, colour: {list(colour)}}}" for colour in colours)
    table = ", ".join(f"{value}: NAME" for value in shown if not isinstance(value, tuple))
    paste = f"classes: [{entries}]" if colours else f"masks: {{index_orders: {{NAME: {{{table}}}}}}}"
    more = f" and {len(pixels) - SHOWN} more" if len(pixels) > SHOWN else ""
    return DataError(f"{errors[0]} In {len(errors)} masks: {told}{more}; to add to the recipe: {paste}")


def _by_index(path: Path, values: list[int], areas: list[int], rule: MaskRule, least: float) -> frozenset[int]:
    if not rule.indices:
        raise DataError(
            f"{path}: a mask without a palette, and copies of this set disagree about index values; "
            f"say which order it has with --index-order {' or '.join(rule.orders) or 'NAME'}"
        )
    return _large(path, "value", list(zip(values, areas, strict=True)), rule.indices, rule.ignore_indices, least)
