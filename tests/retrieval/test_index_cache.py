"""A factory index in the folder: read again by the same rank of as many, made anew when anything is wrong with it."""

from __future__ import annotations

import errno
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from marc_dist import comm
from marc_dist.config import LaunchError
from marc_dist.data.dataset import Dataset
from marc_dist.retrieval import search
from marc_dist.retrieval.index import parts as ix
from marc_dist.retrieval.index.kept import kept_part
from marc_dist.retrieval.index.spec import parse_spec
from marc_dist.retrieval.vectors import store as st
from marc_dist.retrieval.vectors import writer as store_writer
from tests.retrieval.clouds import cloud
from tests.retrieval.runs import pack_tiny
from tests.worlds import run_in_world

MADE = {"encoder": "a"}
WORDS = [
    "IVF2,Flat:nprobe=2",
    "HNSW8",
    "SQ8",
    "IVF2,SQ8:nprobe=2",
    "IVF2,PQ4x4:nprobe=2",
    "PCA8,IVF2,Flat:nprobe=2",
]


def written(folder: Path, dataset: Dataset, seed: int = 1) -> st.Store:
    for split in ("test", "train"):
        x = cloud(40, 16, seed)[dataset.rows(split)]

        def fill(put: Callable[[int, np.ndarray], None], x: np.ndarray = x) -> None:
            put(0, x)

        store_writer.write_split(folder, split, x.shape, MADE, {}, fill, lambda: None)
    return opened(folder, dataset)


def opened(folder: Path, dataset: Dataset) -> st.Store:
    return st.Store(folder, dataset, ["test", "train"], MADE)


def answers(folder: Path, dataset: Dataset, word: str, ids: np.ndarray) -> tuple[bool, list[list[int]]]:
    """Whether the index came from the folder, and its lists."""
    said: list[str] = []
    part = kept_part(parse_spec(word), opened(folder, dataset), ids, said.append)
    _, found = search.top_k(part, cloud(40, 16, 1)[:9], np.arange(9), 7)
    return any("from" in line for line in said), found.tolist()


@pytest.mark.parametrize("word", WORDS)
def test_an_index_comes_back_as_it_was(tiny: Dataset, tmp_path: Path, word: str) -> None:
    written(tmp_path, tiny)
    first = answers(tmp_path, tiny, word, np.arange(40))
    assert not first[0] and answers(tmp_path, tiny, word, np.arange(40)) == (True, first[1])
    next(tmp_path.glob("*.faiss")).chmod(0o444)  # of a folder that is mounted to be read only
    assert answers(tmp_path, tiny, word, np.arange(40)) == (True, first[1])


def test_other_vectors_images_or_words_are_another_index(tiny: Dataset, tmp_path: Path) -> None:
    written(tmp_path, tiny)
    assert not answers(tmp_path, tiny, "IVF2,Flat", np.arange(40))[0]
    assert not answers(tmp_path, tiny, "IVF3,Flat", np.arange(40))[0]
    assert not answers(tmp_path, tiny, "IVF2,Flat", tiny.rows("train"))[0]
    for word, ids in (
        ("IVF2,Flat:nprobe=1", np.arange(40)),
        ("IVF3,Flat", np.arange(40)),
        ("IVF2,Flat", tiny.rows("train")),
    ):
        assert answers(tmp_path, tiny, word, ids)[0]
    written(tmp_path, tiny, seed=2)
    assert len(list(tmp_path.glob("*.faiss"))) == 3
    assert not answers(tmp_path, tiny, "IVF2,Flat", np.arange(40))[0]
    assert (
        len(list(tmp_path.glob("*.faiss"))) == 1 == len(list(tmp_path.glob("index-*.json")))
    )  # the stale ones are gone


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:50])


def turned(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-9] ^= 4
    file.write_bytes(data)


def proven_but_short(file: Path) -> None:
    truncated(file)
    note = file.with_suffix(".json")
    note.write_text(json.dumps({**json.loads(note.read_text()), "crc32": zlib.crc32(file.read_bytes())}))


def no_note(file: Path) -> None:
    file.with_suffix(".json").write_text("[" * 100_000)


def of_nobody(file: Path) -> None:
    note = file.with_suffix(".json")
    note.write_text(json.dumps({**json.loads(note.read_text()), "learnt": "x"}))


@pytest.mark.parametrize("harm", [truncated, turned, proven_but_short, no_note, of_nobody, Path.unlink])
@pytest.mark.parametrize("word", ["IVF2,Flat:nprobe=2", "HNSW8"])
def test_a_damaged_index_is_made_again(tiny: Dataset, tmp_path: Path, word: str, harm: Callable[[Path], None]) -> None:
    written(tmp_path, tiny)
    first = answers(tmp_path, tiny, word, np.arange(40))
    harm(next(tmp_path.glob("*.faiss")))
    assert answers(tmp_path, tiny, word, np.arange(40)) == first
    assert answers(tmp_path, tiny, word, np.arange(40)) == (True, first[1])


def test_ranks_keep_their_parts(tiny: Dataset, tmp_path: Path) -> None:
    written(tmp_path, tiny)
    word, every = "IVF2,Flat:nprobe=1", np.arange(40)
    _, lists = answers(tmp_path, tiny, word, every)
    for world in (3, 2):
        assert run_in_world(answers, world, tmp_path, tiny, word, every) == [(False, lists)] * world
        assert run_in_world(answers, world, tmp_path, tiny, word, every) == [(True, lists)] * world
    assert answers(tmp_path, tiny, word, every) == (True, lists)
    next(tmp_path.glob("index-1-of-3-*.faiss")).unlink()  # one rank's: all make theirs again
    assert run_in_world(answers, 3, tmp_path, tiny, word, every) == [(False, lists)] * 3
    note = next(tmp_path.glob("index-2-of-3-*.json"))  # what one rank learnt is not what the others did
    note.write_text(json.dumps({**json.loads(note.read_text()), "learnt": 7}))
    assert run_in_world(answers, 3, tmp_path, tiny, word, every) == [(False, lists)] * 3
    assert run_in_world(answers, 3, tmp_path, tiny, word, every) == [(True, lists)] * 3


def test_more_ranks_than_images(tmp_path: Path) -> None:
    dataset = pack_tiny(tmp_path / "data")
    written(tmp_path / "kept", dataset)
    few = np.arange(3)
    lists = run_in_world(answers, 4, tmp_path / "kept", dataset, "HNSW8", few)
    assert run_in_world(answers, 4, tmp_path / "kept", dataset, "HNSW8", few) == [(True, lists[0][1])] * 4


def unkept(folder: Path, dataset: Dataset, must: bool) -> str:
    def full(self: ix.FactoryPart, put: Callable[[bytes], object]) -> None:
        put(b"some")
        if comm.rank() == comm.world() - 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    said: list[str] = []
    patch = pytest.MonkeyPatch()
    patch.setattr(ix.FactoryPart, "write", full)
    try:
        part = kept_part(parse_spec("IVF2,Flat"), opened(folder, dataset), np.arange(40), said.append, must=must)
    except LaunchError as error:
        return str(error)
    finally:
        patch.undo()
    assert part.index.ntotal in (20, 40)
    return said[-1]


@pytest.mark.parametrize("world", [1, 2])
def test_an_index_that_cannot_be_kept_is_used(tiny: Dataset, tmp_path: Path, world: int) -> None:
    written(tmp_path, tiny)
    for told in run_in_world(unkept, world, tmp_path, tiny, False):
        assert told.startswith("index: used, but not kept: ") and "No space left on device" in told
    for told in run_in_world(unkept, world, tmp_path, tiny, True):
        assert "No space left on device); free space or choose another folder" in told
    assert not list(tmp_path.glob(".*.tmp"))
    assert not answers(tmp_path, tiny, "IVF2,Flat", np.arange(40))[0]
