"""Learning rate by global step, and which parameters decay."""

from __future__ import annotations

import math

import pytest
import torch

from marc_dist.config import ModelConfig, OptimConfig
from marc_dist.encoder.model import Learner, build_encoder
from marc_dist.training.schedule import build_optimiser, learning_rate, set_learning_rate


def test_warm_up_then_cosine() -> None:
    config = OptimConfig(lr=2.0, warmup_share=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(1 + math.cos(math.pi * 89 / 90))
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))


@pytest.mark.parametrize(("share", "first"), [(0.0, 1.0), (1.0, 0.1)])
def test_no_warm_up_and_nothing_but_warm_up(share: float, first: float) -> None:
    rates = [learning_rate(OptimConfig(lr=1.0, warmup_share=share), step, 10) for step in range(10)]
    assert rates[0] == pytest.approx(first)
    assert max(rates) == pytest.approx(1.0)
    assert min(rates) > 0


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_norms_biases_and_embeddings_do_not_decay(backbone: str, name: str) -> None:
    encoder = build_encoder(ModelConfig(backbone=backbone, pretrained=False, head_dim=4, head_hidden=4), 0)
    optimiser = build_optimiser(OptimConfig(name=name, weight_decay=0.1), encoder)
    decay = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    names = dict(encoder.named_parameters())
    assert len(decay) == len(names)
    for key, parameter in names.items():
        free = parameter.ndim <= 1 or key in ("backbone.pos_embed", "backbone.cls_token")
        assert decay[id(parameter)] == (0.0 if free else 0.1), key
    set_learning_rate(optimiser, 0.25)
    assert {group["lr"] for group in optimiser.param_groups} == {0.25}
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.SGD
    assert isinstance(optimiser, kind)


def test_prototypes_do_not_decay() -> None:
    learner = Learner(
        build_encoder(ModelConfig(backbone="test_vit", pretrained=False, head_dim=4, head_hidden=4), 0), 3, 4, 0
    )
    optimiser = build_optimiser(OptimConfig(weight_decay=0.1), learner)
    (group,) = [g for g in optimiser.param_groups if any(p is learner.prototypes for p in g["params"])]
    assert group["weight_decay"] == 0.0
