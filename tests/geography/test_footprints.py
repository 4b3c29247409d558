"""Shapes on the globe: the date line, the poles, what is no place; dates; cells of a grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely

from marc_dist.geography.acquisition import milliseconds, parse_date, shown
from marc_dist.geography.footprints import around, box, circle, from_ring, parse_shape, point, square, to_wkb
from marc_dist.geography.grid import cell, middle


def test_a_ring_over_the_date_line_is_cut_there() -> None:
    shape = from_ring([179, -179, -179, 179], [10, 10, 12, 12])
    assert shape.geom_type == "MultiPolygon" and shape.is_valid
    assert sorted(part.bounds for part in shape.geoms) == [(-180, 10, -179, 12), (179, 10, 180, 12)]
    assert all(part.exterior.is_ccw for part in shape.geoms)
    lon, lat = middle(to_wkb(shape))
    assert abs(lon) == pytest.approx(180) and lat == pytest.approx(11)
    written = around(parse_shape("POLYGON((179 10,-179 10,-179 12,179 12,179 10))"))
    assert written.equals(shape) and around(shapely.box(179, 10, 181, 12)).equals(shape)


def test_a_hole_goes_along_over_the_date_line() -> None:
    ring = "(170 0,-170 0,-170 20,170 20,170 0)"
    shape = around(parse_shape(f"POLYGON({ring},(178 5,-178 5,-178 8,178 8,178 5))"))
    assert shape.area == pytest.approx(20 * 20 - 4 * 3)
    assert not shape.contains(shapely.Point(179.5, 6)) and shape.contains(shapely.Point(-175, 6))


def test_a_ring_round_a_pole_holds_it() -> None:
    lons = np.arange(-180, 180, 30).tolist()
    for lat in (80, -80):
        shape = from_ring(lons, [lat] * len(lons))
        assert shape.bounds == (-180, min(lat, math.copysign(90, lat)), 180, max(lat, math.copysign(90, lat)))
        assert shape.area == pytest.approx(3600)
    assert circle(0, 89, 300).contains(shapely.Point(100, 89.9))


def test_the_whole_world_is_no_line() -> None:
    world = around(parse_shape("POLYGON((-180 -90,180 -90,180 90,-180 90,-180 -90))"))
    assert world.area == pytest.approx(360 * 180)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("POINT (48 103)", "swapped"),
        ("POINT (200 103)", "not on the globe"),
        ("LINESTRING (0 0, 1 1)", "a LineString"),
        ("POLYGON EMPTY", "empty"),
        ("[1, 2, 3]", "3 numbers"),
        ("[0, 50, 10, 40]", "southern first"),
        ("0101", "no WKT"),
        ("{}", "no WKT"),
        ("somewhere", "no WKT"),
    ],
)
def test_what_is_no_place_is_said(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        around(parse_shape(text))


def test_shapes_are_read_in_every_spelling() -> None:
    wanted = shapely.box(10, 40, 11, 41)
    for text in (wanted.wkt, wanted.wkb_hex, shapely.to_geojson(wanted), "[10, 40, 11, 41]"):
        assert around(parse_shape(text)).equals(wanted)
    assert around(shapely.from_wkt("POLYGON Z((10 40 5,11 40 5,11 41 5,10 41 5,10 40 5))")).equals(wanted)
    bow_tie = around(parse_shape("POLYGON((0 0,1 1,1 0,0 1,0 0))"))
    assert bow_tie.is_valid and bow_tie.area == pytest.approx(0.5)


def test_a_square_has_its_side_in_metres() -> None:
    west, south, east, north = square(11.5, 60, 1000).bounds
    degree = math.pi * 6371.0088 / 180
    assert (north - south) * degree == pytest.approx(1, rel=1e-6)
    assert (east - west) * degree * 0.5 == pytest.approx(1, rel=1e-3)
    assert box(170, 0, -170, 1).area == pytest.approx(20)
    assert point(190, 1).x == -170


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2017-06-13", "2017-06-13"),
        ("20170613", "2017-06-13"),
        ("2017:06:13 10:10:31", "2017-06-13T10:10:31Z"),
        ("20170613T101031", "2017-06-13T10:10:31Z"),
        ("2017-06-13T10:10:31+02:00", "2017-06-13T08:10:31Z"),
        ("2017-06-13 10:10:31.5", "2017-06-13T10:10:31.500Z"),
        ("2017-06-13T00:00:00Z", "2017-06-13"),
        ("1966-01-02 03:04:05", "1966-01-02T03:04:05Z"),
    ],
)
def test_dates_are_read(text: str, wanted: str) -> None:
    assert parse_date(text) == wanted == parse_date(wanted) == shown(milliseconds(wanted))


@pytest.mark.parametrize(
    "text", ["", "nonsense", "1497348631", "0000:00:00 00:00:00", "2017-13-01", "0001-01-01", "17"]
)
def test_what_is_no_date_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="is no date"):
        parse_date(text)


def test_cells_have_about_the_side_that_was_asked_for() -> None:
    """Steps of 1 km along a parallel and a meridian change the cell every 10 km, at any latitude."""
    degree = math.pi * 6371.0088 / 180
    for lat in (0.01, 45, -70, 85):
        east = [cell(to_wkb(point(11 + at / degree / math.cos(math.radians(lat)), lat)), 10) for at in range(300)]
        north = [cell(to_wkb(point(11, lat - math.copysign(at / degree, lat))), 10) for at in range(0, 60)]
        assert 27 <= len(set(east)) <= 33 and 6 <= len({one.split("/")[0] for one in north}) <= 8
    assert cell(to_wkb(point(180, 3)), 10) == cell(to_wkb(point(-180, 3)), 10)
    assert cell(to_wkb(point(-5, 90)), 10).split("/")[0] == cell(to_wkb(point(5, 89.99)), 10).split("/")[0]
