"""Batched augmentation: the same views as one by one, and the same bits whatever shares the batch."""

from __future__ import annotations

import platform
import random
import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from marc_dist.augment import batched
from marc_dist.augment.batched import CPU_CHUNK, _kind, _mean_luma, _on_device
from marc_dist.augment.views import IMAGENET, PixelScale, View, apply, draw
from marc_dist.config import AugmentConfig

SAME = View(0, 0, 1, 1, False, False, 0, 1.0, 1.0, 1.0, 0.0, False, 0.0)
FAST = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in ("aarch64", "arm64")
BOUND = 1e-4 if FAST else 0.2  # of the result's scale; a level is 0.017, and factors of two make eight of it
share = st.floats(0, 1)
factor = st.just(1.0) | st.floats(0, 2)


@st.composite
def a_view(draw_: st.DrawFn) -> View:
    height, width, box_h, box_w = (draw_(st.floats(0.01, 1)) for _ in range(4))
    return View(
        top=(1 - height) * draw_(share),
        left=(1 - width) * draw_(share),
        height=height,
        width=width,
        hflip=draw_(st.booleans()),
        vflip=draw_(st.booleans()),
        turns=draw_(st.integers(0, 3)),
        brightness=draw_(factor),
        contrast=draw_(factor),
        saturation=draw_(factor),
        hue=draw_(st.just(0.0) | st.floats(-0.5, 0.5)),
        gray=draw_(st.booleans()),
        blur=draw_(st.just(0.0) | st.floats(0.005, 0.02)),
        cutout_top=(1 - box_h) * draw_(share),
        cutout_left=(1 - box_w) * draw_(share),
        cutout_height=draw_(st.sampled_from([0.0, box_h])),
        cutout_width=box_w,
    )


def some_pixels(num: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Noise, flat greys and full colours, (N, H, W, 3) in memory."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (num, height, width, 3), generator=generator, dtype=torch.uint8)
    pixels[:, : height // 3] = torch.randint(0, 2, (num, 1, 1, 3), generator=generator, dtype=torch.uint8) * 255
    pixels[:, height // 2 :, : width // 3] = 90
    return pixels.permute(0, 3, 1, 2)


def apply_batch(
    pixels: Tensor, sizes: Tensor, views: list[View], image_size: int, scale: PixelScale = IMAGENET, **more: object
) -> Tensor:
    return batched.apply_batch(pixels, sizes, views, image_size, scale, **more)  # type: ignore[arg-type]


def on_device(pixels: Tensor, sizes: Tensor, views: list[View], side: int, scale: PixelScale = IMAGENET) -> Tensor:
    """What runs on a GPU, here."""
    out = torch.empty(len(views), 3, side, side)
    _on_device(pixels, sizes.tolist(), views, scale, out)
    return out


CUBIC = PixelScale((0.5, 0.4, 0.3), (0.5, 0.25, 0.2), "bicubic")
PATHS = [apply_batch, on_device]


@pytest.fixture
def many_views() -> list[View]:
    """Every kind of view, some alike."""
    config = AugmentConfig(jitter=0.6, gray=0.3, blur=0.3, cutout=0.5, hue=0.5)
    views = [draw(config, seed=0, epoch=0, sample=sample, view=0) for sample in range(20)]
    views += [View(**{**vars(SAME), **change}) for change in ({}, {"contrast": 1.5}, {"hue": 0.2}, {"saturation": 0.0})]
    views += [View(**{**vars(SAME), **change}) for change in ({"brightness": 2.0}, {"gray": True}, {"blur": 0.02})]
    assert len({_kind(view) for view in views}) > 8 and len(views) > 2 * CPU_CHUNK
    return views


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_equals_one_by_one(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    side = data.draw(st.sampled_from([16, 17, 24, 33, 64]))
    views = data.draw(st.lists(a_view(), min_size=1, max_size=5))
    sizes = [(data.draw(st.integers(1, height)), data.draw(st.integers(1, width))) for _ in views]
    pixels = some_pixels(len(views), height, width, data.draw(st.integers(0, 9)))
    scale = data.draw(st.sampled_from([IMAGENET, CUBIC]))
    alone = [apply(pixels[i, :, :h, :w], views[i], side, scale) for i, (h, w) in enumerate(sizes)]
    for path in PATHS:
        together = path(pixels, torch.tensor(sizes), views, side, scale)
        assert (together - torch.stack(alone)).abs().max() < BOUND, path


@pytest.mark.parametrize("scale", [IMAGENET, CUBIC], ids=["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "side"), [((500, 37), 48), ((256, 256), 224), ((30, 29), 224), ((1100, 700), 16)])
def test_both_paths_make_the_same_levels(size: tuple[int, int], side: int, scale: PixelScale) -> None:
    """Enlarged, reduced to a fifteenth, unchanged: the GPU's integers are the CPU kernel's."""
    pixels, sizes = some_pixels(3, *size), torch.tensor([size] * 3)
    crop = View(**{**vars(SAME), "top": 0.2, "left": 0.1, "height": 0.61, "width": 0.73})
    same_size = View(**{**vars(SAME), "height": side / size[0], "width": side / size[1]})
    views = [SAME, crop, same_size if side <= min(size) else SAME]
    assert torch.equal(on_device(pixels, sizes, views, side, scale), apply_batch(pixels, sizes, views, side, scale))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("side", "scale"), [(17, IMAGENET), (64, IMAGENET), (20, CUBIC)])
def test_company_does_not_change_a_bit(many_views: list[View], path: object, side: int, scale: PixelScale) -> None:
    num = len(many_views)
    pixels, sizes = some_pixels(num, 41, 53), torch.tensor([[41 - i % 7, 53 - i % 11] for i in range(num)])
    together = path(pixels, sizes, many_views, side, scale)  # type: ignore[operator]
    shuffled = random.Random(0).sample(range(num), num)
    for order in [[i] for i in range(num)] + [shuffled, list(range(0, num, 2)), list(range(num - 1, 2, -3))]:
        part = path(pixels[order], sizes[order], [many_views[i] for i in order], side, scale)  # type: ignore[operator]
        assert torch.equal(part, together[order])


@pytest.mark.parametrize("side", [33, 224])
def test_threads_do_not_change_a_bit(many_views: list[View], side: int, threads: None) -> None:
    views = many_views[:: 1 if side < 100 else 2]
    pixels, sizes = some_pixels(len(views), 60, 50), torch.tensor([[60, 50]] * len(views))
    results = []
    for num in (1, 2, 3, 8):
        torch.set_num_threads(num)
        results += [apply_batch(pixels, sizes, views, side), on_device(pixels, sizes, views, side)]
        assert torch.get_num_threads() == num
    assert all(torch.equal(results[i], results[i - 2]) for i in range(2, len(results)))
    assert torch.equal(apply_batch(pixels[:1], sizes[:1], views[:1], side), results[0][:1])  # alone, on eight


def test_empty_and_padded_and_chosen(many_views: list[View]) -> None:
    pixels, sizes = some_pixels(4, 30, 40), torch.tensor([[30, 40], [12, 7], [1, 1], [30, 3]])
    assert apply_batch(pixels, sizes, [], 16, rows=[]).shape == (0, 3, 16, 16)
    assert apply_batch(pixels[:0], sizes[:0], [], 16).shape == (0, 3, 16, 16)
    views = many_views[:4]
    expected = apply_batch(pixels, sizes, views, 20)
    other = pixels.clone()
    for i, (height, width) in enumerate(sizes.tolist()):
        other[i, :, height:] = 7
        other[i, :, :, width:] = 9
    assert torch.equal(apply_batch(other, sizes, views, 20), expected)
    assert torch.equal(apply_batch(pixels.contiguous(), sizes, views, 20), expected)  # colours in planes
    rows = [3, 1, 1, 0]
    out = torch.full((4, 3, 20, 20), float("nan"))
    chosen = apply_batch(pixels, sizes, views, 20, rows=rows, out=out)
    assert chosen is out and torch.equal(chosen, apply_batch(pixels[rows], sizes[rows], views, 20))


def test_integer_sums_do_not_depend_on_their_order() -> None:
    x = torch.rand(40, 3, 64 * 64, generator=torch.Generator().manual_seed(0))
    other = x[:, :, torch.randperm(x.shape[2], generator=torch.Generator().manual_seed(1))]
    exact = _mean_luma(x, exact=True)
    assert torch.equal(_mean_luma(other, exact=True), exact)
    assert not torch.equal(_mean_luma(other, exact=False), _mean_luma(x, exact=False))
    torch.testing.assert_close(_mean_luma(x, exact=False), exact, rtol=0, atol=1e-6)


def test_cutout_is_zero_and_no_more() -> None:
    pixels, sizes = some_pixels(2, 30, 30), torch.tensor([[30, 30]] * 2)
    box = View(**{**vars(SAME), "cutout_top": 0.25, "cutout_left": 0.5, "cutout_height": 0.5, "cutout_width": 0.25})
    for path in PATHS:
        plain, cut = path(pixels, sizes, [SAME, SAME], 40), path(pixels, sizes, [box, SAME], 40)
        assert (cut[0, :, 10:30, 20:30] == 0).all() and plain.count_nonzero() == plain.numel()
        assert (cut[0] != plain[0]).sum() == 3 * 20 * 10 and torch.equal(cut[1], plain[1])


def test_a_failing_thread_is_heard(monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    failed = threading.Event()

    def fail(*_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            assert failed.wait(20)  # the other thread has work too
            return
        failed.set()
        raise MemoryError("full")

    torch.set_num_threads(2)
    monkeypatch.setattr(batched, "_normalise", fail)
    with pytest.raises(MemoryError, match="full"):
        apply_batch(some_pixels(9, 8, 8), torch.full((9, 2), 8), [SAME] * 9, 16)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": torch.zeros(2, 3, 8, 8)}, "uint8"),
        ({"pixels": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}, "pixels"),
        ({"sizes": torch.tensor([[8, 8]])}, "sizes"),
        ({"sizes": torch.tensor([[8, 8], [9, 8]])}, "9 x 8"),
        ({"sizes": torch.tensor([[8, 8], [8, 0]])}, "8 x 0"),
        ({"views": [SAME]}, "views"),
        ({"rows": [0]}, "rows"),
        ({"out": torch.zeros(2, 3, 8, 8)}, "out"),
        ({"out": torch.zeros(2, 3, 16, 16, dtype=torch.float64)}, "out"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"pixels": some_pixels(2, 8, 8), "sizes": torch.full((2, 2), 8), "views": [SAME] * 2}
    with pytest.raises(ValueError, match=message):
        apply_batch(image_size=16, **{**arguments, **change})  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_views(many_views: list[View]) -> None:
    views = many_views * 3  # more than a chunk
    pixels, sizes = some_pixels(len(views), 70, 90), torch.tensor([[70, 90]] * len(views))
    cubic = apply_batch(pixels.cuda(), sizes, views, 64, CUBIC)
    assert (cubic.cpu() - apply_batch(pixels, sizes, views, 64, CUBIC)).abs().max() < BOUND
    together = apply_batch(pixels.cuda(), sizes, views, 64)
    assert (together.cpu() - apply_batch(pixels, sizes, views, 64)).abs().max() < BOUND
    for order in ([5], list(range(30, 60)), list(range(len(views) - 1, -1, -1))):
        part = apply_batch(pixels[order].cuda(), sizes[order], [views[i] for i in order], 64)
        assert torch.equal(part, together[order])
