"""Which footprints a question about place means: a box, polygons of a file, the surroundings of a place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from marc_dist.config import ConfigError, first_line
from marc_dist.geography.footprints import EARTH_RADIUS_KM, SHAPES, box, checked, circle, point
from marc_dist.geography.grid import middle
from marc_dist.geography.places import CHUNK, Places

MAX_FILE_BYTES = 1 << 27
Int = NDArray[np.int64]


@dataclass(frozen=True)
class Area:
    """A part of the globe.

    Attributes:
        text: as it was written.
        shape: of shapely.
    """

    text: str
    shape: Any

    def within(self, places: Places, rows: Int) -> Int:
        """The rows whose footprints share at least a point with the area, in their order.

        Args:
            places: of an index.
            rows: to look at.
        """
        west, south, east, north = (places.bounds[rows, side] for side in range(4))
        maybe, passes = np.zeros((2, len(rows)), dtype=np.bool_)
        for part in shapely.get_parts(self.shape):
            w, s, e, n = part.bounds
            maybe |= (west <= e) & (east >= w) & (south <= n) & (north >= s)  # NaN: never
            if part.equals(shapely.box(w, s, e, n)):  # what lies in a box with all its bounds need not be read
                passes |= (west >= w) & (east <= e) & (south >= s) & (north <= n)
        found = np.flatnonzero(maybe & ~passes)
        shapely.prepare(self.shape)
        for start in range(0, len(found), CHUNK):
            some = found[start : start + CHUNK]
            passes[some] = shapely.intersects(self.shape, places.shapes(rows[some]))
        return rows[passes]


def any_of(areas: Sequence[Area]) -> Area:
    """What lies in at least one of some areas; of one area, that area."""
    if len(areas) == 1:
        return areas[0]
    return Area(" or ".join(area.text for area in areas), shapely.union_all([area.shape for area in areas]))


def _numbers(option: str, text: str, names: str) -> list[float]:
    wanted = names.split(",")
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != len(wanted):
        raise ConfigError(f"{option} {text}: expected {names} in degrees, as numbers with commas between")
    return values


def parse_box(text: str) -> Area:
    """The area of ``--box``: ``W,S,E,N``; W above E crosses the date line.

    Raises:
        ConfigError: not such a box.
    """
    try:
        return Area(f"box {text}", box(*_numbers("--box", text, "W,S,E,N")))
    except ValueError as error:
        raise ConfigError(f"--box {text}: {error}") from None


def parse_circle(text: str) -> Area:
    """The area of ``--around``: ``LON,LAT,KM``.

    Raises:
        ConfigError: not such a circle.
    """
    lon, lat, km = _numbers("--around", text, "LON,LAT,KM")
    try:
        return Area(f"{km:g} km around {lon:g},{lat:g}", circle(lon, lat, km))
    except ValueError as error:
        raise ConfigError(f"--around {text}: {error}") from None


def parse_point(text: str) -> tuple[float, float]:
    """The place of ``--near``: ``LON,LAT``.

    Raises:
        ConfigError: not such a place.
    """
    lon, lat = _numbers("--near", text, "LON,LAT")
    try:
        where = point(lon, lat)
    except ValueError as error:
        raise ConfigError(f"--near {text}: {error}") from None
    return where.x, where.y


def read_area(file: Path) -> Area:
    """The area of ``--area``: all polygons of a GeoJSON file together, in WGS84 as RFC 7946 has it.

    Raises:
        ConfigError: cannot be read, no GeoJSON, no polygon in it, or one that is not on the globe.
    """
    where = f"--area {file}"
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{where}: {file.stat().st_size / 1e6:.0f} MB; expected at most 134 MB; simplify it")
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        _refuse_other_crs(where, content)
        shapes = [_polygon(where, one) for one in _geometries(content)]
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror or error})") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{where}: not a GeoJSON file ({first_line(error)})") from None
    except (shapely.errors.ShapelyError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{where}: {first_line(error)}; expected GeoJSON with polygons in WGS84") from None
    if not shapes:
        raise ConfigError(f"{where}: no polygon in it; expected GeoJSON with at least one")
    return Area(file.name, shapely.union_all(shapes))


def _refuse_other_crs(where: str, content: Any) -> None:
    crs = content.get("crs") if isinstance(content, dict) else None
    name = str(crs.get("properties", {}).get("name", "")) if isinstance(crs, dict) else ""
    if crs is not None and not name.endswith(("CRS84", ":4326")):
        raise ConfigError(
            f"{where}: in CRS {name or crs}; expected WGS84 longitude, latitude (ogr2ogr -t_srs EPSG:4326)"
        )


def _geometries(content: Any) -> list[Any]:
    if content["type"] == "FeatureCollection":
        return [one for feature in content["features"] for one in _geometries(feature)]
    if content["type"] == "Feature":
        return [] if content["geometry"] is None else _geometries(content["geometry"])
    if content["type"] == "GeometryCollection":
        return [one for part in content["geometries"] for one in _geometries(part)]
    return [content]


def _polygon(where: str, geometry: Any) -> Any:
    """One polygon of a file; an edge of more than half the globe would mean the other way to half of all programs."""
    shape = shapely.from_geojson(json.dumps(geometry))
    if shape.geom_type not in SHAPES[1:]:
        raise ConfigError(
            f"{where}: a {shape.geom_type}; expected polygons; draw one around it (--around takes a place)"
        )
    for ring in shapely.get_rings(shape):
        steps = np.abs(np.diff(shapely.get_coordinates(ring)[:, 0]))
        if ((steps > 180) & ~np.isclose(steps, 360)).any():
            raise ConfigError(
                f"{where}: an edge of {steps.max():g} degrees of longitude; cut the polygon at the date line, as RFC "
                "7946 asks, or write longitudes beyond 180"
            )
    return checked(shape)


def nearest(places: Places, rows: Int, lon: float, lat: float) -> tuple[int, float]:
    """The row whose footprint is nearest to a place: of those that hold it, the one whose middle is nearest.

    Args:
        places: of an index.
        rows: to look at; at least one has a place.
        lon: degrees.
        lat: degrees.

    Returns:
        The row, and the distance of the place from the middle of its footprint in km along the sphere.
    """
    rows = rows[places.placed[rows]]
    west, south, east, north = (places.bounds[rows, side] for side in range(4))
    holds = np.flatnonzero((west <= lon) & (lon <= east) & (south <= lat) & (lat <= north))
    inside = holds[shapely.intersects_xy(places.shapes(rows[holds]), lon, lat)]
    some = rows[inside] if len(inside) else rows
    distance = np.concatenate([_distance(places, some[at : at + CHUNK], lon, lat) for at in range(0, len(some), CHUNK)])
    best = int(np.lexsort((some, distance))[0])
    return int(some[best]), float(distance[best])


def _distance(places: Places, rows: Int, lon: float, lat: float) -> NDArray[np.float64]:
    """(m,) km from the middles of footprints to a place, by the haversine formula."""
    west, south, east, north = (places.bounds[rows, side] for side in range(4))
    x, y = (west + east) / 2, (south + north) / 2
    split = np.flatnonzero((west <= -180) & (east >= 180))  # in parts at the date line
    if len(split):
        for row in split.tolist():
            x[row], y[row] = middle(places.wkb[int(rows[row])].as_py())
    phi, theta = np.radians(y), np.radians(lat)
    half = np.sin((phi - theta) / 2) ** 2 + np.cos(phi) * np.cos(theta) * np.sin(np.radians(x - lon) / 2) ** 2
    return np.asarray(2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(half, 0, 1))))
