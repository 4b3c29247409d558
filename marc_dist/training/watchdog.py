"""A run that hangs names the late rank and ends: one thread a rank looks on, files in the run folder tell the others.

The main thread says where it is (``at``), which costs nothing. The thread writes it down every few seconds, in
``RUN/logs/.beat-K.json``: a rank whose file gets old is stopped, frozen or gone with its machine; of ranks that still
write, the one that is furthest behind is late. Files, because the process group's store lives in rank 0, which may be
the one that hangs, and because a thread cannot wake a main thread that waits in a collective: it ends the process.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from marc_dist.data.loader_pool import kill_workers
from marc_dist.run.attempt_id import attempt_from_env
from marc_dist.run.heartbeats import PHASES, SHARES, beat_path, late_ranks, read_beats

STOPPED_S = 1.0
"""A watching thread that wakes so much later than it meant to was stopped, with its whole process."""
ALONE = {
    "starting": "the storage under data.dir or the network, from which weights are fetched, does not answer",
    "loading": "no batch comes; a loader process is frozen, or the storage under data.dir does not answer",
    "saving": "the storage under train.run_dir does not answer",
}
"""What a run of one process waits for."""


class Watchdog:
    """Looks on while the main thread works.

    Args:
        run_dir: the run folder.
        rank: of this process.
        world: number of processes.
        timeout_s: seconds without a word from the main thread after which the run counts as hung.
        give_up: called with the explanation, in the watching thread; must end the process.
    """

    def __init__(self, run_dir: Path, rank: int, world: int, timeout_s: float, give_up: Callable[[str], None]) -> None:
        self.run_dir, self.rank, self.world, self.timeout_s, self.give_up = run_dir, rank, world, timeout_s, give_up
        self._host, self._pid = socket.gethostname(), os.getpid()
        self._step, self._phase, self._since = 0, 0, time.monotonic()
        self._mine = attempt_from_env(os.environ)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look on; old beats of this rank go first. A run of one process beats for nobody."""
        if self.world > 1:
            beat_path(self.run_dir, self.rank).parent.mkdir(parents=True, exist_ok=True)
            self._write()
        self._thread.start()

    def at(self, step: int, phase: str) -> None:
        """The main thread says where it is: ``step`` from 1, ``phase`` one of ``PHASES``."""
        self._step, self._phase, self._since = step, PHASES.index(phase), time.monotonic()

    def stop(self) -> None:
        """Look on no longer."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(OSError):
            beat_path(self.run_dir, self.rank).unlink()

    def _look_on(self) -> None:
        every = self.timeout_s / SHARES
        looked = time.monotonic()
        while not self._stop.wait(every):
            if self.world > 1:
                self._write()
            now = time.monotonic()
            if now - looked > every + STOPPED_S:  # Ctrl-Z, a laptop asleep: time in which nobody could work
                self._since = min(now, self._since + now - looked - every)
            looked = now
            if now - self._since > self.timeout_s:
                reason = self._reason(now - self._since)
                kill_workers()  # one that is frozen would outlive this process
                self.give_up(reason)

    def _reason(self, waited_s: float) -> str:
        where = f"{PHASES[self._phase]} in step {self._step}"
        if self.world == 1:
            what = f"{self.run_dir}: no progress for {waited_s:.0f} s, {where} (process {self._pid} on {self._host}): "
            what += ALONE.get(PHASES[self._phase], "the process is frozen")
        else:
            what = f"{self.run_dir}: rank {self.rank} waited {waited_s:.0f} s {where}: "
            beats = read_beats(self.run_dir, self.world, self._mine)
            what += late_ranks(beats, self.timeout_s, met=self._step > 0)  # before the first step all ranks meet
        return f"{what}; start the same command again to go on from the newest checkpoint, or raise train.timeout_s"

    def _write(self) -> None:
        path = beat_path(self.run_dir, self.rank)
        beat = {"step": self._step, "phase": self._phase, "host": self._host, "pid": self._pid}
        with suppress(OSError):  # a full disk is the main thread's to tell
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps({**beat, "time": time.time(), **self._mine.record()}))
            temporary.replace(path)
