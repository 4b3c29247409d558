"""One run in a folder at a time: who may have it, who has gone, and what happens when it is taken away."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from marc_dist.config import LaunchError
from marc_dist.run import run_lock
from marc_dist.run.attempt_id import AttemptId
from marc_dist.run.lock_file import RUN_LOCK, Holder, claim, moved, read_holder, verdict, write_over
from marc_dist.run.run_lock import LAUNCH_LOCK, RunLock, announce, live_holder, me, withdraw

BY_HAND, FIRST, SECOND, OTHER = AttemptId(), AttemptId("a1", 0), AttemptId("a1", 1), AttemptId("b2", 0)


def _holder(attempt: AttemptId, writes: int = 3) -> Holder:
    return Holder("n1", "another boot", 77, 5, attempt, "f00d", writes)


@pytest.mark.parametrize(
    ("held", "mine", "alive", "found"),
    [
        (None, BY_HAND, None, "free"),
        (_holder(BY_HAND), BY_HAND, True, "held"),
        (_holder(BY_HAND), BY_HAND, False, "free"),
        (_holder(BY_HAND), BY_HAND, None, "watch"),
        (_holder(FIRST), FIRST, True, "ours"),  # of the launcher, for its ranks
        (_holder(FIRST), SECOND, None, "ours"),  # requeued: its predecessor was killed, on whatever node
        (_holder(SECOND), FIRST, True, "held"),  # a straggler gets nothing back
        (_holder(SECOND), FIRST, None, "watch"),
        (_holder(OTHER), FIRST, True, "held"),
        (_holder(OTHER), FIRST, False, "free"),
        (_holder(FIRST), BY_HAND, True, "held"),
        (_holder(BY_HAND), FIRST, None, "watch"),
    ],
)
def test_who_may_have_the_folder(held: Holder | None, mine: AttemptId, alive: bool | None, found: str) -> None:
    assert verdict(held, mine, alive) == found


def test_a_holder_that_writes_lives() -> None:
    first = _holder(FIRST)
    assert not moved(first, first) and not moved(first, None)
    assert moved(first, _holder(FIRST, 4)) and moved(first, first._replace(nonce="beef"))


def _never(reason: str) -> None:
    raise AssertionError(reason)


def _quiet(text: str) -> None:
    pass


def _soon(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _lock(run: Path, mine: AttemptId = BY_HAND, lost: Callable[[str], None] = _never, watch_s: float = 5.0) -> RunLock:
    return RunLock(run, mine, lost, refresh_s=0.05, watch_s=watch_s)


def test_a_second_run_is_refused_and_a_freed_folder_is_free(tmp_path: Path) -> None:
    with _lock(tmp_path).held(_quiet):
        held = read_holder(tmp_path)
        assert held is not None and held.pid == os.getpid()
        with pytest.raises(LaunchError, match=rf"a run is live there, process {os.getpid()} on .*; wait for its end"):
            _lock(tmp_path).take(_quiet)
    assert not (tmp_path / RUN_LOCK).exists()
    with _lock(tmp_path, FIRST).held(_quiet):
        pass


def test_a_killed_holder_of_this_machine_is_gone_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, os\nfrom pathlib import Path\nfrom marc_dist.run.run_lock import announce\n"
        "from marc_dist.run.attempt_id import AttemptId\nannounce(Path(sys.argv[1]), AttemptId())\nos._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert read_holder(tmp_path) is not None
    began = time.monotonic()
    with _lock(tmp_path, watch_s=60.0).held(_quiet):
        assert time.monotonic() - began < 30


def _of_another_machine(run: Path, attempt: AttemptId, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the lock as another machine would, whose processes cannot be seen."""
    with monkeypatch.context() as patched:
        patched.setattr(run_lock, "this_machine", lambda: "another boot")
        announce(run, attempt)


def test_a_silent_holder_of_another_machine_is_gone_whatever_its_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _of_another_machine(tmp_path, BY_HAND, monkeypatch)
    for ahead_s in (-3600, 3600):
        os.utime(tmp_path / RUN_LOCK, (time.time() + ahead_s,) * 2)
        said: list[str] = []
        assert live_holder(tmp_path, BY_HAND, said.append, watch_s=0.3) is None
        assert "looking for up to 0.3 s whether it still runs" in said[0]


def test_a_writing_holder_of_another_machine_lives_whatever_its_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(run_lock, "this_machine", lambda: "another boot")
        there = _lock(tmp_path)
    with there.held(_quiet):
        found = live_holder(tmp_path, BY_HAND, _quiet, watch_s=30.0)
        assert found is not None and found.nonce == there.me.nonce
        with pytest.raises(LaunchError, match="a run is live there"):
            _lock(tmp_path, watch_s=30.0).take(_quiet)


def test_the_next_attempt_takes_over_at_once_and_the_old_one_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    old = _lock(tmp_path, FIRST, lost.append)
    old.me = old.me._replace(machine="another boot")  # on a node that Slurm takes for lost
    new = _lock(tmp_path, SECOND, watch_s=1000.0)
    with old.held(_quiet), new.held(_never):
        _soon(lambda: bool(lost))
        assert f"{tmp_path}: taken over by process {os.getpid()}" in lost[0]
        held = read_holder(tmp_path)
        assert held is not None and held.attempt == SECOND


def test_what_a_straggler_writes_is_taken_back(tmp_path: Path) -> None:
    with _lock(tmp_path, SECOND).held(_quiet):
        write_over(tmp_path, me(FIRST))
        _soon(lambda: (read_holder(tmp_path) or me(FIRST)).attempt == SECOND)


def test_a_launcher_holds_the_folder_for_its_ranks(tmp_path: Path) -> None:
    announce(tmp_path, FIRST)
    with pytest.raises(LaunchError, match="a run is live there"):
        _lock(tmp_path).take(_quiet)
    with _lock(tmp_path, FIRST).held(_quiet):
        withdraw(tmp_path, OTHER)
        assert (tmp_path / RUN_LOCK).exists()
    announce(tmp_path, FIRST)
    withdraw(tmp_path, FIRST)  # its ranks were killed
    assert not (tmp_path / RUN_LOCK).exists()


@pytest.mark.parametrize(("seen", "again"), [(True, False), (True, True), (False, True)])
def test_a_removed_folder_is_noticed(seen: bool, again: bool, tmp_path: Path) -> None:
    """Also when the run itself has made it anew, to save into it."""
    run, lost = tmp_path / "run", list[str]()
    run.mkdir()
    if seen:
        (run / "config.yaml").write_text("")
    lock = _lock(run, FIRST, lost.append)
    with lock.held(_quiet):
        _soon(lambda: lock._written or not seen)
        shutil.rmtree(run)
        if again:
            (run / "checkpoints").mkdir(parents=True)
        _soon(lambda: bool(lost))
    assert lost == [f"{run}: the run folder was removed while the run was in it; start again in a new folder"]


def test_a_removed_lock_comes_back(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    with _lock(tmp_path).held(_quiet):
        (tmp_path / RUN_LOCK).unlink()
        _soon(lambda: read_holder(tmp_path) is not None)


def test_a_damaged_lock_is_nobodys(tmp_path: Path) -> None:
    for text in ("", "{", json.dumps({"host": "n1"}), json.dumps([1])):
        (tmp_path / RUN_LOCK).write_text(text)
        assert live_holder(tmp_path, BY_HAND, _never) is None
    with _lock(tmp_path).held(_quiet):
        assert read_holder(tmp_path) is not None


def test_a_run_that_wrote_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with _lock(tmp_path / "runs" / "a").held(_quiet):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "b").mkdir()
    with _lock(tmp_path / "b").held(_quiet):
        pass
    assert [path.name for path in (tmp_path / "b").iterdir()] == [LAUNCH_LOCK]


def test_a_file_system_without_locks_still_lets_one_train(tmp_path: Path) -> None:
    (tmp_path / LAUNCH_LOCK).mkdir()  # nothing that flock could take
    with _lock(tmp_path).held(_quiet), pytest.raises(LaunchError, match="a run is live there"):
        _lock(tmp_path).take(_quiet)


def test_of_many_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    taken: list[RunLock] = []
    refused: list[str] = []
    begin = threading.Barrier(8)

    def take() -> None:
        lock = _lock(tmp_path)
        begin.wait()
        try:
            lock.take(_quiet)
            taken.append(lock)
        except LaunchError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1 and len(refused) == 7
    taken[0].release()


def test_of_two_that_saw_the_same_dead_holder_one_gets_the_folder(tmp_path: Path) -> None:
    """Also where locks do not reach from one to the other."""
    dead, one, other = _holder(OTHER), me(FIRST), me(BY_HAND)
    write_over(tmp_path, dead)
    assert claim(tmp_path, dead, one)
    assert not claim(tmp_path, dead, other)
    assert read_holder(tmp_path) == one
    assert [path.name for path in tmp_path.iterdir()] == [RUN_LOCK]


def test_a_launcher_that_comes_second_is_refused(tmp_path: Path) -> None:
    assert claim(tmp_path, None, me(OTHER))
    with pytest.raises(LaunchError, match="a run is live there"):
        announce(tmp_path, FIRST)
    held = read_holder(tmp_path)
    assert held is not None and held.attempt == OTHER
