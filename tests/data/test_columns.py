"""Columns of an index: as arrays of strings are, in memory that processes share, a few bytes where they are pickled."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marc_dist.config import DataConfig, DataError
from marc_dist.data.columns import Block, Codes, Texts, code_arrays, distinct, text_arrays, texts_of
from marc_dist.data.dataset import Dataset, cooccurrence
from marc_dist.data.plan import held_out
from tests.retrieval.runs import pack_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return pack_tiny(tmp_path_factory.mktemp("columns") / "data")


def texts(values: list[str]) -> Texts:
    return texts_of(text_arrays("x", [pa.array(values[:3], "large_string"), pa.array(values[3:], "large_string")]), "x")


def codes(values: list[str]) -> Codes:
    arrays = code_arrays("x", [pa.array(part, pa.string()).dictionary_encode() for part in (values[:3], values[3:])])
    return Codes(arrays["x"], texts_of(arrays, "x"))


@settings(deadline=None)
@given(st.lists(st.text(max_size=6), min_size=1, max_size=20), st.data())
def test_columns_are_indexed_as_arrays_are(values: list[str], data: st.DataObject) -> None:
    expected = np.array([*values, None], dtype=object)[:-1]
    ids = data.draw(st.lists(st.integers(-len(values), len(values) - 1), max_size=9))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    for column in (texts(values), codes(values)):
        assert len(column) == len(values) and list(column) == column.tolist() == values
        for item in (slice(None), slice(None, None, -1), slice(1, -1, 2), np.array(ids, dtype=np.int64), mask):
            found = column[item]
            assert found.dtype == object and found.tolist() == expected[item].tolist()
        assert [column[at] for at in ids] == [values[at] for at in ids]
        for other in (values[0], "not there \0"):
            assert (column == other).tolist() == [one == other for one in values]
        assert np.asarray(column).tolist() == column.copy().tolist() == values
        assert distinct(column) == sorted(set(values))
        assert distinct(column, np.array(ids, dtype=np.int64)) == sorted({values[at] for at in ids})
        with pytest.raises(IndexError):
            column[len(values)]


def test_many_names_need_a_wider_code() -> None:
    values = [f"scene {at % 300}" for at in range(700)]
    column = codes(values)
    assert column.codes.dtype == np.uint16 and codes(values[:256]).codes.dtype == np.uint8
    assert column.tolist() == values and column[299] == "scene 299"


def test_a_dataset_holds_what_its_index_does(tiny: Dataset) -> None:
    table = pq.read_table(tiny.root / "index.parquet").to_pydict()
    assert (tiny.keys.tolist(), tiny.split.tolist()) == (table["key"], table["split"])
    assert (tiny.scene.tolist(), tiny.ext.tolist()) == (table["scene"], table["ext"])
    assert [tiny.shards[at] for at in tiny.shard] == table["shard"]
    for name in ("offset", "size", "crc32", "width", "height"):
        assert getattr(tiny, name).tolist() == table[name]
    assert [row.tobytes() for row in tiny.bits] == table["labels"]
    labels = [np.unpackbits(np.frombuffer(one, dtype=np.uint8), bitorder="little") for one in table["labels"]]
    expected = np.array(labels)[:, : len(tiny.classes)].astype(bool)
    assert np.array_equal(tiny.labels, expected) and tiny.labels.dtype == np.bool_ and tiny.labels is tiny.labels
    for rows in (3, np.array([5, 1, 1]), slice(2, 9)):
        assert np.array_equal(tiny.label_rows(rows), expected[rows])
    train = tiny.rows("train")
    both = expected[train].astype(np.int64)
    assert np.array_equal(tiny.cooccurrence("train"), both.T @ both)
    assert tiny.label_counts("train").tolist() == both.sum(axis=0).tolist()


def test_counts_of_parts_add_up() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((1000, 9)) < 0.3
    found = cooccurrence(np.array_split(labels, 7))
    assert found.dtype == np.int64 and np.array_equal(found, labels.T.astype(np.int64) @ labels.astype(np.int64))


@settings(deadline=None)
@given(st.lists(st.text(max_size=8), unique=True, max_size=40), st.floats(0, 1), st.integers(0, 9))
def test_the_same_samples_are_held_out_as_ever(keys: list[str], share: float, seed: int) -> None:
    digest = {key: hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in keys}
    lowest = sorted(keys, key=digest.__getitem__)[: round(share * len(keys))]
    assert held_out(keys, share, seed).tolist() == [key in lowest for key in keys]


READ = """
import pickle, sys
dataset = pickle.load(sys.stdin.buffer)
mapped = sum("marc-index" in line for line in open("/proc/self/maps"))
print(len(dataset), dataset.place(3), dataset.label_rows(3).tolist(), mapped, "pyarrow" in sys.modules)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory without a file")
def test_another_process_maps_the_columns(tiny: Dataset) -> None:
    content = pickle.dumps(tiny)
    assert len(content) < 5000  # however many rows there are
    out = subprocess.run([sys.executable, "-c", READ], input=content, capture_output=True, check=True).stdout.decode()
    assert out.split() == f"40 {tiny.place(3)} {tiny.label_rows(3).tolist()} 1 False".split()


@pytest.mark.parametrize("place", [None, "gone", "another"])
def test_columns_are_read_again_where_the_memory_has_gone(
    place: str | None, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny.shared is not None
    (tmp_path / "another").write_bytes(bytes(4096))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tiny.shared._block, "_place", place)
    again = pickle.loads(pickle.dumps(tiny))
    assert again.keys.tolist() == tiny.keys.tolist() and np.array_equal(again.bits, tiny.bits)
    assert (again.root, again.classes, again.meta) == (tiny.root, tiny.classes, tiny.meta)


def test_an_index_that_was_replaced_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = pack_tiny(tmp_path / "data")
    assert dataset.shared is not None
    monkeypatch.setattr(dataset.shared._block, "_place", None)
    content = pickle.dumps(dataset)
    (dataset.root / "index.parquet").write_bytes(b"x")
    with pytest.raises(DataError, match=r"index\.parquet: not the index that dataset\.json was written with"):
        pickle.loads(content)


def test_a_replaced_column_travels(tiny: Dataset) -> None:
    split = tiny.split.copy()
    split[:3] = "mine"
    other = pickle.loads(pickle.dumps(dataclasses.replace(tiny, split=split)))
    assert other.rows("mine").tolist() == [0, 1, 2] and other.keys.tolist() == tiny.keys.tolist()
    with pytest.raises(DataError, match=r"no split named 'none'; it has mine, test, train"):
        other.rows("none")
    kept = tiny.validation_rows(DataConfig(validation_share=0.3))
    assert 0 < len(kept) < len(tiny.rows("train"))


def test_columns_cannot_be_written(tiny: Dataset) -> None:
    with pytest.raises(ValueError, match="read-only"):
        tiny.size[0] = 1
    block = Block({"a": np.zeros((0, 3), dtype=np.uint8), "b": np.arange(3)})
    assert block.arrays["a"].shape == (0, 3) and block.arrays["b"].tolist() == [0, 1, 2]
