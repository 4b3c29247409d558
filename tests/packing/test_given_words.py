"""What a person says, a class list or splits in a copy of the folder recipe, is kept, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from marc_dist.config import DataError
from marc_dist.config.presets import find_preset
from marc_dist.packing.layouts.tables import MAX_TABLES
from marc_dist.packing.reading.recipes import Recipe, load_recipe
from marc_dist.packing.reading.source import read_source
from tests.packing.test_any_archive import folder, labels, pictures, refused, splits
from tests.packing.test_layouts import SIZE, rgb, told

BLUE, GREEN = (0, 0, 255), (0, 255, 0)


def coloured(root: Path) -> Path:
    """Masks of water and trees, with a legend."""
    pictures(root, "image/1.png", "image/2.png", size=SIZE)
    rgb(root / "label/1.png", BLUE, BLUE)
    rgb(root / "label/2.png", GREEN, GREEN)
    (root / "class_dict.csv").write_text("name,r,g,b\nwater,0,0,255\ntrees,0,255,0\n")
    return root


def yolo(root: Path, *, names: str = "water\ntrees\n") -> Path:
    """YOLO texts of water and trees."""
    pictures(root, "images/1.png", "images/2.png")
    (root / "labels").mkdir()
    for number in (1, 2):
        (root / f"labels/{number}.txt").write_text(f"{number - 1} 0.5 0.5 0.1 0.1\n")
    (root / "classes.txt").write_text(names)
    return root


def copy(path: Path, **keys: str) -> Recipe:
    """A copy of the folder recipe with keys of its own."""
    lines = [
        line for line in find_preset("shards", "folder").read_text().splitlines() if line.split(":")[0] not in keys
    ]
    path.write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in keys.items())]))
    return load_recipe(str(path))


def test_masks_follow_the_class_list_by_name(tmp_path: Path) -> None:
    root = coloured(tmp_path / "in")
    for names in (["water", "trees"], ["trees", "water"]):
        source = folder(root, classes=names)
        assert source.classes == tuple(names)
        assert labels(source) == {"image/1.png": ["water"], "image/2.png": ["trees"]}
    for names in (["trees"], ["trees", "water", "roads"]):
        refused(root, "classes trees.* are given, but the masks labels .* have water, trees; give those", classes=names)


def test_yolo_numbers_keep_their_names(tmp_path: Path) -> None:
    root = yolo(tmp_path / "in")
    assert labels(folder(root, classes=["water", "trees"]))["images/1.png"] == ["water"]
    refused(root, "have water, trees; give those in this order, or none", classes=["trees", "water"])
    refused(root, "classes trees are given", classes=["trees"])


def test_a_copy_of_the_folder_recipe_keeps_its_splits_and_classes(tmp_path: Path) -> None:
    root = pictures(tmp_path / "in", *(f"{name}/{n}.png" for name in ("a", "b") for n in range(10)))
    own = copy(tmp_path / "own.yaml", splits="{shares: {train: 0.5, val: 0.5}, seed: 3, source: mine}")
    source = read_source(own, [root])
    assert set(splits(source).values()) == {"train", "val"} and "no split, those of the recipe" in told(source)
    assert own.splits == source.recipe.splits
    assert "80 / 20 drawn by hash" in told(folder(root))
    there = pictures(tmp_path / "split", *(f"{split}/{name}/1.png" for split in ("train", "test") for name in "ab"))
    assert set(splits(read_source(own, [there])).values()) == {"train", "test"}
    masks = coloured(tmp_path / "masks")
    named = copy(tmp_path / "named.yaml", classes="[{name: trees}, {name: water}]")
    assert labels(read_source(named, [masks]))["image/1.png"] == ["water"]
    assert read_source(named, [masks]).classes == ("trees", "water")
    other = copy(tmp_path / "other.yaml", classes="[{name: trees}, {name: sea}]")
    with pytest.raises(DataError, match="classes trees, sea are given, but the masks labels"):
        read_source(other, [masks])


def test_a_table_with_unclear_columns_is_told(tmp_path: Path) -> None:
    pictures(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "truth.csv").write_text("image,label,tags\n1.png,x,u\n2.png,y,v\n")
    refused(tmp_path, "truth.csv: labels could stand in any of label, tags.*--labels folders")
    assert folder(tmp_path, labels="folders").classes == ("a", "b")


def test_many_texts_do_not_hide_the_label_table(tmp_path: Path) -> None:
    pictures(tmp_path, "1.png", "2.png")
    (tmp_path / "captions").mkdir()
    for number in range(MAX_TABLES + 1):
        (tmp_path / f"captions/{number}.txt").write_text("a view of a river\n")
    for name in ("labels.csv", "truth.csv"):
        (tmp_path / name).write_text("image,label\n1.png,x\n2.png,y\n")
        assert labels(folder(tmp_path)) == {"1.png": ["x"], "2.png": ["y"]}
        (tmp_path / name).unlink()
