"""Shapes on the globe, in WGS84 longitude and latitude: read, checked, cut at the date line as RFC 7946 asks.

Every shape that leaves this module is flat (no heights), valid, within -180..180 and -90..90 degrees, with its outer
ring against the clock; what crosses the date line is a multi-polygon whose parts end there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

EARTH_RADIUS_KM = 6371.0088  # mean
KM_A_DEGREE = math.pi * EARTH_RADIUS_KM / 180
WORLD = shapely.box(-180, -90, 180, 90)
SHAPES = ("Point", "Polygon", "MultiPolygon")
Float = NDArray[np.float64]


def from_ring(lons: Sequence[float], lats: Sequence[float]) -> Any:
    """The polygon inside a ring of corners; an edge of more than 180 degrees goes the other way, over the date line.

    A ring that goes round a pole holds the pole.

    Args:
        lons: degrees, of each corner; the first need not be repeated.
        lats: degrees, of each corner.

    Raises:
        ValueError: not on the globe, or no area.
    """
    points = np.column_stack([lons, lats]).astype(np.float64)
    if np.array_equal(points[0], points[-1]):
        points = points[:-1]
    closed = _unwrapped(np.vstack([points, points[:1]]))
    turn = closed[-1, 0] - closed[0, 0]
    if abs(turn) > 180:  # round a pole: along its edge of the map and back
        pole = math.copysign(90.0, closed[:, 1].mean())
        closed = np.vstack([closed, [[closed[-1, 0], pole], [closed[0, 0], pole]]])
    return checked(shapely.Polygon(closed))


def _unwrapped(points: Float) -> Float:
    """Corners whose longitudes follow one another without a jump at the date line."""
    steps = np.diff(points[:, 0])
    whole = np.isclose(np.abs(steps), 360.0)  # an edge along a parallel round the world
    turns = np.where(whole, 0.0, -360.0 * np.rint(steps / 360.0))
    out = points.copy()
    out[1:, 0] += np.cumsum(turns)
    return out


def square(lon: float, lat: float, side_m: float) -> Any:
    """A square with sides along meridians and parallels.

    Args:
        lon: degrees, of the centre.
        lat: degrees, of the centre.
        side_m: metres.

    Raises:
        ValueError: not on the globe.
    """
    point(lon, lat)
    high = side_m / 2000 / KM_A_DEGREE
    wide = min(high / max(math.cos(math.radians(lat)), 1e-9), 180.0)
    return checked(shapely.box(lon - wide, max(lat - high, -90.0), lon + wide, min(lat + high, 90.0)))


def point(lon: float, lat: float) -> Any:
    """A place.

    Raises:
        ValueError: not on the globe; says so where latitude and longitude seem swapped.
    """
    if not (math.isfinite(lon) and math.isfinite(lat)) or abs(lat) > 90 or not -180 <= lon <= 360:
        swapped = abs(lon) <= 90 < abs(lat) <= 180
        hint = "; are latitude and longitude swapped?" if swapped else ""
        raise ValueError(f"longitude {lon:g}, latitude {lat:g} is not on the globe{hint}")
    return shapely.Point(lon - 360 if lon > 180 else lon, lat)


def box(west: float, south: float, east: float, north: float) -> Any:
    """The area between two meridians and two parallels; ``west`` above ``east`` crosses the date line.

    Args:
        west: degrees.
        south: degrees.
        east: degrees.
        north: degrees, not below ``south``.

    Raises:
        ValueError: not on the globe, or south of itself.
    """
    values = (west, south, east, north)
    if not all(map(math.isfinite, values)) or not -90 <= south <= north <= 90:
        raise ValueError(f"latitudes {south:g} to {north:g}; expected two within -90..90, the southern first")
    if not (-180 <= west <= 180 and -180 <= east <= 180):
        raise ValueError(f"longitudes {west:g} to {east:g}; expected two within -180..180, the western first")
    if west > east:
        return shapely.MultiPolygon([shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)])
    return shapely.box(west, south, east, north)


def circle(lon: float, lat: float, radius_km: float) -> Any:
    """The area within a distance of a place, along the sphere, as a polygon of 256 corners.

    Args:
        lon: degrees.
        lat: degrees.
        radius_km: kilometres, above 0, at most 5,000.

    Raises:
        ValueError: not on the globe, or too far.
    """
    centre = point(lon, lat)
    if not 0 < radius_km <= 5000:
        raise ValueError(f"{radius_km:g} km; expected a distance above 0, at most 5000")
    reach, north = radius_km / EARTH_RADIUS_KM, math.radians(centre.y)
    bearing = np.linspace(0, 2 * np.pi, 256, endpoint=False)
    lats = np.arcsin(math.sin(north) * math.cos(reach) + math.cos(north) * math.sin(reach) * np.cos(bearing))
    lons = np.arctan2(
        np.sin(bearing) * math.sin(reach) * math.cos(north), math.cos(reach) - math.sin(north) * np.sin(lats)
    )
    return from_ring((centre.x + np.degrees(lons)).tolist(), np.degrees(lats).tolist())


def parse_shape(text: str) -> Any:
    """A shape of a table's cell, as it is written there, unchecked: WKT, WKB as hex digits, GeoJSON, or a box.

    Args:
        text: a box is ``[west, south, east, north]``.

    Raises:
        ValueError: none of them.
    """
    text = text.strip()
    try:
        if text.startswith("{"):
            return shapely.from_geojson(text)
        if text.startswith("["):
            values = [float(value) for value in json.loads(text)]
            if len(values) != 4:
                raise ValueError(f"{len(values)} numbers, expected west, south, east, north")
            return box(*values)
        return shapely.from_wkb(text) if text[:2] in ("00", "01") else shapely.from_wkt(text)
    except (shapely.errors.ShapelyError, TypeError, json.JSONDecodeError, RecursionError):
        raise ValueError(f"{text[:40]!r} is no WKT, WKB, GeoJSON or box") from None


def around(shape: Any) -> Any:
    """A footprint as people write it: rings that jump over the date line are taken as going over it.

    Args:
        shape: of shapely; degrees.

    Raises:
        ValueError: see ``checked``.
    """
    if shape is None or shape.is_empty:
        raise ValueError("an empty shape")
    if shape.geom_type not in SHAPES[1:]:
        return checked(shape)
    parts = [_one_way(part) for part in shapely.get_parts(shapely.force_2d(shape))]
    return checked(parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts))


def _one_way(polygon: Any) -> Any:
    """A polygon whose rings do not jump, its holes where its outer ring is."""
    outer = _unwrapped(shapely.get_coordinates(polygon.exterior))
    holes = [_unwrapped(shapely.get_coordinates(ring)) for ring in polygon.interiors]
    moved = [hole + [360 * np.rint((outer[:, 0].mean() - hole[:, 0].mean()) / 360), 0.0] for hole in holes]
    return shapely.Polygon(outer, moved)


def checked(shape: Any) -> Any:
    """A shape on the globe, cut at the date line.

    Args:
        shape: of shapely; longitudes may go on beyond 180 degrees.

    Raises:
        ValueError: empty, of lines, not finite, or not on the globe.
    """
    if shape is None or shape.is_empty:
        raise ValueError("an empty shape")
    shape = shapely.force_2d(shape)
    places = shapely.get_coordinates(shape)
    if not np.isfinite(places).all():
        raise ValueError("coordinates that are no numbers")
    west, south, east, north = shape.bounds
    if south < -90 or north > 90 or west < -540 or east > 540:
        swapped = max(abs(west), abs(east)) <= 90 < max(abs(south), abs(north)) <= 180
        hint = "; are latitude and longitude swapped?" if swapped else ""
        raise ValueError(
            f"longitudes {west:g} to {east:g}, latitudes {south:g} to {north:g} are not on the globe{hint}"
        )
    if not shape.is_valid:
        shape = shapely.make_valid(shape)
    if west < -180 or east > 180:
        moved = [shapely.transform(shape, lambda p, by=by: p + [by, 0.0]) for by in (-360.0, 0.0, 360.0)]
        shape = shapely.union_all([shapely.intersection(one, WORLD) for one in moved])
    if shape.geom_type not in SHAPES:
        areas = [one for one in shapely.get_parts(shape) if one.geom_type in SHAPES[1:] and one.area > 0]
        if not areas:
            raise ValueError(f"a {shape.geom_type}; expected a point, a polygon or a multi-polygon")
        shape = shapely.union_all(areas)
    return shapely.orient_polygons(shape)


def to_wkb(shape: Any) -> bytes:
    """A shape as WKB, little end first."""
    return bytes(shapely.to_wkb(shape, byte_order=1))
