"""Augmented views whose every draw is a function of (seed, epoch, sample, view): drawing apart from applying.

``draw`` makes plain numbers, ``apply`` turns a picture and these numbers into a tensor. The worker, the rank and the
machine do not enter.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from marc_dist.augment.bands import BandScale
from marc_dist.config import AugmentConfig
from marc_dist.torch_imports import without_compiler

with without_compiler():
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F


@dataclass(frozen=True)
class PixelScale:
    """How pictures become what an encoder expects: resized in this way, then (pixel in 0..1 - mean) / std.

    Attributes:
        mean: of red, green and blue, for pixels in 0..1; of bands, of their scaled values.
        std: likewise, positive.
        interpolation: of resizing, always antialiased.
        bands: which ones, and how they are scaled; None = red, green and blue of 8 bits.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bilinear", "bicubic"]
    bands: BandScale | None = None

    @property
    def num_bands(self) -> int:
        """Of named bands; 0 = red, green and blue of 8 bits."""
        return 0 if self.bands is None else len(self.bands.names)

    def plain(self) -> list[Any]:
        """All of it as JSON keeps it, to compare and to write down."""
        own = [] if self.bands is None else [self.bands.facts()]
        return [*self.mean, *self.std, self.interpolation, *own]

    def facts(self) -> dict[str, Any]:
        """All of it by name, for ``encoder.json`` and checkpoints; ``bands`` only where there are some."""
        found = {"mean": self.mean, "std": self.std, "interpolation": self.interpolation}
        return found if self.bands is None else {**found, "bands": self.bands.facts()}


IMAGENET = PixelScale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")
"""For backbones that timm has no pretrained settings of, and of encoders exported before they had their own."""


@dataclass(frozen=True)
class View:
    """The numbers of one augmented view.

    Attributes:
        top, left, height, width: the crop, shares of the picture's sides.
        hflip, vflip: whether to flip.
        turns: quarter turns, counter-clockwise.
        brightness, contrast, saturation: factors, 1 = unchanged.
        hue: turn of the colour circle, -0.5 to 0.5.
        gray: whether to drop colour.
        blur: standard deviation as a share of the output side; 0 = none.
        cutout_top, cutout_left, cutout_height, cutout_width: a box filled with the mean colour, shares of the output
            side; no height = none.
        band_brightness, band_contrast: of bands, a further factor for each; none = 1.
        dropped: bands that are left out, from 0.
    """

    top: float
    left: float
    height: float
    width: float
    hflip: bool
    vflip: bool
    turns: int
    brightness: float
    contrast: float
    saturation: float
    hue: float
    gray: bool
    blur: float
    cutout_top: float = 0.0
    cutout_left: float = 0.0
    cutout_height: float = 0.0
    cutout_width: float = 0.0
    band_brightness: tuple[float, ...] = ()
    band_contrast: tuple[float, ...] = ()
    dropped: tuple[int, ...] = ()

    def crop_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of the crop in a picture of this size, pixels."""
        crop_h, crop_w = max(1, round(self.height * height)), max(1, round(self.width * width))
        return (
            min(round(self.top * height), height - crop_h),
            min(round(self.left * width), width - crop_w),
            crop_h,
            crop_w,
        )

    def cutout_box(self, side: int) -> tuple[int, int, int, int]:
        """First row, row after the last, first column, column after the last of the filled box, pixels."""
        if not self.cutout_height:
            return 0, 0, 0, 0
        height, width = max(1, round(self.cutout_height * side)), max(1, round(self.cutout_width * side))
        top, left = min(round(self.cutout_top * side), side - height), min(round(self.cutout_left * side), side - width)
        return top, top + height, left, left + width


def _uniforms(seed: int, epoch: int, sample: int, view: int, num: int, what: str = "") -> list[float]:
    """``num`` numbers in [0, 1): SHA-256 in counter mode, the same with any library version."""
    numbers: list[float] = []
    block = 0
    while len(numbers) < num:
        digest = hashlib.sha256(f"{seed}/{epoch}/{sample}/{view}/{what}{block}".encode()).digest()
        numbers += [int.from_bytes(digest[i : i + 8], "little") / 2**64 for i in range(0, 32, 8)]
        block += 1
    return [min(number, 1 - 2**-53) for number in numbers[:num]]


def draw(config: AugmentConfig, *, seed: int, epoch: int, sample: int, view: int, num_bands: int = 0) -> View:
    """The numbers of one view.

    Each setting draws from random numbers of its own, so a change of one setting leaves those of the others alone.

    Args:
        config: ranges and probabilities of the augmentation.
        seed: of the run.
        epoch: from 0.
        sample: id of the picture.
        view: which view of the picture in this epoch, from 0.
        num_bands: of named bands, which draw further numbers of their own.
    """
    u = _uniforms(seed, epoch, sample, view, 20)
    area = config.crop_min + (config.crop_max - config.crop_min) * u[0]
    ratio = math.exp((2 * u[1] - 1) * math.log(config.crop_ratio))
    width, height = min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))
    jitter = u[7] < config.jitter
    cut_h, cut_w = (config.cutout_size * (1 + u[i]) / 2 if u[15] < config.cutout else 0.0 for i in (16, 17))

    def factor(spread: float, number: float) -> float:
        return 1 + spread * (2 * number - 1) if jitter else 1.0

    own = _uniforms(seed, epoch, sample, view, 3 * num_bands, "bands/") if num_bands else []
    last = own[2 * num_bands :]
    dropped = [band for band, number in enumerate(last) if number < config.band_dropout]
    if len(dropped) == num_bands and dropped:  # one stays
        dropped.remove(last.index(max(last)))
    return View(
        top=(1 - height) * u[2],
        left=(1 - width) * u[3],
        height=height,
        width=width,
        hflip=u[4] < config.hflip,
        vflip=u[5] < config.vflip,
        turns=int(4 * u[6]) if config.quarter_turns else 0,
        brightness=factor(config.brightness, u[8]),
        contrast=factor(config.contrast, u[9]),
        saturation=factor(config.saturation, u[10]),
        hue=config.hue * (2 * u[11] - 1) if jitter else 0.0,
        gray=u[12] < config.gray,
        blur=0.005 + 0.015 * u[14] if u[13] < config.blur else 0.0,
        cutout_top=(1 - cut_h) * u[18] if cut_h else 0.0,
        cutout_left=(1 - cut_w) * u[19] if cut_w else 0.0,
        cutout_height=cut_h,
        cutout_width=cut_w,
        band_brightness=tuple(factor(config.band_brightness, number) for number in own[:num_bands]),
        band_contrast=tuple(factor(config.band_contrast, number) for number in own[num_bands : 2 * num_bands]),
        dropped=tuple(dropped),
    )


def to_tensor(image: Image.Image | NDArray[Any]) -> Tensor:
    """(3, H, W) uint8 of an RGB picture; pixels lie together in memory, which resizing prefers."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def normalise(pixels: Tensor, scale: PixelScale) -> Tensor:
    """Float pixels in 0..1, (..., 3, S, S), to the encoder's scale."""
    mean, std = pixels.new_tensor(scale.mean)[:, None, None], pixels.new_tensor(scale.std)[:, None, None]
    return pixels.sub(mean).div_(std)


def scale_contrast(pixels: Tensor, factor: float) -> Tensor:
    """Torchvision's ``adjust_contrast`` to rounding, but the same to the bit with any number of threads.

    Its one mean over the picture is summed in as many parts as there are threads; a mean of row means is not.

    Args:
        pixels: (3, H, W) float in 0..1.
        factor: 1 = unchanged, 0 = all the mean grey.
    """
    mean = F.rgb_to_grayscale(pixels, num_output_channels=1).mean(-1, keepdim=True).mean(-2, keepdim=True)
    return pixels.mul(factor).add_(mean, alpha=1 - factor).clamp_(0, 1)


def turn_hue(pixels: Tensor, turn: float) -> Tensor:
    """Turn every pixel's hue: torchvision's ``adjust_hue`` to rounding, in closed form and a third of the time.

    A channel is m + C clamp(abs(6 k - 2) - 1, 0, 1) with k = (H + n / 6) mod 1 and n = 5, 3, 1 for red, green, blue,
    where m is the smallest channel, C the distance of the largest from it, H the hue in turns (the usual HSV inverse).

    Args:
        pixels: (..., 3, H, W) float in 0..1.
        turn: share of the colour circle.
    """
    red, green, blue = pixels.unbind(-3)
    most, least = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    chroma = most - least
    hue = torch.where(most == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    hue = torch.where(most == red, green - blue, hue).div_(6 * chroma.clamp_min(1e-12)).add_(turn)
    out = torch.empty_like(pixels)
    for channel, offset in enumerate((5 / 6, 3 / 6, 1 / 6)):
        k = hue + offset
        k.sub_(k.floor()).mul_(6).sub_(2).abs_().sub_(1).clamp_(0, 1)
        torch.addcmul(least, chroma, k, out=out.select(-3, channel))
    return out


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, rows then columns: torchvision's to rounding, without its two-dimensional kernel.

    Args:
        pixels: (3, H, W) float.
        sigma: standard deviation, pixels.
    """
    reach = math.ceil(2 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=pixels.dtype) / sigma) ** 2)
    weights = (weights / weights.sum()).to(pixels.device)
    padded = torch.nn.functional.pad(pixels[:, None], [reach] * 4, mode="reflect")
    rows = torch.nn.functional.conv2d(padded, weights[None, None, None, :])
    return torch.nn.functional.conv2d(rows, weights[None, None, :, None])[:, 0]


def apply(pixels: Tensor, view: View, image_size: int, scale: PixelScale) -> Tensor:
    """One augmented view.

    Args:
        pixels: (3, H, W) uint8.
        view: what to do.
        image_size: S, side of the result.
        scale: what the encoder expects.

    Returns:
        (3, S, S) float32, normalised.
    """
    side, how = [image_size, image_size], InterpolationMode(scale.interpolation)
    top, left, height, width = view.crop_box(*pixels.shape[1:])
    out = F.resized_crop(pixels, top, left, height, width, side, how, antialias=True)
    dims = [dim for dim, flip in ((2, view.hflip), (1, view.vflip)) if flip]
    out = torch.flip(out, dims) if dims else out
    out = torch.rot90(out, view.turns, (1, 2)) if view.turns else out
    out = out.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    if view.brightness != 1:
        out = F.adjust_brightness(out, view.brightness)
    if view.contrast != 1:
        out = scale_contrast(out, view.contrast)
    if view.saturation != 1:
        out = F.adjust_saturation(out, view.saturation)
    if view.hue != 0:
        out = turn_hue(out, view.hue)
    if view.gray:
        out = F.rgb_to_grayscale(out, num_output_channels=3)
    if view.blur > 0:
        out = blurred(out, view.blur * image_size)
    out = normalise(out, scale)
    if view.cutout_height > 0:
        first, last, left, right = view.cutout_box(image_size)
        out[:, first:last, left:right] = 0
    return out


EVAL_TRANSFORM = 2
"""Version of what ``eval_transform`` does; vectors that were kept are made again when it changes."""


def eval_transform(image: Image.Image | NDArray[Any], image_size: int, scale: PixelScale) -> Tensor:
    """The picture as the encoder sees it outside training: resized to S x S, (3, S, S) float32, normalised.

    The whole tile (timm's ``crop_pct=1.0, crop_mode="squash"``), although most backbones were scored on a centre crop:
    a photograph has its object in the middle, a tile has labels along its border, too, and a crop would lose them.

    Args:
        image: RGB, of any size; of bands, the (H, W, C) values of a file.
        image_size: S, side of the result, pixels.
        scale: how the encoder wants pictures resized and normalised.
    """
    if scale.bands is not None:
        from marc_dist.augment.band_views import band_picture  # here: it stands on this module

        return band_picture(np.asarray(image), image_size, scale)
    pixels = to_tensor(image)
    if pixels.shape[1:] != (image_size, image_size):
        pixels = F.resize(pixels, [image_size, image_size], InterpolationMode(scale.interpolation), antialias=True)
    return normalise(pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255), scale)


class Augment:
    """Pictures to augmented views; see ``draw`` and ``apply``.

    Args:
        config: ranges and probabilities of the augmentation.
        image_size: S, side of a view, pixels.
        seed: of the run.
        scale: how the encoder wants pictures resized and normalised.
    """

    def __init__(self, config: AugmentConfig, image_size: int, seed: int, scale: PixelScale) -> None:
        self.config = config
        self.image_size = image_size
        self.seed = seed
        self.scale = scale

    def __call__(self, image: Image.Image | NDArray[Any], epoch: int, sample: int, view: int) -> Tensor:
        """One view of a decoded picture, (3, S, S) float32, normalised.

        Args:
            image: RGB, of any size.
            epoch: from 0.
            sample: id of the picture.
            view: which view of the picture in this epoch, from 0.
        """
        return self.views(image, epoch, sample, [view])[0]

    def views(self, image: Image.Image | NDArray[Any], epoch: int, sample: int, views: list[int]) -> list[Tensor]:
        """Several views of one decoded picture, each (3, S, S) float32, normalised.

        Args:
            image: RGB, of any size.
            epoch: from 0.
            sample: id of the picture.
            views: which views of the picture in this epoch, each from 0.
        """
        num = self.scale.num_bands
        drawn = [
            draw(self.config, seed=self.seed, epoch=epoch, sample=sample, view=view, num_bands=num) for view in views
        ]
        if num:
            from marc_dist.augment.band_views import band_view  # here: it stands on this module

            return [band_view(np.asarray(image), numbers, self.image_size, self.scale) for numbers in drawn]
        pixels = to_tensor(image)
        return [apply(pixels, numbers, self.image_size, self.scale) for numbers in drawn]
