"""Cells of about equal sides all over the globe: what lies in one cell goes into one split."""

from __future__ import annotations

import math

import shapely

from marc_dist.geography.footprints import KM_A_DEGREE, Float


def cell(footprint: bytes, km: float) -> str:
    """The cell that holds the middle of a footprint.

    Bands of latitude are ``km`` high, from the equator; a band is cut into whole cells, as near to ``km`` wide as
    possible, from the meridian of Greenwich.

    Args:
        footprint: WKB.
        km: side of a cell.

    Returns:
        Numbers of the band and of the cell in it, such as ``541/62``.
    """
    lon, lat = middle(footprint)
    high = km / KM_A_DEGREE
    band = min(math.floor(lat / high), math.ceil(90 / high) - 1)
    across = math.cos(math.radians(max(-90.0, min(90.0, (band + 0.5) * high))))
    num = max(1, round(360 * KM_A_DEGREE * across / km))
    return f"{band}/{math.floor((lon % 360) / 360 * num) % num}"


def middle(footprint: bytes) -> tuple[float, float]:
    """Longitude and latitude of a footprint's middle; of one in parts at the date line, that of the whole."""
    shape = shapely.from_wkb(footprint)
    west, _, east, _ = shape.bounds
    if shape.geom_type == "MultiPolygon" and west <= -180 and east >= 180:
        moved = shapely.transform(shape, _eastward)
        centre = moved.centroid
        return (centre.x + 180) % 360 - 180, centre.y
    centre = shape.centroid
    return centre.x, centre.y


def _eastward(points: Float) -> Float:
    """Longitudes of the western half as those beyond 180 degrees."""
    out = points.copy()
    out[out[:, 0] < 0, 0] += 360
    return out
