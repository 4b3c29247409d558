"""What is looked at in a download, what is passed over, and how names that repeat are paired."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from marc_dist.config import DataError
from marc_dist.packing.reading.discover import content_root, discover
from marc_dist.packing.reading.recipes import load_recipe
from marc_dist.packing.reading.samples import Source
from marc_dist.packing.reading.source import read_source
from tests import downloads


def pictures(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        downloads.save(downloads.picture(seed, (20, 20)), root / name)
    return root


def folder(root: Path, **options: object) -> Source:
    return read_source(load_recipe("folder"), [root], **options)  # type: ignore[arg-type]


def by_origin(source: Source) -> dict[str, list[str]]:
    return {sample.origin: [source.classes[label] for label in sample.labels] for sample in source.samples}


def test_litter_is_no_data_but_everything_else_is_told(tmp_path: Path) -> None:
    pictures(
        tmp_path, "a/1.png", "a/license_plate.png", "b/readme_first.png", "b/legend.png", "a/._1.png", "README.jpg"
    )
    pictures(tmp_path, "__MACOSX/a/1.png", ".git/x.png")
    for name in (".DS_Store", "Thumbs.db", "LICENSE", "a/x.webp", "a/y.webp", "notes.docx", "annotations.csv"):
        (tmp_path / name).write_bytes(b"x")
    source = folder(tmp_path)
    assert set(by_origin(source)) == {"a/1.png", "a/license_plate.png", "b/readme_first.png"}
    assert "files: passed over as neither pictures nor labels: 1 .csv, 1 .docx, 2 .webp" in source.warnings
    assert any("tables that were not read: annotations.csv; name one with --table" in text for text in source.warnings)


def test_the_root_is_found_below_wrappers(tmp_path: Path) -> None:
    plain = downloads.whdld(tmp_path / "plain", num=6)
    shutil.copytree(plain, tmp_path / "wrapped" / "data" / "WHDLD")
    (tmp_path / "wrapped" / "__MACOSX").mkdir()
    recipe = load_recipe("whdld")
    found = [discover(recipe, [root], recipe.mask_rule()) for root in (plain, tmp_path / "wrapped")]
    assert [f.origin for f in found[0].pictures] == [f.origin for f in found[1].pictures]
    assert found[1].pictures[0].origin == "Images/wh0001.jpg"
    one = pictures(tmp_path / "single", "cat/1.png")
    assert content_root(one, set()) == one  # the only class keeps its folder
    assert content_root(tmp_path / "wrapped", {"data"}) == tmp_path / "wrapped"  # a name that means something


def test_folders_of_one_class_each_may_repeat_names(tmp_path: Path) -> None:
    source = folder(pictures(tmp_path, "cat/1.png", "dog/1.png", "dog/2.png"))
    assert by_origin(source) == {"cat/1.png": ["cat"], "dog/1.png": ["dog"], "dog/2.png": ["dog"]}


def test_rows_are_paired_by_as_much_of_the_path_as_they_give(tmp_path: Path) -> None:
    pictures(tmp_path, "cat/1.png", "dog/1.png", "dog/2.png")
    table = tmp_path / "labels.csv"
    table.write_text("image,labels\nCat/1.png,a\ndog/1,b\n2.png,c\n")
    assert by_origin(folder(tmp_path)) == {"cat/1.png": ["a"], "dog/1.png": ["b"], "dog/2.png": ["c"]}
    table.write_text("image,labels\n1.png,a\n")
    with pytest.raises(DataError, match="'1' fits 2 pictures, such as cat/1 and dog/1; write their folders too"):
        folder(tmp_path)
    table.write_text("image,labels\ncat/1.png,a\nbird/1.png,b\ndog/1.png,a\ndog/2.png,a\n")
    with pytest.raises(DataError, match=r"labels in the table without a picture \(1, left out\): bird/1; .*surplus"):
        folder(tmp_path)
    flat = pictures(tmp_path / "flat", "1.png")
    (flat / "labels.csv").write_text("image,labels\nimages/train/1.png,a\n")
    assert by_origin(folder(flat)) == {"1.png": ["a"]}


def test_a_table_elsewhere(tmp_path: Path) -> None:
    root = pictures(tmp_path / "in", "1.png")
    (tmp_path / "mine.csv").write_text("image,labels\n1,a\n")
    assert by_origin(folder(root, table=tmp_path / "mine.csv")) == {"1.png": ["a"]}
    with pytest.raises(DataError, match="nope.csv: cannot be read"):
        folder(root, table=tmp_path / "nope.csv")


def test_two_tables_of_one_name_stop(tmp_path: Path) -> None:
    root = downloads.whdld(tmp_path, num=6)
    rows = {f"wh{n:04d}": [1, 0, 0, 0, 0, 0] for n in range(1, 7)}
    for place in (root, root / "older"):
        downloads.write_csv(place / "multilabels.csv", ["image", *downloads.ALPHABETICAL], rows)
    with pytest.raises(DataError, match="more label tables of the name multilabels.csv than multilabels.csv"):
        read_source(load_recipe("whdld"), [root], allow=("counts",))


def test_a_known_set_under_another_name_is_pointed_at(tmp_path: Path) -> None:
    root = downloads.whdld(tmp_path, num=3)
    with pytest.raises(DataError, match=r"does not look like DLRSD.*\(as in whdld: try --dataset whdld\)"):
        read_source(load_recipe("dlrsd"), [root])
