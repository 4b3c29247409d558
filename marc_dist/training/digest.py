"""Faulty hardware that nobody notices: what all ranks hold in common is compared, number by number, every few steps.

The ranks of a run take the same update, so their weights, averages and optimiser states are equal, bit for bit, after
every step. Each tensor is added up as whole numbers: one wrong number always changes its sum, and sums have no rounding
and no order. A rank that differs has a fault in its memory, its processor or GPU, or its network.

Why a step may be repeated: the states before it were found equal and a copy of each rank's own was kept, so a second
try that ends equal is the step of a sound machine. Why nothing else is repaired: where states already differ before a
step, wrong gradients may have reached every rank, and only a checkpoint that was compared is known to be good.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from marc_dist import comm
from marc_dist.encoder.model import Learner
from marc_dist.run.rank_ends import node_name
from marc_dist.training.memory import Memory

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
NAMED = 3


class Common(NamedTuple):
    """What all ranks hold in common.

    Attributes:
        learner: what is trained.
        optimiser: over its parameters.
        averaged: the moving average of the encoder, if there is one.
        memory: rows of earlier steps.
        buffers: whether running statistics are equal, too: not those of ``model.batch_norm=plain``.
    """

    learner: Learner
    optimiser: torch.optim.Optimizer
    averaged: torch.nn.Module | None
    memory: Memory
    buffers: bool = True

    def tensors(self) -> dict[str, Tensor]:
        """Every number that is compared, by a name for people."""
        modules = {"": self.learner, "average of ": self.averaged}
        found = {
            f"{prefix}{name.removeprefix('encoder.')}": value
            for prefix, module in modules.items()
            if module is not None
            for name, value in [*module.named_parameters(), *(module.named_buffers() if self.buffers else ())]
        }
        names = {id(x): name.removeprefix("encoder.") for name, x in self.learner.named_parameters()}
        for parameter, state in self.optimiser.state.items():
            found |= {f"{key} of {names[id(parameter)]}": x for key, x in state.items() if isinstance(x, Tensor)}
        return found | {f"memory's {name}": value for name, value in self.memory.state().items()}


def sums(tensors: dict[str, Tensor], device: torch.device) -> Tensor:
    """(T,) int64: the bits of each tensor as whole numbers, added up modulo 2^64; any layout, dtype and device."""
    found = [x.detach().view(WORDS[x.element_size()]).sum(dtype=torch.int64).to(device) for x in tensors.values()]
    return torch.stack(found)


def odd_ones(found: list[tuple[int, ...]]) -> list[int]:
    """Ranks that do not hold what most hold; all of them where no more than half agree.

    Args:
        found: what each rank holds.
    """
    most, number = Counter(found).most_common(1)[0]
    if 2 * number <= len(found):
        return list(range(len(found)))
    return [rank for rank, one in enumerate(found) if one != most]


class Comparison:
    """Compares, keeps a copy, goes back to it.

    Args:
        common: what is compared; asked each time, because its parts change when frozen ones begin to learn.
        device: where collectives want their tensors.
    """

    def __init__(self, common: Callable[[], Common], device: torch.device) -> None:
        self._common, self._device = common, device
        self._kept: dict[str, Any] = {}

    def difference(self) -> str | None:
        """Which ranks differ and in what, in words; None when all are equal. A collective, the same on every rank."""
        tensors = self._common().tensors()
        every = comm.gather_vectors(sums(tensors, self._device)).cpu()
        if bool((every == every[0]).all()):
            return None
        odd = odd_ones([tuple(one) for one in every.tolist()])
        nodes = comm.gather_object(node_name())
        ranks = ", ".join(f"rank {rank} ({nodes[rank]})" for rank in odd)
        columns = (every != every[0]).any(dim=0).nonzero().flatten().tolist()
        names = [list(tensors)[column] for column in columns]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        told = f"in {', '.join(names[:NAMED])}{more}"
        if len(odd) == len(nodes):
            return f"{ranks} hold different numbers {told}, and no majority tells which is right"
        return f"{ranks} {'holds' if len(odd) == 1 else 'hold'} other numbers than the other ranks {told}"

    def keep(self) -> None:
        """Copy this rank's state, to go back to."""
        common = self._common()
        self._kept = {
            "learner": _copies(common.learner.state_dict()),
            "optimiser": copy.deepcopy(common.optimiser.state_dict()),
            "averaged": None if common.averaged is None else _copies(common.averaged.state_dict()),
            "memory": common.memory.state(),
        }

    def go_back(self) -> None:
        """The state that was kept."""
        common, kept = self._common(), self._kept
        common.learner.load_state_dict(kept["learner"])
        common.optimiser.load_state_dict(kept["optimiser"])
        if common.averaged is not None:
            common.averaged.load_state_dict(kept["averaged"])
        common.memory.load(kept["memory"])

    def drop(self) -> None:
        """Free the copy."""
        self._kept = {}


def _copies(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}
