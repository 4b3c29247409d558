"""A picture with bands as people look at it: red, green and blue, spread over 8 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from marc_dist.config import MarcError
from marc_dist.data.bands.tiff import Planes, missing, read_tiff

RED_GREEN_BLUE = (("B04", "B03", "B02"), ("B4", "B3", "B2"), ("red", "green", "blue"), ("R", "G", "B"))
"""Names of bands that show true colours, of Sentinel-2 and in words."""
STRETCH = (2.0, 98.0)
"""Percentiles that become black and white."""


def shown_bands(names: Sequence[str]) -> tuple[int, ...]:
    """Which bands, from 0, are shown as red, green and blue: by their names; else the first three, or one as grey."""
    lower = [name.lower() for name in names]
    for three in RED_GREEN_BLUE:
        if all(name.lower() in lower for name in three):
            return tuple(lower.index(name.lower()) for name in three)
    return (0, 1, 2) if len(names) >= 3 else (0, 0, 0)


def preview(planes: Planes, names: Sequence[str], nodata: float | None, statistics: Mapping[str, Any]) -> Image.Image:
    """RGB of 8 bits; the same values have the same colour in every picture of a data set.

    Args:
        planes: (C, H, W), all bands of a file.
        names: of the bands.
        nodata: the value that stands for none: it is shown black.
        statistics: of ``dataset.json``; a band without them is spread between its own percentiles.
    """
    shown = []
    for band in shown_bands(names):
        plane, gone = planes[band].astype(np.float64), missing(planes[band], nodata)
        limits = [_number(statistics, f"p{percent:g}", band) for percent in STRETCH]
        if None in limits and not gone.all():
            limits = np.percentile(plane[~gone], STRETCH).tolist()
        low, high = (0.0 if limit is None else limit for limit in limits)
        level = np.where(gone, low, plane)
        shown.append(np.rint(((level - low) / max(high - low, 1e-12)).clip(0, 1) * 255).astype(np.uint8))
    return Image.fromarray(np.stack(shown, axis=2))


def _number(statistics: Mapping[str, Any], key: str, band: int) -> float | None:
    column = statistics.get(key)
    value = column[band] if isinstance(column, list) and band < len(column) else None
    return float(value) if isinstance(value, int | float) else None


def grey_of_bands(data: bytes, place: str) -> Image.Image | None:
    """The mean of all bands of a TIFF as grey of 8 bits, each spread between its percentiles; None where it is none."""
    try:
        found = read_tiff(data, place)
    except MarcError:
        return None
    total = np.zeros(found.planes.shape[1:])
    for plane in found.planes:
        gone = missing(plane, found.facts.nodata)
        if gone.all():
            continue
        low, high = np.percentile(plane[~gone].astype(np.float64), STRETCH)
        total += np.where(gone, 0.0, ((plane - low) / max(high - low, 1e-12)).clip(0, 1))
    return Image.fromarray(np.rint(total / len(found.planes) * 255).astype(np.uint8))
