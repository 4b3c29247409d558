"""A rank notes when and why it failed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from marc_dist.config import DataError
from marc_dist.run.rank_ends import FAILURE_FILE, ROOM, failures_noted


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DataError("x.tar:  torn\nat 3"), "x.tar: torn at 3"),
        (ValueError("bad"), "ValueError: bad"),
        (KeyError(), "KeyError: KeyError"),
    ],
)
def test_the_error_is_noted_and_passes(
    error: Exception, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "failure.json"
    monkeypatch.setenv(FAILURE_FILE, str(path))
    before = time.time()
    with pytest.raises(type(error)), failures_noted():
        raise error
    told = json.loads(path.read_text())
    assert told["error"] == text
    assert before <= told["time"] <= time.time()


def test_without_a_launcher_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FAILURE_FILE, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="x"), failures_noted():
        raise ValueError("x")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_does_not_hide_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher made room beforehand; where even that is gone, the first error still passes as it is."""
    path = tmp_path / "failure.json"
    path.write_bytes(b" " * ROOM)
    monkeypatch.setenv(FAILURE_FILE, str(path))
    with pytest.raises(ValueError, match="ä"), failures_noted():
        raise ValueError("ä" * 5000)
    assert json.loads(path.read_text())["error"].startswith("ValueError: ä") and path.stat().st_size == ROOM
    monkeypatch.setenv(FAILURE_FILE, str(tmp_path / "gone" / "failure.json"))
    with pytest.raises(ValueError, match="the cause"), failures_noted():
        raise ValueError("the cause")
