"""Pictures that look alike: found whatever was done to a copy, told with their labels, left out of what trains."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
import pytest
import scipy.fft
from PIL import Image, ImageEnhance, ImageOps

from marc_dist.cli.shard import main
from marc_dist.data.dataset import open_dataset
from marc_dist.packing import look_alikes
from marc_dist.packing.look_alikes import (
    ALIKE,
    EQUAL,
    MOST_BITS,
    SMALL,
    TURNS,
    Looks,
    Partners,
    Place,
    look_at,
    look_at_all,
    partners,
    turned,
)
from marc_dist.packing.perceptual_hash import codes_of
from marc_dist.packing.verify import verify

SIDE = 96


def scene(seed: int, side: int = SIDE) -> Image.Image:
    """A picture as of land: soft patches at several scales, no two alike."""
    draw = np.random.default_rng(seed)
    pixels = np.zeros((side, side, 3))
    for cells in (3, 6, 12, 24):
        some = Image.fromarray(draw.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pixels += np.asarray(some.resize((side, side), Image.Resampling.BICUBIC), dtype=float) / 4
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return data.getvalue()


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "saved anew": lambda image: Image.open(io.BytesIO(jpeg(image, 50))),
    "half": lambda image: image.resize((SIDE // 2, SIDE // 2), Image.Resampling.BICUBIC),
    "double": lambda image: image.resize((SIDE * 2, SIDE * 2), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "grey": ImageOps.grayscale,
    "cropped": lambda image: image.crop((1, 1, SIDE - 1, SIDE - 1)),
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "turned back and mirrored": lambda image: ImageOps.mirror(image.transpose(Image.Transpose.ROTATE_270)),
}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Place]]:
    folder = tmp_path_factory.mktemp("many")
    for number in range(60):
        (folder / f"{number:02d}.jpg").write_bytes(jpeg(scene(number)))
    return folder, [Place(path) for path in sorted(folder.iterdir())]


class TestLooks:
    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("end", ["png", "jpg"])
    def test_a_changed_copy_is_found(
        self, many: tuple[Path, list[Place]], tmp_path: Path, change: str, end: str
    ) -> None:
        _, places = many
        for number in range(10):
            CHANGES[change](scene(number)).save(tmp_path / f"{number}.{end}")
        copies = [Place(tmp_path / f"{number}.{end}") for number in range(10)]
        split = np.r_[np.zeros(len(places), dtype=np.int64), np.ones(10, dtype=np.int64)]
        found = partners(look_at([*places, *copies]), split, 2)
        assert found.sample[60:, 0].tolist() == list(range(10))
        assert found.sample[:10, 1].tolist() == list(range(60, 70))
        assert (found.sample[10:60] == -1).all() and (found.sample[:, :1][:60] == -1).all()
        assert (found.bits[60:, 0] >= 0).all()

    def test_equal_files_come_before_near_ones(self, many: tuple[Path, list[Place]], tmp_path: Path) -> None:
        folder, places = many
        shutil.copy(folder / "03.jpg", tmp_path / "same.jpg")
        (tmp_path / "near.jpg").write_bytes(jpeg(scene(3), 80))
        found = partners(
            look_at([Place(tmp_path / "near.jpg"), *places, Place(tmp_path / "same.jpg")]),
            np.zeros(62, dtype=np.int64),
            1,
        )
        assert (found.sample[4, 0], found.bits[4, 0]) == (61, EQUAL)
        assert (found.sample[61, 0], found.bits[61, 0]) == (4, EQUAL)
        assert found.sample[0, 0] == 4 and found.bits[0, 0] >= 0  # the first of the two

    def test_an_equal_file_shares_what_the_other_is_like(self, many: tuple[Path, list[Place]], tmp_path: Path) -> None:
        folder, places = many
        shutil.copy(folder / "03.jpg", tmp_path / "same.jpg")
        (tmp_path / "near.jpg").write_bytes(jpeg(scene(3), 80))
        split = np.array([0] * 61 + [1])
        found = partners(look_at([*places, Place(tmp_path / "same.jpg"), Place(tmp_path / "near.jpg")]), split, 2)
        assert found.sample[[3, 60], 1].tolist() == [61, 61] and found.sample[61, 0] == 3

    def test_pictures_that_show_nothing_are_alike_only_if_equal(self, tmp_path: Path) -> None:
        for number, grey in enumerate((90, 90, 91)):
            Image.new("RGB", (40, 40), (grey,) * 3).save(tmp_path / f"{number}.png")
        found = partners(look_at([Place(tmp_path / f"{n}.png") for n in range(3)]), np.zeros(3, dtype=np.int64), 1)
        assert found.sample[:, 0].tolist() == [1, 0, -1]

    def test_what_is_no_picture_is_like_none(self, many: tuple[Path, list[Place]], tmp_path: Path) -> None:
        for name in ("one.jpg", "two.jpg"):
            (tmp_path / name).write_bytes(name.encode())
        found = partners(
            look_at([Place(tmp_path / name) for name in ("one.jpg", "two.jpg")]), np.zeros(2, dtype=np.int64), 1
        )
        assert (found.sample == -1).all()

    @pytest.mark.parametrize("turn", range(TURNS))
    def test_hashes_of_turns_are_those_of_turned_pictures(self, tmp_path: Path, turn: int) -> None:
        scene(1, 32).convert("L").save(tmp_path / "a.png")
        Image.fromarray(turned(np.asarray(Image.open(tmp_path / "a.png")), turn)).save(tmp_path / "b.png")
        looks = look_at([Place(tmp_path / "a.png"), Place(tmp_path / "b.png")])
        assert looks.codes[0, turn] == looks.codes[1, 0]

    def test_hashes_are_those_of_the_library(self) -> None:
        """But for bits that are rounding errors there."""
        draw = np.random.default_rng(5)
        sides = [32, 32, 32, 3, 4, 6, 8, 12]
        grey = [draw.integers(0, 256, (side, side), dtype=np.uint8) for side in sides for _ in range(4)]
        grey = [np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC)) for one in grey]
        grey += [np.asarray(scene(seed, 32).convert("L")) for seed in range(20)]
        cosine = scipy.fft.dct
        compared = 0
        for one, codes in zip(grey, codes_of(np.array(grey)), strict=True):
            for turn in range(TURNS):
                copy = np.ascontiguousarray(turned(one, turn))
                low = cosine(cosine(copy.astype(float), axis=0), axis=1)[:8, :8]
                sure = np.abs(low - np.median(low)) > 1e-6
                ours = np.unpackbits(codes[turn : turn + 1].byteswap().view(np.uint8)).reshape(8, 8).astype(bool)
                assert (ours == imagehash.phash(Image.fromarray(copy)).hash)[sure].all()
                compared += int(sure.sum())
        assert compared > 0.95 * 64 * TURNS * len(grey)

    def test_on_any_number_of_threads(self, many: tuple[Path, list[Place]]) -> None:
        looks = look_at(many[1] + many[1][:5])
        split = np.arange(65) % 3
        for one, two in zip(partners(looks, split, 3), partners(looks, split, 3, threads=3), strict=True):
            assert (one == two).all()

    def test_on_two_processes_as_on_one(self, many: tuple[Path, list[Place]], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(look_alikes, "FEW", 10)
        monkeypatch.setattr(look_alikes, "PART", 7)
        _, places = many
        told: list[tuple[int, int]] = []
        both = look_at_all(places, 2, lambda done, size: told.append((done, size)))
        for one, two in zip(both, look_at(places), strict=True):
            assert (one == two).all()
        assert told[-1] == (60, 0) and len(told) == 9


def brute(looks: Looks, split: np.ndarray, num_splits: int) -> Partners:  # type: ignore[type-arg]
    """What ``partners`` does, pair by pair."""
    num = len(split)
    sample, bits = np.full((num, num_splits), -1), np.full((num, num_splits), EQUAL)
    for one in range(num):
        best: dict[int, tuple[int, int]] = {}
        for two in range(num):
            if one == two:
                continue
            key = (EQUAL, two) if looks.content[one] == looks.content[two] else None
            for turn in range(TURNS) if key is None else ():
                for a, b in ((one, two), (two, one)):
                    apart = int(np.bitwise_count(looks.codes[a, turn] ^ looks.codes[b, 0]))
                    first = turned(looks.small[a].reshape(SMALL, SMALL), turn).reshape(-1)
                    alike = np.corrcoef(first, looks.small[b])[0, 1] >= ALIKE
                    if apart <= MOST_BITS and alike and (key is None or (apart, two) < key):
                        key = (apart, two)
            there = int(split[two])
            if key is not None and (there not in best or key < best[there]):
                best[there] = key
        for there, (apart, two) in best.items():
            sample[one, there], bits[one, there] = two, apart
    return Partners(sample, bits)


@pytest.mark.parametrize("seed", range(3))
def test_search_by_bands_finds_what_a_double_loop_finds(seed: int) -> None:
    """Hashes and copies made so that pairs lie on both sides of both limits."""
    draw = np.random.default_rng(seed)
    num = 40
    base = draw.integers(0, 256, (6, SMALL * SMALL)).astype(float)
    kind = draw.integers(0, 6, num)
    small = (base[kind] + draw.normal(0, 24, (num, SMALL * SMALL))).clip(0, 255).astype(np.uint8)
    codes = draw.integers(0, 1 << 63, (6, TURNS), dtype=np.uint64)[kind]
    for row in range(num):
        for turn in range(TURNS):
            for bit in draw.choice(64, draw.integers(0, 9), replace=False):
                codes[row, turn] ^= np.uint64(1) << np.uint64(bit)
    small[1], codes[1], small[2], codes[2] = small[0], codes[0], small[0], codes[0]
    content = np.array([b"%016d" % (0 if row < 3 else row) for row in range(num)], dtype="V16")
    looks = Looks(content, codes, small)
    split = draw.integers(0, 3, num)
    split[:3] = [0, 0, 1]
    found, expected = partners(looks, split, 3), brute(looks, split, 3)
    assert (found.sample == expected.sample).all() and (found.bits == expected.bits).all()
    assert 0 < (expected.sample[3:] >= 0).sum() < expected.sample[3:].size


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Splits in folders: 6 to train, 3 to validate, 3 to test; copies between them, one with other labels."""
    rows = []
    number = iter(range(100))
    for split, num in (("train", 6), ("val", 3), ("test", 3)):
        (tmp_path / "in" / split).mkdir(parents=True)
        for at in range(num):
            (tmp_path / "in" / split / f"{split}{at}.jpg").write_bytes(jpeg(scene(next(number))))
            rows.append([f"{split}{at}.jpg", "water", split])
    put = tmp_path / "in"
    shutil.copy(put / "test/test0.jpg", put / "train/train0.jpg")  # an equal file
    (put / "train/train1.jpg").write_bytes(jpeg(ImageOps.mirror(Image.open(put / "val/val0.jpg")), 70))
    (put / "val/val1.jpg").write_bytes(jpeg(Image.open(put / "test/test1.jpg"), 70))
    (put / "train/train3.jpg").write_bytes(jpeg(Image.open(put / "train/train2.jpg"), 70))
    rows[3][1] = "water|trees"  # train3
    with (put / "labels.csv").open("w") as file:
        csv.writer(file).writerows([["image", "labels", "split"], *rows])
    return put


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def listed(path: Path) -> list[tuple[str, ...]]:
    with path.open() as file:
        return [tuple(row) for row in csv.reader(file)]


def test_packing_lists_pairs_across_splits_and_labels_that_differ(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ("--dataset", "folder", "--source", archive, "--out", out, "--workers", "1")
    assert run(*words) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "note leaks: 1 pair of train and val, 1 pair of train and test, 1 pair of val and test (1 equal, 2 nearly)"
        in told
    )
    assert "to leave them out, pack again with --force --drop-leaks" in told
    assert (
        "note look-alikes in one split: 1 pair of train (0 equal, 1 nearly), such as train/train2 ~ train/train3"
        in told
    )
    assert "different labels: 1 pair, such as train/train2 (water) and train/train3 (trees, water)" in told
    head, *rows = listed(out / "leaks.csv")
    assert head[0] == "alike" and [(row[0], row[3], row[6]) for row in rows] == [
        ("near", "train2", "train3"),
        ("near", "train1", "val0"),
        ("equal", "train0", "test0"),
        ("near", "val1", "test1"),
    ]
    assert rows[0][4] == "water" and rows[0][7] == "trees;water"
    before = (out / "leaks.csv").read_bytes()
    (out / "leaks.csv").unlink()
    assert run("--leaks", out) == 0
    assert (out / "leaks.csv").read_bytes() == before and "note leaks: 1 pair" in capsys.readouterr().out


def test_dropped_are_those_that_train_or_choose(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never one of test; told in a line, in the card and in a list beside the shards."""
    out = tmp_path / "out"
    words = ("--dataset", "folder", "--source", archive, "--out", out, "--workers", "1", "--drop-leaks")
    assert run(*words, "--dry-run") == 0 and not out.exists()
    capsys.readouterr()
    assert run(*words) == 0
    dataset = open_dataset(out)
    assert sorted(dataset.keys) == ["test0", "test1", "test2", "train2", "train3", "train4", "train5", "val0", "val2"]
    told = " ".join(capsys.readouterr().out.split())
    line = "leaks: 2 pictures of train and 1 picture of val left out (--drop-leaks)"
    assert f"note {line}" in told and any(one.startswith(line) for one in dataset.meta["warnings"])
    rows = listed(out / "dropped_leaks.csv")[1:]
    assert [(row[0], row[3], row[6]) for row in rows] == [
        ("equal", "train/train0.jpg", "test/test0.jpg"),
        ("near", "train/train1.jpg", "val/val0.jpg"),
        ("near", "val/val1.jpg", "test/test1.jpg"),
    ]
    assert all(not report.faults for report in verify(out))
    assert run("--leaks", out) == 0
    assert [row[3] for row in listed(out / "leaks.csv")[1:]] == ["train2"]  # only within train is left


def test_a_split_that_is_nothing_but_copies_is_refused(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for at in range(3):
        shutil.copy(archive / f"test/test{at}.jpg", archive / f"val/val{at}.jpg")
    words = ("--dataset", "folder", "--source", archive, "--out", tmp_path / "out", "--workers", "1")
    assert run(*words, "--drop-leaks") == 2
    error = capsys.readouterr().err
    assert "--drop-leaks: every picture of val has" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_is_compared_when_nobody_wants_it(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--dataset", "folder", "--source", archive, "--out", tmp_path / "out", "--workers", "1")
    monkeypatch.setattr("marc_dist.cli.shard.after_packing.find_leaks", None)  # would fail
    assert run(*words, "--no-leaks") == 0
    assert "leaks" not in capsys.readouterr().out and not (tmp_path / "out/leaks.csv").exists()


def test_a_folder_without_its_leaks_is_not_added_to(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ("--dataset", "folder", "--source", archive, "--out", out, "--workers", "1")
    assert run(*words, "--drop-leaks") == 0
    assert run(*words, "--append") == 2
    error = capsys.readouterr().err
    assert "packed with --drop-leaks" in error and "again with --force --drop-leaks" in error and error.count("\n") == 1


@pytest.mark.parametrize("word", ["--drop-leaks", "--append", "--remove-missing"])
def test_words_of_packing_are_refused_without_it(tmp_path: Path, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--leaks", tmp_path, word) == 2
    assert f"{word}: expected together with --dataset" in capsys.readouterr().err
