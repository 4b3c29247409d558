"""The bands of a TIFF or GeoTIFF as they lie there: 8 and 16 bits, floats; nothing is scaled or converted.

Read by ``rasterio``: one library gives the bands and, to whoever wants it, the place on Earth.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marc_dist.config import ConfigError, DataError, first_line
from marc_dist.data.decode import MAX_PIXELS

DTYPES = ("uint8", "uint16", "int16", "float32")
QUIET = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GTIFF_IGNORE_READ_ERRORS": "NO", "GDAL_PAM_ENABLED": "NO"}
Planes = NDArray[Any]


class TiffFacts(NamedTuple):
    """What a TIFF's header says.

    Attributes:
        num: bands.
        dtype: of all of them.
        nodata: the value that stands for none; None = none does.
        names: what the file calls its bands; empty where it does not say.
        width, height: pixels.
    """

    num: int
    dtype: str
    nodata: float | None
    names: tuple[str, ...]
    width: int
    height: int


class Tiff(NamedTuple):
    """The bands of a file, (C, H, W), and its header."""

    planes: Planes
    facts: TiffFacts


def rasterio() -> Any:
    """The library, which comes with the extra ``geo``.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import rasterio
    except ImportError:
        raise ConfigError(
            "pictures with bands need rasterio, which is not installed; pip install 'marc-dist[geo]'"
        ) from None
    logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # GDAL's remarks; what is wrong comes as an exception
    return rasterio


@contextmanager
def opened(data: bytes, place: str) -> Iterator[Any]:
    """A TIFF in memory as an opened ``rasterio`` data set; faults become one line.

    Args:
        data: a file's content.
        place: what to call it in a message.

    Raises:
        ConfigError: see ``rasterio``.
        DataError: not a TIFF, damaged, too large, or of numbers that are not taken.
    """
    library = rasterio()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a file without a place on Earth
            with library.Env(**QUIET), library.MemoryFile(data) as file, file.open(driver="GTiff") as dataset:
                yield dataset
    except library.errors.RasterioIOError as error:
        if "not recognized as being in a supported file format" in str(error):
            raise DataError(f"{place}: expected a TIFF, got another kind of file ({len(data)} bytes)") from None
        raise DataError(f"{place}: damaged TIFF ({first_line(error)}); fetch it again") from None
    except (DataError, ConfigError):
        raise
    except Exception as error:  # rasterio raises whatever comes up: CPLE errors, ValueError of odd tags, ...
        raise DataError(f"{place}: damaged TIFF ({first_line(error)}); fetch it again") from None


def facts_of(dataset: Any, place: str) -> TiffFacts:
    """The header of what ``opened`` gives.

    Raises:
        DataError: numbers that are not taken, or too many of them.
    """
    kinds = sorted(set(dataset.dtypes))
    if len(kinds) != 1 or kinds[0] not in DTYPES:
        raise DataError(
            f"{place}: expected bands of {', '.join(DTYPES)}, got {' and '.join(kinds) or 'none'}; convert them, as "
            "with gdal_translate -ot Float32"
        )
    if dataset.width * dataset.height * dataset.count > 3 * MAX_PIXELS:
        raise DataError(
            f"{place}: {dataset.width}x{dataset.height} pixels of {dataset.count} bands, expected at most "
            f"{3 * MAX_PIXELS} numbers; cut it into tiles"
        )
    names = tuple(name or "" for name in dataset.descriptions)
    nodata = dataset.nodata
    return TiffFacts(
        dataset.count,
        str(kinds[0]),
        None if nodata is None else float(nodata),
        names if all(names) else (),
        dataset.width,
        dataset.height,
    )


def tiff_facts(data: bytes, place: str) -> TiffFacts:
    """The header of a TIFF; see ``opened`` for the errors."""
    with opened(data, place) as dataset:
        return facts_of(dataset, place)


def read_tiff(data: bytes, place: str, indexes: Sequence[int] | None = None) -> Tiff:
    """Bands of a TIFF.

    Args:
        data: a file's content.
        place: what to call it in a message.
        indexes: which bands, from 1; None = all.

    Raises:
        ConfigError: ``rasterio`` is not installed.
        DataError: see ``opened``; also a band that the file does not have.
    """
    with opened(data, place) as dataset:
        facts = facts_of(dataset, place)
        if indexes is not None and max(indexes) > facts.num:
            raise DataError(f"{place}: expected at least {max(indexes)} bands, got {facts.num}")
        return Tiff(dataset.read(None if indexes is None else list(indexes)), facts)


def missing(planes: Planes, nodata: float | None) -> NDArray[np.bool_]:
    """Where values say nothing: NaN, infinite, or equal to ``nodata``; of the shape of ``planes``."""
    if planes.dtype.kind == "f":
        gone = ~np.isfinite(planes)
        if nodata is not None and math.isfinite(nodata):
            gone |= planes == planes.dtype.type(nodata)
        return gone
    if nodata is None or not math.isfinite(nodata) or nodata != int(nodata):
        return np.zeros(planes.shape, dtype=np.bool_)
    return np.asarray(planes == int(nodata), dtype=np.bool_)
