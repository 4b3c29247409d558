"""``--resume``: whatever stopped a packing, going on gives an undisturbed one's bytes, and trusts nothing unproven."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from marc_dist.cli.shard import main
from marc_dist.cli.shard.run import RESUMED_NOTHING
from marc_dist.packing import pack, shard_records, tar
from marc_dist.packing.verify import verify
from tests import downloads

WORDS = ("--dataset", "folder", "--samples-per-shard", "3")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def inodes(folder: Path) -> dict[str, tuple[int, int]]:
    """What tells a file that was kept from one that was written again under its name (inodes are given out again)."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.tar")}


def shard(own: Path, out: Path, *words: str) -> int:
    return main([*WORDS, "--source", str(own), "--out", str(out), "--workers", "1", *words])


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Thirty pictures, twenty-four of them for training: eight shards and two."""
    rows = []
    for number in range(30):
        downloads.save(downloads.picture(number, (24, 24)), tmp_path / "own" / f"p{number:02d}.jpg", quality=80)
        rows.append(f"p{number:02d},{'sand' if number % 3 else 'water|sand'},{'train' if number % 5 else 'test'}\n")
    (tmp_path / "own" / "labels.csv").write_text("image,labels,split\n" + "".join(rows))
    return tmp_path / "own"


@pytest.fixture
def fresh(own: Path, tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """What an undisturbed packing gives at this moment."""

    def make(*words: str) -> dict[str, bytes]:
        assert shard(own, tmp_path / "fresh", "--force", *words) == 0
        return contents(tmp_path / "fresh")

    return make


def interrupted(own: Path, out: Path, *words: str) -> Path:
    """Everything is packed but the sidecars; the private folder that is left behind."""
    with pytest.MonkeyPatch.context() as patch:

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(pack, "describe", stop)
        assert shard(own, out, "--resume", *words) == 130
    assert not out.exists()
    return out.with_name(f".{out.name}.partial")


def start(own: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    """A packing that takes about a second."""
    script = out.parent / "slow.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    words = [*WORDS, "--source", str(own), "--out", str(out), "--workers", str(workers), "--resume"]
    script.write_text(f"""
import time
from marc_dist.packing import tar
fast = tar.picture
def slow(*args):
    time.sleep(0.02)
    return fast(*args)
tar.picture = slow  # in helpers too, which import this file
if __name__ == "__main__":
    from marc_dist.cli.shard import main
    raise SystemExit(main({words!r}))
""")
    return subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(("workers", "seed"), [(1, 0), (2, 1)])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    own: Path, tmp_path: Path, fresh: Callable[..., dict[str, bytes]], workers: int, seed: int
) -> None:
    rng = random.Random(seed)
    out, partial = tmp_path / "s" / "out", tmp_path / "s" / ".out.partial"
    kept: dict[str, tuple[int, int]] = {}
    for goal in (1, rng.randint(3, 5), rng.randint(6, 8)):
        child = start(own, out, workers)
        deadline = time.monotonic() + 60
        while len(list(partial.glob(f"{shard_records.FOLDER}/*.json"))) < goal:
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.04))
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL and not out.exists()
        names = shard_records.left_over(partial)
        assert len(names) >= goal
        now = {name: facts for name, facts in inodes(partial).items() if name in names}
        assert kept.items() <= now.items()  # what was finished earlier has not been written again
        kept = now
    time.sleep(0.1)  # helpers die with their parent, a moment later
    assert shard(own, out, "--resume") == 0
    assert contents(out) == fresh()
    assert kept.items() <= inodes(out).items()
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "slow.py"]


def test_a_kill_at_any_point_of_the_main_process(
    own: Path, tmp_path: Path, fresh: Callable[..., dict[str, bytes]]
) -> None:
    """Before and after each step that matters, in turn: joined, recorded, described, records removed, published."""
    expected = fresh()
    points = ["tar.join_parts", "shard_records.record", "pack.describe", "shard_records.forget", "publish._replace"]
    for point in points:
        out = tmp_path / point / "out"
        code = f"""
import os, signal
from marc_dist.packing import pack, publish, shard_records, tar
module, name = {point!r}.split(".")
homes = {{"shard_records": shard_records, "pack": pack, "publish": publish}}
owner = shard_records if name == "join_parts" else homes[module]
calls = 0
def die(*args, **kwargs):
    global calls
    calls += 1
    if name in ("join_parts", "record") and calls < 4:
        return real(*args, **kwargs)
    if name != "record":
        real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
real = getattr(owner, name)
setattr(owner, name, die)
from marc_dist.cli.shard import main
main({[*WORDS, "--source", str(own), "--out", str(out), "--workers", "1"]!r})
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        if point == "publish._replace":
            assert shard(own, out, "--resume") == 2  # it was all there already
        else:
            assert shard(own, out, "--resume") == 0
        assert contents(out) == expected, point
        assert sorted(path.name for path in out.parent.iterdir()) == ["out"]


def test_a_changed_picture_is_packed_anew_and_the_rest_kept(
    own: Path, tmp_path: Path, fresh: Callable[..., dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s" / "out"
    before = inodes(interrupted(own, out))
    stat = (own / "p01.jpg").stat()
    data = bytearray((own / "p01.jpg").read_bytes())
    data[-3] ^= 1  # same size, same time
    (own / "p01.jpg").write_bytes(data)
    os.utime(own / "p01.jpg", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert shard(own, out, "--resume") == 0
    assert "--resume: 9 finished shards of the interrupted packing kept" in capsys.readouterr().out
    assert contents(out) == fresh()
    assert len(before.items() & inodes(out).items()) == 9


def test_a_picture_touched_or_moved_is_the_same_picture(own: Path, tmp_path: Path) -> None:
    out = tmp_path / "s" / "out"
    before = inodes(interrupted(own, out))
    moved = tmp_path / "unpacked-again"
    shutil.copytree(own, moved, copy_function=shutil.copy)
    assert shard(moved, out, "--resume") == 0
    assert inodes(out) == before


@pytest.mark.parametrize("change", ["labels", "split", "fewer", "samples-per-shard", "to-png", "version"])
def test_another_plan_is_never_mixed_with_the_left_overs(
    own: Path,
    tmp_path: Path,
    fresh: Callable[..., dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    out, words, most = tmp_path / "s" / "out", (), 0
    before = inodes(interrupted(own, out))
    table = own / "labels.csv"
    if change == "labels":
        table.write_text(table.read_text().replace("p01,sand", "p01,sand|water"))
        most = 9
    elif change == "split":
        table.write_text(table.read_text().replace("p29,sand,train", "p29,sand,test"))
        most = 9
    elif change == "fewer":
        table.write_text(table.read_text().replace("p29,sand,train\n", ""))
        (own / "p29.jpg").unlink()
        most = 9
    elif change == "samples-per-shard":
        words = ("--samples-per-shard", "4")
    elif change == "to-png":
        words = ("--to-png",)
    else:
        monkeypatch.setattr(shard_records, "__version__", "another")
    assert shard(own, out, "--resume", *words) == 0
    assert len(before.items() & inodes(out).items()) <= most
    assert contents(out) == fresh(*words)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage", ["shard", "padding", "short", "gone", "record", "torn", "exchanged", "half", "stray"]
)
def test_nothing_unproven_is_taken_over(
    own: Path, tmp_path: Path, fresh: Callable[..., dict[str, bytes]], damage: str
) -> None:
    out = tmp_path / "s" / "out"
    partial = interrupted(own, out)
    one, two = (partial / f"train-{number:06d}.tar" for number in (0, 1))
    records = [partial / shard_records.FOLDER / f"{path.name}.json" for path in (one, two)]
    if damage in ("shard", "padding"):
        flip(one, 700 if damage == "shard" else -1)
    elif damage == "short":
        os.truncate(one, one.stat().st_size - 512)
    elif damage == "gone":
        one.unlink()
    elif damage == "record":
        flip(records[0], records[0].stat().st_size // 2)
    elif damage == "torn":
        os.truncate(records[0], 100)
    elif damage == "exchanged":  # a shard under another's name, with the record that belongs to it
        shutil.copy(two, one)
        shutil.copy(records[1], records[0])
    elif damage == "half":
        records[0].unlink()
        (partial / "train-000000.tar.000000").write_bytes(b"half a part")
    else:
        (partial / "train-000099.tar").write_bytes(b"stray")
        (partial / "folder").mkdir()
        (partial / shard_records.FOLDER / "x.new").write_bytes(b"stray")
    before = inodes(partial)
    assert shard(own, out, "--resume") == 0
    assert contents(out) == fresh()
    assert all(not report.faults for report in verify(out))
    assert len(before.items() & inodes(out).items()) >= 9


def test_without_the_word_everything_is_written_anew(
    own: Path, tmp_path: Path, fresh: Callable[..., dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s" / "out"
    partial = interrupted(own, out)
    before = inodes(partial)
    assert shard(own, out) == 0
    assert not before.items() & inodes(out).items() and contents(out) == fresh()
    assert shard(own, tmp_path / "s" / "other", "--resume") == 0
    assert RESUMED_NOTHING in capsys.readouterr().out


def test_a_failure_under_resume_keeps_what_is_finished(
    own: Path, tmp_path: Path, fresh: Callable[..., dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s" / "out"
    good = (own / "p21.jpg").read_bytes()
    (own / "p21.jpg").write_bytes(good[:100])
    assert shard(own, out, "--resume") == 2
    assert "p21.jpg: " in capsys.readouterr().err
    partial = tmp_path / "s" / ".out.partial"
    before = shard_records.left_over(partial)
    assert 0 < len(before) < 10
    assert sorted(path.name for path in partial.iterdir()) == [shard_records.FOLDER, *before]
    (own / "p21.jpg").write_bytes(good)
    assert shard(own, out, "--resume") == 0
    assert f"{len(before)} finished shards" in capsys.readouterr().out and contents(out) == fresh()


def test_a_full_disk_under_resume(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s" / "out"
    real, calls = tar.header, 0

    def full(name: str, size: int) -> bytes:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(name, size)

    monkeypatch.setattr(tar, "header", full)
    assert shard(own, out, "--resume") == 2
    error = capsys.readouterr().err
    assert "the disk is full; finished shards were kept, free some room" in error and error.count("\n") == 1
    monkeypatch.undo()
    assert shard(own, out, "--resume") == 0


def test_in_the_way_under_resume_the_left_overs_stay(own: Path, tmp_path: Path) -> None:
    out = tmp_path / "s" / "out"
    partial = interrupted(own, out)
    out.mkdir()
    (out / "dataset.json").write_text("{}")
    assert shard(own, out, "--resume") == 2
    assert len(shard_records.left_over(partial)) == 10
    assert shard(own, out, "--resume", "--force") == 0 and len(inodes(out)) == 10


def test_headers_are_those_of_tarfile() -> None:
    import tarfile

    for name, size in (("a.jpg", 0), ("k" * 80 + ".json", 1), ("x.png", 8**11 - 1), ("n" * 100, 123456789)):
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, 0o444, 0
        assert tar.header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)
    for name, size in (("n" * 101, 1), ("x", 8**11)):
        with pytest.raises(tar.DataError, match="expected at most 100 characters and 8 GiB"):
            tar.header(name, size)
