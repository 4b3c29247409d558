"""Resizing of many crops at once, on a GPU: the integer arithmetic of torch's CPU kernels for 8 bits, to the bit.

Weights of 15 bits, and 8-bit levels between the width and the height, so a GPU makes the levels that a CPU makes.
"""

from __future__ import annotations

import torch
from torch import Tensor

REACH = {"bilinear": 1, "bicubic": 2}
"""Pixels on either side of an output pixel's middle that make it, where nothing is reduced."""


def _weigh(distance: Tensor, interpolation: str) -> Tensor:
    """The kernel's height at distances from its middle; bicubic as Pillow and torch's antialiased one, a = -0.5."""
    if interpolation == "bilinear":
        return (1 - distance).clamp_(min=0)
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def taps(
    start: Tensor, length: Tensor, flip: Tensor, side: int, num: int, interpolation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Which pixels make an output pixel along one side: the tables of torch's antialiased kernels for uint8.

    Args:
        start: (n,) float64, first pixel of the crop.
        length: (n,) float64, pixels of the crop.
        flip: (n,) whether the output runs backwards.
        side: S, pixels of the output.
        num: K, at least the largest number of pixels that make one.
        interpolation: bilinear or bicubic.

    Returns:
        index: (K, n, S) int64, pixels of the picture.
        weight: (K, n, S) int32, adding up to about 2^bits.
        bits: (n, 1, 1, 1) int32, 14 to 22.
    """
    scale = (length / side)[:, None]
    width = scale.clamp(min=1)
    support = REACH[interpolation] * width
    centre = scale * (torch.arange(side, dtype=torch.float64, device=start.device) + 0.5)
    first = (centre - support + 0.5).floor_().clamp_(min=0)
    last = torch.minimum((centre + support + 0.5).floor_(), length[:, None])
    place = first + torch.arange(num, dtype=torch.float64, device=start.device)[:, None, None]
    weight = _weigh(((place - centre + 0.5) / width).abs_(), interpolation).mul_(place < last)
    total = weight[0].clone()
    for k in range(1, num):  # in this order, whatever K is
        total += weight[k]
    weight /= total
    powers = 2.0 ** torch.arange(1, 23, dtype=torch.float64, device=start.device)
    bits = (weight.amax((0, 2))[:, None] * powers + 0.5 < 2**15).sum(1)
    weight *= torch.exp2(bits.double())[:, None]
    weight = (weight + torch.copysign(torch.full_like(weight, 0.5), weight)).trunc_().int()
    index = (torch.minimum(place, length[:, None] - 1) + start[:, None]).long()
    backwards = flip[:, None]
    index, weight = torch.where(backwards, index.flip(2), index), torch.where(backwards, weight.flip(2), weight)
    return index, weight, bits.int()[:, None, None, None]


def resample(levels: Tensor, taps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """(n, 3, R, L) levels to (n, 3, R, S), int32: sums of integers, rounded to levels."""
    index, weight, bits = taps
    n, channels, rows, _ = levels.shape
    total = torch.bitwise_left_shift(torch.ones_like(bits), bits - 1).repeat(1, channels, rows, index.shape[2])
    for places, factors in zip(index, weight, strict=True):
        values = levels.gather(3, places[:, None, None].expand(n, channels, rows, -1))
        total.addcmul_(values.int(), factors[:, None, None])
    return total.bitwise_right_shift_(bits).clamp_(0, 255)
