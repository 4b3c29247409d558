"""Large pictures cut into tiles: the shipped recipes that need it, on made-up files in the exact public layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marc_dist.cli.shard import main
from marc_dist.config import ConfigError, DataError, build
from marc_dist.packing.reading import unpack
from marc_dist.packing.reading.recipes import Recipe, load_recipe
from marc_dist.packing.reading.samples import Source
from marc_dist.packing.reading.source import read_source
from marc_dist.packing.reading.tiles import starts
from marc_dist.packing.reading.unpack import opened

LEGEND = [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)]
ALLOW = ("counts", "size", "missing")


def noise(path: Path, size: tuple[int, int], seed: int, bands: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(1, 255, (size[1], size[0], bands), dtype=np.uint8)
    Image.fromarray(pixels if bands > 1 else pixels[:, :, 0]).save(path)


def quarters(path: Path, size: tuple[int, int], colours: list[object], mode: str) -> None:
    """A mask whose left half is the first colour, and whose right half is the second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new(mode, size, colours[0])  # type: ignore[arg-type]
    image.paste(colours[1], (size[0] // 2, 0, *size))  # type: ignore[arg-type]
    image.save(path)


def read(recipe: Recipe, beside: Path, *roots: Path) -> tuple[dict[str, list[str]], Source]:
    """Tile -> its classes; each tile is opened here, since it is gone afterwards."""
    with opened(recipe, list(roots), beside) as found:
        source = read_source(recipe, found, allow=ALLOW)
        for sample in source.samples:
            with Image.open(sample.file) as image:
                assert image.size == (512, 512) and image.format == "PNG"
        return {s.origin: [source.classes[label] for label in s.labels] for s in source.samples}, source


@pytest.mark.parametrize("labels", ["", "5_Labels_all", "5_Labels_for_participants"])
def test_potsdam(tmp_path: Path, labels: str) -> None:
    images, masks = tmp_path / "a", tmp_path / "b"
    for seed, name in enumerate(("2_10", "7_13")):
        noise(images / f"2_Ortho_RGB/top_potsdam_{name}_RGB.tif", (1024, 700), seed)
        quarters(masks / labels / f"top_potsdam_{name}_label.tif", (1024, 700), [LEGEND[seed], LEGEND[5]], "RGB")
    found, source = read(load_recipe("potsdam"), tmp_path / "out", images, masks)
    assert found == {
        f"2_Ortho_RGB/y{y:05d}_x{x:05d}/top_potsdam_{name}_RGB.png": [source.classes[5 if x else seed]]
        for seed, name in enumerate(("2_10", "7_13"))
        for y in (0, 188)
        for x in (0, 512)
    }
    assert {sample.split for sample in source.samples if "_2_10_" in sample.origin} == {"train"}
    assert {sample.split for sample in source.samples if "_7_13_" in sample.origin} == {"test"}
    assert not list((tmp_path / "out").glob(".unpacked*"))


def test_folders_that_are_passed_one_by_one_keep_their_names(tmp_path: Path) -> None:
    noise(tmp_path / "2_Ortho_RGB/top_potsdam_2_10_RGB.tif", (600, 512), 1)
    quarters(tmp_path / "5_Labels_all/top_potsdam_2_10_label.tif", (600, 512), [LEGEND[0], LEGEND[5]], "RGB")
    roots = (tmp_path / "2_Ortho_RGB", tmp_path / "5_Labels_all")
    found, _ = read(load_recipe("potsdam"), tmp_path / "out", *roots)
    assert sorted(found) == [f"2_Ortho_RGB/y00000_x{x:05d}/top_potsdam_2_10_RGB.png" for x in (0, 88)]


def test_potsdam_has_the_published_number_of_tiles() -> None:
    recipe = load_recipe("potsdam")
    tiles = len(starts(6000, 512)) ** 2
    num = {split: tiles * len(names) for split, names in recipe.splits.names.items()}
    assert num == dict(recipe.expect.num_per_split) == {"train": 24 * 144, "test": 14 * 144}


def test_vaihingen_labels_are_told_by_their_colours(tmp_path: Path) -> None:
    images, masks = tmp_path / "a", tmp_path / "b"
    for seed, number in enumerate((1, 11, 2)):
        noise(images / f"top/top_mosaic_09cm_area{number}.tif", (600, 512), seed)
        quarters(masks / f"top_mosaic_09cm_area{number}.tif", (600, 512), [LEGEND[3], LEGEND[4]], "RGB")
    noise(images / "dsm/dsm_09cm_matching_area1.tif", (600, 512), 9, bands=1)
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(images / "dsm/heights.tif")
    found, source = read(load_recipe("vaihingen"), tmp_path / "out", images, masks)
    assert len(found) == 6 and all(set(names) == {"tree", "car"} for names in found.values())
    assert sorted(s.split for s in source.samples) == ["test"] * 2 + ["train"] * 4


def test_vaihingen_masks_of_the_participants_may_lie_beside_the_complete_ones(tmp_path: Path) -> None:
    images, masks = tmp_path / "a", tmp_path / "b"
    for seed, number in enumerate((1, 2)):
        noise(images / f"top/top_mosaic_09cm_area{number}.tif", (600, 512), seed)
        quarters(masks / f"top_mosaic_09cm_area{number}.tif", (600, 512), [LEGEND[3], LEGEND[4]], "RGB")
    own = images / "gts_for_participants/top_mosaic_09cm_area1.tif"
    quarters(own, (600, 512), [LEGEND[3], LEGEND[4]], "RGB")
    found, source = read(load_recipe("vaihingen"), tmp_path / "out", images, masks)
    assert len(found) == 4 and any("2 lie there twice and are equal" in line for line in source.warnings)
    quarters(own, (600, 512), [LEGEND[3], LEGEND[0]], "RGB")
    with pytest.raises(DataError, match="masks of one name"):
        read(load_recipe("vaihingen"), tmp_path / "out", images, masks)
    (masks / "top_mosaic_09cm_area2.tif").unlink()
    (masks / "top_mosaic_09cm_area1.tif").unlink()
    found, _ = read(load_recipe("vaihingen"), tmp_path / "out", images)
    assert len(found) == 2


def test_gid15(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "val", "test")):
        noise(tmp_path / f"GID/img_dir/{split}/GF2_PMS1__L1A000{seed}-MSS1.tif", (512, 520), seed)
        if split != "test":
            place = tmp_path / f"GID/ann_dir/{split}/GF2_PMS1__L1A000{seed}-MSS1_15label.png"
            quarters(place, (512, 520), [0, 13 + seed], "L")
    found, source = read(load_recipe("gid15"), tmp_path / "out", tmp_path / "GID")
    assert sorted(map(tuple, found.values())) == [("lake",)] * 2 + [("river",)] * 2
    assert {s.split for s in source.samples} == {"train", "val"} and any("2, left out" in w for w in source.warnings)


def test_every_pixel_is_in_a_tile() -> None:
    for length in (1, 511, 512, 513, 1024, 6000):
        places = starts(length, 512)
        assert set().union(*(range(s, min(s + 512, length)) for s in places)) == set(range(length))
        assert len(places) == len(set(places)) and all(s + 512 <= length for s in places if length >= 512)


def test_what_cannot_be_cut_is_one_line(tmp_path: Path) -> None:
    heights = tmp_path / "in/2_Ortho_RGB/top_potsdam_2_10_RGB.tif"
    heights.parent.mkdir(parents=True)
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(heights)
    with pytest.raises(DataError, match=r"mode F; expected .* cut it yourself \(gdal_retile.py\)"):
        read(load_recipe("potsdam"), tmp_path / "out", tmp_path / "in")
    keys = {"name": "x", "title": "x", "labels": ["masks"], "tile": 64, "splits": {"shares": {"train": 1.0}}}
    with pytest.raises(ConfigError, match="pair_by: tree"):
        build(Recipe, keys)


def test_a_mask_saved_as_jpeg_is_refused(tmp_path: Path) -> None:
    noise(tmp_path / "in/2_Ortho_RGB/top_potsdam_2_10_RGB.tif", (512, 512), 0)
    noise(tmp_path / "in/labels/top_potsdam_2_10_label.jpg", (512, 512), 1)
    recipe = load_recipe("potsdam").model_copy(update={"tile": None})
    with pytest.raises(DataError, match="_label.jpg: a mask saved as JPEG"):
        read(recipe, tmp_path / "out", tmp_path / "in")


def test_a_mask_saved_as_jpeg_is_refused_before_it_is_cut(tmp_path: Path) -> None:
    noise(tmp_path / "in/2_Ortho_RGB/top_potsdam_2_10_RGB.tif", (600, 512), 0)
    place = tmp_path / "in/labels/top_potsdam_2_10_label.jpg"
    place.parent.mkdir()
    Image.new("RGB", (600, 512), LEGEND[0]).save(place)  # one colour: JPEG keeps it, so its tiles would pass
    with pytest.raises(DataError, match="_label.jpg: a mask saved as JPEG"):
        read(load_recipe("potsdam"), tmp_path / "out", tmp_path / "in")


@pytest.mark.parametrize("recipe", ["potsdam", "vaihingen"])
def test_a_mask_of_another_size_than_its_picture_is_refused(tmp_path: Path, recipe: str) -> None:
    picture, mask = {
        "potsdam": ("2_Ortho_RGB/top_potsdam_2_10_RGB.tif", "top_potsdam_2_10_label.tif"),
        "vaihingen": ("top/top_mosaic_09cm_area1.tif", "top_mosaic_09cm_area1.tif"),
    }[recipe]
    noise(tmp_path / "a" / picture, (512, 512), 0)
    quarters(tmp_path / "b" / mask, (512, 500), [LEGEND[0], LEGEND[1]], "RGB")
    with pytest.raises(DataError, match=rf"{mask}: a mask of 512x500 pixels, but {picture} has 512x512; expected"):
        read(load_recipe(recipe), tmp_path / "out", tmp_path / "a", tmp_path / "b")


def test_a_damaged_png_is_one_line(tmp_path: Path) -> None:
    place = tmp_path / "in/2_Ortho_RGB/top_potsdam_2_10_RGB.png"
    noise(place, (600, 512), 0)
    data = bytearray(place.read_bytes())
    data[data.index(b"IDAT", data.index(b"IDAT") + 4)] = 0  # the name of a chunk: Pillow raises SyntaxError
    place.write_bytes(data)
    with pytest.raises(DataError, match=r"_RGB.png: damaged picture \(broken PNG file"):
        read(load_recipe("potsdam"), tmp_path / "out", tmp_path / "in")


def test_tiles_are_cut_by_as_many_processes_as_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def cut_tiles(recipe: Recipe, roots: list[Path], folder: Path, workers: int, show: object) -> list[Path]:
        seen.append(workers)
        return [folder]

    monkeypatch.setattr(unpack, "cut_tiles", cut_tiles)
    (tmp_path / "in").mkdir()
    words = ["--dataset", "potsdam", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "3"]
    assert main(words) == 2  # nothing lies there
    assert seen == [3]
