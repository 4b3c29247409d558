"""All or nothing: a reader at any moment sees the old folder or the new one, and a crash leaves no more than that."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from marc_dist.config import DataError
from marc_dist.packing import publish
from marc_dist.packing.publish import publication


def write(out: Path, text: str, *, force: bool = True) -> None:
    with publication(out, force) as folder:
        (folder / "dataset.json").write_text(text)


def leftovers(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if path != out)


def test_the_new_folder_takes_the_old_one_s_place(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    write(out, "1", force=False)
    write(out, "2")
    assert (out / "dataset.json").read_text() == "2" and leftovers(out) == []


def test_without_exchange_the_two_renames_do_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "_exchange", lambda one, two: False)
    out = tmp_path / "out"
    write(out, "1")
    write(out, "2")
    assert (out / "dataset.json").read_text() == "2" and leftovers(out) == []


def test_a_reader_never_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two steps of a replacement the old folder or the new one is there."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    if not publish._exchange(tmp_path / "one", tmp_path / "two"):
        pytest.skip("this file system cannot exchange two names")
    out = tmp_path / "out"
    write(out, "1")
    seen: list[str] = []
    real_rename, real_rmtree = Path.rename, shutil.rmtree

    def rename(path: Path, target: Path) -> Path:
        result = real_rename(path, target)
        seen.append((out / "dataset.json").read_text())
        return result

    def rmtree(path: Path, **options: bool) -> None:
        seen.append((out / "dataset.json").read_text())
        real_rmtree(path, **options)

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    write(out, "2")
    assert seen and set(seen) == {"1", "2"} and seen == sorted(seen)


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    out = tmp_path / "out"
    write(out, "1")
    with pytest.raises(type(error)), publication(out, True) as folder:
        (folder / "dataset.json").write_text("2")
        raise error
    assert (out / "dataset.json").read_text() == "1" and leftovers(out) == []


def test_a_crash_between_the_renames_is_mended(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "1")
    out.rename(tmp_path / ".out.old")
    (tmp_path / ".out.partial" / "sub").mkdir(parents=True)
    with pytest.raises(DataError, match="exists; pass --force"):
        write(out, "2", force=False)
    assert (out / "dataset.json").read_text() == "1" and leftovers(out) == []


def test_two_at_once_do_not_mix(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = f"""
from pathlib import Path
from marc_dist.packing.publish import publication
with publication(Path({str(out)!r}), False) as folder:
    (folder / "dataset.json").write_text("first")
    print("in", flush=True)
    input()
"""
    first = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdin and first.stdout and first.stdout.readline() == "in\n"
    with pytest.raises(DataError, match="another marc-shard is writing it"):
        write(out, "second")
    first.communicate("\n")
    assert first.returncode == 0 and (out / "dataset.json").read_text() == "first"


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="file: cannot write there"):
        write(tmp_path / "file" / "out", "1")
    with pytest.raises(DataError, match="exists and is not a shard folder"):
        write(tmp_path / "file", "1")
