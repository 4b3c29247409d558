"""Masks: colour first, index tables second, never a guess."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from marc_dist.config import DataError
from marc_dist.packing.reading.masks import MaskRule, is_mask, read_mask
from marc_dist.packing.reading.recipes import load_recipe
from marc_dist.packing.reading.source import read_source
from tests import downloads

RED, BLUE, NIGHT = (255, 0, 0), (0, 0, 255), (0, 0, 0)
RULE = MaskRule({RED: 0, BLUE: 1}, {1: 0, 2: 1}, frozenset([NIGHT]), frozenset([9]), 1, ("official", "other"))


def saved(image: Image.Image, folder: Path) -> Path:
    return downloads.save(image, folder / "m.png")


def test_palette_colours_decide_not_the_indices(tmp_path: Path) -> None:
    assert read_mask(saved(downloads.mask([1, 1], [NIGHT, BLUE, RED]), tmp_path), RULE) == {1}
    assert read_mask(saved(downloads.mask([0, 2], [NIGHT, BLUE, RED]), tmp_path), RULE) == {0}


def test_rgb_and_rgba_masks_are_read_by_colour(tmp_path: Path) -> None:
    image = downloads.mask([1, 2], [NIGHT, BLUE, RED])
    assert read_mask(saved(image.convert("RGB"), tmp_path), RULE) == {0, 1}
    assert read_mask(saved(image.convert("RGBA"), tmp_path), RULE) == {0, 1}
    with pytest.raises(DataError, match=r"m.png: colour \(1, 2, 3\) \(65536 pixels\) belongs to no class"):
        read_mask(saved(Image.new("RGB", (256, 256), (1, 2, 3)), tmp_path), RULE)


def test_indices_without_a_palette(tmp_path: Path) -> None:
    assert read_mask(saved(downloads.mask([2, 9], None), tmp_path), RULE) == {1}
    with pytest.raises(DataError, match=r"m.png: value 7 \(32768 pixels\) belongs to no class"):
        read_mask(saved(downloads.mask([1, 7], None), tmp_path), RULE)
    with pytest.raises(DataError, match="--index-order official or other"):
        read_mask(saved(downloads.mask([1], None), tmp_path), replace(RULE, indices={}))


def test_a_grey_ramp_is_no_palette(tmp_path: Path) -> None:
    ramp = [(value, value, value) for value in range(256)]
    assert read_mask(saved(downloads.mask([1, 2], ramp), tmp_path), RULE) == {0, 1}
    black = saved(downloads.mask([0], [NIGHT, BLUE, RED]), tmp_path)  # index 0 = (0, 0, 0), a colour to be ignored
    assert read_mask(black, RULE) == frozenset()


def test_an_index_beyond_the_palette_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    data = bytearray(saved(downloads.mask([1, 2], [NIGHT, BLUE, RED]), tmp_path).read_bytes())
    start = data.index(b"PLTE") - 4
    size = int.from_bytes(data[start : start + 4], "big")
    import zlib

    short = b"PLTE" + bytes(data[start + 8 : start + 14])
    data[start : start + 12 + size] = (6).to_bytes(4, "big") + short + zlib.crc32(short).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(DataError, match="m.png: value 2, but its palette has 2 colours"):
        read_mask(path, RULE)


def test_small_areas_do_not_count(tmp_path: Path) -> None:
    image = downloads.mask([1], [NIGHT, BLUE, RED])
    image.putpixel((5, 5), 2)
    assert read_mask(saved(image, tmp_path), RULE) == {0, 1}
    assert read_mask(saved(image, tmp_path), replace(RULE, min_area_px=2)) == {1}


def test_damaged_and_16_bit_masks_are_named(tmp_path: Path) -> None:
    path = saved(downloads.mask([1], [NIGHT, BLUE, RED]), tmp_path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="m.png: damaged mask"):
        read_mask(path, RULE)
    with pytest.raises(DataError, match="expected a mask of 8-bit indices or RGB colours, got mode I;16"):
        read_mask(saved(Image.new("I;16", (4, 4)), tmp_path), RULE)


def test_masks_are_told_from_pictures_by_content(tmp_path: Path) -> None:
    image = downloads.mask([1, 2], [NIGHT, BLUE, RED])
    for mask in (image, image.convert("RGB"), downloads.mask([1, 2, 9], None)):
        assert is_mask(saved(mask, tmp_path), RULE)
    for picture in (downloads.picture(1), downloads.picture(1).convert("L"), Image.new("RGB", (9, 9), (1, 2, 3))):
        assert not is_mask(saved(picture, tmp_path), RULE)
    assert is_mask(saved(image, tmp_path)) and not is_mask(saved(image.convert("RGB"), tmp_path))
    (tmp_path / "m.png").write_bytes(b"no picture")
    assert not is_mask(tmp_path / "m.png", RULE)


def test_dlrsd_masks_in_images_may_be_rgb(tmp_path: Path) -> None:
    """Copies whose masks, in a folder called Images, were saved as colours: only their content tells."""
    rows = downloads.dlrsd_older(tmp_path)
    for path in (tmp_path / "DLRSD" / "Images").rglob("*.png"):
        with Image.open(path) as image:
            colours = image.convert("RGB")
        colours.save(path)
    source = read_source(load_recipe("dlrsd"), [tmp_path / "DLRSD"], allow=("counts", "label_counts"))
    assert len(source.samples) == len(rows)
    for sample in source.samples:
        assert list(sample.labels) == [label for label, on in enumerate(rows[sample.file.stem]) if on]


def test_all_unmapped_values_are_listed_at_once(tmp_path: Path) -> None:
    root = downloads.whdld(tmp_path, num=4)
    for number, colours in ((1, [(1, 2, 3)]), (3, [(1, 2, 3), (9, 9, 8)])):
        downloads.save(downloads.mask(range(len(colours)), colours), root / "ImagesPNG" / f"wh000{number}.png")
    with pytest.raises(DataError) as error:
        read_source(load_recipe("whdld"), [root])
    message = str(error.value)
    assert "wh0001.png: colour (1, 2, 3) (65536 pixels) belongs to no class" in message and "\n" not in message
    assert "In 2 masks: (1, 2, 3) in 2 masks (98304 pixels), (9, 9, 8) in 1 masks (32768 pixels)" in message
    assert "classes: [{name: NAME, colour: [1, 2, 3]}, {name: NAME, colour: [9, 9, 8]}]" in message


def test_masks_that_cannot_be_compared_stop_unless_left_aside(tmp_path: Path) -> None:
    downloads.dlrsd(tmp_path)
    bad = tmp_path / "DLRSD" / "Labels" / "harbor" / "harbor01.png"
    downloads.save(downloads.mask([1], [NIGHT, (1, 2, 3)]), bad)
    recipe, allow = load_recipe("dlrsd"), ("counts", "label_counts")
    with pytest.raises(DataError, match=r"harbor01.png: colour \(1, 2, 3\).*to leave the masks aside: --labels table"):
        read_source(recipe, [tmp_path], allow=allow)
    source = read_source(recipe, [tmp_path], allow=allow, labels="table")
    assert any("masks not compared" in warning and "harbor01.png" in warning for warning in source.warnings)
