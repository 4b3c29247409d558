"""Worlds of gloo ranks for tests: fresh processes that meet in a file, with a hard time limit.

The ranks come from a fork server that has torch loaded already: a world costs a tenth of a second.

``run_in_world(fn, 3, *args)`` calls the module-level function ``fn(*args)`` on three ranks and returns their results in
rank order. An error on any rank ends the world and is raised here with the rank's traceback.
"""

from __future__ import annotations

import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from marc_dist.data.loader_pool import STOP_SIGNALS, worker_context

LIMIT_S = 120.0


class WorldError(AssertionError):
    """A rank failed, died or took too long."""


def _rank_main(pipe: Connection, rank: int, size: int, store: str, call: bytes) -> None:
    import warnings

    warnings.simplefilter("error")
    import torch

    from marc_dist import comm

    torch.set_num_threads(1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # the server has them blocked
    try:
        fn, args, kwargs = pickle.loads(call)
        if size > 1:
            comm.join_file(rank, size, store)
        result = fn(*args, **kwargs)
        pipe.send(("ok", pickle.dumps(result)))
        comm.leave()
    except BaseException:
        pipe.send(("error", traceback.format_exc()))


def fork_server() -> Any:
    """The context of every process that tests start: one server, which loaders use, too, and which signals spare."""
    return worker_context(["timm", "marc_dist.comm", "marc_dist.data.loader"])


def run_in_world(fn: Callable[..., Any], size: int, *args: Any, limit_s: float = LIMIT_S, **kwargs: Any) -> list[Any]:
    """Results of ``fn(*args, **kwargs)`` on ``size`` ranks, in rank order.

    Raises:
        WorldError: a rank raised (its traceback is the message; the first one to fail), died, or the limit passed.
    """
    context = fork_server()
    with tempfile.TemporaryDirectory(prefix="marc-world-") as folder:
        call = pickle.dumps((fn, args, kwargs))
        pipes: dict[Connection, int] = {}
        processes = []
        for rank in range(size):
            ours, theirs = context.Pipe(duplex=False)
            store = str(Path(folder) / "store")
            process = context.Process(target=_rank_main, args=(theirs, rank, size, store, call))
            process.start()
            theirs.close()
            pipes[ours] = rank
            processes.append(process)
        try:
            return _collect(pipes, size, time.monotonic() + limit_s)
        except BaseException:
            for process in processes:
                process.kill()
            raise
        finally:
            for process in processes:
                process.join(timeout=10)
                if process.is_alive():
                    process.kill()
                    process.join()


def _collect(pipes: dict[Connection, int], size: int, deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while pipes:
        ready = wait(list(pipes), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise WorldError(f"ranks {sorted(pipes.values())} of {size} still ran at the time limit")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = pipes.pop(pipe)
            try:
                kind, value = pipe.recv()
            except EOFError:
                raise WorldError(f"rank {rank} of {size} died without a word") from None
            if kind == "error":
                raise WorldError(f"rank {rank} of {size}:\n{value}")
            results[rank] = pickle.loads(value)
    return [results[rank] for rank in range(size)]
