"""Files, locks and JSON of every room: a lock ends with its process, damaged lines are left out."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from marc_dist.config import LaunchError
from marc_dist.files import json_records, locked, read_json, set_member, try_lock, write_set

HOLDER = """
import sys, time
from pathlib import Path
from marc_dist.files import try_lock
lock = try_lock(Path(sys.argv[1]))
print("mine" if lock else "not mine", flush=True)
time.sleep(60)
"""


def test_a_lock_is_one_process_s_and_ends_with_it_however_that_ends(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "mine\n"
    assert try_lock(path) is None
    rounds = []

    def wait() -> None:
        rounds.append(1)
        if len(rounds) == 2:
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()

    with locked(path, wait):
        assert len(rounds) == 2 and try_lock(path) is None
    again = try_lock(path)
    assert again is not None
    again.release()
    holder.stdout.close()


def test_whoever_waits_may_give_up(tmp_path: Path) -> None:
    def give_up() -> None:
        raise TimeoutError

    with locked(tmp_path / ".lock", give_up):
        with pytest.raises(TimeoutError), locked(tmp_path / ".lock", give_up):
            pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[1]", "expected an object, got list"),
        ("[" * 100_000, "maximum recursion depth"),
        ('{"a": "\xff"', "Unterminated string|delimiter"),
    ],
)
def test_json_that_is_damaged_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as told:
        read_json(path)
    assert "\n" not in str(told.value)


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")
    with pytest.raises(ValueError, match="Is a directory"):
        read_json(tmp_path)
    (tmp_path / "a.json").write_text('{"tau": 0.1}')
    assert read_json(tmp_path / "a.json") == {"tau": 0.1}


def test_records_of_a_damaged_file() -> None:
    lines = [b'{"step": 1}\n', b"torn {\n", b"[2]\n", b"\xff\n", b'{"step": 3}']
    assert [(line, record["step"]) for line, record in json_records(lines)] == [(lines[0], 1), (lines[4], 3)]


def test_an_index_that_cannot_be_read_just_now_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files were taken for those of a set that was never finished, and removed: nothing was left of old or new."""
    sums = {"a": hashlib.sha256(b"new").hexdigest()}
    real, reads = Path.read_text, list[str]()

    def read(path: Path, *words: Any, **rest: Any) -> str:
        reads.append(path.name)
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(Path, "read_text", read)
    with pytest.raises(LaunchError, match="Input/output error"):
        write_set(tmp_path, {"a": b"new"}, "index.json", json.dumps({"sha256": sums}).encode())
    assert reads == ["index.json"]
    monkeypatch.setattr(Path, "read_text", real)
    assert set_member(tmp_path, "a", sums).read_bytes() == b"new"
