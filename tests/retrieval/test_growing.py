"""An archive that grows: what is new is embedded, answers are those of a fresh index, and a kill loses seconds."""

from __future__ import annotations

import os
import signal
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marc_dist.cli.shard import main as shard
from marc_dist.config import Config, DataError
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.retrieval import archive as ar
from marc_dist.retrieval.evaluate import evaluate
from marc_dist.retrieval.exact import exact_unit
from marc_dist.retrieval.index_folder import read_store
from marc_dist.retrieval.vectors import store
from marc_dist.retrieval.vectors import writer as store_writer
from marc_dist.retrieval.vectors.known import contents, runs_of
from tests.retrieval.runs import make_run, pack_tiny
from tests.worlds import run_in_world

MADE = {"encoder": "e", "dataset": "d"}


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 24, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def pack(download: Path, data: Path, *words: str) -> Dataset:
    assert shard(["--dataset", "folder", "--source", str(download), "--out", str(data), "--no-leaks", *words]) == 0
    return open_dataset(data)


@pytest.fixture
def grown(tmp_path: Path) -> tuple[Path, Config, Path, list[str], Dataset]:
    """A run, an index folder of 24 pictures, and the archive after one was changed, one removed and two were added."""
    download, data = tmp_path / "download", tmp_path / "data"
    for number in range(24):
        draw(download / ("port", "wood")[number % 2] / f"{number:02}.png", number)
    dataset = pack(download, data)
    config = make_run(tmp_path / "run", dataset)
    said: list[str] = []
    ar.Archive(tmp_path / "run", dataset, tmp_path / "index", [], config, said.append).build()
    assert any("24 images in" in line for line in said)
    draw(download / "port/04.png", 104)
    (download / "wood/07.png").unlink()
    for number in (24, 25):
        draw(download / ("port", "wood")[number % 2] / f"{number:02}.png", number)
    return tmp_path, config, download, said, pack(download, data, "--append", "--remove-missing")


def answers(
    root: Path, config: Config, dataset: Dataset, folder: Path, said: list[str]
) -> list[list[tuple[int, float]]]:
    archive = ar.Archive(root / "run", dataset, folder, [], config, said.append)
    queries = sorted((root / "download").rglob("*.png"))[::5]
    return [[(hit.id, hit.score) for hit in one.hits] for one in archive.search(queries, 25)]


def test_what_is_new_is_embedded_and_answers_are_those_of_a_fresh_index(
    grown: tuple[Path, Config, Path, list[str], Dataset],
) -> None:
    root, config, _, said, dataset = grown
    assert len(dataset) == 25
    before = {part["file"] for part in read_store(root / "index")["parts"].values()}
    said.clear()
    found = answers(root, config, dataset, root / "index", said)
    assert "archive encoder: 3 images in" in said[0] and "vectors of 22 images from" in said[1]
    fresh = answers(root, config, dataset, root / "fresh", said)
    for mine, theirs in zip(found, fresh, strict=True):
        assert [i for i, _ in mine] == [i for i, _ in theirs]
        assert [s for _, s in mine] == pytest.approx([s for _, s in theirs], abs=1e-6)
    names = {path.name for path in (root / "index").iterdir()}
    assert not before & names  # what no part names any more is gone
    assert len([name for name in names if name.endswith(".npy")]) == 2 * len(read_store(root / "index")["parts"])
    said.clear()
    assert answers(root, config, dataset, root / "index", said) == found
    assert "vectors of 25 images from" in said[0]


def test_the_folder_beside_the_encoder_grows_too(grown: tuple[Path, Config, Path, list[str], Dataset]) -> None:
    root, config, download, said, dataset = grown
    answers(root, config, dataset, None, said)
    draw(download / "port/99.png", 99)
    said.clear()
    answers(root, config, pack(download, root / "data", "--append"), None, said)
    assert "archive encoder: 1 images in" in said[0] and "vectors of 25 images from" in said[1]


def test_what_an_evaluation_embedded_is_taken_over(grown: tuple[Path, Config, Path, list[str], Dataset]) -> None:
    root, config, download, said, dataset = grown
    evaluate(config, root / "run", said.append)
    draw(download / "port/99.png", 99)
    said.clear()
    answers(root, config, pack(download, root / "data", "--append"), None, said)
    assert "archive encoder: 1 images in" in said[0] and f"vectors of {len(dataset)} images from" in said[1]


def test_another_folder_or_a_damaged_part_is_not_taken_over(
    grown: tuple[Path, Config, Path, list[str], Dataset],
) -> None:
    root, config, _, said, dataset = grown
    other = pack_tiny(root / "other")
    with pytest.raises(DataError, match="another archive"):
        ar.Archive(root / "run", other, root / "index", [], config, said.append)
    for part in read_store(root / "index")["parts"].values():
        path = root / "index" / part["file"]
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)
    said.clear()
    answers(root, config, dataset, root / "index", said)
    assert "archive encoder: 25 images in" in said[0]


def test_contents_are_of_key_length_and_checksum(grown: tuple[Path, Config, Path, list[str], Dataset]) -> None:
    dataset = grown[-1]
    ids = np.arange(len(dataset))
    found = contents(dataset, ids)
    assert len({one.tobytes() for one in found}) == len(dataset)
    assert np.array_equal(contents(dataset, ids[5:9]), found[5:9])


def test_runs_follow_each_other() -> None:
    assert runs_of(np.array([], dtype=np.int64)) == []
    assert runs_of(np.array([3, 4, 5, 9, 11, 12])) == [slice(0, 3), slice(3, 4), slice(4, 6)]


def half(folder: Path, x: np.ndarray) -> None:
    """Put the first half on disk and more beyond, then be killed."""

    def fill(put: store_writer.RowWriter) -> None:
        put(0, x[: len(x) // 2])
        put.sync()
        put(len(x) // 2, x[len(x) // 2 :] + 1)
        os.kill(os.getpid(), signal.SIGKILL)

    store_writer.write_split(folder, "train", x.shape, MADE, {}, fill, lambda: None)


def test_a_killed_process_loses_what_was_not_on_disk(tiny: Dataset, tmp_path: Path) -> None:
    x = exact_unit(np.random.default_rng(1).standard_normal((30, 5)))
    process = get_context("spawn").Process(target=half, args=(tmp_path, x))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert store.missing_splits(tmp_path, MADE, ["train"]) == ["train"]
    seen: list[int] = []

    def fill(put: store_writer.RowWriter) -> None:
        there = put.there(30)
        seen.append(int(there.sum()))
        assert there[:15].all()
        put(15, x[15:])

    store_writer.write_split(tmp_path, "train", x.shape, MADE, {}, fill, lambda: None)
    assert seen == [15]
    assert np.array_equal(store.Store(tmp_path, tiny, ["train"], MADE).rows(tiny.rows("train")), x)
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))


def resumed(folder: Path, x: np.ndarray, fail: bool) -> int:
    """Put this rank's rows that are not there; be interrupted after the first of them."""
    from marc_dist import comm

    share = len(x) // comm.world()
    mine = np.arange(comm.rank() * share, (comm.rank() + 1) * share)
    made = 0

    def fill(put: store_writer.RowWriter) -> None:
        nonlocal made
        for place in mine[~put.there(len(x))[mine]].tolist():
            put(place, x[place : place + 1])
            put.sync()
            made += 1
            if fail and made == 2:
                raise KeyboardInterrupt

    try:
        store_writer.write_split(folder, "train", x.shape, MADE, {}, fill, lambda: None)
    except KeyboardInterrupt:
        pass
    return made


def test_the_next_process_goes_on_after_an_interruption(tiny: Dataset, tmp_path: Path) -> None:
    x = exact_unit(np.random.default_rng(1).standard_normal((30, 5)))
    assert resumed(tmp_path, x, True) == 2
    assert resumed(tmp_path, x, True) == 2
    assert sum(run_in_world(resumed, 2, tmp_path, x, False)) == 26  # on another number of ranks
    assert np.array_equal(store.Store(tmp_path, tiny, ["train"], MADE).rows(tiny.rows("train")), x)


def test_two_at_once_write_files_of_their_own(tiny: Dataset, tmp_path: Path) -> None:
    x = exact_unit(np.random.default_rng(1).standard_normal((30, 5)))

    def outer(put: store_writer.RowWriter) -> None:
        put(0, x[:10])
        put.sync()
        store_writer.write_split(tmp_path, "train", x.shape, MADE, {}, inner, lambda: None)
        put(10, x[10:])

    def inner(put: store_writer.RowWriter) -> None:
        assert not put.there(30).any()
        put(0, x)

    store_writer.write_split(tmp_path, "train", x.shape, MADE, {}, outer, lambda: None)
    assert np.array_equal(store.Store(tmp_path, tiny, ["train"], MADE).rows(tiny.rows("train")), x)
    assert not list(tmp_path.glob(".*.tmp"))
