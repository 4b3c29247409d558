"""Keys and cuts: which sample goes where, before a byte is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from marc_dist.cli.shard import main
from marc_dist.config import DataError
from marc_dist.data.dataset import open_dataset
from marc_dist.data.reader import IndexedReader
from marc_dist.packing.layout import KEY_BYTES, safe_keys
from tests import downloads


def test_repeated_names_get_their_folders_all_of_them() -> None:
    assert safe_keys(["cat/1.png", "dog/1.png", "dog/2.png"]) == ["cat_1", "dog_1", "2"]
    assert safe_keys(["Cat/1.png", "cat/1.PNG", "x.png"])[2] == "x"
    clash = safe_keys(["a/cat/1.png", "b/cat/1.png"])
    assert len({key.lower() for key in clash}) == 2 and all(key.startswith("cat_1_") for key in clash)
    assert len({key.lower() for key in safe_keys(["A.png", "a.png"])}) == 2
    long = safe_keys(["d/" + "x" * 200 + ".png", "d/" + "x" * 200 + "y.png"])
    assert len(set(long)) == 2 and max(map(len, long)) <= KEY_BYTES
    with pytest.raises(DataError, match="two pictures of one place"):
        safe_keys(["a/1.png", "a/1.png"])


def pack(root: Path, out: Path, *words: str) -> Path:
    assert main(["--dataset", "folder", "--source", str(root), "--out", str(out), "--workers", "1", *words]) == 0
    return out


def own(root: Path, kind: str, num: int = 12) -> Path:
    for number in range(num):
        downloads.save(downloads.picture(number, (40, 40)), root / "water" / f"p{number:02d}.{kind}")
    return root


def test_shards_are_cut_by_number_or_by_size(tmp_path: Path) -> None:
    root = own(tmp_path / "own", "png")
    one = open_dataset(pack(root, tmp_path / "one", "--samples-per-shard", "4"))
    sizes = [shard["num_samples"] for shard in one.meta["shards"] if shard["split"] == "train"]
    assert sizes[:-1] == [4] * (len(sizes) - 1) and 0 < sizes[-1] <= 4
    small = open_dataset(pack(root, tmp_path / "two", "--shard-mb", "0.008"))
    for number in range(len(small.shards)):
        rows = small.shard == number
        assert small.size[rows].sum() <= 8000 or rows.sum() == 1
    assert len(small.shards) > len(one.shards) and small.fingerprint == one.fingerprint
    assert list(small.keys) == list(one.keys)


def test_equal_files_from_any_process_to_any_place(tmp_path: Path) -> None:
    root = own(tmp_path / "own", "png")
    one, two = pack(root, tmp_path / "one"), tmp_path / "else" / "where" / "two"
    words = ["--dataset", "folder", "--source", str(root), "--out", str(two), "--workers", "2"]
    subprocess.run(
        [sys.executable, "-m", "marc_dist.cli.shard", *words],
        env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"},
        check=True,
        capture_output=True,
    )
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir()) and "dataset.json" in names
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_a_recipe_may_keep_tif(tmp_path: Path) -> None:
    root = own(tmp_path / "own", "tif")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "title: mine\nlabels: [folders]\npair_by: path\ntif: keep\n"
        "splits: {shares: {train: 0.5, test: 0.5}, source: x}\n"
    )
    assert main(["--dataset", str(recipe), "--source", str(root), "--out", str(tmp_path / "out")]) == 0
    dataset = open_dataset(tmp_path / "out")
    assert set(dataset.ext) == {"tif"}
    row = list(dataset.keys).index("p03")
    assert IndexedReader(dataset).read(row) == (root / "water" / "p03.tif").read_bytes()
    assert set(open_dataset(pack(root, tmp_path / "png")).ext) == {"png"}
