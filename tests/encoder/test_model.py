"""The encoder: same weights from the same seed, empty batches, frozen norms, weights from files."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from marc_dist.config import ConfigError, ModelConfig
from marc_dist.encoder.model import build_encoder
from marc_dist.encoder.norm import SyncBatchNorm, batch_norms

SMALL = ModelConfig(backbone="test_resnet", pretrained=False, head_hidden=8, head_dim=4)


def _with(**changes: object) -> ModelConfig:
    return SMALL.model_copy(update=changes)


def test_seed_decides_the_weights_and_nothing_else() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a, b, c = build_encoder(SMALL, 1), build_encoder(SMALL, 1), build_encoder(SMALL, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
    states = [encoder.state_dict() for encoder in (a, b, c)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["head.0.weight"], states[2]["head.0.weight"])
    plain = build_encoder(_with(batch_norm="plain"), 1).state_dict()
    assert all(torch.equal(states[0][key], plain[key]) for key in plain)


def test_shapes_of_features_and_projection() -> None:
    encoder = build_encoder(SMALL, 0)
    features, projection = encoder(torch.randn(3, 3, 32, 32))
    assert features.shape == (3, encoder.num_features)
    assert projection.shape == (3, 4)
    linear = build_encoder(_with(head_hidden=0, backbone="mobilenetv3_small_050"), 0)
    assert [type(m) for m in linear.head] == [nn.Linear]
    assert linear(torch.randn(2, 3, 32, 32))[0].shape == (2, linear.num_features)


@pytest.mark.parametrize(
    ("backbone", "norm"), [("test_resnet", "sync"), ("test_resnet", "plain"), ("test_vit", "sync")]
)
def test_no_rows_give_no_rows_and_leave_no_trace(backbone: str, norm: str) -> None:
    encoder = build_encoder(_with(backbone=backbone, batch_norm=norm), 0, image_size=32)
    before = {key: value.clone() for key, value in encoder.state_dict().items() if "num_batches" not in key}
    features, projection = encoder(torch.zeros(0, 3, 32, 32))
    assert features.shape == (0, encoder.num_features)
    assert projection.shape == (0, 4)
    projection.sum().backward()
    assert all(not p.grad.any() for p in encoder.parameters() if p.grad is not None)
    assert all(module.training for module in encoder.modules())
    if norm == "plain":
        assert all(torch.equal(encoder.state_dict()[key], value) for key, value in before.items())


def test_frozen_norms_stay_frozen_in_training() -> None:
    encoder = build_encoder(_with(batch_norm="frozen"), 0).train()
    before = [norm.running_mean.clone() for norm in batch_norms(encoder)]
    encoder(torch.randn(4, 3, 32, 32) + 3)
    assert before and all(torch.equal(a, b.running_mean) for a, b in zip(before, batch_norms(encoder), strict=True))
    assert not any(isinstance(m, SyncBatchNorm) for m in encoder.modules())
    live = build_encoder(SMALL, 0)
    live(torch.randn(4, 3, 32, 32) + 3)
    assert not torch.equal(batch_norms(live)[0].running_mean, before[0])


@pytest.mark.parametrize("backbone", ["test_vit", "vit_tiny_patch16_224"])
def test_transformers_take_any_image_size_with_timms_own_shapes(backbone: str) -> None:
    encoder = build_encoder(_with(backbone=backbone), 0, image_size=64)
    assert encoder(torch.randn(2, 3, 64, 64))[0].shape == (2, encoder.num_features)
    timm.create_model(backbone, num_classes=0).load_state_dict(encoder.backbone.state_dict(), strict=True)


def test_weights_from_timm_with_classifier_and_from_an_encoder(tmp_path: Path) -> None:
    full = timm.create_model("test_resnet", num_classes=10)
    save_file(full.state_dict(), tmp_path / "full.safetensors")
    encoder = build_encoder(_with(weights=str(tmp_path / "full.safetensors")), 0)
    assert torch.equal(encoder.backbone.state_dict()["conv1.0.weight"], full.state_dict()["conv1.0.weight"])
    save_file({f"backbone.{k}": v for k, v in encoder.backbone.state_dict().items()}, tmp_path / "ours.safetensors")
    again = build_encoder(_with(weights=str(tmp_path / "ours.safetensors")), 7)
    assert torch.equal(again.backbone.state_dict()["conv1.0.weight"], full.state_dict()["conv1.0.weight"])


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean resnet18"):
        build_encoder(_with(backbone="resnt18"), 0)
    with pytest.raises(ConfigError, match="no such file"):
        build_encoder(_with(weights=str(tmp_path / "none.safetensors")), 0)
    (tmp_path / "bad.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ConfigError, match="not a readable"):
        build_encoder(_with(weights=str(tmp_path / "bad.safetensors")), 0)
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="another backbone"):
        build_encoder(_with(weights=str(tmp_path / "other.safetensors")), 0)
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    state["conv1.0.weight"] = torch.zeros(2)
    save_file(state, tmp_path / "shape.safetensors")
    with pytest.raises(ConfigError, match=r"conv1.0.weight has shape \(2,\)"):
        build_encoder(_with(weights=str(tmp_path / "shape.safetensors")), 0)
