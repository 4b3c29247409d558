"""Augmented views of bands: against plain numpy in float64, the same bits whatever shares the batch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from marc_dist.augment.band_views import apply_band_batch, band_picture, band_view
from marc_dist.augment.bands import BandScale
from marc_dist.augment.views import PixelScale, View, draw, eval_transform
from marc_dist.config import AugmentConfig

NUM, SIDE = 5, 16
LOW, HIGH = tuple(100.0 * band for band in range(NUM)), tuple(6000.0 + 500 * band for band in range(NUM))
SAME = View(0, 0, 1, 1, False, False, 0, 1.0, 1.0, 1.0, 0.0, False, 0.0)


def scale_of(dtype: str, scaling: str = "range") -> PixelScale:
    names = tuple(f"B{band}" for band in range(NUM))
    bands = BandScale(names, dtype, scaling, LOW, HIGH, (1.0,) * NUM, (1.0,) * NUM)
    mean, std = tuple(0.1 * band for band in range(NUM)), tuple(0.5 + 0.1 * band for band in range(NUM))
    return PixelScale(mean, std, "bilinear", bands)


def picture(dtype: str, seed: int = 0, height: int = SIDE, width: int = SIDE) -> NDArray[np.generic]:
    rng = np.random.default_rng(seed)
    high = 255 if dtype == "uint8" else 30_000 if dtype == "int16" else 60_000
    return rng.integers(0, high, (height, width, NUM)).astype(dtype)


def expected(values: NDArray[np.generic], scale: PixelScale, view: View = SAME) -> NDArray[np.float64]:
    """Without resizing: scale, flip, turn, factors, normalise, one band at a time."""
    out = []
    for band in range(NUM):
        x = (values[:, :, band].astype(np.float64) - LOW[band]) / (HIGH[band] - LOW[band])
        if scale.bands is not None and scale.bands.scaling == "percentiles":
            x = x.clip(0, 1)
        x = x[:, ::-1] if view.hflip else x
        x = x[::-1] if view.vflip else x
        x = np.rot90(x, view.turns)
        x = x * view.brightness * (view.band_brightness[band] if view.band_brightness else 1)
        factor = view.contrast * (view.band_contrast[band] if view.band_contrast else 1)
        x = (x - x.mean()) * factor + x.mean()
        x = (x - scale.mean[band]) / scale.std[band]
        out.append(np.zeros_like(x) if band in view.dropped else x)
    return np.stack(out)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("scaling", ["range", "percentiles"])
def test_a_picture_is_scaled_and_normalised_band_by_band(dtype: str, scaling: str) -> None:
    scale, values = scale_of(dtype, scaling), picture(dtype)
    found = eval_transform(values, SIDE, scale)
    assert found.dtype == torch.float32 and torch.equal(found, band_picture(values, SIDE, scale))
    assert np.allclose(found.numpy(), expected(values, scale), atol=2e-5)
    small = band_picture(values, 8, scale)
    assert small.shape == (NUM, 8, 8)


VIEWS = [
    dataclasses.replace(SAME, hflip=True, turns=1, brightness=1.3, contrast=0.7),
    dataclasses.replace(SAME, vflip=True, turns=3, band_brightness=(1.1, 0.9, 1.0, 0.8, 1.2)),
    dataclasses.replace(SAME, turns=2, band_contrast=(1.1, 0.9, 1.0, 0.8, 1.2), dropped=(0, 3)),
]


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_what_numpy_makes(view: View) -> None:
    scale, values = scale_of("uint16"), picture("uint16")
    assert np.allclose(band_view(values, view, SIDE, scale).numpy(), expected(values, scale, view), atol=1e-4)


def test_views_do_not_depend_on_the_batch_or_on_threads() -> None:
    config = AugmentConfig(band_dropout=0.3, blur=0.5, cutout=0.5)
    scale = scale_of("uint16")
    values = [picture("uint16", seed, 10 + seed, 20 - seed) for seed in range(4)]
    pixels = torch.zeros((4, SIDE, 20, NUM), dtype=torch.uint16)
    for at, one in enumerate(values):
        pixels[at, : one.shape[0], : one.shape[1]] = torch.from_numpy(one)
    sizes = torch.tensor([one.shape[:2] for one in values])
    views = [draw(config, seed=1, epoch=0, sample=at, view=0, num_bands=NUM) for at in range(4)]
    rows = [2, 0, 3, 1]
    whole = apply_band_batch(pixels.permute(0, 3, 1, 2), sizes, views, 12, scale, rows=rows)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(apply_band_batch(pixels.permute(0, 3, 1, 2), sizes, views, 12, scale, rows=rows), whole)
    finally:
        torch.set_num_threads(threads)
    nothing = torch.zeros((0, 3, 1, 1), dtype=torch.uint8)  # a rank that has no samples in a step
    assert apply_band_batch(nothing, sizes[:0], [], 12, scale).shape == (0, NUM, 12, 12)
    for at, row in enumerate(rows):
        assert torch.equal(band_view(values[row], views[at], 12, scale), whole[at])


def test_bands_draw_numbers_of_their_own_and_leave_the_others_alone() -> None:
    config = AugmentConfig(band_dropout=0.9)
    fresh = {"band_brightness": (), "band_contrast": (), "dropped": ()}
    kept = []
    for sample in range(200):
        plain = draw(config, seed=3, epoch=1, sample=sample, view=0)
        banded = draw(config, seed=3, epoch=1, sample=sample, view=0, num_bands=NUM)
        assert dataclasses.replace(banded, **fresh) == plain
        assert len(banded.dropped) < NUM and len(banded.band_brightness) == len(banded.band_contrast) == NUM
        assert all(0.9 <= factor <= 1.1 for factor in banded.band_brightness + banded.band_contrast)
        kept.append(NUM - len(banded.dropped))
    assert 1.0 <= np.mean(kept) < 1.2  # 5 x 0.1, and one where all would go
