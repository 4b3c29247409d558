"""Decoded pictures: the same bits as decoding each time, made once, never taken for other data, never half made."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from marc_dist.augment.views import IMAGENET
from marc_dist.config import Config, DataError, LaunchError, build
from marc_dist.data import cache
from marc_dist.data.cache import DecodedCache, cache_root, open_cache, why_not
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.data.decode import decoders
from marc_dist.data.loader import TrainLoader
from marc_dist.data.reader import IndexedReader
from tests.worlds import fork_server


@pytest.fixture(scope="module")
def dataset(sample_dir: Path) -> Dataset:
    return open_dataset(sample_dir)


def make(dataset: Dataset, root: Path, **more: Any) -> DecodedCache:
    return open_cache(dataset, "train", root, reader=IndexedReader(dataset, retries=0), **more)


def test_it_holds_what_decoding_gives_and_may_be_pickled(dataset: Dataset, tmp_path: Path) -> None:
    made = make(dataset, tmp_path)
    reader = IndexedReader(dataset)
    for one in (made, pickle.loads(pickle.dumps(made))):
        for sample in dataset.rows("train")[::37].tolist():
            assert np.array_equal(one.picture(sample), np.asarray(reader.image(sample)))


def test_making_it_looks_ahead_and_leaves_no_file_open(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: set[int] = set()
    monkeypatch.setattr(IndexedReader, "expect", lambda _, samples: told.update(samples))
    before = len(list(Path("/proc/self/fd").iterdir()))
    make(dataset, tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert told == set(dataset.rows("train").tolist())


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_have_the_same_bits_with_and_without(
    dataset: Dataset, sample_dir: Path, tmp_path: Path, workers: int
) -> None:
    batches = {}
    for mode in ("none", "auto"):
        words = {"data.cache": mode, "data.cache_dir": str(tmp_path), "data.dir": str(sample_dir)}
        words |= {"data.image_size": 48, "train.global_batch": 150, "augment.blur": 0.5, "augment.cutout": 0.5}
        loader = TrainLoader(dataset, build(Config, words | {"data.num_workers": workers}), 1, 2, IMAGENET)
        batches[mode] = list(loader.epoch(3))
        assert ("decoded pictures in" in loader.notes[0]) == (mode == "auto")
        loader.close()
    for one, other in zip(batches["none"], batches["auto"], strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.ids, other.ids)


def test_it_is_made_once_and_anew_for_other_data(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(dataset, tmp_path)
    monkeypatch.setattr(cache, "_build", lambda *_: pytest.fail("made twice"))
    assert make(dataset, tmp_path).folder == first.folder
    monkeypatch.undo()
    other = dataclasses.replace(dataset, fingerprint="f" * 64)
    assert make(other, tmp_path).folder != first.folder
    twin = dataclasses.replace(dataset, fingerprint=dataset.fingerprint[:24] + "0" * 40)  # the same name, other data
    ticks: list[int] = []
    make(twin, tmp_path, tick=lambda: ticks.append(1))
    assert json.loads((first.folder / "cache.json").read_text())["cache"]["fingerprint"] == twin.fingerprint
    assert len(ticks) == len(dataset.rows("train"))
    os.truncate(first.folder / "pixels.npy", 1000)
    assert make(twin, tmp_path).picture(int(dataset.rows("train")[-1])).shape == (64, 64, 3)


@pytest.mark.parametrize("harm", ["pixels", "cut short", "table", "gone"])
def test_damage_in_use_is_one_line_and_the_next_start_is_well(dataset: Dataset, tmp_path: Path, harm: str) -> None:
    """Bytes that change under a run, as on a failing disk: no wrong pixel reaches it."""
    made = make(dataset, tmp_path)
    samples = dataset.rows("train").tolist()
    sound = {sample: made.picture(sample) for sample in samples[:40:13]}
    pixels, size = made.folder / "pixels.npy", (made.folder / "pixels.npy").stat().st_size
    fresh = pickle.loads(pickle.dumps(made))  # as in a worker, which opens the files itself
    if harm == "pixels":
        with pixels.open("r+b") as file:
            file.seek(size // 2)
            file.write(bytes(100))
    elif harm == "cut short":
        os.truncate(pixels, size // 2)  # a mapped file would now end this process by SIGBUS
    elif harm == "table":
        table = bytearray((made.folder / "table.bin").read_bytes())
        table[9] ^= 4
        (made.folder / "table.bin").write_bytes(table)
    else:
        shutil.rmtree(made.folder)
    with pytest.raises(LaunchError) as caught:
        for sample in samples:
            fresh.picture(sample)
    told = str(caught.value)
    assert told.startswith(str(made.folder)) and "\n" not in told
    assert "start the same command again, which makes this folder anew" in told and "data.cache=none" in told
    if harm in ("pixels", "cut short"):
        assert re.search(r"pixels.npy: the decoded picture of \S+ is damaged \((it was cut|another checksum)", told)
    again = make(dataset, tmp_path)
    assert all(np.array_equal(again.picture(sample), picture) for sample, picture in sound.items())
    assert all(again.picture(sample) is not None for sample in samples)


def test_a_skipped_sample_is_a_bad_one_and_not_a_damaged_cache(
    dataset: Dataset, sample_dir: Path, tmp_path: Path
) -> None:
    """``data.on_error=skip`` leaves out what cannot be decoded; it must not leave out what a disk has spoilt."""
    words = {"data.dir": str(sample_dir), "data.cache_dir": str(tmp_path), "data.on_error": "skip"}
    words |= {"data.image_size": 32, "data.num_workers": 0, "train.global_batch": 64}
    loader = TrainLoader(dataset, build(Config, words), 0, 1, IMAGENET)
    (pixels,) = tmp_path.glob("*/pixels.npy")
    with pixels.open("r+b") as file:
        file.seek(500)
        file.write(b"damage")
    with pytest.raises(LaunchError, match="another checksum than when it was made"):
        list(loader.epoch(0))
    loader.close()


@pytest.mark.parametrize("where", ["workers", "device"])
def test_pictures_are_checked_wherever_they_are_augmented(
    dataset: Dataset, sample_dir: Path, tmp_path: Path, where: str
) -> None:
    words = {"data.dir": str(sample_dir), "data.cache_dir": str(tmp_path), "data.augment_on": where}
    words |= {"data.image_size": 32, "data.num_workers": 0, "train.global_batch": 64}
    loader = TrainLoader(dataset, build(Config, words), 0, 1, IMAGENET)
    assert len(next(iter(loader.epoch(0))).ids) == 64
    (pixels,) = tmp_path.glob("*/pixels.npy")
    pixels.write_bytes(bytes(pixels.stat().st_size))
    with pytest.raises(LaunchError, match="another checksum"):
        list(loader.epoch(1))
    loader.close()


def test_other_decoders_have_a_cache_of_their_own(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another libjpeg may give other pixels of the same bytes."""
    first = make(dataset, tmp_path)
    assert any(one.startswith("Pillow ") for one in decoders())
    monkeypatch.setattr(cache, "decoders", lambda: ("Pillow 0.1",))
    assert make(dataset, tmp_path).folder != first.folder


def test_a_full_disk_is_one_line(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("wb") as full:
        monkeypatch.setattr(os, "pwrite", lambda _, data, at: os.write(full.fileno(), data))
        with pytest.raises(DataError, match=r"cannot be written \(No space left on device\)"):
            make(dataset, tmp_path)
    assert not list(tmp_path.glob("*/cache.json"))


def _make_slowly(path: str, root: str) -> None:
    dataset = open_dataset(path)
    reader = IndexedReader(dataset)
    image = reader.image

    def slow(sample: int) -> Any:
        time.sleep(0.02)
        return image(sample)

    IndexedReader.image = lambda self, sample: slow(sample)  # type: ignore[method-assign]
    open_cache(dataset, "train", Path(root), reader=reader)


def test_killed_while_it_is_made_leaves_nothing_that_counts(sample_dir: Path, dataset: Dataset, tmp_path: Path) -> None:
    context = fork_server()
    process = context.Process(target=_make_slowly, args=(str(sample_dir), str(tmp_path)))
    process.start()
    while not list(tmp_path.glob("*.new-*/pixels.npy")):
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert not list(tmp_path.glob("*/cache.json"))
    made = make(dataset, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [made.folder.name, f"{made.folder.name}.lock"]


def test_two_processes_make_one(sample_dir: Path, dataset: Dataset, tmp_path: Path) -> None:
    context = fork_server()
    process = context.Process(target=_make_slowly, args=(str(sample_dir), str(tmp_path)))
    process.start()
    while not list(tmp_path.glob("*.new-*")):
        time.sleep(0.01)
    waited: list[int] = []
    made = make(dataset, tmp_path, tick=lambda: waited.append(1))
    process.join()
    assert process.exitcode == 0 and 0 < len(waited) < len(dataset.rows("train"))
    assert made.picture(int(dataset.rows("train")[0])).any()


def test_pictures_that_cannot_be_decoded(sample_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(sample_dir, tmp_path / "copy")
    dataset = open_dataset(tmp_path / "copy")
    sample = int(dataset.rows("train")[7])
    with (dataset.root / dataset.shards[dataset.shard[sample]]).open("r+b") as file:
        file.seek(int(dataset.offset[sample]) + 30)
        file.write(b"damage")
    with pytest.raises(DataError, match=f"{dataset.keys[sample]} at byte .*: expected CRC-32"):
        make(dataset, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/cache.json"))
    made = make(dataset, tmp_path / "cache", skip=True)
    with pytest.raises(DataError, match=f"{dataset.keys[sample]} at byte .*: expected CRC-32"):
        made.picture(sample)
    assert made.picture(sample + 1).any()
    with pytest.raises(DataError, match="expected CRC-32"):  # a cache with holes is none for who wants no holes
        make(dataset, tmp_path / "cache")


def test_what_does_not_fit_is_decoded_each_time_and_said(
    dataset: Dataset, sample_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = dataset.rows("train")
    assert why_not(dataset, ids, tmp_path / "not yet there") is None
    monkeypatch.setattr(cache, "free_memory", lambda: 1_000_000)
    words = {"data.dir": str(sample_dir), "data.cache_dir": str(tmp_path), "data.num_workers": 0}
    loader = TrainLoader(dataset, build(Config, words), 0, 1, IMAGENET)
    assert "decoded pictures are not kept, they take 0.0 GB, and 50% of the free memory is 0.0 GB" in loader.notes[0]
    assert not list(tmp_path.iterdir())


def test_where_caches_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_root("a/b") == Path("a/b")
    assert cache_root(None) == Path(os.environ["MARC_CACHE_DIR"])
    monkeypatch.delenv("MARC_CACHE_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    root = cache_root(None)
    assert root.parent == tmp_path and root.stat().st_mode & 0o777 == 0o700
    root.rmdir()
    root.symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"belongs to another user; set data.cache_dir, or data.cache=none"):
        cache_root(None)


def test_a_folder_that_cannot_be_written_is_one_line(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written \(.*\); set data.cache_dir or data.cache=none"):
        make(dataset, tmp_path / "file" / "cache")
