"""Public layouts, recognised by structure: packed as what they are, told in one line, or refused where two fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marc_dist.config import DataError
from marc_dist.packing.inspection import inspect
from marc_dist.packing.reading.recipes import load_recipe
from marc_dist.packing.reading.samples import Source
from marc_dist.packing.reading.source import read_source
from tests import downloads
from tests.packing.test_any_archive import folder, labels, pictures, refused, splits

SIZE = (24, 16)
LEGEND = {"urban": (0, 255, 255), "water": (0, 0, 255), "forest": (0, 255, 0), "unknown": (0, 0, 0)}


def grey(path: Path, *values: int) -> None:
    downloads.save(downloads.mask(values, None, size=24), path)


def rgb(path: Path, *colours: tuple[int, int, int]) -> None:
    stripes = np.repeat(np.array(colours, dtype=np.uint8), 8, axis=0)
    downloads.save(Image.fromarray(np.tile(stripes, (16, 1, 1))), path)


def by_inspection(root: Path, tmp_path: Path, **names: str) -> Source:
    """Read by the recipe that --inspect prints, some of its class names edited."""
    text = inspect([root], load_recipe("folder"), "mine")
    for old, new in names.items():
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return read_source(load_recipe(str(path)), [root])


def told(source: Source) -> str:
    return next(note for note in source.warnings if note.startswith("layout: "))


def same(one: Source, two: Source) -> bool:
    return (one.classes, labels(one), splits(one)) == (two.classes, labels(two), splits(two))


class TestMasks:
    """Masks beside pictures."""

    def test_image_and_label_color_are_never_classes(self, tmp_path: Path) -> None:
        root = tmp_path / "in"
        pictures(root, *(f"image/{n}.png" for n in range(4)), size=SIZE)
        for n in range(4):
            rgb(root / f"label_color/{n}.png", LEGEND["urban"], LEGEND["water"] if n % 2 else LEGEND["forest"])
        refused(root, r"3 values without names; see them with marc-shard --inspect")
        source = by_inspection(
            root, tmp_path, colour_0_255_255="urban", colour_0_0_255="water", colour_0_255_0="forest"
        )
        assert labels(source)["image/1.png"] == ["water", "urban"] or labels(source)["image/1.png"] == [
            "urban",
            "water",
        ]
        assert sorted(labels(source)) == [f"image/{n}.png" for n in range(4)]
        assert "colour [0, 0, 255]: " in inspect([root], load_recipe("folder"), "mine")

    def test_loveda_names_repeat_between_rural_and_urban(self, tmp_path: Path) -> None:
        root = tmp_path / "LoveDA"
        for split in ("Train", "Val"):
            for scene in ("Rural", "Urban"):
                for n in (1, 2):
                    seed = hash_of(split, scene, n)
                    downloads.save(downloads.picture(seed, SIZE), root / split / scene / "images_png" / f"{n:02d}.png")
                    grey(root / split / scene / "masks_png" / f"{n:02d}.png", 1, n + 1 if scene == "Rural" else n + 4)
        (root / "classes.txt").write_text(
            "0: no-data\n1: background\n2: building\n3: road\n4: water\n5: barren\n6: forest\n"
        )
        source = folder(root)
        assert "masks beside pictures: masks in masks_png/" in told(source) and "2 splits (folders Train, Val)" in told(
            source
        )
        assert labels(source)["Train/Rural/images_png/01.png"] == ["background", "building"]
        assert labels(source)["Val/Urban/images_png/02.png"] == ["background", "forest"]
        assert len(source.samples) == 8 and set(splits(source).values()) == {"train", "val"}
        pictures(root, "Test/Rural/images_png/09.png", "Test/Urban/images_png/09.png")
        refused(root, r"pictures without labels in the masks \(2, left out\).*--allow missing")

    @pytest.mark.parametrize("apart", [True, False], ids=["torchgeo", "kaggle"])
    def test_deepglobe_sat_and_mask(self, tmp_path: Path, apart: bool) -> None:
        root = tmp_path / "data"
        for n in (1, 2, 3):
            image = "training_data/images" if apart else "train"
            mask = "training_data/masks" if apart else "train"
            downloads.save(downloads.picture(n, SIZE), root / image / f"{n}_sat.jpg")
            rgb(root / mask / f"{n}_mask.png", LEGEND["urban"], LEGEND["water"] if n == 2 else LEGEND["unknown"])
        rows = "".join(f"{name},{r},{g},{b}\n" for name, (r, g, b) in LEGEND.items())
        (root / "class_dict.csv").write_text("name,r,g,b\n" + rows)
        source = folder(root)
        assert {Path(o).name: found for o, found in labels(source).items()} == {
            "1_sat.jpg": ["urban", "unknown"], "2_sat.jpg": ["urban", "water"], "3_sat.jpg": ["urban", "unknown"],
        }  # fmt: skip
        assert "_sat and _mask" in told(source) and "names from class_dict.csv" in told(source)

    def test_gid15_masks_with_an_ending(self, tmp_path: Path) -> None:
        root = tmp_path / "GID"
        for n, split in enumerate(("train", "train", "val", "val")):
            downloads.save(downloads.picture(n, SIZE), root / f"img_dir/{split}/GF2_{n}-MSS1.tif")
            grey(root / f"ann_dir/{split}/GF2_{n}-MSS1_15label.png", 0, n + 1)
        (root / "classes.txt").write_text("background\nland\nforest\nlake\nriver\n")
        source = folder(root)
        assert labels(source)["img_dir/val/GF2_2-MSS1.tif"] == ["background", "lake"]
        assert list(splits(source).values()) == ["train", "train", "val", "val"]

    def test_vaihingen_equal_names_in_two_trees(self, tmp_path: Path) -> None:
        root = tmp_path / "in"
        for n in (1, 2, 3):
            name = f"top_mosaic_09cm_area{n}.tif"
            downloads.save(downloads.picture(n, SIZE), root / "top" / name)
            rgb(root / "gts_for_participants" / name, LEGEND["urban"], LEGEND["forest"])
        source = by_inspection(root, tmp_path)
        assert len(source.samples) == 3 and all(o.startswith("top/") for o in labels(source))
        assert source.classes == ("colour_0_255_0", "colour_0_255_255")

    def test_dfc2022_told_by_content(self, tmp_path: Path) -> None:
        root = tmp_path / "labeled_train"
        for n, city in enumerate(("Brest", "Caen", "Brest", "Caen")):
            downloads.save(downloads.picture(n, SIZE), root / city / "BDORTHO" / f"{n}.tif")
            grey(root / city / "UrbanAtlas" / f"{n}_UA2012.tif", 1, n + 2)
        source = by_inspection(root, tmp_path)
        assert len(source.samples) == 4 and all("/BDORTHO/" in o for o in labels(source))
        assert labels(source)["Caen/BDORTHO/3.tif"] == ["class_1", "class_5"]

    def test_landcover_ai_after_its_script(self, tmp_path: Path) -> None:
        root = tmp_path / "in"
        for n in range(4):
            downloads.save(downloads.picture(n, SIZE), root / "output" / f"M-33_{n}.jpg")
            grey(root / "output" / f"M-33_{n}_m.png", 0, 1 + n % 2)
        for split, numbers in {"train": (0, 1), "val": (2,), "test": (3,)}.items():
            (root / f"{split}.txt").write_text("".join(f"M-33_{n}\n" for n in numbers))
        source = by_inspection(root, tmp_path, class_1="building", class_2="woodland")
        assert list(splits(source).values()) == ["train", "train", "val", "test"]
        assert labels(source)["output/M-33_1.jpg"] == ["class_0", "woodland"]

    def test_two_sets_of_masks_are_refused(self, tmp_path: Path) -> None:
        pictures(tmp_path, *(f"image/{n}.jpg" for n in range(3)), size=SIZE)
        for n in range(3):
            rgb(tmp_path / f"label_color/{n}.png", LEGEND["urban"])
            grey(tmp_path / f"label_gray/{n}.png", 1)
        refused(tmp_path, "two sets of masks: masks in label_color/.*; or masks in label_gray/")

    def test_jpeg_masks_and_photographs_called_labels_are_no_masks(self, tmp_path: Path) -> None:
        pictures(tmp_path, *(f"{kind}/{n}.jpg" for kind in ("images", "masks") for n in range(3)), size=SIZE)
        refused(tmp_path, "some pictures lie in images .images/.*, some in masks .*: which are the pictures")
        assert folder(tmp_path, allow=["class_names"]).classes == ("images", "masks")

    def test_masks_with_stray_colours_are_no_pictures_of_classes(self, tmp_path: Path) -> None:
        """GID-MTL's colour masks: picture content leaks through, so they look like no masks."""
        pictures(
            tmp_path, *(f"{kind}/forest/{n}.png" for kind in ("image", "label_color") for n in range(3)), size=SIZE
        )
        refused(tmp_path, "some pictures lie in image .*, some in label_color .*: which are the pictures")
        text = inspect([tmp_path], load_recipe("folder"), "mine")
        assert "not plain: some pictures lie in image" in text and "folders: [image]" in text
        assert "# packs: 3 pictures" in text

    def test_a_share_of_the_pixels(self, tmp_path: Path) -> None:
        root = tmp_path / "in"
        pictures(root, "image/1.png", size=SIZE)
        grey(root / "label/1.png", *([1] * 23), 2)
        assert labels(by_inspection(root, tmp_path))["image/1.png"] == ["class_1", "class_2"]
        text = (tmp_path / "mine.yaml").read_text().replace("masks:\n", "masks:\n  min_share: 0.1\n")
        (tmp_path / "mine.yaml").write_text(text.replace("train: 0.8, test: 0.2", "train: 1"))
        assert labels(read_source(load_recipe(str(tmp_path / "mine.yaml")), [root])) == {"image/1.png": ["class_1"]}


def hash_of(*parts: object) -> int:
    return sum(ord(letter) * (31**place % 997) for place, letter in enumerate("".join(map(str, parts))))


class TestTables:
    """Tables in the shapes of public archives."""

    def test_hugging_face_metadata_in_every_split(self, tmp_path: Path) -> None:
        for split, names in {"train": ("a", "b"), "test": ("a", "c")}.items():
            pictures(tmp_path, *(f"{split}/{name}.png" for name in names))
            rows = [{"file_name": f"{name}.png", "labels": ["sea", name]} for name in names]
            (tmp_path / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        source = folder(tmp_path)
        assert labels(source) == {
            f"{split}/{name}.png": [name, "sea"]
            for split, name in (("test", "a"), ("test", "c"), ("train", "a"), ("train", "b"))
        }
        assert splits(source) == {o: o.split("/")[0] for o in labels(source)}

    def test_mlrsnet_a_table_for_each_category(self, tmp_path: Path) -> None:
        for category in ("airport", "bridge", "harbor&port", "lake", "park"):
            pictures(tmp_path, *(f"Images/{category}/{category}_{n}.jpg" for n in (1, 2)))
            text = "image,airplane,water\r\n" + "".join(f"{category}_{n}.jpg,{n - 1},1\r\n" for n in (1, 2))
            (tmp_path / "labels").mkdir(exist_ok=True)
            (tmp_path / "labels" / f"{category}.csv").write_text(text)
        source = folder(tmp_path)
        assert source.classes == ("airplane", "water") and len(source.samples) == 10
        assert labels(source)["Images/lake/lake_2.jpg"] == ["airplane", "water"]
        assert "table: airport.csv" in told(source)

    def test_planet_tags_between_blanks(self, tmp_path: Path) -> None:
        pictures(tmp_path, *(f"train-jpg/train_{n}.jpg" for n in range(4)))
        tags = ["haze primary", "primary clear water", "clear haze", "water haze primary"]
        rows = "".join(f"train_{n},{tag}\n" for n, tag in enumerate(tags))
        (tmp_path / "train_v2.csv").write_text("image_name,tags\n" + rows)
        source = folder(tmp_path)
        assert source.classes == ("clear", "haze", "primary", "water")
        assert labels(source)["train-jpg/train_2.jpg"] == ["clear", "haze"]

    def test_bigearthnet_metadata_parquet(self, tmp_path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pictures(tmp_path, *(f"rgb/S2A_{n}_26_57.png" for n in range(3)))
        rows = [
            {"patch_id": f"S2A_{n}_26_57", "labels": ["Arable land", "Inland waters"][: n % 2 + 1], "split": split,
             "country": "Finland", "s1_name": f"S1_{n}", "s2v1_name": f"S2_{n}", "contains_seasonal_snow": False}
            for n, split in enumerate(("train", "validation", "test"))
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "metadata.parquet")
        refused(tmp_path, "both a column 'labels' and columns of 0 and 1")
        pq.write_table(pa.Table.from_pylist(rows).drop_columns("contains_seasonal_snow"), tmp_path / "metadata.parquet")
        source = folder(tmp_path)
        assert list(splits(source).values()) == ["train", "val", "test"]
        assert labels(source)["rgb/S2A_1_26_57.png"] == ["Arable land", "Inland waters"]
        assert "splits test, train, val from its column 'split'" in told(source)

    def test_a_table_beside_masks_is_not_guessed(self, tmp_path: Path) -> None:
        downloads.whdld(tmp_path / "in", num=6)
        rows = {
            f"wh{n:04d}": [int(c in downloads.whdld_labels(n)) for c in downloads.ALPHABETICAL] for n in range(1, 7)
        }
        downloads.write_csv(tmp_path / "in/labels.csv", ["image", *downloads.ALPHABETICAL], rows)
        refused(tmp_path / "in", "2 layouts fit: table: labels.csv.*masks in ImagesPNG/.*--labels table or masks")
        assert labels(folder(tmp_path / "in", labels="table"))["Images/wh0001.jpg"] == downloads.whdld_labels(1)

    def test_json_that_maps_names_to_labels(self, tmp_path: Path) -> None:
        pictures(tmp_path, "1.png", "2.png")
        (tmp_path / "annotations.json").write_text(json.dumps({"1.png": ["sea", "bare soil"], "2.png": ["sea"]}))
        assert labels(folder(tmp_path)) == {"1.png": ["bare soil", "sea"], "2.png": ["sea"]}

    def test_an_encoding_that_is_guessed_is_told(self, tmp_path: Path) -> None:
        pictures(tmp_path, "1.png", "2.png")
        (tmp_path / "labels.csv").write_bytes("image,label\n1.png,水\n2.png,树\n".encode("gbk"))
        assert any("not UTF-8, read as Latin-1" in note for note in folder(tmp_path).warnings)

    def test_other_facts_about_pictures_are_no_labels(self, tmp_path: Path) -> None:
        pictures(tmp_path, "beach/1.png", "river/2.png")
        (tmp_path / "coordinates.csv").write_text("image,lat,lon\n1.png,1.5,2.5\n2.png,3,4\n")
        assert folder(tmp_path).classes == ("beach", "river")


class TestAnnotations:
    """COCO, VOC, FAIR1M, labelme, YOLO."""

    def coco(self, path: Path, images: dict[int, str], found: list[tuple[int, int]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "images": [{"id": number, "file_name": name} for number, name in images.items()],
            "annotations": [
                {"id": n, "image_id": i, "category_id": c, "bbox": [0, 0, 1, 1]} for n, (i, c) in enumerate(found)
            ],
            "categories": [{"id": 3, "name": "ship"}, {"id": 1, "name": "bare soil"}],
        }
        path.write_text(json.dumps(content))

    def test_coco(self, tmp_path: Path) -> None:
        root = tmp_path / "in"
        pictures(root, "train/000.jpg", "train/001.jpg", "val/000.jpg")
        self.coco(
            root / "annotations/instances_train.json", {7: "000.jpg", 8: "001.jpg"}, [(7, 3), (7, 1), (7, 3), (8, 1)]
        )
        self.coco(root / "annotations/instances_val.json", {7: "000.jpg"}, [(7, 3)])
        source = folder(root)
        assert source.classes == ("bare soil", "ship")
        assert labels(source) == {
            "train/000.jpg": ["bare soil", "ship"], "train/001.jpg": ["bare soil"], "val/000.jpg": ["ship"],
        }  # fmt: skip
        assert list(splits(source).values()) == ["train", "train", "val"]
        assert told(source).startswith(
            "layout: COCO: instances_train.json, instances_val.json, 3 images, 2 categories, 2 splits"
        )
        assert same(source, by_inspection(root, tmp_path))

    def test_coco_panoptic_and_image_level(self, tmp_path: Path) -> None:
        for kind, one in {
            "panoptic": {"image_id": 1, "segments_info": [{"category_id": 3}, {"category_id": 1}]},
            "image-level": {"image_id": 1, "category_id": 3},
        }.items():
            root = pictures(tmp_path / kind, "images/0.jpg")
            self.coco(root / "labels.json", {1: "0.jpg"}, [])
            content = json.loads((root / "labels.json").read_text())
            (root / "labels.json").write_text(json.dumps({**content, "annotations": [one]}))
            expected = ["bare soil", "ship"] if kind == "panoptic" else ["ship"]
            assert labels(folder(root, allow=["class_names"])) == {"images/0.jpg": expected}

    def test_two_coco_files_for_one_split_are_refused(self, tmp_path: Path) -> None:
        pictures(tmp_path, "train/0.jpg", "train/1.jpg")
        for kind in ("instances", "keypoints"):
            self.coco(tmp_path / f"annotations/{kind}_train.json", {1: "0.jpg", 2: "1.jpg"}, [(1, 1), (2, 3)])
        refused(tmp_path, "several COCO files for one split.*name those to read in the recipe")

    def test_a_picture_that_a_coco_file_names_twice(self, tmp_path: Path) -> None:
        pictures(tmp_path, "images/0.jpg")
        self.coco(tmp_path / "instances.json", {1: "0.jpg", 2: "0.jpg"}, [(1, 1), (2, 3)])
        assert labels(folder(tmp_path, allow=["class_names"])) == {"images/0.jpg": ["bare soil", "ship"]}
        self.coco(tmp_path / "instances.json", {1: "0.jpg", 2: "0.png"}, [(1, 1), (2, 3)])
        refused(tmp_path, "instances.json: 0.jpg and 0.png are pictures of one name")

    def test_a_coco_annotation_of_nothing_is_refused(self, tmp_path: Path) -> None:
        pictures(tmp_path, "images/0.jpg")
        self.coco(tmp_path / "labels.json", {1: "0.jpg"}, [(2, 1)])
        refused(tmp_path, "labels.json: not a sound COCO file")

    def voc(self, path: Path, *names: str, fair: bool = False) -> None:
        inside = "".join(
            f"<object><possibleresult><name>{n}</name></possibleresult></object>" if fair
            else f"<object><name>{n}</name><bndbox/></object>"
            for n in names
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        where = f"<objects>{inside}</objects>" if fair else inside
        path.write_text(f"<annotation><source><filename>x</filename></source>{where}</annotation>")

    def test_pascal_voc_with_its_lists(self, tmp_path: Path) -> None:
        pictures(tmp_path, *(f"JPEGImages/{n}.jpg" for n in range(3)))
        for n, names in enumerate((["ship", "dock"], ["ship", "ship"], ["dock"])):
            self.voc(tmp_path / f"Annotations/{n}.xml", *names)
        (tmp_path / "ImageSets/Main").mkdir(parents=True)
        for name, text in {"train": "0\n1\n", "val": "2\n", "ship_train": "0  1\n1  1\n", "ship_val": "2 -1\n"}.items():
            (tmp_path / f"ImageSets/Main/{name}.txt").write_text(text)
        source = folder(tmp_path)
        assert labels(source) == {
            "JPEGImages/0.jpg": ["dock", "ship"], "JPEGImages/1.jpg": ["ship"], "JPEGImages/2.jpg": ["dock"],
        }  # fmt: skip
        assert list(splits(source).values()) == ["train", "train", "val"]

    def test_fair1m(self, tmp_path: Path) -> None:
        pictures(
            tmp_path,
            *(f"{split}/part{p}/images/{p}{n}.tif" for split in ("train", "val") for p in (1, 2) for n in (0, 1)),
        )
        for split in ("train", "val"):
            for p in (1, 2):
                for n in (0, 1):
                    self.voc(
                        tmp_path / f"{split}/part{p}/labelXml/{p}{n}.xml", "Boeing737" if n else "Tugboat", fair=True
                    )
        source = folder(tmp_path)
        assert source.classes == ("Boeing737", "Tugboat") and len(source.samples) == 8
        assert labels(source)["val/part2/images/21.tif"] == ["Boeing737"]

    def test_json_beside_pictures(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a/1.png", "a/2.png")
        (tmp_path / "a/1.json").write_text(json.dumps({"shapes": [{"label": "roof"}, {"label": "pool"}]}))
        (tmp_path / "a/2.json").write_text(json.dumps({"shapes": [{"label": "roof"}]}))
        assert labels(folder(tmp_path)) == {"a/1.png": ["pool", "roof"], "a/2.png": ["roof"]}
        root = pictures(tmp_path / "ben", "p/S2A_1.png", "q/S2A_2.png")
        for folder_name, n in (("p", 1), ("q", 2)):
            path = root / folder_name / f"S2A_{n}_labels_metadata.json"
            path.write_text(json.dumps({"labels": ["Sea and ocean", "Pastures"][:n], "tile": "x"}))
        assert labels(folder(root)) == {"p/S2A_1.png": ["Sea and ocean"], "q/S2A_2.png": ["Pastures", "Sea and ocean"]}

    def test_xml_that_declares_entities_is_not_read(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a/1.png")
        self.voc(tmp_path / "a/1.xml", "x")
        text = (tmp_path / "a/1.xml").read_text()
        (tmp_path / "a/1.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]>' + text)
        source = load_recipe("folder").model_copy(
            update={"recognise": False, "labels": ("objects",), "annotations": ("*.xml",)}
        )
        with pytest.raises(DataError, match="1.xml: XML that declares a document type is not read"):
            read_source(source, [tmp_path])

    def test_yolo(self, tmp_path: Path) -> None:
        for split in ("train", "val"):
            pictures(tmp_path, f"images/{split}/1.jpg", f"images/{split}/2.jpg")
            for n in (1, 2):
                (tmp_path / f"labels/{split}").mkdir(parents=True, exist_ok=True)
                (tmp_path / f"labels/{split}/{n}.txt").write_text(f"{n - 1} 0.5 0.5 0.1 0.1\n2 0.1 0.1 0.2 0.2\n")
        refused(tmp_path, "class numbers up to 2 and no list of names")
        (tmp_path / "data.yaml").write_text("train: images/train\nnc: 3\nnames: [ship, plane, car]\n")
        source = folder(tmp_path)
        assert labels(source)["images/val/2.jpg"] == ["plane", "car"]
        assert set(splits(source).values()) == {"train", "val"} and "names from data.yaml" in told(source)

    def test_texts_of_0_and_1_are_not_yolo(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a/1.jpg", "b/2.jpg")
        for name in ("a/1", "b/2"):
            (tmp_path / f"{name}.txt").write_text("0 1 0 0 1\n")
        assert "one folder a class" in told(folder(tmp_path))
        (tmp_path / "classes.txt").write_text("ship\nplane\n")
        for text in ("0 12 40 30 50", "0 0.1 0.2 0.3", "0 0.1 0.2 0.3 0.4 0.5 0.6 0.7"):
            for name in ("a/1", "b/2"):
                (tmp_path / f"{name}.txt").write_text(f"{text}\n")
            assert "one folder a class" in told(folder(tmp_path)), text
        for text in ("0 0.1 0.2 0.3 0.4", "0 0.1 0.2 0.3 0.4 0.9", "1 0 0 0 1.001 0.5 1"):
            for name in ("a/1", "b/2"):
                (tmp_path / f"{name}.txt").write_text(f"{text}\n")
            assert told(folder(tmp_path)).startswith("layout: YOLO"), text

    def test_two_yolo_texts_for_one_picture_are_refused(self, tmp_path: Path) -> None:
        pictures(tmp_path, "images/1.jpg")
        (tmp_path / "classes.txt").write_text("ship\nplane\n")
        for number, name in enumerate(("annotations", "labels")):
            (tmp_path / name).mkdir()
            (tmp_path / name / "1.txt").write_text(f"{number} 0.5 0.5 0.1 0.1\n")
        refused(tmp_path, "1.txt: a second text for 1; keep one, or name its folder in annotations")


class TestInspection:
    """The text that --inspect prints."""

    def test_it_packs_what_the_folder_recipe_packs(self, tmp_path: Path) -> None:
        root = tmp_path / "in"
        pictures(
            root, *(f"{split}/{name}/{n}.png" for split in ("train", "test") for name in ("a", "b") for n in (1, 2))
        )
        assert same(folder(root), by_inspection(root, tmp_path))
        text = (tmp_path / "mine.yaml").read_text()
        for line in ("# files: 8 .png", "# sizes of 8: 8 24x16", "# modes of 8: 8 PNG RGB (3 bands)", "- {name: a}"):
            assert line in text
        assert "# packs: 8 pictures, 4 train, 4 test; 1.00 labels a picture" in text

    def test_one_class_is_told(self, tmp_path: Path) -> None:
        source = folder(pictures(tmp_path / "a", "tiles/1.png", "tiles/2.png"))
        assert source.classes == ("tiles",) and any("nothing to train on" in note for note in source.warnings)
        refused(pictures(tmp_path / "b", "img/1.png"), "classes called like folders of a download.*: img")

    def test_nothing_and_doubled_files(self, tmp_path: Path) -> None:
        root = pictures(tmp_path / "in", "a/1.png", "a/2.png")
        (root / "b").mkdir()
        (root / "b/3.png").write_bytes((root / "a/1.png").read_bytes())
        assert "equal files: 1 groups, such as a/1.png = b/3.png" in inspect([root], load_recipe("folder"), "mine")
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty/x.docx").write_bytes(b"x")
        text = inspect([tmp_path / "empty"], load_recipe("folder"), "mine")
        assert "found no pictures" in text and "1 .docx" in text and all(l.startswith("#") for l in text.splitlines())
