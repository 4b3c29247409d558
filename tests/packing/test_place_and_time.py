"""Where and when pictures were taken: from tags, tables and names into the index, and splits drawn by it."""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from PIL import Image
from pyproj import Transformer

from marc_dist.config import ConfigError, DataError
from marc_dist.data.dataset import open_dataset
from marc_dist.geography.places import Places, read_places
from marc_dist.packing.adding.append import append
from marc_dist.packing.georeference import tags
from marc_dist.packing.pack import pack
from marc_dist.packing.reading.recipes import load_recipe
from marc_dist.packing.reading.samples import Source
from marc_dist.packing.reading.source import read_source
from marc_dist.packing.reading.unpack import opened
from tests.packing import earth

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import geopandas


def read(folder: Path, text: str = "", **keys: object) -> Source:
    recipe = load_recipe(earth.recipe(folder / "earth.yaml", text, **keys))
    return read_source(recipe, [folder / "download"])


def packed(folder: Path, text: str = "", **keys: object) -> tuple[dict[str, int], Places, Source]:
    """Row of each key in the index, and the places in it."""
    source = read(folder, text, **keys)
    pack(source, folder / "shards")
    dataset = open_dataset(folder / "shards")
    return {key: row for row, key in enumerate(dataset.keys)}, read_places(folder / "shards/index.parquet"), source


def test_geotiff_tags_become_geoparquet(tmp_path: Path) -> None:
    earth.tiles(tmp_path / "download", 6)
    rows, places, _ = packed(tmp_path)
    utm = Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    frame = geopandas.read_parquet(tmp_path / "shards/index.parquet")
    assert frame.crs.to_string() == "OGC:CRS84" and frame.geometry.is_valid.all()
    assert set(frame.geom_type) == {"Polygon"} and list(frame["key"]) == list(rows)
    for row, key in enumerate(frame["key"]):
        number = int(key[1:])
        west, north = 500_000 + number % 3 * 320, 5_300_000 - number // 3 * 320
        bounds = utm.transform_bounds(west, north - 320, west + 320, north)
        assert frame.geometry[row].bounds == pytest.approx(bounds, abs=1e-9)
        assert places.bounds[row] == pytest.approx(bounds, abs=1e-9)
        assert places.date(row) == f"2020-{1 + number:02d}-15" and frame["scene"][row] == f"S{number // 3}"
    clip = geopandas.read_parquet(tmp_path / "shards/index.parquet", bbox=tuple(frame.geometry[0].buffer(-1e-4).bounds))
    assert len(clip) == 1  # by the covering column
    meta = json.loads(pq.read_schema(tmp_path / "shards/index.parquet").metadata[b"geo"])
    assert meta["columns"]["geometry"]["bbox"] == pytest.approx(frame.total_bounds.tolist())


def test_a_folder_without_place_has_no_columns_of_it(tmp_path: Path) -> None:
    for at in range(4):
        earth.jpeg(tmp_path / "download" / "ab"[at % 2] / f"p{at}.jpg", at)
    _, places, source = packed(tmp_path)
    assert not places.placed.any() and not places.dated.any() and places.wkb is None
    assert not [line for line in source.warnings if line.startswith(("place", "date"))]
    assert "geometry" not in geopandas.pd.read_parquet(tmp_path / "shards/index.parquet").columns


@pytest.mark.parametrize("kind", ["csv", "parquet", "geojson"])
def test_tables_beside_jpegs(tmp_path: Path, kind: str) -> None:
    download, names = tmp_path / "download", ["a", "b", "c", "d"]
    for at, name in enumerate(names):
        earth.jpeg(download / "xy"[at % 2] / f"{name}.jpg", at)
    boxes = [shapely.box(at, 50, at + 0.1, 50.1) for at in range(4)]
    if kind == "csv":
        lines = [[f"{name}.jpg", f"2021-03-0{at + 1}", at + 0.05, 50.05] for at, name in enumerate(names)]
        earth.table(download / "meta.csv", ["file", "acquisition_date", "Longitude", "Latitude"], lines)
    else:
        dates = [f"2021-03-0{at + 1}" for at in range(4)]
        frame = geopandas.GeoDataFrame({"file": names, "date": dates}, geometry=boxes, crs="EPSG:4326")
        frame = frame.to_crs("EPSG:3857") if kind == "parquet" else frame
        getattr(frame, "to_parquet" if kind == "parquet" else "to_file")(download / f"meta.{kind}")
    rows, places, source = packed(tmp_path, "place: {side_m: 1000}\n" if kind == "csv" else "")
    for at, name in enumerate(names):
        row = np.array([rows[name]])
        shape = places.shapes(row)[0]
        assert places.date(int(row[0])) == f"2021-03-0{at + 1}"
        assert shape.centroid.coords[0] == pytest.approx((at + 0.05, 50.05), abs=1e-9)
        assert kind == "csv" or shapely.hausdorff_distance(shape, boxes[at]) < 1e-9
    assert not any("tables that were not read" in line for line in source.warnings)


def test_columns_of_the_label_table_are_no_classes(tmp_path: Path) -> None:
    for at in range(4):
        earth.jpeg(tmp_path / "download" / "images" / f"p{at}.jpg", at)
    rows = [[f"p{at}.jpg", at % 2, 1, "POINT (7 51)", "2020-01-0" + str(at + 1)] for at in range(4)]
    earth.table(tmp_path / "download" / "labels.csv", ["image", "sea", "land", "geom", "sensing_time"], rows)
    where, places, source = packed(tmp_path, labels="[table]", tables="[labels.csv]")
    assert source.classes == ("sea", "land") and not any("not read" in line for line in source.warnings)
    assert places.shapes(np.array([where["p2"]]))[0].coords[0] == (7, 51) and places.date(where["p3"]) == "2020-01-04"


def test_recipe_keys_say_what_files_do_not(tmp_path: Path) -> None:
    for at in range(4):
        path = tmp_path / "download" / "ab"[at % 2] / f"S2A_2017061{at}T101031_{at}.tif"
        earth.geotiff(path, crs=None, west=500_000 + 320 * at, seed=at)
    place = r"place: {crs: 'EPSG:32633', date_pattern: '_(\d{8}T\d{6})_'}" + "\n"
    _, places, source = packed(tmp_path, place)
    assert places.placed.all()
    assert sorted(places.bounds[:, 0]) == pytest.approx([15 + 0.004278 * at for at in range(4)], abs=1e-4)
    assert sorted(places.date(row) for row in range(4)) == [f"2017-06-1{at}T10:10:31Z" for at in range(4)]
    assert not source.warnings
    with pytest.raises(DataError, match=r"place.crs: expected a CRS such as EPSG:32633, got 'EPSG:nine'"):
        read(tmp_path, "place: {crs: 'EPSG:nine'}\n")
    for bad, told in (
        ("{lat: y}", "both lat and lon"),
        ("{date_pattern: 'a'}", "one group"),
        ("{side_m: -1}", "side_m"),
    ):
        with pytest.raises(ConfigError, match=told):
            read(tmp_path, f"place: {bad}\n")
    with pytest.raises(DataError, match=r"place.tables: expected nowhere.csv in the download"):
        read(tmp_path, "place: {tables: [nowhere.csv]}\n")


def break_tag(path: Path, tag: int) -> None:
    """Let a tag's values lie beyond the end of the file."""
    data = bytearray(path.read_bytes())
    start = struct.unpack_from("<I", data, 4)[0]
    for at in range(struct.unpack_from("<H", data, start)[0]):
        if struct.unpack_from("<H", data, start + 2 + 12 * at)[0] == tag:
            struct.pack_into("<I", data, start + 2 + 12 * at + 8, 0xFFFFFFF0)
    path.write_bytes(data)


def test_bad_places_and_dates_are_counted_and_nothing_is_lost(tmp_path: Path) -> None:
    download = tmp_path / "download"
    earth.geotiff(download / "a/ok.tif")
    earth.geotiff(download / "a/nocrs.tif", crs=None, seed=1)
    earth.geotiff(download / "a/other.tif", crs="EPSG:32601", west=300_000, seed=2)
    earth.geotiff(download / "b/dateline.tif", crs="EPSG:4326", west=179.9999, north=10, step=1e-5, seed=3)
    earth.geotiff(download / "b/swapped.tif", crs="EPSG:4326", west=48, north=110, step=1e-4, seed=4)
    earth.geotiff(download / "b/undated.tif", TIFFTAG_DATETIME="0000:00:00 00:00:00", seed=5)
    earth.geotiff(download / "b/far.tif", west=1e30, seed=6)
    break_tag(earth.geotiff(download / "b/corrupt.tif", seed=7), 33550)
    lines = [["ok.tif", "nonsense", 47.8, 15], ["nocrs.tif", "2020-01-01", 103.5, 15], ["other.tif", "", 20, 20]]
    earth.table(download / "meta.csv", ["image", "date", "lat", "lon"], [*lines, ["gone.tif", "2020-01-01", 1, 1]])
    rows, places, source = packed(tmp_path)
    assert len(rows) == 8 and {key for key, row in rows.items() if not places.placed[row]} == {
        "nocrs", "swapped", "far", "corrupt"
    }  # fmt: skip
    (halves,) = places.shapes(np.array([rows["dateline"]]))
    assert halves.geom_type == "MultiPolygon" and halves.bounds[::2] == (-180, 180) and halves.area < 2e-7
    said = "\n".join(source.warnings)
    for line in (
        "place: GeoTIFF with coordinates and no CRS, say it in the recipe (place: crs): 1 pictures: a/nocrs.tif",
        "place: GeoTIFF tags that give none: 3 pictures: b/corrupt.tif (its tags give no place), b/far.tif",
        "place: 4 of 8 pictures have none: a/nocrs.tif, b/corrupt.tif, b/far.tif and 1 more",
        "date: 7 of 8 pictures have none: a/ok.tif, a/other.tif, b/corrupt.tif and 4 more",
        "place: in a table, and none: 1 pictures: meta.csv: nocrs (longitude 15, latitude 103.5 is not on the globe",
        "date: in a table, and none: 1 pictures: meta.csv: ok ('nonsense' is no date; expected e.g. 2017-06-13",
        "date: in GeoTIFF tags, and none: 1 pictures: b/undated.tif",
        "place: pictures of 3 CRS, all turned into WGS84: 3 EPSG:32633, 2 EPSG:4326, 1 EPSG:32601",
        "place: 1 pictures lie elsewhere by their table than by their tags (latitude and longitude swapped?): a/other",
    ):
        assert line in said, said
    assert geopandas.read_parquet(tmp_path / "shards/index.parquet").geometry.notna().sum() == 4


def test_without_rasterio_tags_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earth.tiles(tmp_path / "download", 4)
    monkeypatch.setattr("marc_dist.packing.georeference.collect.can_read", lambda: False)
    assert "to read them: pip install 'marc-dist[geo]': 4 pictures" in "".join(read(tmp_path).warnings)
    assert not read(tmp_path, "place: {tags: false}\n").warnings
    with pytest.raises(DataError, match=r"marc-dist\[geo\]"):
        read(tmp_path, "place: {crs: 'EPSG:32633'}\n")


def test_tiles_that_packing_cuts_have_their_own_footprints(tmp_path: Path) -> None:
    earth.geotiff(tmp_path / "download/images/big.tif", DATE="2019-05-06")
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[:, 16:] = 1
    (tmp_path / "download/masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "download/masks/big.png")
    text = (
        "pictures: {folders: [images]}\nmasks: {folders: [masks], index_orders: {o: {0: sea, 1: land}}}\n"
        "classes: [{name: sea}, {name: land}]\npair_by: tree\ntile: 16\n"
    )
    recipe = load_recipe(earth.recipe(tmp_path / "tiles.yaml", text, labels="[masks]"))
    with opened(recipe, [tmp_path / "download"], tmp_path, 1) as roots:
        source = read_source(recipe, roots)
        pack(source, tmp_path / "shards")
    places = read_places(tmp_path / "shards/index.parquet")
    whole = shapely.from_wkb(tags.read_tags([str(tmp_path / "download/images/big.tif")], "")[0].footprint)
    parts = places.shapes(np.arange(4))
    assert shapely.union_all(parts).symmetric_difference(whole).area < 1e-4 * whole.area  # edges are straight in UTM
    assert [part.area for part in parts] == pytest.approx([whole.area / 4] * 4, rel=1e-3)
    assert {places.date(row) for row in range(4)} == {"2019-05-06"}


GRID = "{by: grid, km: 1, shares: {train: 0.5, val: 0.2, test: 0.3}}"


def test_no_cell_of_a_grid_lies_in_two_splits(tmp_path: Path) -> None:
    earth.tiles(tmp_path / "download", 100)
    source = read(tmp_path, splits=GRID)
    cells: dict[str, set[str]] = {}
    for sample in source.samples:
        cells.setdefault(sample.taken.group, set()).add(sample.split)
    assert 12 <= len(cells) <= 36 and all(len(splits) == 1 for splits in cells.values())
    num = [sum(sample.split == split for sample in source.samples) for split in ("train", "val", "test")]
    assert num == pytest.approx([50, 20, 30], abs=9)
    assert list(read(tmp_path, splits=GRID).samples) == list(source.samples)
    other = read(tmp_path, splits=GRID.replace("by:", "seed: 1, by:"))
    assert [one.split for one in other.samples] != [one.split for one in source.samples]
    assert any(line.startswith(f"splits: drawn by grid: {len(cells)} groups") for line in source.warnings)
    with pytest.raises(DataError, match="would get none of the 1 groups"):
        read(tmp_path, splits=GRID.replace("km: 1", "km: 500"))


@pytest.mark.parametrize("by", ["scene", "country"])
def test_splits_by_a_column(tmp_path: Path, by: str) -> None:
    earth.tiles(tmp_path / "download", 36)
    lands = ["Austria", "Ireland", "Serbia", "Kosovo", "Finland"]
    rows = [[f"t{at:03d}.tif", lands[at % 5]] for at in range(36)]
    earth.table(tmp_path / "download/meta.csv", ["name", "Country"], rows if by == "country" else rows[:0])
    source = read(tmp_path, splits=f"{{by: {by}, shares: {{train: 0.6, test: 0.4}}}}")
    groups = {(sample.taken.group, sample.split) for sample in source.samples}
    assert sorted(group for group, _ in groups) == (sorted(lands) if by == "country" else [f"S{at}" for at in range(6)])


def test_a_picture_without_a_group_stops_unless_it_is_allowed(tmp_path: Path) -> None:
    earth.tiles(tmp_path / "download", 30)
    earth.geotiff(tmp_path / "download/sea/lost.tif", crs=None)
    with pytest.raises(DataError, match="pictures without a place, drawn one by one .1.: sea/lost.tif; to go on all"):
        read(tmp_path, splits=GRID)
    recipe = load_recipe(str(tmp_path / "earth.yaml"))
    source = read_source(recipe, [tmp_path / "download"], allow=["no_place"])
    assert len(source.samples) == 31
    with pytest.raises(
        DataError, match="splits.by: scenery: no picture has a value in the column 'scenery' of a table"
    ):
        read(tmp_path, splits="{by: scenery, shares: {train: 0.5, test: 0.5}}")
    for bad, told in ((GRID.replace("km: 1, ", ""), "expected km"), ("{by: scene, names: {a: [b]}}", "with shares")):
        with pytest.raises(ConfigError, match=told):
            read(tmp_path, splits=bad)


def test_what_is_added_keeps_places_and_groups(tmp_path: Path) -> None:
    earth.tiles(tmp_path / "download", 36)
    late = sorted((tmp_path / "download").rglob("*.tif"))[::3]
    for path in late:
        path.rename(tmp_path / path.name)
    rows, before, _ = packed(tmp_path, splits=GRID)
    shapes = dict(zip(rows, before.shapes(np.array(list(rows.values()))), strict=True))
    assert not append(read(tmp_path, splits=GRID), tmp_path / "shards")
    gone = next((tmp_path / "download").rglob("*.tif"))
    gone.rename(tmp_path / "gone.tif")
    for path in late:
        (tmp_path / path.name).rename(path)
    changes = append(read(tmp_path, splits=GRID), tmp_path / "shards")
    assert changes.new.total() == 12 and not changes.changed and not changes.relabelled
    frame = geopandas.read_parquet(tmp_path / "shards/index.parquet")
    assert len(frame) == 36 and frame.geometry.notna().all() and frame["date"].notna().all()
    assert frame.groupby("group")["split"].nunique().max() == 1
    again = frame.set_index("key").geometry
    assert all(again[key].equals(shape) for key, shape in shapes.items())
    with pytest.raises(DataError, match="was written anew in the meantime"):
        assert before.groups
    earth.table(tmp_path / "download/when.csv", ["name", "date"], [["t005.tif", "2001-02-03"]])
    assert len(append(read(tmp_path, splits=GRID), tmp_path / "shards").relabelled) == 1
    assert (
        "2001-02-03" in geopandas.read_parquet(tmp_path / "shards/index.parquet")["date"].astype(str).str[:10].tolist()
    )


def test_two_processes_read_the_same_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earth.tiles(tmp_path / "download", 7)
    recipe = load_recipe(earth.recipe(tmp_path / "earth.yaml"))
    alone = list(read_source(recipe, [tmp_path / "download"]).samples)
    monkeypatch.setattr("marc_dist.packing.georeference.collect.FILES", 2)
    assert list(read_source(recipe, [tmp_path / "download"], workers=2).samples) == alone
    assert all(sample.taken.footprint and sample.taken.date for sample in alone)


@pytest.mark.parametrize("name", ["metadata.csv", "where.csv"])
def test_a_table_of_places_is_no_label_table(tmp_path: Path, name: str) -> None:
    for at in range(4):
        earth.jpeg(tmp_path / "download" / "ab"[at % 2] / f"p{at}.jpg", at)
    rows = [[f"p{at}.jpg", "2020-01-01", 50 + at, 7, "Sentinel"] for at in range(4)]
    earth.table(tmp_path / "download" / name, ["file", "date", "lat", "lon", "mission"], rows)
    source = read(tmp_path, recognise=True)
    assert source.classes == ("a", "b") and all(sample.taken.footprint for sample in source.samples)
    assert not any("passed over" in line for line in source.warnings)
