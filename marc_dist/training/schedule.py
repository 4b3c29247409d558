"""Optimiser and learning rate: both functions of the settings and the global step alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from marc_dist.config import ConfigError, OptimConfig
from marc_dist.encoder.model import Encoder, Learner

TORCH = ("adamw", "sgd")
"""Optimisers of torch that we make ourselves, fused; timm makes the others."""


def learning_rate(config: OptimConfig, step: int, total_steps: int, thaw_step: int | None = None) -> float:
    """Linear warm-up to ``optim.lr``, then half a cosine to zero; twice when frozen parts begin to learn on the way.

    Args:
        config: peak and share of the warm-up.
        step: global step about to be taken, from 0.
        total_steps: steps of the whole run, epochs x steps per epoch, whenever it is stopped.
        thaw_step: the step from which everything learns: what comes before has a schedule of its own.
    """
    if thaw_step is not None and thaw_step < total_steps:
        step, total_steps = (step, thaw_step) if step < thaw_step else (step - thaw_step, total_steps - thaw_step)
    warmup = min(round(config.warmup_share * total_steps), total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(total_steps - warmup, 1)))


def build_optimiser(config: OptimConfig, module: Learner | Encoder) -> torch.optim.Optimizer:
    """The optimiser over what learns, now or after ``model.thaw_after``.

    Parameters of one group share their weight decay and ``lr_scale``, a factor of the learning rate. Weight decay is
    for matrices only, never for norms, biases or what timm exempts.

    Args:
        config: ``optim``.
        module: its backbone's parameters have ``optim.backbone_lr_scale`` and ``optim.layer_decay``.

    Raises:
        ConfigError: ``optim.layer_decay``, and timm knows no layers of this backbone.
    """
    encoder = module.encoder if isinstance(module, Learner) else module
    exempt, scales = _exempt(module), _lr_scales(config, encoder)
    later = {id(parameter) for parameter in encoder.to_thaw}
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad or id(parameter) in later:
            free = parameter.ndim <= 1 or name in exempt
            # what thaws is a group of its own: torch's fused SGD wants momentum for all of a group, or for none
            key = scales.get(id(parameter), 1.0), free, id(parameter) in later
            groups.setdefault(key, []).append(parameter)
    made: list[dict[str, Any]] = [
        {"params": groups[key], "weight_decay": 0.0 if key[1] else config.weight_decay, "lr_scale": key[0]}
        for key in sorted(groups)
    ]
    if config.name not in TORCH:
        from timm.optim import create_optimizer_v2

        options = {"max_grad_norm": None} if config.name == "lamb" else {}  # ``optim.clip_norm`` clips
        made_by_timm: torch.optim.Optimizer = create_optimizer_v2(made, opt=config.name, lr=config.lr, **options)
        return made_by_timm
    fused = _fused(parameter for group in made for parameter in group["params"])
    if config.name == "adamw":
        return torch.optim.AdamW(made, lr=config.lr, betas=(config.momentum, 0.999), fused=fused)
    return torch.optim.SGD(made, lr=config.lr, momentum=config.momentum, fused=fused)


def _lr_scales(config: OptimConfig, encoder: Encoder) -> dict[int, float]:
    """``id`` of each parameter of the backbone -> factor of its learning rate.

    Layers are those of timm's ``group_matcher``, as in its own training; the last one has no decay.
    """
    backbone = encoder.backbone
    depth = {name: 0 for name, _ in backbone.named_parameters()}
    if config.layer_decay is not None:
        from timm.models import group_parameters

        matcher = getattr(backbone, "group_matcher", None)
        layers = {} if matcher is None else group_parameters(backbone, matcher(coarse=False), reverse=True)
        last = max(layers.values(), default=0)
        if not last:
            raise ConfigError(
                f"optim.layer_decay: timm knows no layers of {encoder.name}; leave it out, or use "
                "optim.backbone_lr_scale, which slows the whole backbone"
            )
        depth = {name: last - layers[name] for name in depth}
    decay = 1.0 if config.layer_decay is None else config.layer_decay
    return {
        id(parameter): config.backbone_lr_scale * decay ** depth[name]
        for name, parameter in backbone.named_parameters()
    }


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
    """Give every parameter group the learning rate of this step, times its own factor."""
    for group in optimiser.param_groups:
        group["lr"] = value * group.get("lr_scale", 1.0)  # a checkpoint of before has no factors
