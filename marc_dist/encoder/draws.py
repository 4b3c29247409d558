"""What a network draws while it trains (stochastic depth, dropout), keyed by seed, step, sample and view.

torch's layers draw from one generator, row after row, so a sample's draws depend on which rows a rank holds. The layers
here hash instead: the mask of a row is a function of its key, of the layer's number in the network, and of the place
inside the row. Whole numbers only, so that every device gives the same bits; no generator, nothing to save.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from marc_dist.data.plan import keyed


def _signed(word: int) -> int:
    """64 bits as the int64 that has them."""
    return word - (1 << 64) if word >> 63 else word


GOLDEN = _signed(0x9E3779B97F4A7C15)
FIRST, SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)
CALLS = 1 << 20
"""More layers than a network has."""
BITS = 53
"""Of a hash, its upper bits are compared with a probability: as many as a float64 holds."""


def _shifted(x: Tensor, num: int) -> Tensor:
    """Bits moved to the right, zeros from the left; torch repeats the sign."""
    return (x >> num) & ((1 << (64 - num)) - 1)


def mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser, see ``plan``, on any device: int64 -> int64 one to one, modulo 2^64."""
    x = (x ^ _shifted(x, 30)) * FIRST
    x = (x ^ _shifted(x, 27)) * SECOND
    return x ^ _shifted(x, 31)


def row_keys(seed: int, step: int, ids: Tensor, num_views: int) -> Tensor:
    """The keys of a batch's rows.

    Args:
        seed: of the run.
        step: of the run.
        ids: (B,) int64 samples.
        num_views: V.

    Returns:
        (V * B,) int64, all of view 0, then all of view 1, ...
    """
    views = [keyed(ids.numpy(force=True), "draws", seed, step, view) for view in range(num_views)]
    return torch.from_numpy(np.concatenate(views).view(np.int64))


class Draws:
    """The keys of the rows that pass through a network now; its layers share one such object.

    Attributes:
        keys: (B,) int64 on the network's device; None = the layers draw from torch's generator, as the originals do.
    """

    keys: Tensor | None = None

    def __init__(self) -> None:
        self._calls: dict[int, int] = {}

    def call(self, number: int) -> int:
        """How often a layer was called before in this pass: each call draws anew."""
        before = self._calls.get(number, 0)
        self._calls[number] = before + 1
        return before

    @contextmanager
    def of(self, keys: Tensor | None) -> Iterator[None]:
        """Inside, rows have these keys."""
        before, self.keys = self.keys, keys
        self._calls.clear()
        try:
            yield
        finally:
            self.keys = before


class KeyedDrop(nn.Module):
    """Dropout or stochastic depth whose draws are keyed; without parameters, so that no weight changes its name.

    The input has m * B rows for B keys, m of them (the windows of a picture, say) from each sample in turn. With
    another number of rows, or without keys, it draws from torch's generator.

    Args:
        draws: where the keys are.
        number: of the layer in its network.
        p: probability of a zero.
        axes: how many axes, from the first on, have draws of their own: 1 = whole rows, 2 = channels of rows, None =
            every number.
        scaled: whether what is left grows by 1 / (1 - p).
    """

    def __init__(self, draws: Draws, number: int, p: float, axes: int | None, *, scaled: bool = True) -> None:
        super().__init__()
        self.draws, self.number, self.p, self.axes, self.scaled = draws, number, p, axes, scaled

    def forward(self, x: Tensor) -> Tensor:
        """(m * B, ...) -> the same with zeros in it; outside of training, ``x``."""
        if not self.training or self.p == 0.0:
            return x
        keys, shape = self.draws.keys, x.shape[: self.axes]
        if keys is None or x.shape[0] % max(keys.shape[0], 1):
            kept = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1.0 - self.p)
        else:
            kept = keep(keys, self.number + CALLS * self.draws.call(self.number), self.p, shape).to(x.dtype)
        if self.scaled and self.p < 1.0:
            kept = kept / (1.0 - self.p)
        return x * kept.reshape(*shape, *[1] * (x.ndim - len(shape)))

    def extra_repr(self) -> str:
        """Shown when the network is printed."""
        return f"number={self.number}, p={self.p:g}, axes={self.axes}"


def keep(keys: Tensor, number: int, p: float, shape: torch.Size) -> Tensor:
    """Which numbers of an input stay: for each row and layer, the places are a stream of splitmix64.

    Args:
        keys: (B,) int64 of the rows.
        number: of the layer, and ``CALLS`` times how often it was called before.
        p: probability of leaving one out.
        shape: (m * B, ...) of the draws; the m rows of a sample follow each other.

    Returns:
        Booleans of this shape.
    """
    places = torch.arange(1, shape.numel() // max(keys.shape[0], 1) + 1, device=keys.device)
    states = mix(keys + _signed(number * GOLDEN % (1 << 64)))
    drawn = _shifted(mix(states[:, None] + places * GOLDEN), 64 - BITS)
    return (drawn >= round(p * (1 << BITS))).reshape(shape)


AXES: dict[type[nn.Module], int | None] = {nn.Dropout: None, nn.Dropout1d: 2, nn.Dropout2d: 2, nn.Dropout3d: 2}


def key_layers(network: nn.Module, draws: Draws) -> None:
    """Replace timm's stochastic depth and torch's dropout inside a network by layers whose draws are keyed.

    They are numbered from 1 on, in the order of the network's modules. Layers that draw in another way stay as they
    are; ``generator_state`` tells.

    Args:
        network: changed in place.
        draws: where its layers will look for keys.
    """
    from timm.layers import DropPath

    number = 0
    for name, module in list(network.named_modules(remove_duplicate=False)):  # one in two places becomes two
        if isinstance(module, DropPath) and type(module) is DropPath and module.drop_prob:
            keyed = KeyedDrop(draws, number + 1, module.drop_prob, 1, scaled=module.scale_by_keep)
        elif type(module) in AXES and module.p:
            keyed = KeyedDrop(draws, number + 1, cast(float, module.p), AXES[type(module)])
        else:
            continue
        number += 1
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, keyed.train(module.training))


def generator_state(device: torch.device) -> list[Tensor]:
    """Where torch's generators are: if a pass moves them, something in the network draws from them."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
