"""Where the encoder runs and in which arithmetic."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from marc_dist.config import ConfigError, TrainConfig


class Arithmetic(NamedTuple):
    """Types of one run: parameters, what the loss works in, and autocast if any."""

    weights: torch.dtype
    loss: torch.dtype
    autocast: torch.dtype | None


def resolve_device(asked: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device that ``train.device`` means on this machine.

    Raises:
        ConfigError: ``cuda`` without a usable GPU.
    """
    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device: cuda was asked for, but torch sees no GPU here; use train.device=cpu or auto")
    return torch.device("cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_arithmetic(config: TrainConfig, device: torch.device) -> Arithmetic:
    """The types that ``train.precision`` means on this device; ``auto`` is bfloat16 on a GPU that has it.

    Raises:
        ConfigError: bfloat16 on a GPU without it.
    """
    capable = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if config.precision == "float64":
        return Arithmetic(torch.float64, torch.float64, None)
    if config.precision == "bfloat16" and device.type == "cuda" and not capable:
        raise ConfigError("train.precision: this GPU has no bfloat16; use train.precision=float32")
    if config.precision == "bfloat16" or (config.precision == "auto" and capable):
        return Arithmetic(torch.float32, torch.float32, torch.bfloat16)
    return Arithmetic(torch.float32, torch.float32, None)
