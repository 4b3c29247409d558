"""``--append``: the folder ends as a fresh packing's would, and what did not change keeps its bytes."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marc_dist.cli.shard import main
from marc_dist.data.cache import open_cache
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.data.reader import IndexedReader
from marc_dist.packing import sources, tar
from marc_dist.packing.adding import append
from marc_dist.packing.reading.splits import draw_alone
from marc_dist.packing.verify import verify
from tests import downloads

CLASSES = ("sand", "trees", "water")


@dataclass
class Picture:
    """A picture of the download: number of its content, labels, split."""

    content: int
    labels: tuple[str, ...] = ("sand",)
    split: str = "train"
    end: str = "png"


Pictures = dict[str, Picture]


def download(root: Path, pictures: Mapping[str, Picture], classes: tuple[str, ...] = CLASSES) -> Path:
    """Write a download; what was there before goes."""
    shutil.rmtree(root, ignore_errors=True)
    rows = [f"image,{','.join(classes)},split\n"]
    for name, picture in pictures.items():
        downloads.save(downloads.picture(picture.content, (12, 10)), root / f"{name}.{picture.end}")
        bits = ",".join(str(int(label in picture.labels)) for label in classes)
        rows.append(f"{name}.{picture.end},{bits},{picture.split}\n")
    (root / "labels.csv").write_text("".join(rows))
    return root


def shard(own: Path, out: Path, *words: str) -> int:
    basic = ("--dataset", "folder", "--samples-per-shard", "3", "--workers", "1")
    return main([*basic, "--source", str(own), "--out", str(out), *words])


def some(num: int = 12) -> Pictures:
    """Pictures p00, p01, ...: each fourth one is for testing."""
    return {
        f"p{n:02d}": Picture(n, ("sand", "water") if n % 3 else ("trees",), "train" if n % 4 else "test")
        for n in range(num)
    }


def contents(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Bytes, inode and time of every file."""
    return {
        path.name: (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())
    }


def kept(before: Mapping[str, Any], out: Path) -> set[str]:
    """Shards that are the same file as before."""
    after = contents(out)
    return {name for name in before.keys() & after.keys() if name.endswith(".tar") and before[name] == after[name]}


def facts(out: Path) -> dict[str, tuple[Any, ...]]:
    """What a reader of the folder sees: key -> pixels, labels, split, scene."""
    dataset = open_dataset(out)
    reader = IndexedReader(dataset)
    found = {}
    for row, key in enumerate(dataset.keys):
        labels = tuple(name for name, on in zip(dataset.classes, dataset.label_rows(row), strict=True) if on)
        pixels = np.asarray(reader.image(row)).tobytes()
        found[str(key)] = (pixels, labels, str(dataset.split[row]), str(dataset.scene[row]))
    reader.close()
    return found


def equals_fresh(own: Path, out: Path, *words: str) -> Dataset:
    """The folder is sound, and as a packing of the download as it is now would be: in order and in statistics, too."""
    fresh = out.with_name("fresh")
    assert shard(own, fresh, "--force", *words) == 0
    assert not [fault for report in verify(out) for fault in report.faults]
    one, two = open_dataset(out), open_dataset(fresh)
    assert facts(out) == facts(fresh)
    assert one.fingerprint == two.fingerprint
    for key in ("classes", "splits", "packed_with", "title", "warnings"):
        assert one.meta[key] == two.meta[key], key
    sizes = json.loads((out / "sizes.json").read_text())
    assert sizes == {entry["name"]: entry["num_samples"] for entry in one.meta["shards"]}
    ours, theirs = (
        {path: (p.row.source, p.row.glance, p.labels) for path, p in sources.read(x).items()} for x in (one, two)
    )
    assert ours == theirs
    return one


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return download(tmp_path / "own", some())


@pytest.fixture
def out(own: Path, tmp_path: Path) -> Path:
    assert shard(own, tmp_path / "s" / "out") == 0
    return tmp_path / "s" / "out"


def only(out: Path) -> bool:
    """Nothing lies beside the folder."""
    return [path.name for path in out.parent.iterdir() if path.name != "fresh"] == ["out"]


def test_new_pictures_go_into_new_shards(own: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(out)
    download(own, some(18))
    assert shard(own, out, "--append") == 0
    told = capsys.readouterr().out
    assert "6 new (4 train, 2 test), 0 changed, 0 relabelled, 0 removed, 12 as they were" in told
    assert "shards: 4 as they were, 0 written anew, 0 dropped, 3 new" in told
    tars = {name for name in before if name.endswith(".tar")}
    assert kept(before, out) == tars
    dataset = equals_fresh(own, out)
    assert len(dataset) == 18 and only(out)
    assert set(dataset.shards) - tars == {"train-000003.tar", "train-000004.tar", "test-000001.tar"}


def test_files_of_others_stay(own: Path, out: Path) -> None:
    (out / "notes.txt").write_text("mine")
    (out / "sheet.png").write_text("of the old pictures")
    (out / "more").mkdir()
    (out / "more" / "a.csv").write_text("1,2")
    (out / "link").symlink_to("notes.txt")
    download(own, some(14))
    assert shard(own, out, "--append", "--no-leaks") == 0
    assert (out / "notes.txt").read_text() == (out / "link").read_text() == "mine" and (out / "link").is_symlink()
    assert (out / "more" / "a.csv").read_text() == "1,2" and not (out / "sheet.png").exists()
    assert len(equals_fresh(own, out)) == 14


def test_the_example_of_the_documentation(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    section = page.split("## Adding to an archive\n")[1].split("\n## ")[0]
    commands = [line.split() for line in section.splitlines() if line.startswith("    marc-shard ")]
    assert len(commands) == 3
    monkeypatch.chdir(tmp_path)
    own.rename("my_pictures")
    for number, (command, *words) in enumerate(commands):
        assert command == "marc-shard" and main(words) == 0
        told = capsys.readouterr().out.replace("\n", " ")
        assert ("wrote data/mine", "2 new (1 train, 1 test)", "0 changed, 0 relabelled, 10 removed")[number] in told
        download(
            tmp_path / "my_pictures", some(14) if number == 0 else {k: v for k, v in some(14).items() if k < "p04"}
        )
    assert set(facts(tmp_path / "data" / "mine")) == {"p00", "p01", "p02", "p03"}


def test_nothing_new_changes_no_byte(own: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(out)
    for path in own.rglob("*"):
        os.utime(path, (1, 1))  # neither times nor places matter
    moved = own.with_name("unpacked again")
    own.rename(moved)
    assert shard(moved, out, "--append") == 0
    assert "nothing to add: all 12 pictures" in capsys.readouterr().out
    assert contents(out) == before and only(out)


@pytest.mark.parametrize("what", ["content", "labels"])
def test_only_the_shard_of_a_changed_picture_is_written_anew(
    own: Path, out: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(out)
    pictures = some()
    stat = (own / "p05.png").stat()
    new = {"content": Picture(99, pictures["p05"].labels), "labels": replace(pictures["p05"], labels=("trees",))}
    download(own, pictures | {"p05": new[what]})
    os.utime(own / "p05.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert shard(own, out, "--append") == 0
    told = capsys.readouterr().out
    assert ("1 changed, 0 relabelled" if what == "content" else "0 changed, 1 relabelled") in told
    assert "shards: 3 as they were, 1 written anew, 0 dropped, 0 new" in told
    assert len(kept(before, out)) == 3
    equals_fresh(own, out)


def test_pictures_that_the_download_lacks_stay_unless_asked(
    own: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(out)
    pictures = some(14)
    gone = ("p01", "p02", "p03", "p07")
    download(own, {name: picture for name, picture in pictures.items() if name not in gone})
    assert shard(own, out, "--append") == 0
    told = capsys.readouterr().out
    assert (
        "4 pictures are in the folder and no longer in the download; they were kept: p01, p02, p03 and 1 more" in told
    )
    assert set(facts(out)) == set(pictures) and "4 pictures are in the folder" in (out / "README.md").read_text()
    assert shard(own, out, "--append", "--remove-missing") == 0
    assert "4 removed" in (told := capsys.readouterr().out)
    assert "1 written anew, 1 dropped" in told  # p01 p02 p03 were all of the first shard
    dataset = equals_fresh(own, out)
    assert "train-000000.tar" not in dataset.shards
    assert len(kept(before, out)) == 2


def test_a_list_of_keys_removes(own: Path, out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbfp01\r\n\r\n p06 \r\n")
    assert shard(own, out, "--append", "--remove", str(tmp_path / "list")) == 0
    assert {"p01", "p06"}.isdisjoint(found := facts(out)) and len(found) == 10
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"p02\n")))
    assert shard(own, out, "--append", "--remove", "-") == 0
    assert {"p01", "p06"} < set(facts(out)) and "p02" not in facts(out)  # the download has the others: they are back
    assert shard(own, out, "--append") == 0
    equals_fresh(own, out)


def test_removed_pictures_that_the_download_has_are_told(
    own: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list").write_text("p01\np06\n")
    assert shard(own, out, "--append", "--remove", str(tmp_path / "list")) == 0
    assert "2 pictures that were taken out are still in the download: p01, p06" in capsys.readouterr().out


def test_a_dry_run_tells_and_changes_nothing(own: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(out)
    download(own, some(14) | {"p01": Picture(99)})
    assert shard(own, out, "--append", "--dry-run") == 0
    assert "would add to" in (told := capsys.readouterr().out) and "2 new (1 train, 1 test), 1 changed" in told
    assert contents(out) == before and only(out)


@dataclass
class Refusal:
    """What is asked for, and what is told."""

    words: tuple[str, ...]
    says: str
    pictures: Pictures = field(default_factory=some)
    classes: tuple[str, ...] = CLASSES


REFUSALS = {
    "another recipe": Refusal(("--dataset", "{tmp}/mine.yaml"), 'packed with name "folder", this call has "mine"'),
    "another rule": Refusal(("--dataset", "{tmp}/folder.yaml"), 'packed with scene "none", this call has "folder"'),
    "another word": Refusal(("--to-png",), "packed with to_png false, this call has true"),
    "a new class": Refusal((), "its 3 classes do not have dock", some(14), (*CLASSES, "dock")),
    "unknown keys": Refusal(("--remove", "{tmp}/list"), "--remove: 2 keys are not in"),
    "no list": Refusal(("--remove", "{tmp}/none"), "none: cannot be read (No such file or directory)"),
    "another split": Refusal((), "1 pictures would change their split: p05.png (train there, test in the download)",
                             some() | {"p05": Picture(5, split="test")}),
    "another kind": Refusal((), "holds png pictures, the new ones are jpg",
                            {name: replace(picture, end="jpg") for name, picture in some().items()}),
    "nothing left": Refusal(("--remove", "{tmp}/all"), "nothing would be left"),
    "a bad picture": Refusal((), "p12.png: ", some(13)),
    "no folder": Refusal(("--out", "{tmp}/none"), "none: no such shard folder"),
    "not a folder": Refusal(("--out", "{tmp}"), "not a shard folder"),
    "with --force": Refusal(("--force",), "--append: expected without --force"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_added_is_one_line_and_changes_nothing(
    name: str, own: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(out)
    refusal = REFUSALS[name]
    download(own, refusal.pictures, refusal.classes)
    if name == "a bad picture":
        (own / "p12.png").write_bytes((own / "p12.png").read_bytes()[:-30])
    shipped = (Path(__file__).parents[2] / "shards" / "folder.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(shipped)
    (tmp_path / "folder.yaml").write_text(shipped.replace("scene: none", "scene: folder"))
    (tmp_path / "list").write_text("p01\nqq\nrr\n")
    (tmp_path / "all").write_text("".join(f"{key}\n" for key in some()))
    words = [word.format(tmp=tmp_path) for word in refusal.words]
    assert shard(own, out, "--append", *words) == 2
    told = capsys.readouterr().err
    assert refusal.says in told and told.strip().count("\n") == 0
    assert contents(out) == before and only(out)


def test_new_classes_come_last_when_asked(own: Path, out: Path) -> None:
    pictures = some(14) | {"p12": Picture(12, ("boat", "sand"), "train")}
    download(own, pictures, ("boat", *CLASSES))
    assert shard(own, out, "--append", "--add-classes") == 0
    dataset = open_dataset(out)
    assert dataset.classes == (*CLASSES, "boat")
    assert {key: set(labels) for key, (_, labels, *_) in facts(out).items()} == {
        key: set(picture.labels) for key, picture in pictures.items()
    }
    assert not [fault for report in verify(out) for fault in report.faults]


@pytest.mark.parametrize("where", ["shard", "sources", "index"])
def test_a_damaged_folder_is_refused(own: Path, out: Path, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = out / {"shard": "train-000001.tar", "sources": "sources.parquet", "index": "index.parquet"}[where]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    before = contents(out)
    for words in ((), ("--dry-run",)):
        assert shard(own, out, "--append", *words) == 2
        told = capsys.readouterr().err
        assert f"{file}: " in told and told.strip().count("\n") == 0
    assert contents(out) == before and only(out)
    assert [report.name for report in verify(out) if report.faults] if where != "index" else True


def test_a_folder_of_an_older_version_is_refused(own: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = json.loads((out / "dataset.json").read_text())
    del meta["packed_with"], meta["sources_sha256"]
    (out / "dataset.json").write_text(json.dumps(meta))
    (out / "sources.parquet").unlink()
    assert shard(own, out, "--append") == 2
    assert "packed by a marc-dist without --append; pack it again once, with --force" in capsys.readouterr().err
    assert not [fault for report in verify(out) for fault in report.faults]


def test_drawn_splits_stay_and_new_ones_do_not_depend_on_others(tmp_path: Path) -> None:
    def folders(num: int) -> Path:
        for number in range(num):
            path = tmp_path / "own" / ("sea", "land")[number % 2] / f"q{number:03d}.png"
            downloads.save(downloads.picture(number, (8, 8)), path)
        return tmp_path / "own"

    out = tmp_path / "s" / "out"
    assert shard(folders(20), out) == 0
    first = {key: split for key, (_, _, split, _) in facts(out).items()}
    assert shard(folders(60), out, "--append") == 0
    then = {key: split for key, (_, _, split, _) in facts(out).items()}
    assert first.items() <= then.items() and set(then.values()) == {"train", "test"}
    shares = {"train": 0.8, "test": 0.2}
    new = {key: split for key, split in then.items() if key not in first}
    assert new == {key: draw_alone(f"{('sea', 'land')[int(key[1:]) % 2]}/{key}.png", shares, 0) for key in new}


def test_the_draw_keeps_to_the_shares() -> None:
    drawn = [draw_alone(f"a/{n}.png", {"train": 0.7, "val": 0.1, "test": 0.2}, 3) for n in range(5000)]
    assert [round(drawn.count(split) / 5000, 1) for split in ("train", "val", "test")] == [0.7, 0.1, 0.2]
    assert draw_alone("x", {"train": 1e-300}, 0) == "train"  # shares whose floats add up to less than 1


def test_keys_of_the_folder_stay_and_new_ones_do_not_clash(tmp_path: Path) -> None:
    for name in ("sea/1", "land/2"):
        downloads.save(downloads.picture(len(name), (8, 8)), tmp_path / "own" / f"{name}.png")
    out = tmp_path / "s" / "out"
    assert shard(tmp_path / "own", out) == 0
    for number, name in enumerate(("land/1", "sea/2")):
        downloads.save(downloads.picture(number, (8, 8)), tmp_path / "own" / f"{name}.png")
    assert shard(tmp_path / "own", out, "--append") == 0
    places = {path: packed.row.key for path, packed in sources.read(open_dataset(out)).items()}
    assert places == {"sea/1.png": "1", "land/2.png": "2", "land/1.png": "land_1", "sea/2.png": "sea_2"}


def test_a_picture_that_is_stored_as_another_file_is_known_by_its_own_bytes(tmp_path: Path) -> None:
    """TIFFs become PNGs, so the folder has other bytes than the download."""
    for number in range(4):
        downloads.save(downloads.picture(number, (9, 9)), tmp_path / "own" / "sea" / f"{number}.tif")
    out = tmp_path / "s" / "out"
    assert shard(tmp_path / "own", out) == 0
    before = contents(out)
    assert shard(tmp_path / "own", out, "--append") == 0
    assert contents(out) == before


@pytest.mark.parametrize("error", [errno.EPERM, errno.EXDEV])
def test_without_hard_links_shards_are_copied(
    own: Path, out: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "link", refuse)
    before = contents(out)
    download(own, some(14))
    assert shard(own, out, "--append") == 0
    for name, (data, *_) in before.items():
        if name.endswith(".tar"):
            assert (out / name).read_bytes() == data
    equals_fresh(own, out)


def test_a_full_disk_is_told_before_anything_is_written(
    own: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(out)
    download(own, some(14))
    monkeypatch.setattr(append.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))  # type: ignore[attr-defined]
    assert shard(own, out, "--append") == 2
    assert "the disk has 0.0 MB free" in capsys.readouterr().err
    assert contents(out) == before and only(out)


KILLED = """
import os, signal
from marc_dist.packing import manifest, pack, publish
from marc_dist.packing.adding import append, shard_rewriting
module, name = {point!r}.split(".")
owner = {{"append": append, "pack": pack, "publish": publish, "shard_rewriting": shard_rewriting}}[module]
real = getattr(owner, name)
def die(*args, **kwargs):
    if {after!r}:
        real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, die)
from marc_dist.cli.shard import main
main({words!r})
"""
POINTS = ["append.keep_shard", "append.rewrite_shard", "append.pack_more", "append.conclude", "publish._replace"]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("point", POINTS)
def test_killed_in_between_the_old_folder_is_there_and_the_next_call_ends_it(
    point: str, after: bool, own: Path, out: Path
) -> None:
    before = contents(out)
    download(own, some(14) | {"p01": Picture(99)})
    words = ["--dataset", "folder", "--samples-per-shard", "3", "--workers", "1", "--source", str(own), "--out",
             str(out), "--append"]  # fmt: skip
    code = KILLED.format(point=point, after=after, words=words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    if point != "publish._replace" or not after:
        assert contents(out) == before
    assert shard(own, out, "--append") == 0
    equals_fresh(own, out)
    assert only(out)


def test_two_at_once_are_refused(own: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dataset", "folder", "--samples-per-shard", "3", "--workers", "1", "--source", str(own), "--out",
             str(out), "--append"]  # fmt: skip
    download(own, some(14))
    code = f"""
from marc_dist.packing.adding import append
real = append.conclude
def wait(*args, **kwargs):
    print("in", flush=True)
    input()
    real(*args, **kwargs)
append.conclude = wait
from marc_dist.cli.shard import main
raise SystemExit(main({words!r}))
"""
    first = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdin and first.stdout and first.stdout.readline() == "in\n"
    assert shard(own, out, "--append") == 2
    assert "another marc-shard is writing it" in capsys.readouterr().err
    first.communicate("\n")
    assert first.returncode == 0
    equals_fresh(own, out)


def test_a_reader_that_has_the_old_folder_open_goes_on(own: Path, out: Path) -> None:
    """Pictures of shards that it has opened, and of all that were kept."""
    dataset = open_dataset(out)
    reader = IndexedReader(dataset)
    changed = [row for row, key in enumerate(dataset.keys) if dataset.shards[dataset.shard[row]] == "train-000001.tar"]
    before = {changed[0]: reader.read(changed[0])}
    download(own, some(14) | {str(dataset.keys[changed[1]]): Picture(99)})
    assert shard(own, out, "--append") == 0
    assert reader.read(changed[0]) == before[changed[0]]
    for row in range(len(dataset)):
        reader.read(row)


def test_several_processes_write_the_same_bytes(own: Path, out: Path, tmp_path: Path) -> None:
    download(own, some(40) | {"p01": Picture(99), "p06": Picture(98)})
    shutil.copytree(out, tmp_path / "t" / "out")
    assert shard(own, out, "--append") == 0
    assert shard(own, tmp_path / "t" / "out", "--append", "--workers", "2") == 0
    assert {name: data for name, (data, *_) in contents(out).items()} == {
        name: data for name, (data, *_) in contents(tmp_path / "t" / "out").items()
    }


def test_decoded_pictures_of_kept_shards_are_not_decoded_again(
    own: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded() -> set[str]:
        """Keys of what is decoded for a cache of the folder as it is; every picture of the cache is right."""
        dataset, seen = open_dataset(out), set[int]()
        real = IndexedReader.picture

        def picture(reader: IndexedReader, sample: int) -> Any:
            seen.add(sample)
            return real(reader, sample)

        with monkeypatch.context() as patch:
            patch.setattr(IndexedReader, "picture", picture)
            cache = open_cache(dataset, "train", tmp_path / "cache", reader=IndexedReader(dataset))
        for sample in dataset.rows("train").tolist():
            assert np.array_equal(cache.picture(sample), np.asarray(IndexedReader(dataset).image(sample)))
        return {str(dataset.keys[sample]) for sample in seen}

    assert decoded() == {name for name, picture in some().items() if picture.split == "train"}
    pictures = some(15) | {"p05": Picture(99)}  # p05 lies in the second shard, with p06 and p07
    downloads.save(downloads.picture(7, (40, 30)), download(own, pictures) / "p14.png")  # larger than the others
    assert shard(own, out, "--append") == 0
    assert decoded() == {"p05", "p06", "p07", "p13", "p14"}
    assert decoded() == set()
    newest = max((tmp_path / "cache").glob("*/pixels.npy"), key=lambda path: path.stat().st_mtime_ns)
    with newest.open("r+b") as file:  # an earlier cache that is damaged: no wrong pixel is taken over
        file.seek(200)
        file.write(bytes(newest.stat().st_size - 200))
    download(own, pictures)
    assert shard(own, out, "--append") == 0
    assert decoded() >= {"p14"}


NAMES = [f"p{number}" for number in range(7)]
STATES = st.dictionaries(
    st.sampled_from(NAMES),
    st.tuples(st.integers(0, 3), st.lists(st.sampled_from(CLASSES), min_size=1, unique=True)),
    min_size=1,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STATES, min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_any_sequence_of_additions_ends_as_a_fresh_packing(states: list[dict[str, Any]], rng: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        own, out = Path(place) / "own", Path(place) / "out"
        for number, state in enumerate(states):
            pictures = {
                name: Picture(
                    NAMES.index(name) * 10 + content, tuple(labels), "test" if NAMES.index(name) % 3 == 0 else "train"
                )
                for name, (content, labels) in state.items()
            }
            download(own, pictures)
            if number == 0:
                assert shard(own, out) == 0
                continue
            tars = {name: facts for name, facts in contents(out).items() if name.endswith(".tar")}
            was = facts(out)
            assert shard(own, out, "--append", "--remove-missing") == 0
            dataset = equals_fresh(own, out)
            now, same = facts(out), kept(tars, out)
            for name in tars:
                keys = {str(key) for key in was if _shard_of(tars[name][0], str(key))}
                assert (name in same) == all(now.get(key) == was[key] for key in keys), name
            assert same <= set(dataset.shards)


def _shard_of(data: bytes, key: str) -> bool:
    return f"{key}.json".encode() in data


def test_a_download_without_the_splits_of_the_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, out = tmp_path / "own", tmp_path / "s" / "out"
    download(own, some())
    assert shard(own, out) == 0
    (own / "labels.csv").write_text(
        "".join(",".join(line.split(",")[:-1]) + "\n" for line in (own / "labels.csv").read_text().splitlines())
    )
    before = contents(out)
    assert shard(own, out, "--append") == 2
    assert "packed with the splits of its download, this download has none" in capsys.readouterr().err
    assert contents(out) == before


def test_the_same_pictures_at_other_places_are_refused(
    own: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(out)
    download(own, {f"new{name}": picture for name, picture in some().items()})
    assert shard(own, out, "--append") == 2
    told = capsys.readouterr().err
    assert "has 12 of its pictures at other places: p00.png (now newp00.png)" in told and told.count("\n") == 1
    assert contents(out) == before


def test_pictures_are_not_compared_when_nothing_is_added(own: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marc_dist.cli.shard.after_packing.find_leaks", None)  # would fail
    assert shard(own, out, "--append") == 0


def test_pictures_are_taken_out_when_the_download_is_gone(
    own: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, had = contents(out), facts(out)
    moved = own.rename(tmp_path / "elsewhere")
    (tmp_path / "gone").write_text("p01\np04\n")
    words = ("--dataset", "folder", "--out", str(out), "--append", "--remove", str(tmp_path / "gone"))
    assert main([*words, "--remove-missing"]) == 2
    assert "expected together with --source" in capsys.readouterr().err
    assert main([*words, "--dry-run"]) == 0 and contents(out) == before
    capsys.readouterr()
    assert main([*words]) == 0
    told = capsys.readouterr().out
    assert "2 removed, 10 as they were" in told and "no longer in the download" not in told
    assert facts(out) == {key: fact for key, fact in had.items() if key not in ("p01", "p04")}
    assert not [fault for report in verify(out) for fault in report.faults] and kept(before, out)
    assert main([*words]) == 2
    assert "keys are not in" in capsys.readouterr().err
    moved.rename(own)
    pictures = some()
    del pictures["p01"], pictures["p04"]
    download(own, pictures)
    assert shard(own, out, "--append") == 0
    assert "no byte of it was changed" in capsys.readouterr().out


def test_a_picture_that_was_taken_out_comes_back_to_its_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, out = tmp_path / "own", tmp_path / "out"
    for number in range(12):
        downloads.save(downloads.picture(number, (12, 10)), own / ("sand", "water")[number % 2] / f"p{number:02d}.png")
    assert shard(own, out) == 0
    had = {key: fact[2] for key, fact in facts(out).items()}
    moving = [key for key in had if draw_alone(f"{('sand', 'water')[int(key[1:]) % 2]}/{key}.png", {"train": 0.8,
              "test": 0.2}, 0) != had[key]]  # fmt: skip
    assert moving, "a draw that would go the other way"
    (tmp_path / "gone").write_text("\n".join(moving))
    assert shard(own, out, "--append", "--remove", str(tmp_path / "gone")) == 0
    assert (out / sources.REMOVED).is_file() and not set(moving) & set(facts(out))
    assert shard(own, out, "--append") == 0
    assert {key: fact[2] for key, fact in facts(out).items()} == had
    assert not (out / sources.REMOVED).exists()
    assert shard(own, out, "--append", "--remove", str(tmp_path / "gone")) == 0
    (out / sources.REMOVED).write_text("path,split\nsand/p00.png\n")
    capsys.readouterr()
    assert shard(own, out, "--append") == 2
    assert "expected lines `path,split`" in capsys.readouterr().err


def test_what_an_interrupted_packing_has_finished_is_not_removed(
    own: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = out.with_name(".out.partial")
    (own / "p11.png").write_bytes(b"no picture")
    assert shard(own, out, "--force", "--resume") == 2
    finished = sorted(path.name for path in partial.glob("*.tar"))
    assert finished
    capsys.readouterr()
    downloads.save(downloads.picture(11, (12, 10)), own / "p11.png")
    for _ in range(2):
        assert shard(own, out, "--append") == 2
        assert f"{len(finished)} finished shards of an interrupted packing" in capsys.readouterr().err
        assert sorted(path.name for path in partial.glob("*.tar")) == finished
    assert shard(own, out, "--force", "--resume") == 0
    assert f"{len(finished)} finished shards of the interrupted packing kept" in capsys.readouterr().out
    assert shard(own, out, "--append") == 0 and only(out)


def test_pictures_looked_at_by_other_decoders_are_looked_at_again(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s" / "out"
    with monkeypatch.context() as other:
        other.setattr(tar, "_glance", lambda found: "0" * 15 + "1")
        other.setattr(sources, "_decoders", lambda: b"others")
        assert shard(own, out) == 0
    assert not sources.glances_hold(open_dataset(out))
    pictures = {**some(), "twin": Picture(1, split="test")}
    assert pictures["p01"].split == "train"
    download(own, pictures)
    capsys.readouterr()
    assert shard(own, out, "--append") == 0
    assert "equal pictures in two splits: p01 (train) = twin (test)" in capsys.readouterr().out
    assert sources.glances_hold(open_dataset(out))
    equals_fresh(own, out)


def test_labels_that_were_found_may_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, out = tmp_path / "own", tmp_path / "out"
    for number in range(4):
        downloads.save(downloads.picture(number, (12, 10)), own / ("sand", "water")[number % 2] / f"{number}.png")
    assert shard(own, out) == 0
    downloads.save(downloads.picture(9, (12, 10)), own / "water" / "deep" / "9.png")
    capsys.readouterr()
    assert shard(own, out, "--append") == 2
    assert "to take the lowest: --labels folders" in capsys.readouterr().err
    (own / "water" / "deep").rename(own / "deep")
    assert shard(own, out, "--append", "--labels", "folders", "--add-classes") == 0
    assert open_dataset(out).classes == ("sand", "water", "deep")
    (own / "labels.csv").write_text("image,labels\n" + "".join(f"{n}.png,sand\n" for n in (0, 1, 2, 3, 9)))
    capsys.readouterr()
    assert shard(own, out, "--append") == 2
    assert 'packed with labels_found "folders", this call has "table"' in capsys.readouterr().err
