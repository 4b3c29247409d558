"""Packing of pictures with named bands: one file a picture, one file a band, and what is wrong with some of them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import yaml

from marc_dist.config import ConfigError, DataError
from marc_dist.data.bands.tiff import read_tiff
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.data.reader import IndexedReader
from marc_dist.packing.adding.append import append
from marc_dist.packing.pack import pack
from marc_dist.packing.reading.recipes import load_recipe
from marc_dist.packing.reading.samples import Source
from marc_dist.packing.reading.source import read_source
from marc_dist.packing.verify import verify
from tests import band_archive
from tests.band_archive import BANDS, RESOLUTION_M

NUM, SIDE = 12, 12


def source_of(folder: Path, **more: Any) -> Source:
    return read_source(load_recipe(str(folder / "recipe.yaml")), [folder], **more)


def packed(folder: Path, out: Path, allow: tuple[str, ...] = (), **more: Any) -> Dataset:
    pack(source_of(folder, allow=allow), out, **more)
    assert not [fault for report in verify(out) for fault in report.faults]
    return open_dataset(out)


def tiles_of(dataset: Dataset) -> dict[str, Any]:
    reader = IndexedReader(dataset)
    return {str(dataset.keys[row]): read_tiff(reader.read(row), "x").planes for row in range(len(dataset))}


def test_one_file_a_picture_is_kept_byte_by_byte_and_measured(tmp_path: Path) -> None:
    band_archive.make(tmp_path / "in", NUM, SIDE)
    dataset = packed(tmp_path / "in", tmp_path / "out")
    reader = IndexedReader(dataset)
    for row in range(NUM):
        assert reader.read(row) == (tmp_path / f"in/tiles/{dataset.keys[row]}.tif").read_bytes()
        assert reader.image(row).mode == "RGB" and reader.image(row).size == (SIDE, SIDE)
    told = dataset.meta["bands"]
    assert (told["names"], told["dtype"], told["nodata"]) == (list(BANDS), "uint16", 0) and told["measured"] == "train"
    tiles = tiles_of(dataset)
    train = np.stack([tiles[str(dataset.keys[row])] for row in dataset.rows("train")]).astype(np.float64)
    assert np.allclose(told["statistics"]["mean"], train.mean(axis=(0, 2, 3)), rtol=1e-12)
    assert np.allclose(told["statistics"]["std"], train.std(axis=(0, 2, 3)), rtol=1e-12)
    again = packed(tmp_path / "in", tmp_path / "again", samples_per_shard=3)
    assert again.meta["bands"] == told and again.fingerprint == dataset.fingerprint


def test_one_file_a_band_becomes_one_lossless_tiff_of_the_finest(tmp_path: Path) -> None:
    band_archive.make(tmp_path / "in", NUM, SIDE, files="band")
    dataset = packed(tmp_path / "in", tmp_path / "out")
    assert len(dataset) == NUM and "tile_000003" in dataset.keys.tolist()
    for key, planes in tiles_of(dataset).items():
        for name, plane in zip(BANDS, planes, strict=True):
            step = RESOLUTION_M[name] // 10
            with rasterio.open(tmp_path / f"in/tiles/{key}/{key}_{name}.tif") as file:
                assert np.array_equal(plane, file.read(1).repeat(step, 0).repeat(step, 1))
    row = dataset.keys.tolist().index("tile_000003")
    with rasterio.MemoryFile(IndexedReader(dataset).read(row)) as memory, memory.open() as file:
        with rasterio.open(tmp_path / "in/tiles/tile_000003/tile_000003_B02.tif") as finest:
            assert (file.crs, file.transform, file.descriptions) == (finest.crs, finest.transform, BANDS)
    assert dataset.meta["bands"]["stacked"]
    changed = tmp_path / "in/tiles/tile_000003/tile_000003_B09.tif"  # not the first band's file
    band_archive.write(changed, np.full((1, 2, 2), 9, dtype=np.uint16), number=3, pixel_m=60)
    changes = append(
        source_of(tmp_path / "in"), tmp_path / "out", workers=1, samples_per_shard=1000, shard_mb=None, to_png=False
    )
    assert (len(changes.changed), changes.same) == (1, NUM - 1)


def test_bands_that_are_left_out_are_not_packed(tmp_path: Path) -> None:
    recipe = band_archive.make(tmp_path / "in", 4, SIDE, files="band")
    told = yaml.safe_load(recipe.read_text()) | {"bands": ["B11", "B05"]}
    recipe.write_text(yaml.safe_dump(told))
    dataset = packed(tmp_path / "in", tmp_path / "out")
    assert next(iter(tiles_of(dataset).values())).shape == (2, SIDE // 2, SIDE // 2)


def test_pictures_without_the_file_of_a_band_are_counted_and_listed(tmp_path: Path) -> None:
    band_archive.make(tmp_path / "in", NUM, SIDE, files="band")
    (tmp_path / "in/tiles/tile_000002/tile_000002_B8A.tif").unlink()
    (tmp_path / "in/tiles/tile_000005/tile_000005_B01.tif").unlink()
    with pytest.raises(
        DataError, match=r"lack files of bands \(2, left out\): tiles/tile_000002.*\(B8A\).*--allow bands"
    ):
        source_of(tmp_path / "in")
    dataset = packed(tmp_path / "in", tmp_path / "out", ("bands", "surplus"))
    assert len(dataset) == NUM - 2 and any("B01" in line for line in dataset.meta["warnings"])


def rewrite(folder: Path, number: int, **changes: Any) -> None:
    """Another tile in the place of one."""
    planes, _ = band_archive.tile(number, SIDE)
    how = {"planes": planes, "names": BANDS, **changes}
    band_archive.write(folder / f"tiles/tile_{number:06d}.tif", how.pop("planes"), number=number, **how)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"planes": np.ones((11, SIDE, SIDE), np.uint16), "names": ()}, "expected 12 bands .*got 11"),
        ({"planes": np.ones((12, SIDE, SIDE), np.float32)}, "expected uint16 as in the first picture, got float32"),
        ({"planes": np.ones((12, SIDE, SIDE), np.int32)}, "expected bands of uint8, .*got int32"),
        ({"nodata": 65535}, "expected nodata 0.*got 65535"),
    ],
)
def test_a_picture_that_is_another_is_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    band_archive.make(tmp_path / "in", 4, SIDE)
    rewrite(tmp_path / "in", 2, **changes)
    with pytest.raises(DataError, match=f"tile_000002.tif: {said}") as caught:
        packed(tmp_path / "in", tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_pictures_without_values_are_kept_counted_and_not_measured(tmp_path: Path) -> None:
    band_archive.make(tmp_path / "in", 6, SIDE)
    for number in range(6):
        planes = band_archive.tile(number, SIDE)[0].astype(np.float32)
        planes[:] = math.nan if number == 1 else planes
        planes[4] = -9999 if number == 2 else planes[4]
        rewrite(tmp_path / "in", number, planes=planes, nodata=-9999)
    dataset = packed(tmp_path / "in", tmp_path / "out")
    notes = " ".join(dataset.meta["warnings"])
    assert "1 pictures that hold no values at all, only nodata or NaN: tile_000001" in notes
    assert "1 pictures of which a band holds no values, only nodata or NaN: tile_000002" in notes
    assert len(dataset) == 6 and all(map(math.isfinite, dataset.meta["bands"]["statistics"]["mean"]))


def test_a_damaged_file_is_one_line_and_other_kinds_are_refused(tmp_path: Path) -> None:
    band_archive.make(tmp_path / "in", 4, SIDE)
    path = tmp_path / "in/tiles/tile_000002.tif"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(DataError, match=r"tile_000002\.tif: damaged TIFF"):
        packed(tmp_path / "in", tmp_path / "out")
    path.write_bytes(whole)
    with pytest.raises(DataError, match="expected TIFFs, which keep the bands B01, .*got --to-png"):
        packed(tmp_path / "in", tmp_path / "out", to_png=True)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"bands": ["B02", "b02"]}, "expected different names"),
        ({"band_files": "_{band}", "bands": []}, "band_files: expected"),
        ({"band_files": "_B02"}, "band_files: expected"),
        ({"bands": [], "nodata": 0}, "nodata: expected with bands"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(tmp_path: Path, told: dict[str, Any], said: str) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(band_archive.recipe() | told))
    with pytest.raises(ConfigError, match=said):
        load_recipe(str(tmp_path / "recipe.yaml"))


def test_bigearthnet_v2_in_its_own_layout(tmp_path: Path) -> None:
    """Product and patch folders, a file a band of 120, 60 and 20 pixels; S1 and maps beside are passed over."""
    product = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
    patches = [f"{product}_{column}_57" for column in (26, 27, 28)]
    labels = [["Arable land", "Moors, heathland and sclerophyllous vegetation"], ["Marine waters"], ["Urban fabric"]]
    for number, patch in enumerate(patches):
        planes, _ = band_archive.tile(number, 120)
        for name, plane in zip(BANDS, planes, strict=True):
            step = RESOLUTION_M[name] // 10
            place = tmp_path / "in/BigEarthNet-S2" / product / patch / f"{patch}_{name}.tif"
            band_archive.write(place, plane[None, ::step, ::step], pixel_m=RESOLUTION_M[name], nodata=None)
    other = tmp_path / "in/BigEarthNet-S1/S1A_IW/S1A_IW_33UUP_26_57/S1A_IW_33UUP_26_57_VV.tif"
    band_archive.write(other, np.ones((1, 120, 120), dtype=np.float32), nodata=None)
    table = {
        "patch_id": patches, "labels": labels, "split": ["train", "validation", "test"], "country": ["Austria"] * 3,
        "s1_name": ["a", "b", "c"], "s2v1_name": ["d", "e", "f"], "contains_seasonal_snow": [False] * 3,
        "contains_cloud_or_shadow": [False, True, False],
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "in/metadata.parquet")
    source = read_source(load_recipe("bigearthnet-v2"), [tmp_path / "in"], allow=("counts",))
    pack(source, tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    rows = zip(dataset.keys.tolist(), dataset.split.tolist(), dataset.labels, strict=True)
    found = {key: (split, [dataset.classes[at] for at in np.flatnonzero(row)]) for key, split, row in rows}
    assert found == {patch: (("train", "val", "test")[at], labels[at]) for at, patch in enumerate(patches)}
    assert {planes.shape for planes in tiles_of(dataset).values()} == {(12, 120, 120)}
    assert json.loads((tmp_path / "out/dataset.json").read_text())["bands"]["names"] == list(BANDS)
    shutil.rmtree(tmp_path / "out")
