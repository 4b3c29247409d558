"""Known numbers over the network of a run: are they right when they arrive, and how fast?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from marc_dist import comm
from marc_dist.comm import timed
from marc_dist.config import LaunchError
from marc_dist.preflight.rules import MIB

NUM_BYTES = {"cpu": 8 * MIB, "cuda": 64 * MIB}
"""Of the tensors that cross the network."""
REPEATS = 3
SPAN = 251
"""A prime: data that are shifted by a chunk do not look right."""


def known_data(rank: int, count: int, device: torch.device) -> Tensor:
    """What a rank sends, (count,) float32: small integers, so that sums over 30,000 ranks are exact.

    Args:
        rank: of the sender; shifts all the numbers, by up to ``SPAN`` - 1.
        count: how many numbers.
        device: where the tensor lies.
    """
    return (torch.arange(count, dtype=torch.int32, device=device) % SPAN + rank % SPAN).to(torch.float32)


class Links:
    """One rank's side of the measurements; the same calls on all ranks, except for ``swap``.

    Args:
        device: where the tensors lie.
        limit_s: seconds for each message.
        data: what a rank sends; see ``known_data``.
    """

    def __init__(
        self, device: torch.device, limit_s: float, data: Callable[[int, int, torch.device], Tensor] = known_data
    ) -> None:
        self.device, self.limit_s, self.data = device, limit_s, data
        self.rank, self.world = comm.rank(), comm.world()
        self.num_bytes = NUM_BYTES[device.type]

    def _mine(self) -> Tensor:
        return self.data(self.rank, self.num_bytes // 4, self.device)

    def sum(self) -> dict[str, Any]:
        """Seconds of one all-reduce, the best of a few, and how many elements of its result are wrong."""
        world, count = self.world, self.num_bytes // 4
        # element i: world times (i mod SPAN), and each rank's own number
        expected = known_data(0, count, self.device) * world + sum(rank % SPAN for rank in range(world))
        seconds, wrong = [], 0
        for _ in range(REPEATS):
            x = self._mine()
            timed.all_reduce(torch.zeros(1, device=self.device), self.limit_s)  # connects, and waits for the others
            seconds.append(timed.all_reduce(x, self.limit_s))
            wrong = max(wrong, int((x != expected).sum()))
        return {"seconds": min(seconds), "wrong": wrong}

    def compare(self) -> dict[str, Any]:
        """How many elements are wrong of what each rank, one after the other, sends to all; by rank."""
        wrong = {}
        for source in range(self.world):
            expected = known_data(source, self.num_bytes // 4, self.device)
            x = self._mine() if source == self.rank else torch.empty_like(expected)
            timed.broadcast(x, source, self.limit_s)
            wrong[str(source)] = int((x != expected).sum())
        return wrong

    def swap(self, peer: int) -> dict[str, Any]:
        """GB/s with one peer, each way while the other way is as busy; the best of a few."""
        mine, expected = self._mine(), known_data(peer, self.num_bytes // 4, self.device)
        theirs = torch.empty_like(expected)
        timed.swap(mine[:1].clone(), theirs[:1].clone(), peer, self.limit_s)  # connects, and waits for the peer
        seconds = min(timed.swap(mine, theirs, peer, self.limit_s) for _ in range(REPEATS))
        wrong = int((theirs != expected).sum())
        if wrong:
            raise LaunchError(f"{wrong} elements that rank {self.rank} got from rank {peer} are wrong")
        return {"gbps": self.num_bytes / seconds / 1e9}
