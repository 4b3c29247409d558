"""How a run's encoder takes bands: which ones, in which order, what becomes 0 and 1, what it normalises by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from marc_dist.augment.bands import BandScale
from marc_dist.augment.views import PixelScale
from marc_dist.config import ConfigError, DataConfig, DataError
from marc_dist.data.bands.pick import bands_of
from marc_dist.data.dataset import Dataset

REFLECTANCE = 10_000.0
"""Sentinel-2's value of a surface that reflects all light."""


def band_scale(data: DataConfig, dataset: Dataset, interpolation: Literal["bilinear", "bicubic"]) -> PixelScale | None:
    """The scale of a data set with named bands; None: it has plain RGB pictures.

    Args:
        data: ``bands``, ``scaling``, ``range``, ``mean``, ``std``.
        dataset: whose statistics count.
        interpolation: of resizing.

    Raises:
        ConfigError: bands that the data set does not have; settings that do not fit their number.
        DataError: a band without values, or without statistics.
    """
    there, dtype, _ = bands_of(dataset)
    if not there:
        _refuse_band_settings(data, dataset)
        return None
    names = data.bands or there
    lacking = [name for name in names if name not in there]
    if lacking:
        raise ConfigError(
            f"data.bands: {dataset.root} has no band {', '.join(lacking)}; expected some of {', '.join(there)}"
        )
    columns = _statistics(dataset, names, there)
    low, high = _limits(data, dtype, columns, names)
    spans = [b - a for a, b in zip(low, high, strict=True)]
    mean, std = (
        tuple(getattr(data, key) or ()) or tuple((m - (a if key == "mean" else 0.0)) / span for m, a, span in rows)
        for key, rows in (
            ("mean", list(zip(columns["mean"], low, spans, strict=True))),
            ("std", list(zip((value or 1.0 for value in columns["std"]), low, spans, strict=True))),
        )
    )
    for key, numbers in (("mean", mean), ("std", std)):
        if len(numbers) != len(names):
            raise ConfigError(f"data.{key}: expected {len(names)} numbers, one a band, got {len(numbers)}")
    bands = BandScale(
        tuple(names), dtype, data.scaling, low, high, tuple(columns["mean"]), tuple(map(float, columns["std"]))
    )
    return PixelScale(tuple(map(float, mean)), tuple(map(float, std)), interpolation, bands)


def _refuse_band_settings(data: DataConfig, dataset: Dataset) -> None:
    if data.bands is not None:
        raise ConfigError(
            f"data.bands: {dataset.root} has red, green and blue of 8 bits, no named bands; name them in the recipe "
            "(`bands:`) and pack again, or leave data.bands out"
        )


def _statistics(dataset: Dataset, names: Sequence[str], there: Sequence[str]) -> dict[str, list[float]]:
    """Columns of the wanted bands."""
    told: Any = dataset.meta["bands"].get("statistics")
    found: dict[str, list[float]] = {}
    for key in ("mean", "std", "min", "max", "p2", "p98"):
        column = told.get(key) if isinstance(told, dict) else None
        if not isinstance(column, list) or len(column) != len(there):
            raise DataError(
                f"{dataset.root / 'dataset.json'}: bands: no {key} of each; pack again with marc-shard --force"
            )
        found[key] = [column[list(there).index(name)] for name in names]
    empty = [name for name, value in zip(names, found["mean"], strict=True) if not isinstance(value, int | float)]
    if empty:
        raise DataError(
            f"{dataset.root}: band {', '.join(empty)} holds no values in the training split; leave it out with "
            "data.bands"
        )
    return found


def _limits(
    data: DataConfig, dtype: str, columns: dict[str, list[float]], names: Sequence[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The values that become 0 and 1, of each band."""
    if data.scaling == "reflectance":
        return (0.0,) * len(names), (REFLECTANCE,) * len(names)
    if data.scaling == "range":
        if data.range is None and dtype == "float32":
            raise ConfigError("data.scaling=range: float32 has no natural range; give data.range=[LOW,HIGH]")
        low, high = data.range or (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))
        return (low,) * len(names), (high,) * len(names)
    pairs = list(zip(columns["p2"], columns["p98"], columns["min"], columns["max"], strict=True))
    lows, highs = [], []
    for p2, p98, least, most in pairs:  # a band that is nearly the same everywhere has its extremes, else a step of 1
        low, high = (p2, p98) if p2 < p98 else (least, most)
        lows.append(float(low))
        highs.append(float(high) if low < high else float(low) + 1.0)
    return tuple(lows), tuple(highs)


def refuse_other_bands(asked: Sequence[str] | None, scale: PixelScale, place: str) -> None:
    """Refuse settings that name other bands, or another order, than the encoder has.

    Args:
        asked: ``data.bands``; None = whatever the encoder takes.
        scale: of the encoder.
        place: the encoder's, for the message.

    Raises:
        ConfigError: names both.
    """
    own = ("red", "green", "blue") if scale.bands is None else scale.bands.names
    if asked is not None and tuple(asked) != own:
        raise ConfigError(
            f"data.bands: {', '.join(asked)}, but the encoder of {place} takes {', '.join(own)}, in this order; give "
            "these, or leave data.bands out"
        )
