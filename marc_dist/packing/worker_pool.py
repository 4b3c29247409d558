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
from typing import Any

from marc_dist.config import DataError

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


def work(jobs: Iterable[PoolTask], done: Callable[[PoolTask, Any], Iterable[PoolTask]], workers: int) -> None:
    """Do every job, here and in ``workers - 1`` helper processes; the first failure ends the rest.

    Args:
        jobs: in the order in which they are begun.
        done: called here with each job and its result, in whatever order they end; returns jobs to do next.
        workers: processes in all.

    Raises:
        DataError: a helper was killed.
    """
    queue = deque(jobs)
    if workers <= 1 or len(queue) <= 1:
        while queue:
            job = queue.popleft()
            queue.extendleft(reversed(list(done(job, job[0](*job[1])))))
        return
    # spawn: the caller may hold threads (the progress display, a test's torch), which a fork must not copy
    helpers = min(workers, len(queue)) - 1
    pool = ProcessPoolExecutor(helpers, multiprocessing.get_context("spawn"), initializer=start_worker)
    try:
        _share_out(queue, done, pool, 2 * helpers)
    except BrokenProcessPool:
        raise DataError("a packing process was killed; out of memory? try --workers 1") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _share_out(
    queue: deque[PoolTask], done: Callable[[PoolTask, Any], Iterable[PoolTask]], pool: ProcessPoolExecutor, ahead: int
) -> None:
    """Keep ``ahead`` jobs with the helpers and do the next one here; starting a helper takes as long as many jobs."""
    away: dict[Future[Any], PoolTask] = {}
    while queue or away:
        while queue and len(away) < ahead:
            job = queue.popleft()
            away[pool.submit(job[0], *job[1])] = job
        if queue:
            job = queue.popleft()
            queue.extendleft(reversed(list(done(job, job[0](*job[1])))))
        else:
            wait(away, return_when=FIRST_COMPLETED)
        for future in [future for future in away if future.done()]:
            queue.extendleft(reversed(list(done(away.pop(future), future.result()))))
