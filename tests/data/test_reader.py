"""Random access: the bytes that were packed, or a message with shard, key and place."""

from __future__ import annotations

import os
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest

from marc_dist.config import DataError
from marc_dist.data.dataset import open_dataset
from marc_dist.data.reader import IndexedReader


@pytest.fixture
def copy(sample_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(sample_dir, tmp_path / "copy")
    return tmp_path / "copy"


def test_equal_to_tarfile(sample_dir: Path) -> None:
    dataset = open_dataset(sample_dir)
    reader = IndexedReader(dataset)
    members: dict[str, bytes] = {}
    for shard in dataset.shards:
        with tarfile.open(sample_dir / shard) as tar:
            members |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    for sample in range(len(dataset)):
        assert reader.read(sample) == members[f"{dataset.keys[sample]}.{dataset.ext[sample]}"]
    assert reader.image(0).mode == "RGB" and reader.image(0).size == (64, 64)
    reader.close()


def test_a_flipped_byte_is_named_and_may_be_tolerated(copy: Path) -> None:
    dataset = open_dataset(copy)
    with (copy / dataset.shards[0]).open("r+b") as file:
        file.seek(int(dataset.offset[3]) + 60)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(DataError, match=rf"{dataset.shards[0]}: {dataset.keys[3]} at byte \d+: expected CRC-32"):
        IndexedReader(dataset).read(3)
    assert IndexedReader(dataset, verify_crc=False).read(3)
    assert IndexedReader(dataset).read(2)


def test_a_shard_cut_after_opening_is_named(copy: Path) -> None:
    dataset = open_dataset(copy)
    last = int(dataset.rows("train")[-1])
    path = copy / dataset.shards[dataset.shard[last]]
    os.truncate(path, int(dataset.offset[last]) + 5)
    with pytest.raises(DataError, match=r"expected \d+ bytes, got 5; check with marc-shard --verify"):
        IndexedReader(dataset).read(last)
    path.unlink()
    with pytest.raises(DataError, match="cannot be opened"):
        IndexedReader(dataset).read(last)


def test_pickle_and_fork_open_files_anew(sample_dir: Path) -> None:
    reader = IndexedReader(open_dataset(sample_dir))
    expected = reader.read(0)
    twin = pickle.loads(pickle.dumps(reader))
    assert twin._files == {} and twin.read(0) == expected
    reader._pid = -1  # what a forked child sees: another process's descriptors
    before = dict(reader._files)
    assert reader.read(0) == expected
    assert set(reader._files.values()).isdisjoint(before.values())
    for file in before.values():
        os.close(file)


def test_storage_that_fails_for_a_moment_is_tried_again(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(copy)
    real, calls, waits = os.pread, [], []

    def flaky(file: int, size: int, offset: int) -> bytes:
        calls.append(file)
        if len(calls) == 1:
            raise OSError(116, "Stale file handle")
        content = real(file, size, offset)
        return content[:10] if len(calls) == 2 else content

    monkeypatch.setattr("marc_dist.data.reader.os.pread", flaky)
    monkeypatch.setattr("marc_dist.data.reader.time.sleep", waits.append)
    assert len(IndexedReader(dataset).read(5)) == dataset.size[5]
    assert waits == [0.1, 0.2]
    calls.clear()
    with pytest.raises(DataError, match="Stale file handle"):
        IndexedReader(dataset, retries=0).read(5)


def test_tries_are_finite(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("marc_dist.data.reader.time.sleep", waits.append)
    dataset = open_dataset(copy)
    (copy / dataset.shards[0]).unlink()
    with pytest.raises(DataError, match="cannot be opened"):
        IndexedReader(dataset, retries=2).read(0)
    assert waits == [0.1, 0.2]


def test_what_is_expected_is_asked_of_the_system(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(copy)
    reader = IndexedReader(dataset)
    told: list[tuple[Path, int, int, int]] = []
    real = os.posix_fadvise

    def record(file: int, offset: int, size: int, advice: int) -> None:
        told.append((Path(f"/proc/self/fd/{file}").readlink(), offset, size, advice))
        real(file, offset, size, advice)

    monkeypatch.setattr(os, "posix_fadvise", record)
    samples = [len(dataset) - 1, 3, 0]
    expected = [reader.read(sample) for sample in samples]
    reader.expect(iter(samples))
    reader.expect([])
    shards = [copy / dataset.shards[dataset.shard[sample]] for sample in samples]
    places = zip(shards, dataset.offset[samples], dataset.size[samples], strict=True)
    assert told == [(*place, os.POSIX_FADV_WILLNEED) for place in places]
    assert [reader.read(sample) for sample in samples] == expected
    reader.close()


def test_expecting_is_never_an_error(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(copy)
    reader = IndexedReader(dataset, retries=0)
    (copy / dataset.shards[0]).unlink()
    reader.expect([0])
    with pytest.raises(DataError, match="cannot be opened"):
        reader.read(0)

    def refuse(*_: int) -> None:
        raise OSError(29, "Illegal seek")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    reader.expect([len(dataset) - 1])
    monkeypatch.delattr(os, "posix_fadvise")  # macOS
    reader.expect([len(dataset) - 1])
    assert reader.read(len(dataset) - 1)
    reader.close()
