"""Device and precision by machine."""

from __future__ import annotations

import math

import pytest
import torch

from marc_dist.config import ConfigError, TrainConfig
from marc_dist.encoder.device import resolve_arithmetic, resolve_device
from marc_dist.training.step import step_seed
from marc_dist.training.step_stats import describe

CPU, GPU = torch.device("cpu"), torch.device("cuda")
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


def test_auto_takes_a_gpu_when_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [resolve_device(asked).type for asked in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match=r"train.device: cuda .* no GPU here; use train.device=cpu"):
        resolve_device("cuda")


@pytest.mark.parametrize(
    ("precision", "device", "capable", "expected"),
    [
        ("auto", CPU, True, (F32, F32, None)),
        ("auto", GPU, True, (F32, F32, BF16)),
        ("auto", GPU, False, (F32, F32, None)),
        ("bfloat16", CPU, False, (F32, F32, BF16)),
        ("float32", GPU, True, (F32, F32, None)),
        ("float64", GPU, True, (F64, F64, None)),
    ],
)
def test_precision(
    precision: str, device: torch.device, capable: bool, expected: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: capable)
    assert resolve_arithmetic(TrainConfig(precision=precision), device) == expected


def test_bfloat16_on_a_gpu_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(ConfigError, match="no bfloat16"):
        resolve_arithmetic(TrainConfig(precision="bfloat16"), GPU)


def test_step_seeds_differ_by_seed_step_and_samples() -> None:
    one, two = torch.tensor([1, 2]), torch.tensor([3])
    seeds = {step_seed(*place) for place in [(0, 0, one), (1, 0, one), (0, 1, one), (0, 0, two), (1, 1, two)]}
    assert len(seeds) == 5
    assert step_seed(3, 4, one) == step_seed(3, 4, one.clone())


def test_sums_become_means() -> None:
    sums = {"anchors": 4.0, "positives": 8.0, "anchors_without_partner": 1.0, "temperature_sum": 2.0, "weight_sum": 4.0}
    highest = {"temperature_min": -0.1, "temperature_max": 0.3, "weight_min": -0.2, "weight_max": 0.9}
    assert describe({**sums, **highest, "label_coverage": 0.75}) == {
        "positives_per_anchor": 2.0,
        "anchors_without_partner": 0.25,
        "label_coverage": 0.75,
        "temperature_mean": 0.25,
        "temperature_min": 0.1,
        "temperature_max": 0.3,
        "weight_mean": 0.5,
        "weight_min": 0.2,
        "weight_max": 0.9,
    }
    nothing = {**dict.fromkeys(sums, 0.0), **dict.fromkeys(highest, -math.inf), "label_coverage": 0.0}
    assert set(describe(nothing).values()) == {0.0}
