"""Anybody's TIFF as a query to an encoder of bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from marc_dist.augment.bands import BandScale
from marc_dist.config import DataError
from marc_dist.data.bands.pick import places_of
from marc_dist.data.bands.preview import preview
from marc_dist.data.bands.tiff import TiffFacts, missing, read_tiff
from marc_dist.data.decode import Query, file_bytes


def read_band_query(
    path: Path,
    scale: BandScale,
    archive: Sequence[str] = (),
    nodata: float | None = None,
    statistics: Mapping[str, Any] | None = None,
) -> Query:
    """A picture file as an encoder of bands takes it, and as people look at it.

    Which band is which: by the names in the file; where it has none, by their places, as in the archive or, of exactly
    as many as the encoder takes, as the encoder has them. What was taken for granted stands in the remark.

    Args:
        path: of the file.
        scale: the encoder's bands.
        archive: names of the bands in the files of the archive.
        nodata: the archive's value that stands for none, for a file that does not say.
        statistics: of the archive, for the preview.

    Raises:
        DataError: cannot be read, other bands or numbers than the encoder takes; names both.
    """
    planes, facts = read_tiff(file_bytes(path), str(path))
    names, remark = _names(facts, scale, archive, str(path))
    if facts.dtype != scale.dtype:
        raise DataError(
            f"{path}: bands of {facts.dtype}, but the encoder was trained on {scale.dtype}; convert it, as with "
            "gdal_translate -ot"
        )
    indexes = [place - 1 for place in places_of(scale.names, names, str(path))]
    none = facts.nodata if facts.nodata is not None else nodata
    gone = missing(planes[indexes], none)
    values = np.where(gone, np.array(scale.fill, dtype=scale.dtype)[:, None, None], planes[indexes])
    known = statistics if tuple(names) == tuple(archive) and statistics is not None else {}
    image = preview(planes, names, none, known)
    return Query(image, image.size, remark, np.ascontiguousarray(np.moveaxis(values, 0, 2)))


def _names(facts: TiffFacts, scale: BandScale, archive: Sequence[str], place: str) -> tuple[tuple[str, ...], str]:
    """Names of a file's bands in order, and what was taken for granted about them."""
    wanted = ", ".join(scale.names)
    if set(facts.names) & {*scale.names, *archive}:
        return facts.names, ""
    if archive and facts.num == len(archive):
        return tuple(archive), "its bands have no names, taken as the archive's are"
    if facts.num == len(scale.names):
        return scale.names, f"its bands have no names, taken as {wanted}"
    raise DataError(
        f"{place}: {facts.num} bands without names, but the encoder takes {wanted}; give a TIFF with exactly these, or "
        "with their names as descriptions"
    )
