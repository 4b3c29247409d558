"""Vectors in a folder: kept, taken again, made anew when anything they depend on changes, never half-written."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from marc_dist import comm
from marc_dist.config import Config, ConfigError, DataError, LaunchError
from marc_dist.data.dataset import Dataset
from marc_dist.encoder.export import load_encoder, pixel_scale
from marc_dist.retrieval.exact import Pieces, exact_unit
from marc_dist.retrieval.index_folder import check_index_dir, read_store
from marc_dist.retrieval.vectors import store as st
from marc_dist.retrieval.vectors import writer as store_writer
from marc_dist.retrieval.vectors.embed import Embedder
from tests.retrieval.runs import make_run
from tests.worlds import run_in_world

MADE = {"encoder": "a", "dataset": "b"}


def rows(num: int, seed: int = 0) -> np.ndarray:
    return exact_unit(np.random.default_rng(seed).standard_normal((num, 5)))


def put_all(x: np.ndarray) -> Callable[[Callable[[int, np.ndarray], None]], None]:
    """Each rank hands over its third, fourth, ... in two pieces."""

    def fill(put: Callable[[int, np.ndarray], None]) -> None:
        share = -(-len(x) // comm.world())
        start = comm.rank() * share
        stop = min(start + share, len(x))
        middle = (start + stop) // 2
        put(middle, x[middle:stop])
        put(start, x[start:middle])

    return fill


def file_of(folder: Path, split: str) -> Path:
    return folder / str(read_store(folder)["parts"][split]["file"])


def nothing() -> None:
    return None


def write(folder: Path, split: str, x: np.ndarray, made: dict[str, str] = MADE) -> None:
    store_writer.write_split(folder, split, x.shape, made, {"title": "t"}, put_all(x), nothing)


def written(folder: Path, x: np.ndarray) -> bool:
    write(folder, "train", x)
    return True


def test_rows_come_back_by_id(tiny: Dataset, tmp_path: Path) -> None:
    x = rows(40)
    train, test = tiny.rows("train"), tiny.rows("test")
    write(tmp_path, "train", x[train])
    write(tmp_path, "test", x[test])
    both = st.Store(tmp_path, tiny, ["test", "train"], MADE)
    assert np.array_equal(both.rows(np.arange(40)), x)
    assert np.array_equal(both.rows(np.array([1, 3, 4, 39])), x[[1, 3, 4, 39]])
    assert both.rows(np.arange(0)).shape == (0, 5)
    piece = both.rows(train[4:9])
    assert np.array_equal(piece, x[train[4:9]]) and not piece.flags.owndata and not piece.flags.writeable
    with pytest.raises(KeyError, match="1 ids lie in no opened split"):
        st.Store(tmp_path, tiny, ["test"], MADE).rows(np.array([3, 4]))


def test_parts_that_follow_each_other_are_not_copied(tiny: Dataset, tmp_path: Path) -> None:
    x = rows(40)
    train, test = tiny.rows("train"), tiny.rows("test")
    write(tmp_path, "train", x[train])
    write(tmp_path, "test", x[test])
    ids = np.concatenate([test, train])
    both = st.Store(tmp_path, tiny, ["test", "train"], MADE).rows(ids)
    assert isinstance(both, Pieces) and both.shape == (40, 5) and len(both) == 40 and both.nbytes == x.nbytes
    assert np.array_equal(np.asarray(both), x[ids]) and not both[2:9].flags.owndata
    for start, stop in ((0, 10), (9, 11), (0, 40), (10, 40), (40, 40), (12, 12)):
        assert np.array_equal(both[start:stop], x[ids][start:stop])
    places = np.array([[39, 0], [10, 9], [9, 9]])
    assert np.array_equal(both[places.ravel()], x[ids][places.ravel()])


def test_what_another_process_writes_meanwhile_is_not_opened(tiny: Dataset, tmp_path: Path) -> None:
    other = {**MADE, "device": "cuda"}
    write(tmp_path, "train", rows(30))
    write(tmp_path, "train", rows(30, 1), other)
    with pytest.raises(DataError, match="another process wrote other vectors there just now; run it again"):
        st.Store(tmp_path, tiny, ["train"], MADE)
    with pytest.raises(DataError, match="another process"):
        st.Store(tmp_path, tiny, ["test"], other)
    kept = st.Store(tmp_path, tiny, ["train"], MADE, exactly=False)  # rounding does not matter to a search
    assert np.array_equal(kept.rows(tiny.rows("train")), rows(30, 1))
    assert len(list(tmp_path.glob("*.npy"))) == 1  # what store.json names no more is gone


def test_an_index_folder_is_new_empty_or_ours(tmp_path: Path) -> None:
    check_index_dir(tmp_path / "new")
    check_index_dir(tmp_path)
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(ConfigError, match=r"expected an index or nothing, got thesis\.docx; choose another"):
        check_index_dir(tmp_path)
    with pytest.raises(ConfigError, match="a file, expected a folder"):
        check_index_dir(tmp_path / "thesis.docx")
    write(tmp_path, "train", rows(3))
    check_index_dir(tmp_path)


def test_files_of_killed_processes_are_removed_a_day_later(tmp_path: Path) -> None:
    for name, age in ((".train-1.npy.host-1-ab.tmp", 2 * store_writer.OLD_S), (".train-2.npy.host-2-ab.tmp", 0.0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    write(tmp_path, "train", rows(3))
    assert [path.name for path in tmp_path.glob(".*.tmp")] == [".train-2.npy.host-2-ab.tmp"]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_write_one_file(tiny: Dataset, tmp_path: Path, world: int) -> None:
    x = rows(30)
    write(tmp_path / "one", "train", x)
    assert run_in_world(written, world, tmp_path / "many", x) == [True] * world
    one, many = file_of(tmp_path / "one", "train"), file_of(tmp_path / "many", "train")
    assert one.read_bytes() == many.read_bytes() and one.name == many.name
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == [".begun.lock", "store.json", many.name]
    assert np.array_equal(np.load(many), x)


def test_what_changed_is_missing(tmp_path: Path) -> None:
    write(tmp_path, "train", rows(30))
    write(tmp_path, "test", rows(10))
    both = ["test", "train"]
    assert st.missing_splits(tmp_path, MADE, both) == []
    assert st.missing_splits(tmp_path, MADE, ["train", "val"]) == ["val"]
    assert st.missing_splits(tmp_path, {**MADE, "encoder": "other"}, both) == both
    assert st.missing_splits(tmp_path, {**MADE, "device": "cuda"}, both) == both
    assert st.missing_splits(tmp_path, {**MADE, "device": "cuda"}, both, exactly=False) == []
    assert st.missing_splits(tmp_path, {**MADE, "encoder": "other"}, both, exactly=False) == both
    data = bytearray(file_of(tmp_path, "test").read_bytes())
    data[-3] ^= 1
    file_of(tmp_path, "test").write_bytes(data)
    assert st.missing_splits(tmp_path, MADE, both) == ["test"]
    file_of(tmp_path, "train").unlink()
    assert st.missing_splits(tmp_path, MADE, both) == both
    write(tmp_path, "val", rows(4), {**MADE, "encoder": "other"})  # another maker: the others are forgotten
    assert list(read_store(tmp_path)["parts"]) == ["val"]


def test_a_store_that_cannot_be_read(tiny: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no index .no store.json.; make one with marc-search"):
        read_store(tmp_path)
    write(tmp_path, "train", rows(29))
    with pytest.raises(DataError, match="not the vectors of 30 images"):
        st.Store(tmp_path, tiny, ["train"], MADE)
    for data in (b"", b"PK\x03\x04", b"\x93NUMPY"):
        file_of(tmp_path, "train").write_bytes(data)
        with pytest.raises(DataError, match=r"train-.*\.npy: .*delete it and run again"):
            st.Store(tmp_path, tiny, ["train"], MADE)
    for text, told in {"[1": "cannot be read", '{"format": 9}': "expected format 1, got 9", "[]": "got 'list'"}.items():
        (tmp_path / "store.json").write_text(text)
        with pytest.raises(DataError, match=told):
            read_store(tmp_path)
        assert st.missing_splits(tmp_path, MADE, ["train"]) == ["train"]
    (tmp_path / "store.json").write_text(json.dumps({"format": 1, "parts": [], "dim": 3, "about": {}}))
    with pytest.raises(DataError, match="lacks"):
        read_store(tmp_path)
    part = {"made": {}, "crc32": 0, "file": "../x.npy"}
    for bad, told in (({}, "what made its parts"), (part, r"names a part '\.\./x\.npy'")):
        (tmp_path / "store.json").write_text(json.dumps({"format": 1, "parts": {"x": bad}, "dim": 3, "about": {}}))
        with pytest.raises(DataError, match=told):
            read_store(tmp_path)


def test_names_of_splits_stay_in_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "store", "../../etc/x", rows(3))
    assert len(list((tmp_path / "store").glob("*.npy"))) == 1 and len(list(tmp_path.iterdir())) == 1


def fail(kind: str, at: int, folder: Path) -> str:
    def fill(put: Callable[[int, np.ndarray], None]) -> None:
        put(0, rows(1))
        if comm.rank() == at:
            raise DataError("image 7 is damaged") if kind == "data" else OSError(28, "No space left on device")

    try:
        store_writer.write_split(folder, "train", (4, 5), MADE, {}, fill, nothing)
    except (DataError, LaunchError) as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize("kind", ["data", "disk"])
def test_a_failure_on_one_rank_is_told_by_all_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    for told in run_in_world(fail, 3, kind, 1, tmp_path):
        assert told == "image 7 is damaged" if kind == "data" else "No space left on device); free space" in told
    assert [path.name for path in tmp_path.iterdir()] == [".begun.lock"]


def embedder(config: Config, folder: Path, said: list[str]) -> Embedder:
    encoder, info = load_encoder(folder)
    return Embedder(
        encoder,
        config,
        image_size=info["image_size"],
        scale=pixel_scale(info),
        device=torch.device("cpu"),
        what="trained",
        say=said.append,
    )


def kept(config: Config, run: Path, dataset: Dataset, said: list[str]) -> bytes:
    store = embedder(config, run, said).store(run / "embeddings" / "x", dataset, ["test", "train"], {})
    return np.asarray(store.rows(np.arange(40))).tobytes()


def test_vectors_are_made_once(tiny: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = make_run(run, tiny)
    said: list[str] = []
    first = kept(config, run, tiny, said)
    assert "trained encoder: 40 images in" in said[0] and len(said) == 1
    said.clear()
    assert kept(config, run, tiny, said) == first and "vectors of 40 images from" in said[0] and len(said) == 1
    for change in ({"eval__features": "projection"}, {"eval__batch": 3}):
        said.clear()
        kept(make_run(tmp_path / "other", tiny, **change), run, tiny, said)
        assert "40 images in" in said[0]


def worlds(config: Config, run: Path, dataset: Dataset) -> bytes:
    return kept(config, run, dataset, [])


def test_vectors_of_several_ranks_are_those_of_one(tiny: Dataset, tmp_path: Path) -> None:
    config = make_run(tmp_path / "run", tiny)
    alone = kept(config, tmp_path / "run", tiny, [])
    (tmp_path / "run" / "embeddings" / "x" / "store.json").unlink()
    assert run_in_world(worlds, 3, config, tmp_path / "run", tiny) == [alone] * 3


def test_the_fingerprint_sees_every_weight(tiny: Dataset, tmp_path: Path) -> None:
    make_run(tmp_path / "run", tiny)
    encoder: Any = load_encoder(tmp_path / "run")[0]
    before = st.encoder_fingerprint(encoder)
    assert st.encoder_fingerprint(load_encoder(tmp_path / "run")[0]) == before
    for parameter in (list(encoder.parameters())[0], list(encoder.parameters())[-1], list(encoder.buffers())[0]):
        with torch.no_grad():
            old = parameter.flatten()[-1].item()
            parameter.view(-1)[-1] += 1
            assert st.encoder_fingerprint(encoder) != before
            parameter.view(-1)[-1] = old
    assert st.encoder_fingerprint(encoder) == before
