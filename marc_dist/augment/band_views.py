"""Augmented views of pictures with any number of bands of 8 or 16 bits or floats.

The steps of ``views.apply`` as far as they make sense for bands: crop, flips, turns, brightness and contrast of all
bands alike and of each band, blur, bands that are left out, a box that is left out. Hue, saturation and grey are about
the three colours that people see; they are for RGB pictures alone.

A view's bits depend on its picture and its numbers alone: each view is made by itself, on one thread, or on a GPU by
operations of its own size.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from marc_dist.augment.bands import BandScale
from marc_dist.augment.batched import blur, blur_kernel, one_thread
from marc_dist.augment.views import PixelScale, View


class _Numbers:
    """What a scale's numbers are on a device, (C, 1, 1) each."""

    def __init__(self, scale: PixelScale, device: torch.device) -> None:
        bands = scale.bands
        assert bands is not None, "a scale of bands"
        self.bands: BandScale = bands
        table = torch.tensor([bands.low, bands.high, scale.mean, scale.std], dtype=torch.float64)
        low, high, mean, std = table[:, :, None, None].unbind(0)
        self.low, self.span = low.float().to(device), (high - low).float().to(device)
        self.mean, self.std = mean.float().to(device), std.float().to(device)
        self.how = scale.interpolation

    def levels(self, crop: Tensor, side: int) -> Tensor:
        """(C, h, w) of any type to (C, S, S) float32, scaled."""
        x = crop.to(torch.float32, memory_format=torch.contiguous_format).sub(self.low).div_(self.span)
        if self.bands.clips:
            x.clamp_(0, 1)
        if x.shape[1:] != (side, side):
            x = torch.nn.functional.interpolate(x[None], (side, side), mode=self.how, antialias=True)[0]
            if self.bands.clips:
                x.clamp_(0, 1)
        return x

    def normalise(self, x: Tensor) -> Tensor:
        """In place."""
        return x.sub_(self.mean).div_(self.std)


def _factors(shared: float, own: Sequence[float], like: Tensor) -> Tensor | None:
    """(C, 1, 1) factors of the bands; None where all are 1."""
    numbers = [shared * factor for factor in own] if own else [shared] * len(like)
    if all(number == 1 for number in numbers):
        return None
    return torch.tensor(numbers, dtype=torch.float32).to(like.device)[:, None, None]


def _applied(pixels: Tensor, view: View, side: int, numbers: _Numbers) -> Tensor:
    top, left, height, width = view.crop_box(*pixels.shape[1:])
    x = numbers.levels(pixels[:, top : top + height, left : left + width], side)
    dims = [dim for dim, flip in ((2, view.hflip), (1, view.vflip)) if flip]
    x = torch.flip(x, dims) if dims else x
    x = torch.rot90(x, view.turns, (1, 2)).contiguous() if view.turns else x
    brightness = _factors(view.brightness, view.band_brightness, x)
    if brightness is not None:
        x = x.mul(brightness)
    contrast = _factors(view.contrast, view.band_contrast, x)
    if contrast is not None:  # a mean of row means is the same with any number of threads
        mean = x.mean(-1, keepdim=True).mean(-2, keepdim=True)
        x = x.sub(mean).mul_(contrast).add_(mean)
    if view.blur > 0:
        x = blur(x[None], [blur_kernel(view.blur * side)])[0]
    x = numbers.normalise(x)
    for band in view.dropped:
        x[band] = 0
    first, last, start, stop = view.cutout_box(side)
    x[:, first:last, start:stop] = 0
    return x


def band_view(picture: NDArray[Any], view: View, image_size: int, scale: PixelScale) -> Tensor:
    """One augmented view, (C, S, S) float32, normalised.

    Args:
        picture: (H, W, C) values of a file, missing ones filled.
        view: what to do.
        image_size: S.
        scale: what the encoder expects.
    """
    pixels = torch.from_numpy(picture).permute(2, 0, 1)
    return _applied(pixels, view, image_size, _Numbers(scale, pixels.device))


def band_picture(picture: NDArray[Any], image_size: int, scale: PixelScale) -> Tensor:
    """The picture as the encoder sees it outside training, (C, S, S) float32, normalised.

    Args:
        picture: (H, W, C) values of a file, missing ones filled.
        image_size: S.
        scale: what the encoder expects.
    """
    pixels = torch.from_numpy(picture).permute(2, 0, 1)
    numbers = _Numbers(scale, pixels.device)
    return numbers.normalise(numbers.levels(pixels, image_size))


def apply_band_batch(
    pixels: Tensor,
    sizes: Tensor,
    views: Sequence[View],
    image_size: int,
    scale: PixelScale,
    *,
    rows: Sequence[int] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``batched.apply_batch`` for bands.

    Args:
        pixels: (N, C, H, W) of any type, CPU or CUDA; smaller pictures lie at the top left.
        sizes: (N, 2) height and width of each picture, on the CPU.
        views: B of them.
        image_size: S.
        scale: what the encoder expects.
        rows: which picture each view is of; by default B = N, in order.
        out: where to write, contiguous.

    Returns:
        (B, C, S, S) float32, normalised, on the device of ``pixels``.

    Raises:
        ValueError: another number of bands than the scale's.
    """
    rows = range(len(pixels)) if rows is None else rows
    numbers = _Numbers(scale, pixels.device)
    num = len(numbers.bands.names)
    shape = (len(views), num, image_size, image_size)
    made = torch.empty(shape, dtype=torch.float32, device=pixels.device) if out is None else out
    if not views:
        return made
    if pixels.ndim != 4 or pixels.shape[1] != num:
        raise ValueError(f"expected pixels (N, {num}, H, W), got {tuple(pixels.shape)}")
    extents: list[list[int]] = sizes.tolist()

    def work(at: int) -> None:
        height, width = extents[rows[at]]
        made[at] = _applied(pixels[rows[at], :, :height, :width], views[at], image_size, numbers)

    if pixels.device.type != "cpu":
        for at in range(len(views)):
            work(at)
        return made
    with one_thread() as threads:
        if min(threads, len(views)) < 2:
            for at in range(len(views)):
                work(at)
        else:
            with ThreadPoolExecutor(min(threads, len(views))) as pool:
                list(pool.map(work, range(len(views))))
    return made
