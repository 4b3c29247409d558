"""The three benchmarks in the layouts in which people download them, and anybody's own folder."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from marc_dist.config import ConfigError, DataError, list_presets
from marc_dist.packing.reading.recipes import load_recipe
from marc_dist.packing.reading.samples import Source
from marc_dist.packing.reading.source import read_source
from marc_dist.packing.reading.splits import draw_splits
from marc_dist.packing.reading.unpack import opened
from marc_dist.progress_bar import Tell
from tests import downloads

ALL = ("counts", "label_counts")


def read(name: str, *roots: Path, **options: object) -> Source:
    options.setdefault("allow", ALL)
    return read_source(load_recipe(name), list(roots), **options)  # type: ignore[arg-type]


def labels(source: Source) -> dict[str, list[str]]:
    return {Path(s.origin).stem.lower(): [source.classes[label] for label in s.labels] for s in source.samples}


def table(rows: dict[str, list[int]], classes: tuple[str, ...]) -> dict[str, list[str]]:
    return {name: [c for c, on in zip(classes, row, strict=True) if on] for name, row in rows.items()}


@pytest.mark.parametrize("order", [downloads.OFFICIAL, downloads.ALPHABETICAL], ids=["order A", "order B"])
def test_whdld_masks_are_read_by_colour_whatever_the_index_order(tmp_path: Path, order: tuple[str, ...]) -> None:
    found = labels(read("whdld", downloads.whdld(tmp_path / "WHDLD", order=order)))
    assert found == {f"wh{n:04d}": downloads.whdld_labels(n) for n in range(1, 13)}


def test_whdld_one_level_deeper_with_a_semicolon_table(tmp_path: Path) -> None:
    """The Kaggle copy's folders, and a table whose columns stand in another order under other spellings."""
    plain = downloads.whdld(tmp_path / "plain")
    deep = tmp_path / "whdld-data"
    shutil.copytree(plain / "Images", deep / "image" / "Images")
    shutil.copytree(plain / "ImagesPNG", deep / "imagesPNG" / "ImagesPNG")
    assert labels(read("whdld", deep)) == labels(read("whdld", plain))
    columns = ["Water", "Vegetation", "Roads", "pavement", "buildings", "baresoil"]
    names = ["water", "vegetation", "road", "pavement", "building", "bare soil"]
    rows = {f"wh{n:04d}": [int(name in downloads.whdld_labels(n)) for name in names] for n in range(1, 13)}
    rows["wh0003"][0] ^= 1
    downloads.write_csv(deep / "multilabels.csv", ["IMAGE\\LABEL", *columns], rows, delimiter=";")
    source = read("whdld", deep)
    assert "water" in set(labels(source)["wh0003"]) ^ set(downloads.whdld_labels(3))
    assert any("table and masks disagree about 1 pictures (water 1)" in warning for warning in source.warnings)
    assert labels(read("whdld", deep, labels="masks")) == labels(read("whdld", plain))


def test_masks_without_a_palette_need_a_named_order(tmp_path: Path) -> None:
    root = downloads.whdld(tmp_path, order=downloads.ALPHABETICAL, palette=False)
    with pytest.raises(DataError, match="--index-order official or alphabetical"):
        read("whdld", root)
    found = labels(read("whdld", root, index_order="alphabetical"))
    assert found["wh0001"] == downloads.whdld_labels(1)
    assert labels(read("whdld", root, index_order="official")) != found
    with pytest.raises(ConfigError, match="--index-order: whdld knows official, alphabetical, got 'b'"):
        read("whdld", root, index_order="b")


def test_an_unknown_colour_is_named_with_its_file(tmp_path: Path) -> None:
    root = downloads.whdld(tmp_path)
    downloads.save(downloads.mask([1, 2], [(0, 0, 0), (255, 0, 0), (1, 2, 3)]), root / "ImagesPNG" / "wh0002.png")
    with pytest.raises(DataError, match=r"wh0002.png: colour \(1, 2, 3\) \(32768 pixels\) belongs to no class"):
        read("whdld", root)


def test_dlrsd_as_in_the_zip(tmp_path: Path) -> None:
    rows = downloads.dlrsd(tmp_path)
    source = read("dlrsd", tmp_path)
    assert labels(source) == table(rows, source.classes)
    assert source.warnings == [] or all("counts" in warning or "classes" in warning for warning in source.warnings)
    assert {sample.scene for sample in source.samples} == {"agricultural", "airplane", "harbor"}
    assert labels(read("dlrsd", tmp_path, labels="masks")) == labels(source)


def test_dlrsd_older_copies_hold_masks_in_images(tmp_path: Path) -> None:
    rows = downloads.dlrsd_older(tmp_path)
    source = read("dlrsd", tmp_path / "DLRSD", tmp_path / "UCMerced_LandUse")
    assert labels(source) == table(rows, source.classes)
    assert all(sample.file.suffix == ".tif" for sample in source.samples)
    beside = read("dlrsd", tmp_path / "DLRSD")
    assert labels(beside) == labels(source) and any("UCMerced_LandUse" in warning for warning in beside.warnings)
    shutil.rmtree(tmp_path / "UCMerced_LandUse")
    with pytest.raises(DataError, match="found 12 masks and 0 label tables, but no pictures of DLRSD"):
        read("dlrsd", tmp_path / "DLRSD")


@pytest.mark.parametrize("kind", ["csv", "mat"])
def test_ml_aid_splits_by_folder_with_the_park_exception(tmp_path: Path, kind: str) -> None:
    rows = downloads.ml_aid(tmp_path, kind)
    source = read("ml-aid", tmp_path)
    assert labels(source) == table(rows, source.classes)
    for split, names in downloads.ml_aid_names().items():
        assert sorted(Path(s.origin).stem for s in source.samples if s.split == split) == sorted(names)
    assert any("forest_2" in warning for warning in source.warnings)
    assert {s.scene for s in source.samples} == {"BareLand", "Forest", "Park"}


def test_wrong_numbers_stop_unless_allowed(tmp_path: Path) -> None:
    downloads.ml_aid(tmp_path)
    with pytest.raises(DataError, match="11 pictures instead of 3000, 6 in train instead of 2400.*--allow counts"):
        read("ml-aid", tmp_path, allow=())
    assert any("counts" in warning for warning in read("ml-aid", tmp_path).warnings)


def test_another_data_set_in_the_folder_is_recognised(tmp_path: Path) -> None:
    downloads.ml_aid(tmp_path / "aid")
    downloads.whdld(tmp_path / "wh")
    with pytest.raises(DataError, match="does not look like WHDLD.*BareLand/bareland_1"):
        read("whdld", tmp_path / "aid")
    with pytest.raises(DataError, match="does not look like ML-AID.*wh0001.jpg"):
        read("ml-aid", tmp_path / "wh")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures of DLRSD"):
        read("dlrsd", tmp_path / "empty")


def test_missing_surplus_and_doubled_are_named(tmp_path: Path) -> None:
    root = downloads.whdld(tmp_path)
    (root / "ImagesPNG" / "wh0004.png").unlink()
    with pytest.raises(DataError, match=r"pictures without labels in the masks \(1, left out\): Images/wh0004.jpg"):
        read("whdld", root)
    source = read("whdld", root, allow=("counts", "missing"))
    assert len(source.samples) == 11 and any("wh0004" in warning for warning in source.warnings)
    downloads.whdld(root)
    (root / "Images" / "wh0005.jpg").unlink()
    with pytest.raises(DataError, match=r"labels in the masks without a picture \(1, left out\): wh0005"):
        read("whdld", root)
    downloads.whdld(root)
    shutil.copy(root / "Images" / "wh0006.jpg", root / "WH0006.JPG")
    with pytest.raises(DataError, match="of one name.*wh0006.jpg and WH0006.JPG|of one name.*WH0006.JPG"):
        read("whdld", root)


def test_a_damaged_table_is_caught_by_the_range_of_labels(tmp_path: Path) -> None:
    rows = downloads.dlrsd(tmp_path)
    rows["harbor01"] = [1] * 17
    header = ["image", *downloads.UCM]
    downloads.write_csv(tmp_path / "DLRSD" / "multilabels.csv", header, rows)
    with pytest.raises(DataError, match=r"expected 1 to 8 labels.*harbor01.tif \(17\)"):
        read("dlrsd", tmp_path)


@pytest.mark.parametrize("archive", ["zip", "tar.gz"])
def test_archives_are_read_like_folders_and_leave_nothing(tmp_path: Path, archive: str) -> None:
    root = downloads.whdld(tmp_path / "WHDLD")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._wh0001.jpg").write_bytes(b"resource fork")
    path = tmp_path / f"WHDLD.{archive}"
    if archive == "zip":
        with zipfile.ZipFile(path, "w") as pack:
            for file in root.rglob("*"):
                pack.write(file, file.relative_to(tmp_path))
    else:
        with tarfile.open(path, "w:gz") as tar:
            tar.add(root, "WHDLD")
    beside = tmp_path / "out"
    with opened(load_recipe("whdld"), [path], beside) as roots:
        found = labels(read("whdld", *roots))
    assert found == labels(read("whdld", root))
    assert list(beside.iterdir()) == []


def test_what_takes_long_is_told_while_it_lasts(tmp_path: Path) -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    @contextmanager
    def show(what: str, total: int, unit: str = "") -> Iterator[Tell]:
        told[f"{what} of {total} {unit}"] = calls = []
        yield lambda done, size: calls.append((done, size))

    root = downloads.whdld(tmp_path / "WHDLD")
    with tarfile.open(tmp_path / "WHDLD.tar", "w") as tar:
        tar.add(root, "WHDLD")
    with zipfile.ZipFile(tmp_path / "WHDLD.zip", "w") as pack:
        for file in root.rglob("*.*"):
            pack.write(file, file.relative_to(tmp_path))
    size = sum(file.stat().st_size for file in root.rglob("*.*"))
    for archive in ("WHDLD.tar", "WHDLD.zip"):
        told.clear()
        with opened(load_recipe("whdld"), [tmp_path / archive], tmp_path / "out", show=show) as roots:
            read("whdld", *roots, show=show)
        unpacking, masks = told.values()
        assert list(told)[0].startswith(f"unpacking {archive} of {len(unpacking)} ")
        assert unpacking[-1] == (len(unpacking), size)
        assert list(told)[1] == "reading masks of 12 masks" and masks == [(n, 0) for n in range(1, 13)]


def test_broken_and_foreign_archives_are_named(tmp_path: Path) -> None:
    recipe = load_recipe("whdld")
    (tmp_path / "x.rar").write_bytes(b"Rar!\x1a\x07\x00" + bytes(100))
    with (
        pytest.raises(DataError, match="x.rar: a RAR archive; unpack it yourself and pass the folder"),
        opened(recipe, [tmp_path / "x.rar"], tmp_path),
    ):
        pass
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as pack:
        pack.writestr("a.jpg", bytes(3000))
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[100] ^= 255
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(DataError, match="damaged archive"), opened(recipe, [tmp_path / "x.zip"], tmp_path):
        pass


class TestFolder:
    """Anybody's own pictures."""

    def pictures(self, root: Path, names: list[str]) -> None:
        for seed, name in enumerate(names):
            downloads.save(downloads.picture(seed, (20, 20)), root / name)

    def test_one_folder_a_class(self, tmp_path: Path) -> None:
        self.pictures(tmp_path, ["Beach/a.png", "Beach/b.png", "Forest/c.png"])
        source = read("folder", tmp_path)
        assert source.classes == ("Beach", "Forest")
        assert labels(source) == {"a": ["Beach"], "b": ["Beach"], "c": ["Forest"]}

    def test_a_matrix_with_splits(self, tmp_path: Path) -> None:
        self.pictures(tmp_path, ["x/a.png", "b.png"])
        (tmp_path / "labels.csv").write_text("image,water,split,trees\nx/A.png,1,test,0\nb,1,train,1\n")
        source = read("folder", tmp_path)
        assert source.classes == ("water", "trees")
        assert labels(source) == {"a": ["water"], "b": ["water", "trees"]}
        assert {Path(s.origin).stem: s.split for s in source.samples} == {"a": "test", "b": "train"}

    def test_a_list_of_names_against_a_class_list(self, tmp_path: Path) -> None:
        self.pictures(tmp_path, ["a.png", "b.png"])
        (tmp_path / "labels.csv").write_text("image,labels\na.png,water trees\nb.png,tree\n")
        assert labels(read("folder", tmp_path, classes=["trees", "water", "sand"])) == {
            "a": ["trees", "water"],
            "b": ["trees"],
        }
        (tmp_path / "labels.csv").write_text("image,labels\na.png,water\nb.png,wather\n")
        with pytest.raises(
            DataError, match=r"labels.csv: row 3 \(b.png\): label 'wather' is not in the class list; did you mean water"
        ):
            read("folder", tmp_path, classes=["trees", "water"])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("image,water\na.png,2\nb.png,0\n", r"row 2 \(a.png\), column 'water': expected 0 or 1, got '2'"),
            ("image,water\na.png\nb.png,0\n", r"row 2 \(a.png\): expected 2 cells, got 1"),
            ("image,water\n", "expected a header and rows"),
            ("image,water\nz.png,1\n", "no picture is named in the table"),
            ("image,water\na.png,1\nb.png,1\nc.png,1\n", "labels in the table without a picture.*c"),
            ("image,water\na.png,1\na.png,0\nb.png,1\n", "rows of one name: a"),
            ("image,water,Water\na.png,1,1\nb.png,1,0\n", "two columns for 'water'|two columns for 'Water'"),
            ("image,water,split\na.png,1,9th\nb.png,1,test\n", "split '9th', expected a lower-case word"),
            ("image,water\na.png,0\nb.png,1\n", r"pictures without any label \(1, kept as negatives\): a.png"),
        ],
    )
    def test_faults_name_file_row_and_column(self, tmp_path: Path, text: str, message: str) -> None:
        self.pictures(tmp_path, ["a.png", "b.png"])
        (tmp_path / "labels.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            read("folder", tmp_path)

    def test_pictures_in_no_folder_and_no_table(self, tmp_path: Path) -> None:
        self.pictures(tmp_path, ["a.png"])
        with pytest.raises(DataError, match="a.png: a picture in no folder, and no label table"):
            read("folder", tmp_path)


def test_drawn_splits_keep_shares_in_every_scene_and_do_not_move() -> None:
    groups = {scene: [f"{scene}{n:02d}" for n in range(40)] for scene in ("a", "b")}
    chosen = draw_splits(groups, {"train": 0.7, "val": 0.1, "test": 0.2}, seed=0)
    for keys in groups.values():
        assert [sum(chosen[key] == split for key in keys) for split in ("train", "val", "test")] == [28, 4, 8]
    reverse = {scene: keys[::-1] for scene, keys in reversed(groups.items())}
    assert draw_splits(reverse, {"train": 0.7, "val": 0.1, "test": 0.2}, seed=0) == chosen
    assert draw_splits(groups, {"train": 0.7, "val": 0.1, "test": 0.2}, seed=1) != chosen
    assert sorted(key for key in groups["a"] if chosen[key] == "val") == PINNED


PINNED = ["a09", "a14", "a22", "a28"]


@pytest.mark.parametrize("name", list_presets("shards"))
def test_every_shipped_recipe_builds(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.title and recipe.splits.source and recipe.layout or recipe.builtin
    for order in recipe.masks.index_orders:
        assert len(recipe.mask_rule(order).indices) == len(recipe.classes)
    for counts in recipe.expect.label_counts.values():
        assert len(counts) == len(recipe.classes)


def test_a_fault_in_a_recipe_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("title: mine\nlabels: [masks]\nsplits: {shares: {train: 0.5}}\nclases: []\n")
    with pytest.raises(
        ConfigError, match=r"mine.yaml: splits: shares must add up to 1, got 0.5 \| clases: unknown key"
    ):
        load_recipe(str(path))
