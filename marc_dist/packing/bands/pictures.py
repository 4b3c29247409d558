"""A picture with bands, looked at and brought into the form in which a shard holds it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marc_dist.config import DataError
from marc_dist.data.bands.tiff import Planes, Tiff, facts_of, missing, opened, rasterio, read_tiff
from marc_dist.packing.bands.rule import BandRule, read_content, refuse_other

GLANCE_ROWS = 8


class BandPicture(NamedTuple):
    """A picture for a shard.

    Attributes:
        source: the bytes of its file, or of all of its files one after the other.
        data: what is stored: those of the one file, or a lossless TIFF of all bands.
        size: width and height.
        glance: some values, the same for equal pictures.
        remark: ``no values``, ``a band without values``, or nothing.
    """

    source: bytes
    data: bytes
    size: tuple[int, int]
    glance: bytes
    remark: str


def band_picture(files: Sequence[Path], rule: BandRule) -> BandPicture:
    """Read a picture: all of its values are looked at.

    Args:
        files: its file; or one a band, in order.
        rule: what it must be.

    Raises:
        ConfigError: ``rasterio`` is not installed.
        DataError: a file that cannot be read, is damaged, or is not what it must be.
    """
    content = [read_content(file) for file in files]
    if rule.stacked:
        planes, data = _stacked(files, content, rule)
    else:
        found = read_tiff(content[0], str(files[0]))
        refuse_other(found.facts, rule, len(rule.names), str(files[0]))
        planes, data = found.planes, content[0]
    empty = missing(planes, rule.nodata).all(axis=(1, 2))
    remark = "no values" if empty.all() else "a band without values" if empty.any() else ""
    glance = np.ascontiguousarray(planes[:, :GLANCE_ROWS]).tobytes()
    return BandPicture(b"".join(content), data, (planes.shape[2], planes.shape[1]), glance, remark)


def _stacked(files: Sequence[Path], content: Sequence[bytes], rule: BandRule) -> tuple[Planes, bytes]:
    """The bands of a picture with the pixels of the finest, and as a TIFF with the place of that one."""
    library = rasterio()
    tiffs: list[Tiff] = []
    profile: dict[str, Any] = {}
    for file, data in zip(files, content, strict=True):
        with opened(data, str(file)) as dataset:
            facts = facts_of(dataset, str(file))
            refuse_other(facts, rule, 1, str(file))
            if not tiffs or facts.width > max(tiff.facts.width for tiff in tiffs):
                profile = {"crs": dataset.crs, "transform": dataset.transform, "tags": dataset.tags()}
            tiffs.append(Tiff(dataset.read(), facts))
    width, height = max(tiff.facts.width for tiff in tiffs), max(tiff.facts.height for tiff in tiffs)
    planes = np.empty((len(tiffs), height, width), dtype=rule.dtype)
    for plane, file, data, tiff in zip(planes, files, content, tiffs, strict=True):
        facts = tiff.facts
        if facts.width * height != facts.height * width:
            raise DataError(
                f"{file}: {facts.width}x{facts.height} pixels, expected the shape of the finest band, "
                f"{width}x{height}, or a part of it; are they of one picture?"
            )
        if (facts.width, facts.height) == (width, height):
            plane[:] = tiff.planes[0]
        elif rule.resampling == "nearest" and width % facts.width == 0:
            plane[:] = tiff.planes[0].repeat(width // facts.width, 1).repeat(width // facts.width, 0)
        else:
            with opened(data, str(file)) as dataset:
                how = library.enums.Resampling[rule.resampling]
                plane[:] = dataset.read(1, out_shape=(height, width), resampling=how)
    return planes, write_tiff(planes, rule.names, nodata=rule.nodata, **profile)


def write_tiff(
    planes: Planes,
    names: Sequence[str],
    *,
    nodata: float | None = None,
    crs: Any = None,
    transform: Any = None,
    tags: dict[str, str] | None = None,
) -> bytes:
    """A lossless TIFF of bands: deflate with a predictor, which GDAL, libtiff and tifffile read.

    Args:
        planes: (C, H, W).
        names: of the bands; they are written as descriptions.
        nodata: the value that stands for none.
        crs: as ``rasterio`` has it, or None.
        transform: likewise.
        tags: of the file.
    """
    library = rasterio()
    num, height, width = planes.shape
    how = {
        "driver": "GTiff",
        "count": num,
        "height": height,
        "width": width,
        "dtype": planes.dtype.name,
        "nodata": nodata,
        "crs": crs,
        "transform": transform,
        "compress": "deflate",
        "predictor": 3 if planes.dtype.kind == "f" else 2,
        "interleave": "band",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a picture without a place on Earth
        with library.MemoryFile() as file:
            with file.open(**{key: value for key, value in how.items() if value is not None}) as dataset:
                dataset.write(planes)
                dataset.descriptions = tuple(names)
                dataset.update_tags(**{k: v for k, v in (tags or {}).items() if k != "AREA_OR_POINT"})
            return bytes(file.read())
