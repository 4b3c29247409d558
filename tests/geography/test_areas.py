"""Which footprints lie in an area, against a loop over all of them; what is no area."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from pyproj import Geod

from marc_dist.config import ConfigError, DataError
from marc_dist.geography.acquisition import Acquisition
from marc_dist.geography.areas import nearest, parse_box, parse_circle, parse_point, read_area
from marc_dist.geography.coast import FILE, land_path
from marc_dist.geography.footprints import from_ring, to_wkb
from marc_dist.geography.places import NO_DATE, Places, add_columns, read_places


def archive(folder: Path, num: int = 600) -> tuple[Places, list[Any]]:
    """Squares all over the globe, some over the date line, some without a place."""
    rng = np.random.default_rng(0)
    shapes: list[Any] = []
    for lon, lat, side in zip(
        rng.uniform(-180, 180, num), rng.uniform(-89, 85, num), rng.uniform(0.1, 4, num), strict=True
    ):
        shapes.append(from_ring([lon, lon + side, lon + side, lon], [lat, lat, lat + side, lat + side]))
    shapes[5] = shapes[100] = None
    rows = [
        Acquisition(b"" if one is None else to_wkb(one), "2020-01-02" if at % 2 else "")
        for at, one in enumerate(shapes)
    ]
    pq.write_table(add_columns(pa.table({"key": list(map(str, range(num)))}), rows), folder / "index.parquet")
    return read_places(folder / "index.parquet"), shapes


def test_the_columns_give_back_what_went_in(tmp_path: Path) -> None:
    places, shapes = archive(tmp_path, 200)
    assert list(np.flatnonzero(~places.placed)) == [5, 100]
    again = places.shapes(np.arange(200))
    assert all(a is b is None or a.equals(b) for a, b in zip(again, shapes, strict=True))
    assert (places.dates[::2] == NO_DATE).all() and places.date(1) == "2020-01-02" and places.date(0) == ""
    assert [one.footprint for one in places.acquisitions(4, 7)] == [
        b"" if s is None else to_wkb(s) for s in shapes[4:7]
    ]
    table = pa.table({"key": ["a"], "date": ["soon"]})
    pq.write_table(table, tmp_path / "index.parquet")
    with pytest.raises(DataError, match="columns geometry, bbox, date, group cannot be read"):
        read_places(tmp_path / "index.parquet")


def test_areas_hold_what_a_loop_says(tmp_path: Path) -> None:
    places, shapes = archive(tmp_path)
    ring = [[-30, -20], [40, -35], [60, 50], [0, 5], [-30, 60], [-30, -20]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    other = {"type": "MultiPolygon", "coordinates": [[[[170, 0], [190, 0], [190, 20], [170, 20], [170, 0]]]]}
    collection = {"type": "FeatureCollection", "features": [feature, {"type": "Feature", "geometry": other}]}
    (tmp_path / "area.geojson").write_text(json.dumps(collection))
    for area in (parse_box("-20,30,45,60"), parse_box("170,-50,-160,50"), read_area(tmp_path / "area.geojson")):
        rows = np.arange(600)[::-1]
        naive = [row for row in rows if shapes[row] is not None and shapes[row].intersects(area.shape)]
        assert list(area.within(places, rows)) == naive and 5 < len(naive) < 200
    globe = Geod(a=6371008.8, b=6371008.8)
    middles = np.array([[math.nan] * 2 if one is None else one.representative_point().coords[0] for one in shapes])
    near = parse_circle("175,10,2500").within(places, np.arange(600))
    for row, (lon, lat) in enumerate(middles.tolist()):
        if shapes[row] is not None:
            km = globe.inv(175, 10, lon, lat)[2] / 1000
            assert row in near if km < 2490 else km < 2500 + 4 * 160 or row not in near
    row, km = nearest(places, np.arange(600), 179.99, 11.0)
    plain = [math.inf if one is None else globe.inv(179.99, 11, *_middle(one))[2] / 1000 for one in shapes]
    assert row == int(np.argmin(plain)) and km == pytest.approx(min(plain), rel=1e-2)


def _middle(shape: Any) -> tuple[float, float]:
    west, south, east, north = shape.bounds
    if west <= -180 and east >= 180:
        parts = [part.bounds for part in shape.geoms]
        west, east = max(part[0] for part in parts), min(part[2] for part in parts) + 360
    return (west + east) / 2, (south + north) / 2


def test_nearest_prefers_what_holds_the_place(tmp_path: Path) -> None:
    squares = [shapely.box(0, 0, 10, 10), shapely.box(10.2, 4, 10.4, 4.2), shapely.box(8, 3, 10, 5)]
    table = add_columns(pa.table({"key": list("abc")}), [Acquisition(to_wkb(one)) for one in squares])
    pq.write_table(table, tmp_path / "index.parquet")
    places = read_places(tmp_path / "index.parquet")
    assert nearest(places, np.arange(3), 9.9, 4)[0] == 2 and nearest(places, np.arange(3), 10.1, 4.1)[0] == 1


@pytest.mark.parametrize(
    ("parse", "text", "told"),
    [
        (parse_box, "1,2,3", "expected W,S,E,N in degrees"),
        (parse_box, "1,2,3,x", "expected W,S,E,N in degrees"),
        (parse_box, "1,50,3,40", "the southern first"),
        (parse_box, "1,nan,3,40", "expected two within"),
        (parse_box, "-190,2,3,40", "within -180..180"),
        (parse_circle, "1,2,-3", "above 0"),
        (parse_circle, "48,103,10", "swapped"),
        (parse_point, "48,103", "swapped"),
        (parse_point, "48", "expected LON,LAT"),
    ],
)
def test_what_is_no_area_is_said(parse: Any, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse(text)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "not a GeoJSON file"),
        ('{"type": "FeatureCollection", "features": []}', "no polygon in it"),
        ('{"type": "Point", "coordinates": [1, 2]}', "a Point; expected polygons"),
        ('{"type": "Polygon"}', "expected GeoJSON with polygons"),
        ('{"type": "Polygon", "coordinates": [[[48, 100], [49, 100], [49, 103], [48, 100]]]}', "swapped"),
        (
            '{"type": "Polygon", "coordinates": [[[179, 0], [-179, 0], [-179, 1], [179, 0]]]}',
            "cut the polygon at the date",
        ),
        (
            '{"type": "Point", "crs": {"type": "name", "properties": {"name": "EPSG:3857"}}, "coordinates": []}',
            "in CRS EPSG:3857",
        ),
        ("[1]", "expected GeoJSON"),
    ],
)
def test_files_that_are_no_areas_are_said(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "a.geojson").write_text(content)
    with pytest.raises(ConfigError, match=told) as error:
        read_area(tmp_path / "a.geojson")
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_area(tmp_path / "none.geojson")


def test_the_land_is_small_and_within_the_globe() -> None:
    assert FILE.stat().st_size < 60_000 and "public domain" in FILE.read_text()
    path = land_path()
    assert set(path) <= set("Mlz-0123456789 ")
    area = 0.0
    for ring in path.rstrip("z").split("z"):
        start, _, steps = ring[1:].partition("l")
        moves = np.array([int(one) for one in steps.replace("-", " -").split()]).reshape(-1, 2)
        points = np.vstack([[0, 0], np.cumsum(moves, axis=0)]) + [int(one) for one in start.replace("-", " -").split()]
        assert np.abs(points).max(axis=0).tolist() <= [18000, 9000]
        steps = np.abs(np.diff(points[:, 0]))[points[1:, 1] < 9000]  # but along the South Pole
        assert steps.max() < 18000
        x, y = np.radians(points[:, 0] / 100), np.sin(np.radians(-points[:, 1] / 100))
        area += float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)
    assert area / (4 * math.pi) == pytest.approx(0.292, abs=0.006)  # land's share of the globe
