"""Shipped recipes on made-up files in the exact public layout."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from marc_dist.config import DataError, build
from marc_dist.packing.reading.recipes import Recipe, load_recipe
from marc_dist.packing.reading.samples import Source
from marc_dist.packing.reading.source import read_source
from tests import downloads
from tests.packing.test_any_archive import labels, splits
from tests.packing.test_layouts import grey, rgb

SIZE = (24, 16)


def read(name: str, *roots: Path, allow: tuple[str, ...] = ("counts", "label_counts")) -> Source:
    return read_source(load_recipe(name), list(roots), allow=allow)


def by_stem(source: Source) -> dict[str, list[str]]:
    return {Path(origin).stem: found for origin, found in labels(source).items()}


@pytest.mark.parametrize("kind", ["txt", "xlsx"])
def test_uc_merced_pictures_and_labels_are_two_downloads(tmp_path: Path, kind: str) -> None:
    rows = downloads.table_rows(downloads.dlrsd_names(), seed=4)
    for seed, name in enumerate(rows):
        path = tmp_path / "UCMerced_LandUse/Images" / name.rstrip("0123456789") / f"{name}.tif"
        downloads.save(downloads.picture(seed, SIZE), path)
    header = ["IMAGE\\LABEL", *downloads.UCM]
    if kind == "txt":
        downloads.write_csv(tmp_path / "labels/LandUse_Multilabeled.txt", header, rows, "\t", "\r\n")
    else:
        import openpyxl

        book = openpyxl.Workbook()
        assert book.active is not None
        for line in (header, *([name, *row] for name, row in rows.items())):
            book.active.append(line)
        (tmp_path / "labels").mkdir()
        book.save(tmp_path / "labels/LandUse_Multilabeled.xlsx")
    source = read("ucm", tmp_path / "UCMerced_LandUse", tmp_path / "labels")
    expected = {n: [c for c, on in zip(source.classes, row, strict=True) if on] for n, row in rows.items()}
    assert by_stem(source) == expected and {s.scene for s in source.samples} == {"agricultural", "airplane", "harbor"}
    with pytest.raises(DataError, match="12 pictures instead of 2100"):
        read("ucm", tmp_path, allow=())


def test_dfc15(tmp_path: Path) -> None:
    for number, folder in ((1, "images_tr"), (2, "images_tr"), (3, "images_test")):
        downloads.save(downloads.picture(number, SIZE), tmp_path / folder / f"{number}.png")
    classes = ["impervious", "water", "clutter", "vegetation", "building", "tree", "boat", "car"]
    rows = {str(n): [int((n >> (place % 3)) & 1) for place in range(8)] for n in (1, 2, 3)}
    downloads.write_csv(tmp_path / "multilabel.csv", ["image\\label", *classes], rows)
    source = read("dfc15", tmp_path)
    assert splits(source) == {"images_test/3.png": "test", "images_tr/1.png": "train", "images_tr/2.png": "train"}
    assert by_stem(source)["2"] == ["water", "building", "car"]


def test_planet_leaves_its_test_pictures_aside(tmp_path: Path) -> None:
    for folder, name in (("train-jpg", "train_0"), ("train-jpg", "train_1"), ("test-jpg", "test_0")):
        downloads.save(downloads.picture(len(name), SIZE), tmp_path / folder / f"{name}.jpg")
    text = "image_name,tags\ntrain_0,haze primary\ntrain_1,agriculture clear primary water\n"
    (tmp_path / "train_v2.csv").write_text(text)
    source = read("planet", tmp_path)
    assert by_stem(source) == {"train_0": ["haze", "primary"], "train_1": ["primary", "agriculture", "clear", "water"]}
    assert any("1 .jpg that are not the recipe's pictures" in note for note in source.warnings)


@pytest.mark.parametrize("apart", [True, False], ids=["two folders", "one folder"])
def test_deepglobe(tmp_path: Path, apart: bool) -> None:
    for number, second in ((1, (0, 0, 0)), (2, (0, 0, 255))):
        picture = "training_data/images" if apart else "train"
        mask = "training_data/masks" if apart else "train"
        downloads.save(downloads.picture(number, SIZE), tmp_path / picture / f"{number}_sat.jpg")
        rgb(tmp_path / mask / f"{number}_mask.png", (0, 255, 255), second)
    valid = "test_data/images" if apart else "valid"
    downloads.save(downloads.picture(9, SIZE), tmp_path / valid / "9_sat.jpg")
    source = read("deepglobe", tmp_path)
    assert by_stem(source) == {"1_sat": ["urban land"], "2_sat": ["urban land", "water"]}
    assert any("pictures without labels in the masks (1, left out)" in note for note in source.warnings)


def test_loveda(tmp_path: Path) -> None:
    for split in ("Train", "Val", "Test"):
        for scene in ("Rural", "Urban"):
            seed = len(split) * 10 + len(scene) + ord(scene[0])
            downloads.save(downloads.picture(seed, SIZE), tmp_path / split / scene / "images_png/1.png")
            if split != "Test":
                grey(tmp_path / split / scene / "masks_png/1.png", 0, 1, 4 if scene == "Rural" else 2)
    source = read("loveda", tmp_path)
    assert labels(source)["Train/Rural/images_png/1.png"] == ["background", "water"]
    assert labels(source)["Val/Urban/images_png/1.png"] == ["background", "building"]
    assert set(splits(source).values()) == {"train", "val"} and len(source.samples) == 4
    assert any("(2, left out): Test/Rural/images_png/1.png" in note for note in source.warnings)


def test_eurosat(tmp_path: Path) -> None:
    for name in ("AnnualCrop", "Forest", "SeaLake"):
        path = tmp_path / "ds/images/remote_sensing/otherDatasets/sentinel_2/jpg" / name / f"{name}_1.jpg"
        downloads.save(downloads.picture(len(name), SIZE), path)
    source = read("eurosat", tmp_path)
    assert by_stem(source) == {"AnnualCrop_1": ["AnnualCrop"], "Forest_1": ["Forest"], "SeaLake_1": ["SeaLake"]}


def test_mlrsnet_and_its_damaged_tables(tmp_path: Path) -> None:
    classes = [entry.name for entry in load_recipe("mlrsnet").classes]
    for number, category in enumerate(("airplane", "harbor&port")):
        downloads.save(downloads.picture(number, SIZE), tmp_path / "Images" / category / f"{category}_00001.jpg")
        order = classes if number == 0 else [*classes[1:], classes[0]]
        row = [int(name in ("airplane", "pavement")) for name in order]
        rows = {f"{category}_00001.jpg": row}
        downloads.write_csv(tmp_path / "labels" / f"{category}.csv", ["image", *order], rows, end="\r\n")
    source = read("mlrsnet", tmp_path)
    assert by_stem(source) == {n: ["airplane", "pavement"] for n in ("airplane_00001", "harbor&port_00001")}
    downloads.write_csv(
        tmp_path / "labels/airplane.csv", ["image", *classes], {"airplane_00001.jpg": [1] * 40 + [0] * 20}
    )
    with pytest.raises(DataError, match=r"expected 1 to 13 labels.*airplane_00001.jpg \(40\)"):
        read("mlrsnet", tmp_path)


def test_the_recipes_of_the_documentation_pack_what_they_describe(tmp_path: Path) -> None:
    """The worked examples of docs/recipes.md, on files in the layouts that they name."""
    page = (Path(__file__).parents[2] / "docs/recipes.md").read_text()
    masks, tiles, table, coco = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    cut = build(Recipe, {"name": "cut", **yaml.safe_load(masks), "pair_by": "tree", **yaml.safe_load(tiles)}, place="")
    assert cut.tile == 512 and cut.splits.names == {"train": ("scene_1", "north_*"), "test": ("scene_2",)}
    for name, text in {"masks": masks, "table": table, "coco": coco}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    blue, green, red = (0, 0, 255), (0, 255, 0), (255, 0, 0)
    for number in range(3):
        downloads.save(downloads.picture(number, SIZE), tmp_path / "masks" / f"image/{number}.jpg")
        rgb(tmp_path / "masks" / f"label/{number}.png", blue, green if number else red)
        downloads.save(downloads.picture(number, SIZE), tmp_path / "table" / f"tiles/t{number}.png")
        for split in ("train", "val"):
            downloads.save(downloads.picture(number, SIZE), tmp_path / "coco" / split / f"{number:03d}.jpg")
    (tmp_path / "table/annotation.csv").write_text(
        "id,tile,source,tags\n0,t0.png,GF-2,\"['water']\"\n1,t1.png,GF-2,\"['water', 'soil']\"\n2,t2.png,x,['water']\n"
    )
    (tmp_path / "coco/annotations").mkdir()
    for split, kind in (("train", 1), ("val", 2)):
        content = {
            "images": [{"id": number, "file_name": f"{number:03d}.jpg"} for number in range(3)],
            "annotations": [{"image_id": number, "category_id": kind} for number in range(3)],
            "categories": [{"id": 1, "name": "ship"}, {"id": 2, "name": "dock"}],
        }
        (tmp_path / f"coco/annotations/instances_{split}.json").write_text(json.dumps(content))
    found = {n: read(str(tmp_path / f"{n}.yaml"), tmp_path / n) for n in ("masks", "table", "coco")}
    assert by_stem(found["masks"]) == {"0": ["water"], "1": ["water", "trees"], "2": ["water", "trees"]}
    assert by_stem(found["table"]) == {"t0": ["water"], "t1": ["water", "bare soil"], "t2": ["water"]}
    assert labels(found["coco"])["train/001.jpg"] == ["ship"] and labels(found["coco"])["val/001.jpg"] == ["dock"]
    assert splits(found["coco"])["val/001.jpg"] == "val"
