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
from tests.packing.test_layouts import SIZE, grey, rgb, told

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
    for name, text in {"one": "train/a/1\ntrain/b/1\ntest/a/1", "two": "test/b/1"}.items():
        (there / f"{name}.lst").write_text(text)
    listed = copy(tmp_path / "lists.yaml", splits="{lists: {train: one.lst, test: two.lst}, source: mine}")
    source = read_source(listed, [there])
    assert splits(source)["test/a/1.png"] == "train" and splits(source)["test/b/1.png"] == "test"
    assert "layout: splits: those of the recipe, not those of the download" in source.warnings
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


def table(path: Path, *said: str) -> Path:
    """Labels of 1.png, 2.png, ... with a column of the split."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("image,label,split\n" + "".join(f"{n}.png,x,{split}\n" for n, split in enumerate(said, 1)))
    return path


DIFFER = "two splits fit that differ: column 'split', or 2 splits"


def test_a_split_column_and_lists_that_differ_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path, "p/1.png", "p/2.png", "p/3.png")
    (tmp_path / "train.txt").write_text("1.png\n2.png\n")
    (tmp_path / "test.txt").write_text("3.png\n")
    table(tmp_path / "labels.csv", "train", "test", "test")
    refused(tmp_path, f"{DIFFER} .lists test.txt, train.txt")
    refused(tmp_path, DIFFER, table=tmp_path / "labels.csv")
    table(tmp_path / "labels.csv", "train", "train", "test")
    assert list(splits(folder(tmp_path)).values()) == ["train", "train", "test"]


def test_a_named_table_with_a_split_column_and_folders(tmp_path: Path) -> None:
    root = pictures(tmp_path / "in", "train/1.png", "train/2.png", "test/3.png")
    path = table(tmp_path / "mine.csv", "train", "test", "test")
    refused(root, f"{DIFFER} .folders test, train", table=path)
    source = folder(root, table=table(path, "train", "train", "test"))
    assert list(splits(source).values()) == ["test", "train", "train"]
    assert "splits test, train from its column 'split'" in told(source)
    plain = pictures(tmp_path / "plain", "p/1.png", "p/2.png", "p/3.png")
    assert list(splits(folder(plain, table=table(path, "train", "val", "test"))).values()) == ["train", "val", "test"]


def test_folds_of_lists_are_not_chosen_from(tmp_path: Path) -> None:
    pictures(tmp_path, "a/1.png", "a/2.png", "b/3.png")
    for fold, (one, two) in enumerate((("1\n2", "3"), ("2\n3", "1")), 1):
        (tmp_path / f"train_{fold}.txt").write_text(one)
        (tmp_path / f"test_{fold}.txt").write_text(two)
    refused(tmp_path, "2 lists for the split (test|train): .*_1.txt, .*_2.txt; name one for each split in the recipe")


def test_a_part_of_the_tables_without_a_split_column_is_named(tmp_path: Path) -> None:
    pictures(tmp_path / "in", "1.png", "2.png")
    (tmp_path / "in/one.csv").write_text("image,label,split\n1.png,x,train\n")
    (tmp_path / "in/two.csv").write_text("image,label\n2.png,y\n")
    own = copy(tmp_path / "own.yaml", recognise="false", tables="[one.csv, two.csv]", table="{parts: true}")
    with pytest.raises(DataError, match="two.csv: no column of the split, which other tables of the labels have"):
        read_source(own, [tmp_path / "in"])


def test_a_named_table_inside_the_download_is_read_once(tmp_path: Path) -> None:
    pictures(tmp_path, "1.png", "2.png")
    path = table(tmp_path / "more/labels.csv", "train", "test")
    assert list(splits(folder(tmp_path, table=path)).values()) == ["train", "test"]
    own = copy(tmp_path / "own.yaml", recognise="false")
    assert len(read_source(own, [tmp_path], table=path).samples) == 2


def test_a_class_list_without_numbers_names_values_only_where_it_can(tmp_path: Path) -> None:
    root = pictures(tmp_path, "image/1.png", "image/2.png", size=SIZE)
    grey(root / "label/1.png", 0, 1)
    grey(root / "label/2.png", 1, 2)
    (root / "classes.txt").write_text("water\ntrees\nroads\n")
    refused(root, "3 values without names.*classes.txt has 3 names without numbers: is 'water' 0 or 1.*`0: water`")
    (root / "classes.txt").write_text("0: water\n1: trees\n2: roads\n")
    assert labels(folder(root))["image/2.png"] == ["trees", "roads"]
    (root / "classes.txt").write_text("No-data\ntrees\nroads\n")
    assert labels(folder(root))["image/2.png"] == ["trees", "roads"]
    (root / "classes.txt").write_text("water\ntrees\nroads\n")
    grey(root / "label/1.png", 1, 3)
    assert labels(folder(root)) == {"image/1.png": ["water", "roads"], "image/2.png": ["water", "trees"]}


def test_numbers_that_start_from_1_are_not_read_from_0(tmp_path: Path) -> None:
    pictures(tmp_path, "1.png", "2.png")
    (tmp_path / "labels.csv").write_text("image,label\n1.png,1\n2.png,2\n")
    refused(
        tmp_path, "column 'label' never holds 0, which would be 'a'; .*--classes unused,A,B", classes=["a", "b", "c"]
    )
    assert labels(folder(tmp_path, classes=["unused", "a", "b"])) == {"1.png": ["a"], "2.png": ["b"]}
    (tmp_path / "labels.csv").write_text("image,label\n1.png,0\n2.png,2\n")
    assert labels(folder(tmp_path, classes=["a", "b", "c"])) == {"1.png": ["a"], "2.png": ["c"]}
