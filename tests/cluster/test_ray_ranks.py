"""Which of several ranks is told to have failed first, when one of them went with its node. Needs no Ray."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from marc_dist.cluster import rank_process
from marc_dist.cluster.ray_ranks import Rank, Ranks, _Seen
from marc_dist.run.rank_ends import RankEnd, job_end

SEEN = 1000.0
"""When the first failure was seen, by the supervisor's clock."""


class Actor:
    """What a rank's actor is to whoever looks after it: nobody answers."""

    def __getattr__(self, name: str) -> Any:
        return self

    def remote(self, *values: object) -> None:
        return None


def ranks(answered: float, neighbour: RankEnd, monkeypatch: pytest.MonkeyPatch) -> Ranks:
    """Rank 0 told why it ended; rank 1, last heard of at ``answered``, was told to end and is silent."""
    found = Ranks.__new__(Ranks)
    found.failure = SEEN
    found.all = [_Seen(0, Actor(), host="one", end=neighbour), _Seen(1, Actor(), host="two", answered=SEEN - 5)]
    monkeypatch.setattr("marc_dist.cluster.ray_ranks.time.time", lambda: SEEN + 1)
    found.ask(signal.SIGTERM)
    found.all[1].answered = answered
    found.all[1].lose("no word for 12 s")
    return found


@pytest.mark.parametrize("clock", [0.0, -300.0, 300.0])
def test_a_lost_node_is_named_and_not_its_neighbour(clock: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the neighbour's clock says, and although both were told to end meanwhile."""
    broken = RankEnd(0, SEEN - 1 + clock, 1, "Connection closed by peer", "one", False)
    found = ranks(SEEN - 2, broken, monkeypatch)
    end = job_end(found.ends, 1, Path("/run/logs"))
    assert end.rank == 1 and end.lost
    assert str(end.error).startswith("rank 1 of 2 failed first (lost) on two: its node or its actor is gone")


def test_one_that_was_alive_when_another_failed_did_not_fail_first(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = RankEnd(0, SEEN - 1, 1, "ValueError: x", "one", False)
    end = job_end(ranks(SEEN + 2, fault, monkeypatch).ends, 1, Path("/run/logs"))
    assert end.rank == 0 and "ValueError: x" in str(end.error)


def test_an_end_is_told_once_it_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the simulator: before, its time was that of the own clock, which may be minutes off."""
    storage, real = threading.Event(), rank_process.note_end

    def slow(*words: Any, **rest: Any) -> None:
        assert storage.wait(120)
        real(*words, **rest)

    def soon(true: Any) -> bool:
        deadline = time.monotonic() + 120
        while not true() and time.monotonic() < deadline:
            time.sleep(0.02)
        return bool(true())

    monkeypatch.setattr(rank_process, "note_end", slow)
    monkeypatch.setenv("MARC_NODE", "one")
    actor = Rank(0, str(tmp_path))
    actor.start(["-c", "raise SystemExit(7)"], str(tmp_path), "127.0.0.1", {"MARC_NODE": "one"})
    assert soon(lambda: actor.process is not None and actor.process.code == 7)
    assert actor.poll() is None
    storage.set()
    assert soon(actor.poll)
    end = actor.poll()
    assert end is not None and (end.code, end.host) == (7, "one")
