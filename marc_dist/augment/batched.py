"""Many augmented views at once, on the CPU or on the GPU that trains: what ``views.apply`` does, to rounding.

The random numbers are drawn on the host, by ``views.draw``; here they are only applied. A view's bits depend on its
picture and its numbers alone: not on what else is in the batch, in what order, on how many threads. That holds because
all views go through the same operations, each elementwise, with settings at which it changes no bit of a view that
does not need it; because sums are of one row in one order (CPU) or of integers (GPU); and because there is no matrix
product and no convolution.

On the CPU, threads take a few views of the same kind at a time, which stay in the cache, and torch's own threads rest:
they would wait for each other after each of forty small operations.

Resampling on a GPU: ``augment/resample.py``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from marc_dist.augment.resample import REACH, resample, taps
from marc_dist.augment.views import PixelScale, View

GREY = (0.2989, 0.587, 0.114)  # as torchvision's rgb_to_grayscale
CPU_CHUNK = 4  # views at a time in a thread: enough that Python's lock is rarely held, few enough for the cache
GPU_CHUNK = 64  # bounds the memory for temporaries, about 12 MB a view of 224 x 224


def _kind(view: View) -> tuple[bool, ...]:
    """Which steps a view needs: brightness, contrast, saturation, hue, grey, blur."""
    factors = (view.brightness != 1, view.contrast != 1, view.saturation != 1)
    return (*factors, view.hue != 0, view.gray, view.blur > 0)


@dataclass(frozen=True)
class _Colour:
    """The colour part of n views.

    Attributes:
        scale, contrast, desaturate, gray: (n, 1, 1); from levels to brightness times 0..1, the factor, 1 - saturation.
        hue: (n, 3, 1), minus the places of red, green and blue on the circle of six, from which the hue turned away.
        turned: (n, 1, 1), which views turn their hue; None = all.
        needs: ``_kind``, of any view.
    """

    scale: Tensor
    contrast: Tensor
    desaturate: Tensor
    gray: Tensor
    hue: Tensor
    turned: Tensor | None
    needs: list[bool]


def _colour_of(views: Sequence[View], device: torch.device) -> _Colour:
    rows = [
        [
            *(view.brightness / 255, view.contrast, 1 - view.saturation, float(view.gray), float(view.hue != 0)),
            *((6 * view.hue + place + 3) % 6 - 3 for place in (0, -2, 2)),
        ]
        for view in views
    ]
    table = torch.tensor(rows).to(device)[:, :, None]
    scale, contrast, desaturate, gray, turned = table[:, :5, None].unbind(1)
    return _Colour(
        scale=scale,
        contrast=contrast,
        desaturate=desaturate,
        gray=gray,
        hue=table[:, 5:],
        turned=turned > 0 if any(view.hue == 0 for view in views) else None,
        needs=[any(kinds) for kinds in zip(*map(_kind, views), strict=True)],
    )


def _luma(x: Tensor, out: Tensor | None = None) -> Tensor:
    """(n, 1, P) grey of (n, 3, P)."""
    grey = torch.mul(x[:, :1], GREY[0], out=out)
    return grey.add_(x[:, 1:2], alpha=GREY[1]).add_(x[:, 2:], alpha=GREY[2])


def _mean_luma(x: Tensor, *, exact: bool) -> Tensor:
    """(n, 1, 1) mean grey of (n, 3, P) in 0..1, P up to 2^32.

    Args:
        x: colours.
        exact: sum integers, multiples of 2^-20, so that the order of the summands (which on a GPU depends on n) does
            not matter.
    """
    if exact:
        sums = x.mul(2.0**20).round_().sum(-1, keepdim=True, dtype=torch.float64).mul_(2.0**-20)
    else:
        sums = x.sum(-1, keepdim=True)
    return _luma(sums.div_(x.shape[-1]).float())


def _turn_hue(x: Tensor, offsets: Tensor, turned: Tensor | None, scratch: Tensor) -> None:
    """Turn hues in place, in HSV: ``views.turn_hue`` to rounding, without branches.

    With m the smallest channel, C the largest minus m, and r, g, b the channels minus m and divided by C, the distance
    from red on the circle of six is 1 - r + g + b, towards green where g > b and towards blue otherwise. A channel at
    the signed distance T in [-6, 6] from the turned hue is m + C clamp(abs(abs(T) - 3) - 1, 0, 1).

    Args:
        x: (n, 3, P) in 0..1, changed in place.
        offsets: ``_Colour.hue``.
        turned: ``_Colour.turned``.
        scratch: as in ``_recolour``.
    """
    (red, green, blue), (least, chroma, hue, side) = x.unsqueeze(2).unbind(1), scratch
    torch.minimum(red, green, out=least)
    torch.minimum(least, blue, out=least)
    torch.maximum(red, green, out=chroma)
    torch.maximum(chroma, blue, out=chroma).sub_(least).clamp_(min=1e-12)
    base = least.sub_(chroma)
    torch.add(green, blue, out=hue).sub_(red).sub_(base)
    torch.sub(green, blue, out=side)
    torch.copysign(hue, side, out=hue).div_(chroma)
    new = torch.add(hue, offsets, out=x) if turned is None else hue + offsets
    new.abs_().sub_(3).abs_().clamp_(1, 2)
    torch.addcmul(base, chroma, new, out=new)
    if turned is not None:
        x.copy_(torch.where(turned, new, x))


def _recolour(x: Tensor, colour: _Colour, scratch: Tensor, *, exact: bool) -> None:
    """Levels to changed colours in 0..1, in place. Each step leaves the bits of a view alone whose factor is neutral.

    Args:
        x: (n, 3, P) float32, 0..255.
        colour: what to do.
        scratch: (4, n, 1, P) float32, overwritten: on the CPU, fresh memory costs as much as the arithmetic.
        exact: as in ``_mean_luma``.
    """
    brightness, contrast, saturation, hue, gray, _ = colour.needs
    x.mul_(colour.scale)
    if brightness:
        x.clamp_(max=1)
    if contrast:
        shift = _mean_luma(x, exact=exact).mul_(1 - colour.contrast)
        x.mul_(colour.contrast).add_(shift).clamp_(0, 1)
    if saturation:
        x.lerp_(_luma(x, scratch[0]), colour.desaturate).clamp_(0, 1)
    if hue:
        _turn_hue(x, colour.hue, colour.turned, scratch)
    if gray:
        x.lerp_(_luma(x, scratch[0]), colour.gray)


def _normalise(x: Tensor, scale: PixelScale, outs: Sequence[Tensor]) -> None:
    """(n, ..., 3, P) in 0..1 to the encoder's scale, each of the n into its own memory; x is overwritten."""
    mean, deviation = x.new_tensor((scale.mean, scale.std))[:, :, None]
    x.sub_(mean)
    torch.reciprocal(deviation, out=deviation)
    for view, out in zip(x, outs, strict=True):
        torch.mul(view, deviation, out=out.view(view.shape))


def blur_kernel(sigma: float) -> list[float]:
    """The middle and one wing of the Gaussian of ``views.blurred``."""
    if sigma <= 0:
        return [1.0]
    wing = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(math.ceil(2 * sigma) + 1)]
    total = 2 * sum(wing) - wing[0]
    return [weight / total for weight in wing]


def blur(x: Tensor, kernels: Sequence[Sequence[float]]) -> Tensor:
    """Gaussian blur of (n, 3, S, S), rows then columns, with a ``blur_kernel`` for each."""
    reach, side = max(map(len, kernels)) - 1, x.shape[-1]
    table = torch.tensor([[*kernel, *[0.0] * (reach + 1 - len(kernel))] for kernel in kernels]).to(x.device)
    middle, *wing = table.T[:, :, None, None, None]
    x = torch.nn.functional.pad(x, [reach] * 4, mode="reflect")
    for dim in (3, 2):
        out = x.narrow(dim, reach, side) * middle
        for k, weight in enumerate(wing, 1):
            pair = x.narrow(dim, reach - k, side) + x.narrow(dim, reach + k, side)
            out.add_(pair.mul_(weight))
        x = out
    return x


def _orientation(view: View) -> tuple[bool, bool, bool]:
    """The flips and the quarter turns: flip rows, flip columns, then transpose."""
    return view.vflip != (view.turns in (2, 3)), view.hflip != (view.turns in (1, 2)), view.turns in (1, 3)


def _place(picture: Tensor, view: View, interpolation: str, out: Tensor) -> None:
    """Crop, resize, flip and turn: (1, 3, h, w) uint8 into (1, 3, S, S) levels, on the CPU."""
    side = out.shape[-1]
    top, left, height, width = view.crop_box(*picture.shape[2:])
    crop = picture[:, :, top : top + height, left : left + width]
    if crop.stride(1) != 1:  # the resampling is three times as fast where the colours of a pixel lie together
        crop = crop.contiguous(memory_format=torch.channels_last)
    levels = torch.nn.functional.interpolate(crop, (side, side), mode=interpolation, antialias=True)
    rows, columns, transposed = _orientation(view)
    if rows or columns:
        levels = levels.flip([dim for dim, flip in ((2, rows), (3, columns)) if flip])
    out.copy_(levels.mT if transposed else levels)


@contextmanager
def one_thread() -> Iterator[int]:
    """Operations of this thread, and of threads started inside, run on one thread; yields how many it was."""
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
    try:
        yield threads
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


def _on_cpu(pictures: Sequence[Tensor], views: Sequence[View], scale: PixelScale, out: Tensor) -> None:
    """(1, 3, h, w) uint8 each into (B, 3, S, S), shared out among as many threads as torch may use."""
    side = out.shape[-1]
    kinds: dict[tuple[bool, ...], list[int]] = {}
    for i, view in enumerate(views):
        kinds.setdefault(_kind(view), []).append(i)
    todo = deque(group[i : i + CPU_CHUNK] for group in kinds.values() for i in range(0, len(group), CPU_CHUNK))

    def work() -> None:
        buffer, scratch = out.new_empty(CPU_CHUNK, 3, side * side), out.new_empty(4, CPU_CHUNK, 1, side * side)
        while True:
            try:
                chunk = todo.popleft()
            except IndexError:
                return
            some, x = [views[i] for i in chunk], buffer[: len(chunk)]
            for view, i, levels in zip(some, chunk, x.view(-1, 1, 3, side, side), strict=True):
                _place(pictures[i], view, scale.interpolation, levels)
            _recolour(x, _colour_of(some, x.device), scratch[:, : len(chunk)], exact=False)
            if some[0].blur > 0:
                x.copy_(blur(x.view(-1, 3, side, side), [blur_kernel(view.blur * side) for view in some]).flatten(2))
            _normalise(x, scale, [out[i] for i in chunk])
            for view, i in zip(some, chunk, strict=True):
                first, last, start, stop = view.cutout_box(side)
                out[i, :, first:last, start:stop] = 0

    with one_thread() as threads:
        others = min(threads, len(todo)) - 1
        if others < 1:
            work()
            return
        with ThreadPoolExecutor(others) as pool:
            futures = [pool.submit(work) for _ in range(others)]
            work()
            for future in futures:
                future.result()


def _on_device(
    pixels: Tensor, sizes: Sequence[Sequence[int]], views: Sequence[View], scale: PixelScale, out: Tensor
) -> None:
    """A chunk of views at once: (n, 3, H, W) uint8 into (n, 3, S, S)."""
    side, device = out.shape[-1], out.device
    boxes = [view.crop_box(*size) for view, size in zip(views, sizes, strict=True)]
    numbers = [[*box, *_orientation(view), *view.cutout_box(side)] for box, view in zip(boxes, views, strict=True)]
    table = torch.tensor(numbers, dtype=torch.float64).to(device)
    top, left, height, width, flip_rows, flip_columns, transposed, *cutout = table.unbind(1)
    how, reach = scale.interpolation, REACH[scale.interpolation]
    num_h, num_w = (2 * math.ceil(reach * max(1.0, max(box[i] for box in boxes) / side)) + 1 for i in (2, 3))
    levels = resample(pixels, taps(left, width, flip_columns > 0, side, num_w, how))
    levels = resample(levels.mT, taps(top, height, flip_rows > 0, side, num_h, how))  # now (n, 3, columns, rows)
    out.copy_(torch.where(transposed[:, None, None, None] > 0, levels, levels.mT))
    scratch = out.new_empty(4, len(views), 1, side * side)
    _recolour(out.view(len(views), 3, -1), _colour_of(views, device), scratch, exact=True)
    if any(view.blur > 0 for view in views):
        out.copy_(blur(out, [blur_kernel(view.blur * side) for view in views]))
    _normalise(out.view(1, len(views), 3, -1), scale, [out])
    if any(view.cutout_height > 0 for view in views):
        at = torch.arange(side, device=device)
        first, last, start, stop = (edge[:, None] for edge in cutout)
        rows, columns = (at >= first) & (at < last), (at >= start) & (at < stop)
        out.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0.0)


def apply_batch(
    pixels: Tensor,
    sizes: Tensor,
    views: Sequence[View],
    image_size: int,
    scale: PixelScale,
    *,
    rows: Sequence[int] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Augmented views of decoded pictures, where the pictures are.

    ``views.apply`` of each, to 1e-4 of the result's scale (0.006 levels of 255): the 8-bit levels after resampling
    are the same, on a GPU too, and the colours differ by rounding. Only on a CPU without AVX2, where ``views.apply``
    has no 8-bit resampling, may the levels differ by one, which large colour factors then multiply.

    Fastest on the CPU where the colours of a pixel lie together, (N, H, W, 3) in memory.

    Args:
        pixels: (N, 3, H, W) uint8, CPU or CUDA; smaller pictures lie at the top left, what is beside them is not read.
        sizes: (N, 2) integers, height and width of each picture; better on the CPU, for they are read there.
        views: B of them, what to do.
        image_size: S, side of the result.
        scale: what the encoder expects.
        rows: which picture each view is of, so that a cache of all pictures needs no copy; by default B = N, in order.
        out: where to write, contiguous; on the CPU, touching fresh memory costs up to a third of the time.

    Returns:
        (B, 3, S, S) float32, normalised, on the device of ``pixels``.

    Raises:
        ValueError: shapes or sizes that do not fit together.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"expected pixels (N, 3, H, W) of uint8, got {tuple(pixels.shape)} of {pixels.dtype}")
    rows = range(len(pixels)) if rows is None else rows
    if sizes.shape != (len(pixels), 2) or len(rows) != len(views):
        raise ValueError(
            f"expected one size a picture and one picture a view, got {len(pixels)} pictures, sizes "
            f"{tuple(sizes.shape)}, {len(rows)} rows and {len(views)} views"
        )
    shape = (len(views), 3, image_size, image_size)
    out = torch.empty(shape, device=pixels.device) if out is None else out
    if (out.shape, out.dtype, out.device, out.is_contiguous()) != (shape, torch.float32, pixels.device, True):
        raise ValueError(f"expected contiguous out {shape} of float32 on {pixels.device}, got {tuple(out.shape)}")
    if not views:
        return out
    chosen: list[list[int]] = sizes[torch.tensor(rows, device=sizes.device)].tolist()
    most = pixels.shape[2:]
    bad = [size for size in chosen if not (1 <= size[0] <= most[0] and 1 <= size[1] <= most[1])]
    if bad:
        raise ValueError(f"expected sizes from 1 x 1 to {most[0]} x {most[1]}, got {bad[0][0]} x {bad[0][1]}")
    if pixels.device.type == "cpu":
        pictures = [pixels[i : i + 1, :, :h, :w] for i, (h, w) in zip(rows, chosen, strict=True)]
        _on_cpu(pictures, views, scale, out)
        return out
    for first in range(0, len(views), GPU_CHUNK):
        part = slice(first, first + GPU_CHUNK)
        wanted = torch.tensor(rows[part], device=pixels.device)
        _on_device(pixels[wanted], chosen[part], views[part], scale, out[part])
    return out
