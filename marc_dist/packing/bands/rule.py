"""What every picture with bands must be, and how several files become one picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from marc_dist.config import DataError
from marc_dist.data.bands.tiff import TiffFacts


class BandRule(NamedTuple):
    """The bands of a data set.

    Attributes:
        names: of the bands, in order.
        dtype: of their values.
        nodata: the value that stands for none; None = none does.
        stacked: one file a band: they are put together as one TIFF.
        resampling: how bands of a coarser ground resolution get the pixels of the finest.
    """

    names: tuple[str, ...]
    dtype: str
    nodata: float | None
    stacked: bool = False
    resampling: str = "nearest"


def read_content(file: Path) -> bytes:
    """A file's content.

    Raises:
        DataError: cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None


def refuse_count(facts: TiffFacts, wanted: int, names: Sequence[str], place: str) -> None:
    """Refuse a file of another number of bands.

    Args:
        facts: of the file.
        wanted: the number it must have.
        names: of all bands of a picture, for the message.
        place: what to call the file.

    Raises:
        DataError: names both.
    """
    if facts.num != wanted:
        named = "one file a band" if wanted == 1 and len(names) > 1 else ", ".join(names)
        raise DataError(
            f"{place}: expected {wanted} bands ({named}), got {facts.num}; mend the file, or `bands:` in the recipe"
        )


def refuse_other(facts: TiffFacts, rule: BandRule, wanted: int, place: str) -> None:
    """Refuse a file that is not as the first one was.

    Args:
        facts: of the file.
        rule: what it must be.
        wanted: number of its bands.
        place: what to call it.

    Raises:
        DataError: other bands, numbers, or another nodata value; names both.
    """
    refuse_count(facts, wanted, rule.names, place)
    if facts.dtype != rule.dtype:
        raise DataError(
            f"{place}: expected {rule.dtype} as in the first picture, got {facts.dtype}; convert it, as with "
            f"gdal_translate -ot {GDAL[rule.dtype]}"
        )
    if facts.nodata is not None and not _same(facts.nodata, rule.nodata):
        raise DataError(
            f"{place}: expected nodata {json.dumps(rule.nodata)} as in the first picture or the recipe, got "
            f"{facts.nodata:g}; set it anew, as with gdal_edit.py -a_nodata"
        )


GDAL = {"uint8": "Byte", "uint16": "UInt16", "int16": "Int16", "float32": "Float32"}


def _same(one: float, other: float | None) -> bool:
    return other is not None and (one == other or (one != one and other != other))
