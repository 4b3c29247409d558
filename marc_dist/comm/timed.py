"""Collectives with a stop-watch and a time limit, for looking at the network of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def _timed(start: Callable[[], Sequence[Any]], device: torch.device, limit_s: float) -> float:
    """Seconds until what ``start`` begins has ended."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    for work in start():
        _wait(work, began + limit_s, limit_s)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _wait(work: Any, deadline: float, limit_s: float) -> None:
    late = TimeoutError(f"not done within {limit_s:g} s")
    if dist.get_backend() == "gloo":  # whose sends and receives end in wait only
        try:
            work.wait(timedelta(seconds=max(0.001, deadline - time.perf_counter())))
        except RuntimeError:
            if time.perf_counter() > deadline - 0.1:  # it rounds, and ends a little early
                raise late from None
            raise
        return
    while not work.is_completed():  # NCCL's wait has no limit of its own
        if time.perf_counter() > deadline:
            raise late
        time.sleep(0)
    work.wait()


def all_reduce(x: Tensor, limit_s: float) -> float:
    """Sum over ranks, in place; the seconds it took.

    Raises:
        RuntimeError, TimeoutError: it failed, or took longer than ``limit_s``; the group is of no use after that.
    """
    return _timed(lambda: [dist.all_reduce(x, async_op=True)] if dist.is_initialized() else [], x.device, limit_s)


def broadcast(x: Tensor, source: int, limit_s: float) -> float:
    """Rank ``source``'s tensor into every rank's ``x``; the seconds it took.

    Args:
        x: the same shape and type on all ranks; overwritten except on ``source``.
        source: the rank that sends.
        limit_s: seconds after which it counts as failed.

    Raises:
        RuntimeError, TimeoutError: as ``all_reduce``.
    """
    return _timed(
        lambda: [dist.broadcast(x, source, async_op=True)] if dist.is_initialized() else [], x.device, limit_s
    )


def swap(mine: Tensor, theirs: Tensor, peer: int, limit_s: float) -> float:
    """Send ``mine`` to rank ``peer`` while its tensor comes into ``theirs``; the seconds until both have arrived.

    With NCCL all ranks must have met in some collective before.

    Args:
        mine: what is sent.
        theirs: overwritten; shape and type of what the peer sends.
        peer: the other rank, which calls this at the same time.
        limit_s: seconds after which it counts as failed.

    Raises:
        RuntimeError, TimeoutError: as ``all_reduce``.
    """

    def start() -> Sequence[Any]:
        return dist.batch_isend_irecv([dist.P2POp(dist.isend, mine, peer), dist.P2POp(dist.irecv, theirs, peer)])

    return _timed(start, mine.device, limit_s)
