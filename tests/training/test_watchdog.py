"""Who is late, in words; a main thread that says nothing; one that works is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from marc_dist.run.heartbeats import PHASES, Beat, beat_path, late_ranks
from marc_dist.training.watchdog import Watchdog


def beat(rank: int, step: int, phase: str, age_s: float = 0.5) -> Beat:
    return Beat(rank, step, PHASES.index(phase), f"node{rank}", 1000 + rank, age_s)


@pytest.mark.parametrize(
    ("beats", "words"),
    [
        (
            [beat(0, 7, "gathering"), beat(1, 7, "loading"), beat(2, 7, "gathering")],
            "rank 1 (node1, process 1001) is still loading in step 7",
        ),
        ([beat(0, 8, "loading"), beat(1, 7, "saving")], "rank 1 (node1, process 1001) is still saving in step 7"),
        (
            [beat(0, 7, "gathering"), beat(1, 7, "gathering", 70.0)],
            "rank 1 (node1, process 1001) stopped answering 70 s ago, gathering in step 7",
        ),
        ([beat(0, 1, "starting"), None], "rank 1 never started"),
        (
            [beat(0, 3, "gathering"), beat(1, 3, "gathering")],
            "all ranks are gathering in step 3; the network between them, or their storage, does not answer",
        ),
    ],
    ids=["behind", "a step behind", "silent", "absent", "nobody"],
)
def test_who_is_late(beats: list[Beat | None], words: str) -> None:
    assert late_ranks(beats, 120.0) == words


def test_ranks_that_have_left_are_not_called_late() -> None:
    """They take their beats away when the last step is saved; who is stuck after that is late alone."""
    alone = "rank 0 (node0, process 1000) is still saving in step 10; the others have left"
    assert late_ranks([beat(0, 10, "saving"), None, None], 120.0, met=True) == alone


def test_a_silent_main_thread_is_given_up_and_the_late_rank_named(tmp_path: Path) -> None:
    reasons: list[str] = []
    told = threading.Event()

    def give_up(reason: str) -> None:
        reasons.append(reason)
        told.set()

    late = Watchdog(tmp_path, 1, 2, 60.0, give_up)
    late.start()
    late.at(3, "loading")
    late._write()
    waiting = Watchdog(tmp_path, 0, 2, 1.0, give_up)
    waiting.start()
    waiting.at(3, "gathering")
    assert told.wait(10)
    waiting.stop()
    late.stop()
    assert "rank 0 waited 1 s gathering in step 3: rank 1" in reasons[0]
    assert "is still loading in step 3; start the same command again" in reasons[0]
    assert not beat_path(tmp_path, 0).exists()


def test_one_that_works_is_left_alone(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path, 0, 1, 1.0, lambda reason: pytest.fail(reason))
    watchdog.start()
    for step in range(1, 12):
        watchdog.at(step, "encoding")
        time.sleep(0.15)
    watchdog.stop()


def test_time_in_which_the_process_was_stopped_does_not_count(tmp_path: Path) -> None:
    """As after Ctrl-Z: a thread that wakes long after it meant to gives nobody up."""
    script = f"""
import os, signal, sys, time
from pathlib import Path
from marc_dist.training.watchdog import Watchdog
watchdog = Watchdog(Path({str(tmp_path)!r}), 0, 1, 1.5, lambda reason: (print(reason, flush=True), os._exit(75)))
watchdog.start()
watchdog.at(1, "loading")
print("ready", flush=True)
time.sleep(float(sys.argv[1]))
"""
    for sleep, code in (("0.9", 0), ("20", 75)):  # the second one does hang
        process = subprocess.Popen([sys.executable, "-c", script, sleep], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(process.pid, signal.SIGCONT)
        said = process.communicate(timeout=60)[0]
        assert process.returncode == code
        assert ("no progress for" in said) == bool(code)
