"""Optimiser and learning rate: both functions of the settings and the global step alone."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from marc_dist.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Linear warm-up to ``optim.lr``, then half a cosine to zero.

    Args:
        config: peak and share of the warm-up.
        step: global step about to be taken, from 0.
        total_steps: steps of the whole run, epochs x steps per epoch, whenever it is stopped.
    """
    warmup = min(round(config.warmup_share * total_steps), total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(total_steps - warmup, 1)))


def build_optimiser(config: OptimConfig, module: nn.Module) -> torch.optim.Optimizer:
    """AdamW or SGD with momentum; weight decay on matrices only, never on norms, biases or what timm exempts."""
    exempt = _exempt(module)
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (free if parameter.ndim <= 1 or name in exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    fused = _fused([*decayed, *free])
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=fused)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)


def _exempt(module: nn.Module) -> set[str]:
    """Full names of the parameters that a submodule (timm's position embeddings, class tokens) wants undecayed."""
    names: set[str] = set()
    for prefix, child in module.named_modules():
        listed = getattr(child, "no_weight_decay", None)
        if callable(listed):
            names |= {f"{prefix}.{name}" if prefix else str(name) for name in listed()}
    return names


def _fused(parameters: Iterable[nn.Parameter]) -> bool:
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)


def set_learning_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    """Give every parameter group the learning rate of this step."""
    for group in optimiser.param_groups:
        group["lr"] = value
