"""Shard folders of which any part is damaged or meddled with, behind its checksums too."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marc_dist.cli.shard import main
from marc_dist.config import DataError
from marc_dist.data.dataset import open_dataset
from marc_dist.data.reader import IndexedReader
from marc_dist.packing.verify import verify
from tests.fuzz.damage import NAMES, NUMBERS, altered, damaged, error_of, fresh, fuzz, in_time, little_memory, run

Files = dict[str, bytes]
COLUMNS = ["key", "split", "shard", "offset", "size", "crc32", "labels", "scene", "width", "height", "ext"]


def write(folder: Path, files: Files) -> Path:
    fresh(folder)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def matched(files: Files, **changes: bytes) -> Files:
    """Files of which some are others, with sizes and hashes put right, as somebody who knows the format would."""
    files = {**files, **changes}
    meta = json.loads(files["dataset.json"])
    meta["index_sha256"] = hashlib.sha256(files["index.parquet"]).hexdigest()
    for shard in meta["shards"]:
        data = files[shard["name"]]
        shard.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    return {**files, "dataset.json": json.dumps(meta).encode()}


def use(folder: Path) -> list[str]:
    """Everything that reads a shard folder; what it complains of."""
    said = []

    def everything() -> None:
        dataset = open_dataset(folder)
        assert dataset.labels.shape == (len(dataset), len(dataset.classes))
        for split in sorted(set(dataset.split.tolist())):
            assert dataset.cooccurrence(split).shape == (len(dataset.classes),) * 2
        reader = IndexedReader(dataset, retries=0)
        for sample in range(min(len(dataset), 8)):
            reader.expect([sample])
            said.append(error_of(lambda sample=sample: reader.image(sample)))  # type: ignore[misc]
        reader.close()
        for report in verify(folder):
            said.extend(report.faults)

    said.append(error_of(everything))
    return [text for text in said if text]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "shards"


@pytest.mark.parametrize("name", ["train-000000.tar", "index.parquet", "dataset.json"])
def test_damaged_files(name: str, packed: Files, folder: Path) -> None:
    assert use(write(folder, packed)) == []

    @fuzz(40)
    @given(damaged(packed[name]))
    def check(data: bytes) -> None:
        if data != packed[name]:
            assert use(write(folder, {**packed, name: data})) or name == "dataset.json"

    check()


def test_damaged_shards_of_the_right_sum(packed: Files, folder: Path) -> None:
    @fuzz(80)
    @given(damaged(packed["train-000000.tar"], 6))
    def check(data: bytes) -> None:
        use(write(folder, matched(packed, **{"train-000000.tar": data})))

    check()


def test_damaged_indexes_of_the_right_sum(packed: Files, folder: Path) -> None:
    @fuzz(80)
    @given(damaged(packed["index.parquet"]))
    def check(data: bytes) -> None:
        with little_memory(1500):
            use(write(folder, matched(packed, **{"index.parquet": data})))

    check()


def table(files: Files) -> dict[str, list[Any]]:
    return pq.read_table(io.BytesIO(files["index.parquet"])).to_pydict()  # type: ignore[no-any-return]


def index(columns: dict[str, list[Any]] | pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), buffer)
    return buffer.getvalue()


ODD = st.sampled_from([*NUMBERS[:7], *NAMES[:10], None, 0.5, float("nan"), b"", b"\xff" * 9, True])
CHANGE = st.tuples(
    st.sampled_from(COLUMNS), st.sampled_from(["cell", "column", "drop", "swap"]), ODD, st.integers(0, 5)
)


def test_altered_indexes(packed: Files, folder: Path) -> None:
    @fuzz(150)
    @given(st.lists(CHANGE, min_size=1, max_size=3))
    def check(changes: list[tuple[str, str, Any, int]]) -> None:
        columns = table(packed)
        for name, kind, value, row in changes:
            if kind == "drop":
                columns.pop(name, None)
            elif kind == "column":
                columns[name] = [value] * 6
            elif kind == "swap" and name in columns:
                columns[name] = columns[name][::-1]
            elif name in columns:
                columns[name][row] = value
        try:
            data = index(columns)
        except (pa.ArrowException, UnicodeError, OverflowError):
            return  # no such table
        with in_time(), little_memory(1500):
            use(write(folder, matched(packed, **{"index.parquet": data})))

    check()


def test_altered_descriptions(packed: Files, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = json.loads(packed["dataset.json"])

    @fuzz(150)
    @given(altered(sound))
    def check(meta: Any) -> None:
        use(write(folder, {**packed, "dataset.json": json.dumps(meta).encode()}))

    check()

    @fuzz(25)
    @given(altered(sound))
    def command(meta: Any) -> None:
        write(folder, {**packed, "dataset.json": json.dumps(meta).encode()})
        run(main, ["--verify", str(folder)], capsys)

    command()


def test_command_on_damaged_shards(packed: Files, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @fuzz(25)
    @given(st.sampled_from(sorted(packed)), st.data())
    def check(name: str, data: st.DataObject) -> None:
        write(folder, {**packed, name: data.draw(damaged(packed[name]))})
        run(main, ["--verify", str(folder)], capsys)

    check()


def edited(files: Files, change: Callable[[dict[str, Any]], object]) -> Files:
    meta = json.loads(files["dataset.json"])
    change(meta)
    return {**files, "dataset.json": json.dumps(meta).encode()}


def put(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda meta: meta.update({key: value})


def shard(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda meta: meta["shards"][0].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("shards", None), "its list of shards is not readable"),
        (shard(size=None, name="x.tar"), "its list of shards is not readable"),  # no file had no size: both None
        (shard(num_samples="3"), "its list of shards is not readable"),
        (shard(name=".."), "its list of shards is not readable"),
        (shard(name=""), "its list of shards is not readable"),
        (shard(name="\ud800.tar"), "its list of shards is not readable"),
        (shard(name="x" * 300 + ".tar"), "got no such file"),
        (put("classes", 5), "its list of classes is not readable"),
        (put("classes", []), "its list of classes is not readable"),
        (put("classes", [1, 2]), "its list of classes is not readable"),
        (put("classes", ["a"] * 9), "expected labels of 9 bits everywhere"),
        (put("fingerprint", "../../../home/x"), "its fingerprint is not a SHA-256"),  # part of the cache's folder
    ],
)
def test_descriptions_that_are_refused(
    change: Callable[[dict[str, Any]], object], message: str, packed: Files, folder: Path
) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(write(folder, edited(packed, change)))


def test_json_that_is_nested_too_deeply(packed: Files, folder: Path) -> None:
    """Found: RecursionError is no ValueError."""
    with pytest.raises(DataError, match=r"dataset.json: not readable \(maximum recursion"):
        open_dataset(write(folder, {**packed, "dataset.json": b"[" * 100_000}))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("offset", -1, "pictures outside of their shard"),
        ("offset", 2**62, "pictures outside of their shard"),
        ("size", 2**50, "pictures outside of their shard"),  # was given to pread: MemoryError
        ("size", 0, "pictures outside of their shard"),
        ("size", None, "column size has empty cells"),
        ("split", None, "column split has empty cells"),
        ("labels", b"", "expected labels of 2 bits everywhere"),
        ("labels", b"\1\1", "expected labels of 2 bits everywhere"),
        ("width", 0, "pictures without pixels"),
        ("height", -5, "pictures without pixels"),
        ("crc32", -1, "not a shard index"),
        ("shard", "../x.tar", "names shards that dataset.json does not"),
    ],
)
def test_indexes_that_are_refused(column: str, value: Any, message: str, packed: Files, folder: Path) -> None:
    columns = table(packed)
    columns[column][2] = value
    with pytest.raises(DataError, match=message):
        open_dataset(write(folder, matched(packed, **{"index.parquet": index(columns)})))


def test_an_index_without_rows_or_with_broken_text(packed: Files, folder: Path) -> None:
    """Found: reshape and to_pylist had errors of their own."""
    empty = {name: values[:0] for name, values in table(packed).items()}
    types = pq.read_table(io.BytesIO(packed["index.parquet"])).schema
    write(folder, matched(packed, **{"index.parquet": index(pa.table(empty, schema=types))}))
    assert len(open_dataset(folder)) == 0 and any("holds 0 samples" in text for text in use(folder))
    columns = table(packed)
    text = pa.Array.from_buffers(
        pa.string(), 6, [None, pa.py_buffer(np.arange(7, dtype=np.int32).tobytes()), pa.py_buffer(b"\xff" * 6)]
    )
    with pytest.raises(DataError, match="not a shard index"):
        data = index(pa.table({**columns, "key": text}, schema=types))
        open_dataset(write(folder, matched(packed, **{"index.parquet": data})))


def test_an_index_that_is_a_pipe(packed: Files, folder: Path) -> None:
    write(folder, {name: data for name, data in packed.items() if name != "index.parquet"})
    os.mkfifo(folder / "index.parquet")
    with in_time(), pytest.raises(DataError, match="index.parquet: no such file"):
        open_dataset(folder)


def test_a_shard_whose_members_go_backwards(packed: Files, folder: Path) -> None:
    """Found: a member of negative size sent ``tarfile`` round in circles."""
    data = bytearray(packed["train-000000.tar"])
    second = next(place for place in range(512, len(data), 512) if data[place + 257 : place + 262] == b"ustar")
    data[second + 124 : second + 136] = b"\xff" * 10 + (-(second + 512)).to_bytes(2, "big", signed=True)
    head = data[second : second + 512]
    head[148:156] = b" " * 8
    data[second + 148 : second + 156] = b"%06o\0 " % sum(head)
    said = use(write(folder, matched(packed, **{"train-000000.tar": bytes(data)})))
    assert any("not a readable tar" in text for text in said), said


def test_a_picture_of_another_size_than_the_index_says(packed: Files, folder: Path) -> None:
    """Found: only the cache of decoded pictures noticed, with a traceback."""
    columns = table(packed)
    columns["width"][0] += 1
    types = pq.read_table(io.BytesIO(packed["index.parquet"])).schema
    data = index(pa.table(columns, schema=types))
    said = use(write(folder, matched(packed, **{"index.parquet": data})))
    assert any("16x12 pixels, the index says 17x12" in text for text in said), said


@fuzz(60)
@given(
    st.sampled_from(["GNU.sparse.size", "GNU.sparse.map", "GNU.sparse.realsize", "size", "path"]),
    st.sampled_from(["-1", "9" * 18, "nan", "1,2", "x", "", "0"]),
    st.integers(0, 5),
)  # fmt: skip
def test_shards_of_odd_headers(
    packed: Files, tmp_path_factory: pytest.TempPathFactory, key: str, value: str, place: int
) -> None:
    buffer = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(packed["train-000000.tar"])) as old,
        tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for number, member in enumerate(old):
            member.pax_headers = {key: value} if number == place else {}
            new.addfile(member, old.extractfile(member))
    folder = tmp_path_factory.getbasetemp() / "odd"
    with little_memory():
        use(write(folder, matched(packed, **{"train-000000.tar": buffer.getvalue()})))
