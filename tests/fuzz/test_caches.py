"""Folders of decoded pictures that are damaged: made anew, or one clear error."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from marc_dist.data.cache import open_cache
from marc_dist.data.dataset import open_dataset
from marc_dist.data.reader import IndexedReader
from tests.fuzz.damage import damaged, error_of, fuzz, in_time, little_memory
from tests.fuzz.test_folders import write


@pytest.mark.parametrize("name", ["cache.json", "table.bin", "pixels.npy"])
def test_damaged_caches(name: str, packed: dict[str, bytes], tmp_path: Path) -> None:
    """Made anew, or one clear error; a missing part too."""
    dataset = open_dataset(write(tmp_path / "shards", packed))
    reader = IndexedReader(dataset, retries=0)
    ids = dataset.rows("train").tolist()

    def pictures() -> list[np.ndarray[Any, Any]]:
        cache = open_cache(dataset, "train", tmp_path / "cache", reader=reader)
        return [np.array(cache.picture(sample)) for sample in ids]

    sound = pictures()
    (folder,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    content = (folder / name).read_bytes()

    @fuzz(25)
    @given(damaged(content[:2000]))
    def check(data: bytes) -> None:
        (folder / name).write_bytes(data + content[2000:])
        found: list[np.ndarray[Any, Any]] = []
        with little_memory(1500):
            error = error_of(lambda: found.extend(pictures()))
        assert error or all(np.array_equal(one, other) for one, other in zip(found, sound, strict=True))

    check()
    (folder / name).unlink()
    found: list[np.ndarray[Any, Any]] = []
    if error_of(lambda: found.extend(pictures())) is None:
        assert all(np.array_equal(one, other) for one, other in zip(found, sound, strict=True))


@pytest.mark.parametrize("text", ["[]", "null", "[" * 100_000, "{}", '{"errors": 5}'])
def test_descriptions_of_caches(text: str, packed: dict[str, bytes], tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path / "shards", packed))
    reader = IndexedReader(dataset, retries=0)
    open_cache(dataset, "train", tmp_path / "cache", reader=reader)
    (folder,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    (folder / "cache.json").write_text(text)
    assert error_of(lambda: open_cache(dataset, "train", tmp_path / "cache", reader=reader).picture(3)) is None


def test_pictures_larger_than_the_index_says(packed: dict[str, bytes], tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path / "shards", packed))
    dataset = dataclasses.replace(dataset, width=dataset.width - 1)
    with in_time():
        assert error_of(
            lambda: open_cache(dataset, "train", tmp_path / "cache", reader=IndexedReader(dataset, retries=0))
        )
