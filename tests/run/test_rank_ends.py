"""A rank notes when and why it failed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from marc_dist.config import DataError
from marc_dist.run.attempt_id import AttemptId
from marc_dist.run.rank_ends import (
    FAILURE_FILE,
    ROOM,
    end_path,
    failures_noted,
    job_end,
    make_room,
    note_end,
    note_failure,
    read_end,
    read_ends,
)


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


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of rank 0 of some attempt, as its launcher has made it; this process is the rank."""
    path, mine = end_path(tmp_path, 0), AttemptId("abc", 1)
    make_room(path, mine)
    monkeypatch.setenv(FAILURE_FILE, str(path))
    for name, value in mine.variables().items():
        monkeypatch.setenv(name, value)
    return path


@pytest.mark.parametrize("skew_s", [-300.0, 300.0])
def test_which_rank_was_first_does_not_depend_on_the_clocks_of_their_machines(
    skew_s: float, launched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the simulator: a rank on a machine whose clock is behind was named in place of the cause."""
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + skew_s)
    with pytest.raises(ValueError, match="x"), failures_noted():
        raise ValueError("x")
    told = read_end(launched.parent, 0, AttemptId("abc", 1))
    assert told is not None and abs(told.time - right()) < 60
    make_room(launched, AttemptId("abc", 1))
    note_end(launched, -9, time.time() - 2.0, AttemptId("abc", 1))
    killed = read_end(launched.parent, 0, AttemptId("abc", 1))
    assert killed is not None and abs(killed.time + 2.0 - right()) < 60


def test_the_first_words_of_a_rank_stay(launched: Path) -> None:
    note_failure("the cause")
    note_failure("what came of it")
    told = read_end(launched.parent, 0)
    assert told is not None and told.error == "the cause"


def test_a_rank_that_was_told_to_end_stays_one_when_it_fails_on_its_way(launched: Path) -> None:
    """Found by the simulator: when its task had no time to say so again, it was named as the cause."""
    note_end(launched, None, time.time(), AttemptId("abc", 1), asked=True)
    note_failure("connection closed by peer")
    told = read_end(launched.parent, 0)
    assert told is not None and told.asked and told.error == "connection closed by peer"


def test_a_rank_that_was_asked_to_end_ended_when_it_ended(tmp_path: Path) -> None:
    """Found by the simulator: asked at 5 s, killed at 30 s since a peer had failed at 19 s, it was named first."""
    mine, offset = AttemptId("abc", 0), time.time()
    for rank in (0, 1):
        make_room(end_path(tmp_path, rank), mine)
    note_end(end_path(tmp_path, 1), None, offset - 100.0, mine, asked=True)
    note_end(end_path(tmp_path, 0), 2, offset - 50.0, mine)
    note_end(end_path(tmp_path, 1), -9, offset - 20.0, mine, asked=True)
    ends = read_ends(tmp_path, 2, mine)
    assert ends[1] is not None and abs(ends[1].time - (offset - 20.0)) < 10.0
    assert job_end(ends, 137, tmp_path).rank == 0
    note_end(end_path(tmp_path, 1), -9, offset - 60.0, mine, asked=True)  # killed while it saved, before any failed
    assert job_end(read_ends(tmp_path, 2, mine), 137, tmp_path).rank == 1
