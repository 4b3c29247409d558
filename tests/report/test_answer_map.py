"""The map of answers: what it shows, against positions worked out by hand; and in a real browser."""

from __future__ import annotations

import io
import re
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from PIL import Image

from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.data.decode import Query
from marc_dist.data.reader import IndexedReader
from marc_dist.geography.acquisition import UNKNOWN, Acquisition
from marc_dist.geography.footprints import from_ring, to_wkb
from marc_dist.geography.places import Places, add_columns, read_places
from marc_dist.report.answer_map import HEIGHT, WIDTH, answer_map
from marc_dist.report.search_page import search_page
from marc_dist.retrieval.archive import Answers, Hit
from tests.report.test_browser import BROWSER, FLAGS, look
from tests.retrieval.runs import pack_tiny


def places_of(folder: Path, boxes: list[tuple[float, float, float] | None]) -> Places:
    """Squares with their south-west corner and side, in degrees."""
    rows = [
        UNKNOWN
        if one is None
        else Acquisition(
            to_wkb(
                from_ring([one[0], one[0] + one[2], one[0] + one[2], one[0]], [one[1]] * 2 + [one[1] + one[2]] * 2)
                if one[2]
                else shapely.Point(one[:2])
            ),
            "2020-05-06",
        )
        for one in boxes
    ]
    pq.write_table(add_columns(pa.table({"key": [str(at) for at in range(len(rows))]}), rows), folder / "p.parquet")
    return read_places(folder / "p.parquet")


def answers(num: int) -> Answers:
    picture = Query(Image.new("RGB", (20, 20)), (20, 20), "")
    return Answers(Path("q"), picture, tuple(Hit(at, 1 - at / 100) for at in range(num)))


def test_marks_stand_where_the_places_are(tmp_path: Path) -> None:
    places = places_of(tmp_path, [(10, 50, 0.1), (12, 51, 0.1), None, (11, 49, 0)])
    drawn = answer_map(answers(4), places, list("abcd"), 10)
    assert drawn is not None and drawn.missing == 1 and drawn.told == "3 of 4 answers have a place"
    left, top, wide, high = (value / 100 for value in drawn.view)
    assert left < 10 and left + wide > 12.1 and -top > 51.1 and -top - high < 49 and drawn.copies == (0,)
    for mark in drawn.marks:
        lon, lat = {1: (10.05, 50.05), 2: (12.05, 51.05), 4: (11, 49)}[mark.rank]
        assert mark.x == pytest.approx((lon - left) / wide * WIDTH, abs=0.06)
        assert mark.y == pytest.approx((-top - lat) / high * HEIGHT, abs=0.06)
        assert f"{mark.rank}. {'abcd'[mark.rank - 1]}, " in mark.told and "°N" in mark.told
        assert bool(mark.outline) == (mark.rank != 4)
    assert [mark.rank for mark in drawn.marks] == [4, 2, 1]  # the best on top
    squeeze = (wide / WIDTH) / (high / HEIGHT) * np.cos(np.radians(50))
    assert squeeze == pytest.approx(1, abs=0.02)  # as long to the east as to the north
    assert {name for _, name in drawn.meridians} >= {"10°E", "12°E"} and "50°N" in {name for _, name in drawn.parallels}
    assert len(drawn.world) == 1 and answer_map(answers(1), places_of(tmp_path, [None]), ["a"], 10) is None


def test_a_map_over_the_date_line_is_whole(tmp_path: Path) -> None:
    drawn = answer_map(
        answers(3), places_of(tmp_path, [(178, -17, 1), (179.5, -16, 1), (-178, -17, 1)]), list("abc"), 9
    )
    assert drawn is not None and drawn.view[2] < 2000 and len(drawn.copies) == 2 and len(drawn.world) == 2
    x = {mark.rank: mark.x for mark in drawn.marks}
    assert 0 < x[1] < x[2] < x[3] < WIDTH
    assert {"180°", "178°E", "178°W"} <= {name for _, name in drawn.meridians}
    assert sum(piece[2] for piece in drawn.world) == pytest.approx(drawn.view[2])
    world = answer_map(answers(3), places_of(tmp_path, [(-170, -80, 1), (0, 0, 1), (170, 80, 1)]), list("abc"), 9)
    assert world is not None and world.view[2:] == (36000, 18000) and world.world == ()


def with_places(folder: Path) -> tuple[Dataset, Places]:
    """The tiny archive; its images along an arc over the Pacific."""
    tiny = pack_tiny(folder / "data")
    return open_dataset(tiny.root), places_of(
        folder, [(150 + 2 * at, -30 + at, 1) if at % 7 else None for at in range(40)]
    )


@pytest.mark.parametrize("width", [1280, 320])
def test_the_map_in_a_browser(tmp_path: Path, width: int) -> None:
    tiny, places = with_places(tmp_path)
    reader = IndexedReader(tiny)
    (tmp_path / "search.html").write_text(search_page([answers(30)], tiny, reader, "title", ["fact"], [], places))
    reader.close()
    seen, log = look(tmp_path / "search.html", width, tmp_path)
    assert seen["scroll"] <= seen["width"] and seen["wide"] == [] and seen["small"] == 0
    assert seen["images"] == 31 and seen["broken"] == 0 and seen["loaded"] == [] and "CONSOLE" not in log


def test_the_land_is_drawn_where_it_is(tmp_path: Path) -> None:
    """A screenshot: land is grey where Australia lies, the sea is not, and a mark lies on top of its place."""
    tiny, _ = with_places(tmp_path)
    places = places_of(tmp_path, [(114, -45, 1), (180, 0, 1)])
    reader = IndexedReader(tiny)
    page = search_page([answers(2)], tiny, reader, "title", [], [], places)
    reader.close()
    drawn = answer_map(answers(2), places, list("ab"), 9)
    assert drawn is not None
    svg = re.search(r'<figure class="map wide">\s*(<svg.*</svg>)\s*<figcaption>', page, re.DOTALL)
    land = re.search(r'<svg width="0".*?</svg>', page, re.DOTALL)
    css = re.search(r"<style>.*?</style>", page, re.DOTALL)
    assert svg and land and css
    size = f"<style>body{{margin:0;padding:0}} .map>svg{{width:{WIDTH}px!important;border:0!important}}</style>"
    (tmp_path / "map.html").write_text(f'<!doctype html>{css[0]}{size}{land[0]}<figure class="map">{svg[1]}</figure>')
    look(tmp_path / "map.html", 900, tmp_path)  # skips without a browser
    words = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'map.png'}", "--hide-scrollbars"]
    words += [
        f"--window-size={WIDTH},{HEIGHT + 200}",
        "--force-device-scale-factor=1",
        (tmp_path / "map.html").as_uri(),
    ]
    assert BROWSER is not None
    subprocess.run([BROWSER, *FLAGS, *words], capture_output=True, timeout=120, check=True)
    with Image.open(io.BytesIO((tmp_path / "map.png").read_bytes())) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    left, top, wide, high = (value / 100 for value in drawn.view)

    def colour(lon: float, lat: float) -> list[int]:
        x, y = round((lon - left) / wide * WIDTH), round((-top - lat) / high * HEIGHT)
        return pixels[y, x].tolist()

    grey, white = [205, 211, 216], [255, 255, 255]
    assert colour(133.7, -25.2) == grey and colour(122.3, -29.1) == grey  # Australia
    assert colour(133.7, -37.3) == white and colour(157.3, -32.1) == white and colour(183.3, -16.3) == white  # the sea
    centre = colour(180.5 - 6 * wide / WIDTH, 0.5)  # on the mark, beside its number
    assert np.abs(np.array(centre) - [11, 110, 117]).max() < 12
