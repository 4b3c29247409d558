"""``marc-search`` by place and date: what passes, the files, the words that cannot be followed."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shapely

from marc_dist.cli.search import main
from marc_dist.cli.search.words import with_numbers
from marc_dist.data.dataset import open_dataset
from marc_dist.packing.pack import pack
from marc_dist.packing.reading.recipes import load_recipe
from marc_dist.packing.reading.source import read_source
from tests.packing import earth
from tests.retrieval.runs import make_run, pack_tiny

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import geopandas

Told = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 tiles, 40 km apart, of five scenes and a year; one far away, one over the date line, one of nowhere."""
    folder = tmp_path_factory.mktemp("places")
    earth.tiles(folder / "download", 25, km=40)
    earth.geotiff(folder / "download/sea/far.tif", crs="EPSG:4326", west=-60, north=-10, step=0.01, seed=90)
    earth.geotiff(folder / "download/sea/line.tif", crs="EPSG:4326", west=179.9, north=-16, step=0.01, seed=91)
    earth.geotiff(folder / "download/land/nowhere.tif", crs=None, seed=92)
    source = read_source(load_recipe(earth.recipe(folder / "r.yaml", "tif: keep\n")), [folder / "download"])
    pack(source, folder / "data")
    make_run(folder / "run", open_dataset(folder / "data"))
    return folder / "run"


@pytest.fixture
def told(run: Path, capsys: pytest.CaptureFixture[str]) -> Told:
    def ask(*words: str) -> dict[str, Any]:
        assert main([str(run), *words, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return ask


def keys(found: dict[str, Any]) -> list[str]:
    return [answer["key"] for answer in found["queries"][0]["answers"]]


def tile(key: str) -> int:
    return int(key[1:]) if re.fullmatch(r"t\d+", key) else -1


FILTERS: dict[str, tuple[list[str], Callable[[str], bool]]] = {
    "box": (["--box", "14.9,46.9,15.7,47.95"], lambda key: tile(key) in (0, 1, 5, 6, 10, 11)),
    "box over 180": (["--box", "179.99,-17,-179.9,-15"], lambda key: key == "line"),
    "two boxes": (
        ["--box", "-61,-11,-59,-9", "--box", "179,-17,-179,-15", "--split", "train", "--split", "test"],
        lambda key: key in ("far", "line"),
    ),
    "negative box": (["--box", "-61,-11,-59,-9"], lambda key: key == "far"),
    "around": (["--around", "-60,-10,50"], lambda key: key == "far"),
    "since": (["--since", "2020-11-15"], lambda key: tile(key) % 12 in (10, 11) and tile(key) >= 0),
    "until": (["--until", "2020-02"], lambda key: tile(key) % 12 in (0, 1)),
    "both": (["--since", "2020-03", "--until", "2020-03-15"], lambda key: tile(key) % 12 == 2),
    "scene": (["--scene", "S4", "--scene", "S[01]"], lambda key: tile(key) // 5 in (0, 1, 4)),
    "all": (
        ["--scene", "S0", "--until", "2020", "--label", "sea", "--box", "-180,-90,180,90"],
        lambda key: tile(key) in (0, 2, 4),
    ),
    "split": (["--split", "test", "--box", "-180,-90,180,90"], lambda key: key != "nowhere"),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters_restrict_the_archive_before_the_search(told: Told, name: str) -> None:
    """The answers are those of a search of everything, in the same order, that pass; of a factory index, too."""
    words, passes = FILTERS[name]
    every = told("--like", "nowhere", "--top", "100")["queries"][0]["answers"]
    assert len(every) == 27 and "nowhere" not in [answer["key"] for answer in every]  # not an answer to itself
    wanted = [
        answer["key"] for answer in every if passes(answer["key"]) and ("split" != name or answer["split"] == "test")
    ]
    found = told("--like", "nowhere", "--top", "100", *words)
    assert keys(found) == wanted and wanted
    assert found["searched"] == len(wanted) and found["where"]
    if name != "split":  # there all images pass, and the index that guesses is asked
        assert keys(told("--like", "nowhere", "--top", "2", *words, "--index", "IVF4,Flat:nprobe=1")) == wanted[:2]


def test_polygons_of_a_file(told: Told, tmp_path: Path) -> None:
    triangle = [[14.9, 47.95], [16.7, 47.95], [14.9, 46.5], [14.9, 47.95]]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [triangle]}))
    found = told("--like", "far", "--top", "100", "--area", str(tmp_path / "a.geojson"))
    frame = geopandas.read_parquet(found["archive"]["dir"] + "/index.parquet")
    area = shapely.Polygon(triangle)
    assert sorted(keys(found)) == sorted(frame[frame.intersects(area)]["key"]) and 5 < len(keys(found)) < 20
    assert found["where"] == "a.geojson"


def test_near_asks_for_the_image_at_a_place(told: Told) -> None:
    found = told("--near", "-59.9,-10.1", "--near", "180,-16.1", "--like", "t003", "--top", "3")
    assert [query["key"] for query in found["queries"]] == ["t003", "far", "line"]
    assert [query["path"] for query in found["queries"]] == [None] * 3
    assert "km from -59.9,-10.1" in found["queries"][1]["remark"]
    assert all(query["key"] not in [one["key"] for one in query["answers"]] for query in found["queries"])
    answer = next(
        one for one in told("--like", "t003", "--top", "100")["queries"][0]["answers"] if one["key"] == "line"
    )
    assert answer["date"] is None and answer["footprint"]["type"] == "MultiPolygon"


def test_answers_as_geojson_geoparquet_and_a_map(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--like", "far", "--like", "t001", "--top", "27", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"places: {tmp_path}/search.geojson, {tmp_path}/search.parquet" in out and "lon, lat" in out
    table, lines = geopandas.read_parquet(tmp_path / "search.parquet"), geopandas.read_file(tmp_path / "search.geojson")
    assert len(table) == len(lines) == 54 and table.crs.to_string() == "OGC:CRS84"
    for name in ("query", "query_name", "rank", "key", "score", "split", "scene"):
        assert table[name].tolist() == lines[name].tolist()
    assert table["score"].is_monotonic_decreasing or table.groupby("query")["score"].apply(
        lambda one: one.is_monotonic_decreasing
    ).all()  # fmt: skip
    assert (table.geometry.isna() == (table["key"] == "nowhere")).all() and table.geometry.isna().sum() == 2
    known = table[table.geometry.notna()]
    assert known.geometry.geom_equals(lines.geometry[known.index].to_crs(table.crs)).all()
    assert [list(one) for one in table["labels"]][:3] and set(table["query_name"]) == {"far", "t001"}
    page = (tmp_path / "search.html").read_text()
    assert page.count('class="map wide"') == 2 and page.count('id="land"') == 1 and page.count('class="mark"') == 52
    assert (
        "26 of 27 answers have a place" in page
        and "<script" not in page
        and "http" not in page.replace("http-equiv", "")
    )
    assert len(page) < 400_000


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--like", "t0003"], "--like t0003: "),
        (["--like", "far", "--box", "1,2"], "--box 1,2: expected W,S,E,N in degrees"),
        (["--like", "far", "--box", "0,0,1,1"], "no image passes box 0,0,1,1"),
        (["--like", "far", "--since", "2021", "--until", "2020"], "expected the earlier date first"),
        (["--like", "far", "--since", "soon"], "--since soon: no date; expected e.g. 2020, 2020-06"),
        (["--like", "far", "--since", "2020-13"], "--since 2020-13: no date"),
        (["--like", "far", "--since", "2033"], "no image passes since 2033"),
        (["--like", "far", "--scene", "S9"], "--scene S9: the archive has no such scene"),
        (["--like", "far", "--area", "none.geojson"], "none.geojson: cannot be read"),
        (["--near", "48,103"], "--near 48,103: longitude 48, latitude 103 is not on the globe; are"),
        (["--index-only", "--box", "0,0,1,1"], "--index-only: makes the index of the whole archive"),
        ([], "expected a query picture, --list FILE, --like KEY, --near LON,LAT or --index-only"),
    ],
)
def test_words_that_cannot_be_followed(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    assert main([str(run), *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and line in err.splitlines()[-1] and err.splitlines()[-1].startswith("marc-search: error: ")


def test_what_cannot_be_judged_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--like", "far", "--box", "-180,-90,180,90", "--since", "1900", "--json"]) == 0
    err = capsys.readouterr().err
    assert err.count("archive: 1 of 28 images have no place; they do not pass") == 1
    assert "archive: 3 of 28 images have no date; they do not pass" in err


def test_an_archive_without_places_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run", pack_tiny(tmp_path / "data"))
    for words in (["--box", "0,0,1,1"], ["--since", "2020"], ["--near", "1,2"], ["--scene", "a"]):
        assert main([str(tmp_path / "run"), "--like", "<b>3</b>", *words]) == 2
        (line,) = [one for one in capsys.readouterr().err.splitlines() if "error" in one]
        assert re.search("has a place|has a date|knows no scenes", line)


def test_negative_numbers_are_values() -> None:
    words = ["run", "--box", "-10,1,2,3", "--near", "-.5,3", "--top", "3", "--box", "--json"]
    assert with_numbers(words) == ["run", "--box=-10,1,2,3", "--near=-.5,3", "--top", "3", "--box", "--json"]
