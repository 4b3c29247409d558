"""Draws inside a network: those of a naive hash, fair, independent, and the same however rows are spread."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import DropPath
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from marc_dist.config import ConfigError, ModelConfig
from marc_dist.encoder.draws import Draws, KeyedDrop, generator_state, key_layers, row_keys
from marc_dist.encoder.model import Encoder, build_encoder

WORD = (1 << 64) - 1


def _mixed(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & WORD
    return x ^ (x >> 31)


def _stream(state: int, at: int) -> int:
    """Output ``at`` of splitmix64 from a state on."""
    return _mixed(state + (at + 1) * 0x9E3779B97F4A7C15 & WORD)


def _key(seed: int, step: int, sample: int, view: int) -> int:
    digest = hashlib.sha256(f"draws/{seed}/{step}/{view}".encode()).digest()
    one, two = (int.from_bytes(digest[at : at + 8], "little") for at in (0, 8))
    return _mixed(_mixed(sample ^ one) + two & WORD)


def _naive(rows: list[tuple[int, int, int, int]], number: int, p: float, num: int) -> np.ndarray[Any, Any]:
    """(rows, num) what stays, one Python number at a time; a row is (seed, step, sample, view)."""
    states = [_stream(_key(*row), number - 1) for row in rows]
    return np.array([[_stream(state, at) / 2.0**64 >= p for at in range(num)] for state in states])


def _layer(p: float, axes: int | None, number: int = 1) -> tuple[KeyedDrop, Draws]:
    draws = Draws()
    return KeyedDrop(draws, number, p, axes), draws


def test_the_hash_is_splitmix64() -> None:
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # of the seed 0, published with it
    assert [_stream(0, at) for at in range(3)] == known
    keys = row_keys(7, 3, torch.tensor([5, 0, (1 << 62) + 1]), 2)
    rows = [(7, 3, sample, view) for view in range(2) for sample in (5, 0, (1 << 62) + 1)]
    assert [key & WORD for key in keys.tolist()] == [_key(*row) for row in rows]


@pytest.mark.parametrize(("axes", "num"), [(None, 4 * 3 * 2), (2, 4), (1, 1)])
def test_masks_are_those_of_a_naive_hash(axes: int | None, num: int) -> None:
    layer, draws = _layer(0.3, axes, number=11)
    ids, x = torch.tensor([4, 9, 2]), torch.rand(6, 4, 3, 2, dtype=torch.float64) + 1.0
    rows = [(1, 8, sample, view) for view in range(2) for sample in ids.tolist()]
    with draws.of(row_keys(1, 8, ids, 2)):
        out = layer(x)
    kept = torch.from_numpy(_naive(rows, 11, 0.3, num))
    kept = kept.reshape(*x.shape[: 4 if axes is None else axes], *[1] * (0 if axes is None else 4 - axes))
    assert 0 < kept.sum() < kept.numel() or axes == 1
    torch.testing.assert_close(out, x * kept / 0.7, rtol=1e-15, atol=0.0)
    windows = x.reshape(6 * 4, 3, 2)  # four windows a sample, one after another
    with draws.of(row_keys(1, 8, ids, 2)):
        cut = layer(windows)
    if axes is None:
        assert torch.equal(cut.reshape(x.shape), out)
    else:
        first = cut.reshape(6, 4, 3, 2) != 0
        same = _naive(rows, 11, 0.3, 4 if axes == 1 else 12).reshape(6, 4, -1)
        assert np.array_equal(first.flatten(2)[..., :: 6 if axes == 1 else 2].numpy(), same)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_shares_and_scale(p: float) -> None:
    layer, draws = _layer(p, None)
    with draws.of(row_keys(0, 0, torch.arange(200), 2)):
        out = layer(torch.ones(400, 1000))
    assert float((out == 0).float().mean()) == pytest.approx(p, abs=4 * (p * (1 - p) / 4e5) ** 0.5)
    assert out.unique().tolist() == [0.0, pytest.approx(1 / (1 - p))]
    rows = (out == 0).float().mean(1)
    assert float(rows.std()) == pytest.approx((p * (1 - p) / 1000) ** 0.5, rel=0.2)
    layer.p = 1.0
    with draws.of(torch.arange(4)):
        assert not layer(torch.ones(4, 9)).any()
    layer.scaled, layer.p = False, 0.5
    with draws.of(torch.arange(4)):
        assert layer(torch.ones(4, 9)).unique().tolist() == [0.0, 1.0]


def test_nothing_is_correlated() -> None:
    """Seeds, steps, samples, views, layers and places: masks of any two agree as often as chance lets them."""
    num = 20_000

    def mask(seed: int, step: int, sample: int, view: int, number: int) -> Tensor:
        layer, draws = _layer(0.5, None, number)
        with draws.of(row_keys(seed, step, torch.tensor([sample]), view + 1)[view : view + 1]):
            return layer(torch.ones(1, num))[0] != 0

    places = [(0, 0, 0, 0, 1), (1, 0, 0, 0, 1), (0, 1, 0, 0, 1), (0, 0, 1, 0, 1), (0, 0, 0, 1, 1), (0, 0, 0, 0, 2)]
    masks = [mask(*place) for place in [*places, (0, 1, 1, 0, 1), (1, 1, 0, 0, 1), (0, 0, 1, 1, 2)]]
    masks += [masks[0].roll(1), masks[0].roll(64)]
    layer, draws = _layer(0.5, None, 1)
    with draws.of(row_keys(0, 0, torch.tensor([0]), 1)):  # one layer in two places of a network
        calls = [layer(torch.ones(1, num))[0] != 0 for _ in range(3)]
    assert torch.equal(calls[0], masks[0])
    masks += calls[1:]
    signs = torch.stack(masks).double() * 2 - 1
    away = (signs @ signs.T / num - torch.eye(len(masks))).abs()
    assert float(away.max()) < 4.5 / num**0.5


@pytest.mark.parametrize("axes", [1, 2, None])
def test_a_row_keeps_its_draws_wherever_it_lies(axes: int | None) -> None:
    layer, draws = _layer(0.4, axes)
    keys, x = row_keys(5, 6, torch.arange(10), 2), torch.randn(20, 8, 5)
    with draws.of(keys):
        whole = layer(x)
    order = torch.randperm(20)
    with draws.of(keys[order]):
        assert torch.equal(layer(x[order]), whole[order])
    parts = []
    for at in (slice(0, 7), slice(7, 8), slice(8, 20)):
        with draws.of(keys[at]):
            parts.append(layer(x[at]))
    assert torch.equal(torch.cat(parts), whole)
    assert draws.keys is None


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = BatchNormAct2d(6, drop_layer=lambda: nn.Dropout(0.5))
        self.first = nn.Sequential(nn.Conv2d(6, 6, 1), nn.Dropout2d(0.4), DropPath(0.5))
        self.again = nn.Dropout(0.2)
        self.same = self.again
        self.none = nn.Dropout(0.0)
        self.unscaled = DropPath(0.3, scale_by_keep=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.norm(x))
        return self.unscaled(self.none(self.same(self.again(x))))


def test_layers_are_found_numbered_and_weightless() -> None:
    network, draws = _Network(), Draws()
    before = list(network.state_dict())
    key_layers(network, draws)
    assert list(network.state_dict()) == before
    found = [module for module in network.modules() if isinstance(module, KeyedDrop)]
    assert [(layer.number, layer.p, layer.axes, layer.scaled) for layer in found] == [
        (1, 0.5, None, True),
        (2, 0.4, 2, True),
        (3, 0.5, 1, True),
        (4, 0.2, None, True),
        (5, 0.2, None, True),
        (6, 0.3, 1, False),
    ]
    x, state = torch.randn(4, 6, 5, 5), generator_state(torch.device("cpu"))
    passes = []
    for _ in range(2):
        with draws.of(torch.arange(4)):
            passes.append(network(x))
    one, other = passes
    assert torch.equal(one, other) and not torch.equal(one, network.eval()(x))
    assert torch.equal(network(x), network(x))
    assert all(map(torch.equal, state, generator_state(torch.device("cpu"))))


def test_without_keys_that_fit_torch_s_generator_is_used() -> None:
    layer, draws = _layer(0.5, 1)
    torch.manual_seed(3)
    got = layer(torch.ones(8, 3))
    torch.manual_seed(3)
    assert torch.equal(got, timm.layers.drop_path(torch.ones(8, 3), 0.5, training=True))
    with draws.of(torch.arange(3)):  # 8 rows are not those of 3 samples
        torch.manual_seed(3)
        assert torch.equal(layer(torch.ones(8, 3)), got)


def _config(**more: Any) -> ModelConfig:
    return ModelConfig(**{"pretrained": False, "head_dim": 8, "head_hidden": 16, **more})


def test_stochastic_depth_and_dropout_of_the_settings() -> None:
    encoder = build_encoder(_config(backbone="test_vit", drop_path=0.6, drop_rate=0.5), 0, 32)
    plain = build_encoder(_config(backbone="test_vit"), 0, 32)
    assert sum(isinstance(module, KeyedDrop) for module in encoder.backbone.modules()) > 3
    assert encoder.create == plain.create  # what reads an export needs no option for it
    assert list(encoder.state_dict()) == list(plain.state_dict())
    x = torch.randn(6, 3, 32, 32)
    keys = row_keys(0, 1, torch.arange(3), 2)

    def passed(encoder: Encoder) -> tuple[Tensor, Tensor]:
        with encoder.draws.of(keys), torch.no_grad():
            found: tuple[Tensor, Tensor] = encoder(x)
        return found

    features, projection = passed(encoder)
    assert not torch.equal(features, passed(plain)[0])
    with encoder.draws.of(keys):
        dropped = encoder.drop(features)
    assert 0.3 < float((dropped == 0).float().mean()) < 0.7
    assert torch.equal(projection, encoder.head(dropped))
    assert all(map(torch.equal, passed(encoder.eval()), passed(plain.eval())))


def test_a_backbone_without_stochastic_depth_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^model.drop_path=0.1: ghostnet_050 has no stochastic depth; leave it null"):
        build_encoder(_config(backbone="ghostnet_050", drop_path=0.1), 0, 64)
    build_encoder(_config(backbone="test_resnet", drop_path=0.1, freeze="backbone"), 0, 32)  # not read there
