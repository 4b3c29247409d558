"""Augmentation: draws belong to (seed, epoch, sample, view), and applying them does what the words say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from marc_dist.augment.views import (
    IMAGENET,
    Augment,
    View,
    _uniforms,
    apply,
    blurred,
    draw,
    eval_transform,
    to_tensor,
    turn_hue,
)
from marc_dist.config import AugmentConfig

SAME = View(0, 0, 1, 1, False, False, 0, 1.0, 1.0, 1.0, 0.0, False, 0.0)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    rows = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    return Image.fromarray(rows)


def pixels_of(tensor: torch.Tensor) -> torch.Tensor:
    """Back from the encoder's scale to 0..1."""
    return tensor * torch.tensor(IMAGENET.std)[:, None, None] + torch.tensor(IMAGENET.mean)[:, None, None]


def test_seed_epoch_sample_and_view_each_change_the_draw() -> None:
    config = AugmentConfig()
    base = {"seed": 1, "epoch": 2, "sample": 3, "view": 0}
    draws = [draw(config, **base)] + [draw(config, **{**base, key: base[key] + 1}) for key in base]
    assert len({repr(numbers) for numbers in draws}) == 5
    assert draw(config, **base) == draws[0]


def test_one_setting_leaves_the_other_draws_alone() -> None:
    one = draw(AugmentConfig(gray=0.0), seed=0, epoch=0, sample=5, view=1)
    two = draw(AugmentConfig(gray=1.0), seed=0, epoch=0, sample=5, view=1)
    assert two.gray and not one.gray
    assert {**vars(one), "gray": None} == {**vars(two), "gray": None}


def test_draws_stay_in_their_ranges_and_fill_them() -> None:
    config = AugmentConfig(crop_min=0.2, crop_max=0.8, jitter=1.0, blur=0.5)
    views = [draw(config, seed=0, epoch=e, sample=s, view=v) for e in range(5) for s in range(100) for v in range(2)]
    area = np.array([view.height * view.width for view in views])
    assert area.max() <= 0.8 + 1e-9 and area.min() >= 0.15 and area.std() > 0.1
    for view in views:
        assert 0 <= view.top <= 1 - view.height + 1e-12 and 0 <= view.left <= 1 - view.width + 1e-12
        assert 1 / 1.34 < view.width / view.height < 1.34
        assert abs(view.brightness - 1) <= 0.3 and abs(view.hue) <= 0.05
    for name, share in [("hflip", 0.5), ("vflip", 0.5), ("gray", 0.1)]:
        assert np.mean([getattr(view, name) for view in views]) == pytest.approx(share, abs=0.06)
    assert np.bincount([view.turns for view in views], minlength=4).min() > 200
    assert np.mean([view.blur > 0 for view in views]) == pytest.approx(0.5, abs=0.06)
    assert not any(view.cutout_height or view.cutout_width for view in views)


def test_boxes_stay_inside_and_fill_their_ranges() -> None:
    config = AugmentConfig(cutout=0.4, cutout_size=0.5)
    views = [draw(config, seed=0, epoch=0, sample=sample, view=0) for sample in range(1000)]
    boxes = [view for view in views if view.cutout_height]
    assert len(boxes) / 1000 == pytest.approx(0.4, abs=0.06)
    for name, side in (("top", "height"), ("left", "width")):
        sides = np.array([getattr(view, f"cutout_{side}") for view in boxes])
        places = np.array([getattr(view, f"cutout_{name}") for view in boxes])
        assert sides.min() >= 0.25 and sides.max() <= 0.5 and np.histogram(sides, 4, (0.25, 0.5))[0].min() > 50
        assert places.min() >= 0 and (places + sides).max() <= 1 + 1e-12
        assert np.histogram(places / (1 - sides), 4, (0, 1))[0].min() > 50
    heights, widths = ([getattr(view, f"cutout_{side}") for view in boxes] for side in ("height", "width"))
    assert abs(np.corrcoef(heights, widths)[0, 1]) < 0.2
    for view, side in itertools.product(boxes[:50], (1, 16, 31)):
        top, bottom, left, right = view.cutout_box(side)
        assert 0 <= top < bottom <= side and 0 <= left < right <= side
    assert SAME.cutout_box(16) == (0, 0, 0, 0)


def test_the_numbers_of_a_view_are_uniform_and_independent() -> None:
    numbers = np.array([_uniforms(0, 0, sample, 0, 20) for sample in range(2000)])
    assert np.abs(np.corrcoef(numbers.T) - np.eye(20)).max() < 5 / np.sqrt(2000)
    assert np.abs(numbers.mean(0) - 0.5).max() < 5 * np.sqrt(1 / 12 / 2000)
    assert numbers.min() >= 0 and numbers.max() < 1
    views = [draw(AugmentConfig(), seed=0, epoch=0, sample=sample, view=0) for sample in range(1000)]
    for start, length in [("top", "height"), ("left", "width")]:
        place = [getattr(v, start) / (1 - getattr(v, length)) for v in views if getattr(v, length) < 0.99]
        assert np.histogram(place, 4, (0, 1))[0].min() > 0.2 * len(place)


def test_the_numbers_are_pinned() -> None:
    """A change of these changes every run that was ever started."""
    assert _uniforms(1, 2, 3, 0, 6) == pytest.approx(PINNED, abs=1e-12)
    everything = AugmentConfig(jitter=1.0, gray=0.5, blur=1.0, cutout=1.0)
    view = dict(vars(draw(everything, seed=1, epoch=2, sample=3, view=0)))
    assert [view.pop(name) for name in ("band_brightness", "band_contrast", "dropped")] == [(), (), ()]
    assert view == pytest.approx(PINNED_VIEW, abs=1e-9)
    without = vars(draw(everything.model_copy(update={"cutout": 0.0}), seed=1, epoch=2, sample=3, view=0))
    assert {name for name in view if view[name] != without[name]} == {name for name in view if "cutout" in name}


PINNED_VIEW = {
    "top": 0.015063015038, "left": 0.115859705672, "height": 0.957186568293, "width": 0.865493658231, "hflip": True,
    "vflip": True, "turns": 1, "brightness": 0.947311648575, "contrast": 0.988065114365, "saturation": 0.806800704721,
    "hue": -0.043464137437, "gray": True, "blur": 0.015429447808, "cutout_top": 0.032679072311,
    "cutout_left": 0.434120105894, "cutout_height": 0.271652291412, "cutout_width": 0.154012003802,
}  # fmt: skip
PINNED = [0.754912720859, 0.323447209043, 0.351829190917, 0.8613698369, 0.489609580096, 0.475203737233]


def test_switched_off_it_only_resizes(picture: Image.Image) -> None:
    off = AugmentConfig(crop_min=1.0, crop_ratio=1.0, hflip=0, vflip=0, quarter_turns=False, jitter=0, gray=0)
    view = Augment(off, 32, 0, IMAGENET)(picture, epoch=0, sample=0, view=0)
    torch.testing.assert_close(view, eval_transform(picture, 32, IMAGENET), rtol=0, atol=1e-6)


def test_geometry(picture: Image.Image) -> None:
    whole = apply(to_tensor(picture), SAME, 40, IMAGENET)
    for change, expected in [
        ({"hflip": True}, whole.flip(2)),
        ({"vflip": True}, whole.flip(1)),
        ({"turns": 1}, whole.rot90(1, (1, 2))),
        ({"turns": 3, "hflip": True}, whole.flip(2).rot90(3, (1, 2))),
    ]:
        assert torch.equal(apply(to_tensor(picture), View(**{**vars(SAME), **change}), 40, IMAGENET), expected)
    square = picture.crop((8, 10, 28, 30))
    crop = View(**{**vars(SAME), "top": 10 / 40, "left": 8 / 48, "height": 20 / 40, "width": 20 / 48})
    assert torch.equal(apply(to_tensor(picture), crop, 20, IMAGENET), apply(to_tensor(square), SAME, 20, IMAGENET))


def test_a_box_is_the_mean_colour(picture: Image.Image) -> None:
    box = View(**{**vars(SAME), "cutout_top": 0.5, "cutout_left": 0.1, "cutout_height": 0.25, "cutout_width": 0.5})
    plain, cut = apply(to_tensor(picture), SAME, 40, IMAGENET), apply(to_tensor(picture), box, 40, IMAGENET)
    assert (cut[:, 20:30, 4:24] == 0).all()
    torch.testing.assert_close(pixels_of(cut)[:, 25, 10], torch.tensor(IMAGENET.mean))
    cut[:, 20:30, 4:24] = plain[:, 20:30, 4:24]
    assert torch.equal(cut, plain)


def test_colour(picture: Image.Image) -> None:
    plain = pixels_of(apply(to_tensor(picture), SAME, 40, IMAGENET))
    brighter = pixels_of(apply(to_tensor(picture), View(**{**vars(SAME), "brightness": 1.2}), 40, IMAGENET))
    torch.testing.assert_close(brighter, (plain * 1.2).clamp(0, 1), rtol=0, atol=1e-5)
    grey = pixels_of(apply(to_tensor(picture), View(**{**vars(SAME), "gray": True}), 40, IMAGENET))
    assert torch.allclose(grey[0], grey[1], atol=1e-6) and torch.allclose(grey[0], grey[2], atol=1e-6)
    for name, value in [("contrast", 0.7), ("saturation", 0.7), ("hue", 0.1), ("blur", 0.02)]:
        changed = pixels_of(apply(to_tensor(picture), View(**{**vars(SAME), name: value}), 40, IMAGENET))
        assert (changed - plain).abs().max() > 0.01, name
        assert changed.min() > -1e-5 and changed.max() < 1 + 1e-5


def test_hue_and_blur_equal_torchvision() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(3, 33, 47, generator=generator)
    pixels[:, :10] = torch.randint(0, 3, (3, 10, 47), generator=generator) / 2  # greys and ties between channels
    for turn in (-0.5, -0.2, -0.03, 0.01, 0.17, 0.34, 0.5):
        torch.testing.assert_close(turn_hue(pixels, turn), F.adjust_hue(pixels, turn), rtol=0, atol=5e-6)
    for sigma in (0.3, 1.0, 3.0):
        expected = F.gaussian_blur(pixels, [2 * int(np.ceil(2 * sigma)) + 1] * 2, [sigma, sigma])
        torch.testing.assert_close(blurred(pixels, sigma), expected, rtol=0, atol=5e-6)


def test_apply_equals_a_chain_of_torchvision(picture: Image.Image) -> None:
    """In this order: crop and resize, flips, quarter turns, brightness, contrast, saturation, hue, grey."""
    view = View(0.1, 0.2, 0.5, 0.75, True, False, 3, 1.2, 0.8, 1.3, 0.04, False, 0.0)
    out = F.resized_crop(to_tensor(picture).contiguous(), 4, 10, 20, 36, [24, 24], antialias=True)
    out = torch.rot90(F.horizontal_flip(out), 3, (1, 2)).float() / 255
    out = F.adjust_saturation(F.adjust_contrast(F.adjust_brightness(out, 1.2), 0.8), 1.3)
    expected = F.normalize(F.adjust_hue(out, 0.04), list(IMAGENET.mean), list(IMAGENET.std))
    torch.testing.assert_close(apply(to_tensor(picture), view, 24, IMAGENET), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("image_size", [64, 224])
def test_threads_do_not_change_a_bit(picture: Image.Image, image_size: int) -> None:
    augment = Augment(AugmentConfig(blur=1.0, jitter=1.0), image_size, 3, IMAGENET)
    one = augment.views(picture, 0, 0, [0, 1])
    torch.set_num_threads(4)
    try:
        two = augment.views(picture, 0, 0, [0, 1])
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(*one)


def test_a_one_pixel_picture() -> None:
    dot = Image.new("RGB", (1, 1), (10, 20, 30))
    assert Augment(AugmentConfig(), 16, 0, IMAGENET)(dot, 0, 0, 0).shape == (3, 16, 16)
    assert eval_transform(dot, 16, IMAGENET).shape == (3, 16, 16)
