"""Small jobs for every core: this process works too, beside helpers that leave Ctrl-C to it and die with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any

from marc_dist.config import DataError

AHEAD = 6  # jobs that lie ready for each helper: while this process waits for a disk, no core does
PoolTask = tuple[Callable[..., Any], tuple[Any, ...]]  # a function of a module, and what it is called with


def start_worker() -> None:
    """Run at the start of a worker, in its main thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
    """A killed parent cannot tell its workers, and a pool's worker would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Queue:
    """Jobs that are made when their turn comes; those that follow from a finished one go first."""

    def __init__(self, jobs: Iterable[PoolTask]) -> None:
        self._first: deque[PoolTask] = deque()
        self._rest = iter(jobs)

    def add(self, jobs: Iterable[PoolTask]) -> None:
        self._first.extendleft(reversed(list(jobs)))

    def next(self) -> PoolTask | None:
        """The next job, if there is one now."""
        return self._first.popleft() if self._first else next(self._rest, None)


def work(jobs: Iterable[PoolTask], done: Callable[[PoolTask, Any], Iterable[PoolTask]], workers: int) -> None:
    """Do every job, here and in ``workers - 1`` helper processes; the first failure ends the rest.

    Args:
        jobs: in the order in which they are begun; each is asked for shortly before.
        done: called here with each job and its result, in whatever order they end; returns jobs to do next.
        workers: processes in all.

    Raises:
        DataError: a helper was killed.
    """
    every = iter(jobs)
    first = list(islice(every, max(workers, 1)))
    queue = _Queue(chain(first, every))
    if len(first) <= 1:
        while (job := queue.next()) is not None:
            queue.add(done(job, job[0](*job[1])))
        return
    # spawn: the caller may hold threads (the progress display, a test's torch), which a fork must not copy
    helpers = len(first) - 1
    pool = ProcessPoolExecutor(helpers, multiprocessing.get_context("spawn"), initializer=start_worker)
    try:
        _share_out(queue, done, pool, AHEAD * helpers)
    except BrokenProcessPool:
        raise DataError("a packing process was killed; out of memory? try --workers 1") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _share_out(
    queue: _Queue, done: Callable[[PoolTask, Any], Iterable[PoolTask]], pool: ProcessPoolExecutor, ahead: int
) -> None:
    """Keep ``ahead`` jobs with the helpers and do the next one here; starting a helper takes as long as many jobs."""
    away: dict[Future[Any], PoolTask] = {}
    while True:
        while len(away) < ahead and (job := queue.next()) is not None:
            away[pool.submit(job[0], *job[1])] = job
        here = queue.next()
        if here is not None:
            queue.add(done(here, here[0](*here[1])))
        elif away:
            wait(away, return_when=FIRST_COMPLETED)
        else:
            return
        for future in [future for future in away if future.done()]:
            queue.add(done(away.pop(future), future.result()))
