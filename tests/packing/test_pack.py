"""Shards: plain WebDataset, equal bytes from equal input, all or nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marc_dist.cli.shard import main
from marc_dist.config import DataError
from marc_dist.data.dataset import open_dataset
from marc_dist.packing import tar
from marc_dist.packing.layout import safe_keys
from marc_dist.packing.verify import verify
from tests import downloads


def shard(*words: str | Path) -> int:
    return main([str(word) for word in words])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Nine pictures of somebody's own, labelled by folder."""
    for number in range(9):
        name = ("water", "trees", "sand")[number % 3]
        downloads.save(downloads.picture(number, (30, 20)), tmp_path / "own" / name / f"p{number}.jpg", quality=80)
    return tmp_path / "own"


def pack(own: Path, out: Path, *words: str) -> Path:
    assert shard("--dataset", "folder", "--source", own, "--out", out, *words) == 0
    return out


def test_webdataset_reads_it_byte_for_byte(own: Path, tmp_path: Path) -> None:
    out = pack(own, tmp_path / "out", "--samples-per-shard", "4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset

        urls = sorted(str(path) for path in out.glob("*.tar"))
        samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    dataset = open_dataset(out)
    assert [sample["__key__"] for sample in samples] == [
        str(dataset.keys[row]) for row in np.lexsort((dataset.keys, dataset.shard, dataset.split == "train"))
    ]
    for sample in samples:
        meta = json.loads(sample["json"])
        assert sample["jpg"] == (own / meta["path"]).read_bytes()
        assert meta["labels"] == [Path(meta["path"]).parent.name]
        row = int(np.flatnonzero(dataset.keys == sample["__key__"])[0])
        assert [name for name, on in zip(dataset.classes, dataset.labels[row], strict=True) if on] == meta["labels"]


def test_twice_and_with_any_number_of_workers_gives_equal_files(own: Path, tmp_path: Path) -> None:
    one = pack(own, tmp_path / "one", "--samples-per-shard", "3", "--workers", "1")
    two = pack(own, tmp_path / "two", "--samples-per-shard", "3", "--workers", "2")
    moved = tmp_path / "elsewhere"
    shutil.copytree(own, moved)
    three = pack(moved, tmp_path / "three", "--samples-per-shard", "3", "--workers", "1")
    assert contents(one) == contents(two) == contents(three)
    assert len(list(one.glob("*.tar"))) > 2


def test_the_fingerprint_is_of_the_content(own: Path, tmp_path: Path) -> None:
    one = open_dataset(pack(own, tmp_path / "one", "--samples-per-shard", "2"))
    two = open_dataset(pack(own, tmp_path / "two"))
    assert one.fingerprint == two.fingerprint
    downloads.save(downloads.picture(77, (30, 20)), own / "water" / "p0.jpg", quality=80)
    assert open_dataset(pack(own, tmp_path / "three")).fingerprint != one.fingerprint


def test_dataset_json_counts(own: Path, tmp_path: Path) -> None:
    dataset = open_dataset(pack(own, tmp_path / "out"))
    for split, facts in dataset.meta["splits"].items():
        assert facts["num_samples"] == len(dataset.rows(split))
        assert facts["label_counts"] == dataset.label_counts(split).tolist()
        assert facts["cooccurrence"] == dataset.cooccurrence(split).tolist()
    assert json.loads((dataset.root / "sizes.json").read_text()) == {
        s["name"]: s["num_samples"] for s in dataset.meta["shards"]
    }
    assert "data_files" in (dataset.root / "README.md").read_text().split("---")[1]
    with pytest.raises(DataError, match="no split named 'val'; it has test, train"):
        dataset.rows("val")


def test_tar_members_tell_nothing_of_the_writer(own: Path, tmp_path: Path) -> None:
    out = pack(own, tmp_path / "out")
    with tarfile.open(next(out.glob("train-*.tar"))) as opened:
        for member in opened:
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o444)
    assert next(out.glob("train-*.tar")).stat().st_size % 10240 == 0


def test_tif_becomes_png_without_loss(tmp_path: Path) -> None:
    picture = downloads.picture(1, (30, 30))
    downloads.save(picture, tmp_path / "own" / "water" / "a.tif")
    downloads.save(downloads.picture(2, (30, 30)), tmp_path / "own" / "water" / "b.tif")
    dataset = open_dataset(pack(tmp_path / "own", tmp_path / "out"))
    from marc_dist.data.reader import IndexedReader

    row = int(np.flatnonzero(dataset.keys == "a")[0])
    assert dataset.ext[row] == "png"
    assert np.array_equal(np.asarray(IndexedReader(dataset).image(row)), np.asarray(picture))


def test_keys_are_safe() -> None:
    keys = safe_keys(["a/river.v2.png", "b/river.v2.png", "a/Río ñ.png", "x" * 300 + ".png", "….png"])
    assert len({key.lower() for key in keys}) == 5
    assert all(key.isascii() and "." not in key and "/" not in key and 0 < len(key) <= 90 for key in keys)
    assert safe_keys(["a.png", "b.png"]) == ["a", "b"]


def test_verify_finds_every_kind_of_damage(own: Path, tmp_path: Path) -> None:
    out = pack(own, tmp_path / "out")
    assert all(not report.faults for report in verify(out))
    dataset = open_dataset(out)
    path = out / dataset.shards[dataset.shard[0]]
    with path.open("r+b") as file:
        file.seek(int(dataset.offset[0]) + 100)
        file.write(b"\0\0\0\0")
    faults = [fault for report in verify(out) for fault in report.faults]
    assert any("SHA-256" in fault for fault in faults)
    assert any(str(dataset.keys[0]) in fault and "CRC-32" in fault for fault in faults)
    assert shard("--verify", out) == 2


class TestMistakes:
    """A user's mistakes: one line, exit 2, nothing half-written."""

    def refused(self, capsys: pytest.CaptureFixture[str], out: Path, *words: str | Path) -> str:
        before = set(out.parent.rglob("*")) if out.parent.exists() else set()
        assert shard(*words, "--out", out) == 2
        error, *command = capsys.readouterr().err.strip().splitlines()  # a line, and what to type next if that is known
        assert error.startswith("marc-shard: error: ") and command in ([], ["marc-shard --dataset sample"])
        assert set(out.parent.rglob("*")) == before
        return error

    def bad_picture(self, own: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
        out = own.parent / "shards" / "out"
        out.parent.mkdir(exist_ok=True)
        return self.refused(capsys, out, "--dataset", "folder", "--source", own, *words)

    def test_missing_source(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("whdld", "dlrsd", "ml-aid", "folder"):
            error = self.refused(capsys, tmp_path / "out", "--dataset", name)
            assert "is not downloaded by this command; get it from" in error and "--source" in error
        error = self.refused(capsys, tmp_path / "out", "--dataset", "whdld", "--source", tmp_path / "nowhere")
        assert "nowhere: no such file or folder" in error

    def test_misspelt_dataset_and_check(self, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "did you mean whdld" in self.refused(capsys, tmp_path / "out", "--dataset", "wdhld")
        words = ("--dataset", "folder", "--source", own, "--allow", "cuonts")
        assert "did you mean counts" in self.refused(capsys, tmp_path / "out", *words)

    def test_truncated_picture(self, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = own / "water" / "p0.jpg"
        path.write_bytes(path.read_bytes()[:400])
        assert "p0.jpg: damaged picture" in self.bad_picture(own, capsys)
        path.write_bytes(b"not a picture at all")
        assert "p0.jpg: not a picture that can be read" in self.bad_picture(own, capsys)
        path.write_bytes(b"")
        assert "p0.jpg" in self.bad_picture(own, capsys, "--workers", "2", "--samples-per-shard", "2")

    def test_16_bit_and_cmyk(self, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (own / "water" / "p0.jpg").unlink()
        downloads.save(Image.fromarray(np.zeros((20, 30), dtype=np.uint16)), own / "water" / "deep.png")
        assert "deep.png: expected 8-bit RGB or grey, got 16 bits a channel" in self.bad_picture(
            own, capsys, "--to-png"
        )
        (own / "water" / "deep.png").unlink()
        downloads.save(downloads.picture(1, (30, 20)).convert("CMYK"), own / "water" / "print.jpg")
        assert "print.jpg: expected 8-bit RGB or grey, got mode CMYK" in self.bad_picture(own, capsys)

    def test_another_size(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        root = downloads.whdld(tmp_path / "in")
        downloads.save(downloads.picture(3, (255, 256)), root / "Images" / "wh0003.jpg")
        words = ("--dataset", "whdld", "--source", root, "--allow", "counts")
        error = self.refused(capsys, tmp_path / "s" / "out", *words)
        assert "wh0003.jpg: expected 256x256 pixels, got 255x256" in error
        assert shard("--dataset", "whdld", "--source", root, "--allow", "counts,size", "--out", tmp_path / "out") == 0
        assert any(
            "255x256" in warning and "wh0003" in warning for warning in open_dataset(tmp_path / "out").meta["warnings"]
        )

    def test_mixed_kinds_and_a_false_name(self, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
        downloads.save(downloads.picture(1, (30, 20)), own / "water" / "x.png")
        assert "pictures of several kinds (9 jpg and 1 png)" in self.bad_picture(own, capsys)
        assert shard("--dataset", "folder", "--source", own, "--out", own.parent / "png", "--to-png") == 0
        (own / "water" / "x.png").rename(own / "water" / "x.jpg")
        assert "x.jpg: holds PNG, not what its name says" in self.bad_picture(own, capsys)

    def test_a_folder_in_the_way(self, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = pack(own, tmp_path / "s" / "out")
        before = contents(out)
        words = ("--dataset", "folder", "--source", own)
        assert "exists; pass --force" in self.refused(capsys, out, *words)
        assert contents(out) == before
        other = tmp_path / "s" / "photos"
        other.mkdir()
        (other / "dear.txt").write_text("keep me")
        assert "is not a shard folder" in self.refused(capsys, other, *words, "--force")

    def test_a_shard_folder_of_another_version(self, own: Path, tmp_path: Path) -> None:
        out = pack(own, tmp_path / "out")
        meta = json.loads((out / "dataset.json").read_text())
        (out / "dataset.json").write_text(json.dumps({**meta, "format": 99}))
        with pytest.raises(DataError, match="format 99, this marc-dist reads format 1; pack again"):
            open_dataset(out)
        (out / "dataset.json").write_text("{")
        with pytest.raises(DataError, match="not readable"):
            open_dataset(out)
        (out / "dataset.json").unlink()
        with pytest.raises(DataError, match="not a shard folder"):
            open_dataset(out)
        with pytest.raises(DataError, match="no such shard folder"):
            open_dataset(tmp_path / "none")

    def test_index_or_shard_of_another_generation(self, own: Path, tmp_path: Path) -> None:
        out = pack(own, tmp_path / "out")
        other = pack(own, tmp_path / "other", "--samples-per-shard", "2")
        shutil.copy(other / "index.parquet", out / "index.parquet")
        with pytest.raises(DataError, match="not the index that dataset.json was written with"):
            open_dataset(out)
        os.truncate(next(other.glob("train-*.tar")), 1000)
        with pytest.raises(DataError, match="expected a shard of 10240 bytes, got 1000 bytes"):
            open_dataset(other)

    def test_disk_without_room(
        self, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = pack(own, tmp_path / "s" / "out")
        before = contents(out)

        def full(*_: object) -> bytes:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(tar, "header", full)
        words = ("--dataset", "folder", "--source", own, "--force", "--workers", "1")
        assert "the disk is full; nothing was kept" in self.refused(capsys, out, *words)
        assert contents(out) == before
        monkeypatch.undo()
        usage = type("usage", (), {"free": 1000})
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        assert "MB, the disk has 0.0 MB free" in self.refused(capsys, out, *words)

    @pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
    def test_a_file_system_that_is_really_full(self, own: Path, tmp_path: Path) -> None:
        small = tmp_path / "small"
        small.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(small)], capture_output=True)
        if mounted.returncode != 0:
            pytest.skip(f"no mounting here: {mounted.stderr.decode().strip()}")
        try:
            code = (
                "from marc_dist.packing import pack; pack._room = lambda *a: None; "
                "from marc_dist.cli.shard import main; "
            )
            words = ["--dataset", "folder", "--source", str(own), "--out", str(small / "o"), "--workers", "1"]
            code += f"raise SystemExit(main({words!r}))"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            assert done.returncode == 2 and "the disk is full; nothing was kept" in done.stderr
            assert list(small.iterdir()) == []
        finally:
            subprocess.run(["umount", str(small)], check=True)


def test_killed_while_packing_leaves_the_old_folder_and_the_next_start_goes_through(own: Path, tmp_path: Path) -> None:
    out = pack(own, tmp_path / "s" / "out")
    before = contents(out)
    words = ["--dataset", "folder", "--source", str(own), "--out", str(out), "--force", "--samples-per-shard", "2"]
    code = f"""
import os, signal
from marc_dist.packing import manifest
manifest._text = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
from marc_dist.cli.shard import main
main({words!r} + ["--workers", "1"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == -9
    assert contents(out) == before and (out.parent / ".out.partial").is_dir()
    pack(own, out, "--force")
    assert contents(out) == before and sorted(path.name for path in out.parent.iterdir()) == ["out"]


def test_killed_between_the_two_renames_the_old_folder_comes_back(own: Path, tmp_path: Path) -> None:
    out = pack(own, tmp_path / "s" / "out")
    before = contents(out)
    out.rename(out.with_name(".out.old"))
    assert shard("--dataset", "folder", "--source", own, "--out", out) == 2  # it exists again
    assert contents(out) == before


def test_equal_pictures_in_two_splits_are_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        downloads.save(downloads.picture(1, (30, 30)), tmp_path / "own" / f"{name}.png")
    (tmp_path / "own" / "labels.csv").write_text("image,water,split\na,1,train\nb,1,test\n")
    dataset = open_dataset(pack(tmp_path / "own", tmp_path / "out"))
    assert any("a (train) = b (test)" in warning for warning in dataset.meta["warnings"])
    assert shard("--dataset", "folder", "--source", tmp_path / "own", "--out", tmp_path / "x", "--dry-run") == 0
    assert not (tmp_path / "x").exists()


def test_equal_pictures_are_told_whatever_lossless_file_they_lie_in(tmp_path: Path) -> None:
    """A plain PNG is judged without its pixels, these are not: more rows than one strip, no filters, another format."""
    whole = downloads.picture(1, (30, 30)).quantize(16)
    downloads.save(whole, tmp_path / "own" / "a.png")
    downloads.save(whole.convert("RGB"), tmp_path / "own" / "b.png", compress_level=0)
    downloads.save(whole.convert("RGB"), tmp_path / "own" / "c.tif")
    other = whole.convert("RGB")
    other.putpixel((29, 29), (1, 2, 3))
    downloads.save(other, tmp_path / "own" / "d.png")
    (tmp_path / "own" / "labels.csv").write_text("image,water,split\na,1,train\nb,1,test\nc,1,test\nd,1,test\n")
    warned = [
        text for text in open_dataset(pack(tmp_path / "own", tmp_path / "out")).meta["warnings"] if "equal" in text
    ]
    assert warned == ["duplicates: equal pictures in two splits: a (train) = b (test), a (train) = c (test)"]


def test_equal_jpegs_in_two_splits_are_told_however_they_were_written(tmp_path: Path) -> None:
    """The decoder reduces JPEG while packing; a progressive copy of a picture still is the same picture."""
    pictures = {"a": 1, "b": 1, "c": 2}
    for name, seed in pictures.items():
        downloads.save(downloads.picture(seed, (40, 33)), tmp_path / "own" / f"{name}.jpg", progressive=name == "b")
    rows = "a,water,train\nb,water,test\nc,water,test\n"
    (tmp_path / "own" / "labels.csv").write_text("image,labels,split\n" + rows)
    dataset = open_dataset(pack(tmp_path / "own", tmp_path / "out"))
    warned = [warning for warning in dataset.meta["warnings"] if warning.startswith("duplicates")]
    assert warned == ["duplicates: equal pictures in two splits: a (train) = b (test)"]
    assert set(zip(dataset.width.tolist(), dataset.height.tolist(), strict=True)) == {(40, 33)}


def test_the_sample_is_whole_long_tailed_and_cooccurring(sample_dir: Path) -> None:
    dataset = open_dataset(sample_dir)
    assert len(dataset) == 600 and dataset.meta["warnings"] == []
    counts = dataset.labels.sum(axis=0)
    assert counts.min() >= 12 and counts.max() / counts.min() > 8
    place = {name: number for number, name in enumerate(dataset.classes)}
    ships, docks = dataset.labels[:, place["ship"]], dataset.labels[:, place["dock"]]
    water = dataset.labels[:, place["water"]]
    assert water[ships].mean() > 0.95 and docks[ships].mean() > 3 * docks.mean()
    assert 2 < dataset.labels.sum(axis=1).mean() < 5
    assert all(not report.faults for report in verify(sample_dir))


def test_the_list_and_the_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert shard("--list") == 0 and shard("--info", "dlrsd") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("whdld", "dlrsd", "ml-aid", "sample", "folder"))
    assert "Labels/<scene>/<scene>NN.png" in out and "chaparral" in out
