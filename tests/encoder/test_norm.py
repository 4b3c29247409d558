"""Our batch norm against torch's on the whole batch: unequal and empty ranks, fused activations."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from marc_dist import comm
from marc_dist.config import ConfigError
from marc_dist.encoder.norm import SyncBatchNorm, synchronise
from tests.worlds import run_in_world

SIZES = [3, 0, 2]


def _layers() -> list[nn.Module]:
    torch.manual_seed(1)
    layers = [
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, momentum=None),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        BatchNormAct2d(4, act_layer=nn.SiLU),
        BatchNormAct2d(4, act_layer=nn.ReLU, inplace=True),
    ]
    for layer in layers:
        layer.double()
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)
    return layers


def _rows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(5, 4, 3, 2, dtype=torch.float64, generator=generator) * 2 + 5


def _one(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> dict[str, object]:
    x = x.clone().requires_grad_()
    layer(x)  # a second pass shows that running statistics accumulate
    (layer(x) * weight).sum().backward()
    grads = {name: p.grad for name, p in layer.named_parameters()}
    return {"dx": x.grad, "grads": grads, "state": layer.state_dict(), "eval": layer.eval()(_rows()).detach()}


def _part() -> list[dict[str, object]]:
    start = sum(SIZES[: comm.rank()])
    rows = SIZES[comm.rank()]
    x = _rows()[start : start + rows]
    weight = torch.linspace(0, 1, 120, dtype=torch.float64).reshape(5, 4, 3, 2)[start : start + rows]
    out = []
    for layer in _layers():
        sync = synchronise(layer)
        assert isinstance(sync, SyncBatchNorm)
        if rows:
            out.append(_one(sync, x, weight))
        else:  # a listener: whatever it is fed, it must not count
            sync.live = False
            sync(torch.full((1, 4, 3, 2), 1e6, dtype=torch.float64))
            blank = torch.full((1, 4, 3, 2), 1e6, dtype=torch.float64, requires_grad=True)
            sync(blank)[:0].sum().backward()
            sync.live = True
            assert blank.grad is not None and not blank.grad.any()
            grads = {name: p.grad for name, p in sync.named_parameters()}
            state = sync.state_dict()
            out.append({"dx": blank.grad[:0], "grads": grads, "state": state, "eval": sync.eval()(_rows()).detach()})
    return out


def test_statistics_and_gradients_are_those_of_the_whole_batch() -> None:
    weight = torch.linspace(0, 1, 120, dtype=torch.float64).reshape(5, 4, 3, 2)
    expected = [_one(layer, _rows(), weight) for layer in _layers()]
    world = run_in_world(_part, 3)
    for place, whole in enumerate(expected):
        parts = [result[place] for result in world]
        dx = torch.cat([part["dx"] for part in parts])
        torch.testing.assert_close(dx, whole["dx"], rtol=1e-10, atol=1e-12)
        for name, grad in whole["grads"].items():
            torch.testing.assert_close(sum(part["grads"][name] for part in parts), grad, rtol=1e-10, atol=1e-12)
        for part in parts:
            assert list(part["state"]) == list(whole["state"])
            for name, value in whole["state"].items():
                torch.testing.assert_close(part["state"][name], value, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(part["eval"], whole["eval"], rtol=1e-12, atol=1e-12)


def test_in_a_world_of_one_it_is_torch_itself() -> None:
    weight = torch.ones(5, 4, 3, 2, dtype=torch.float64)
    for plain, same in zip(_layers(), _layers(), strict=True):
        a, b = _one(plain, _rows(), weight), _one(synchronise(same), _rows(), weight)
        assert torch.equal(a["dx"], b["dx"])
        assert torch.equal(a["eval"], b["eval"])
        assert all(torch.equal(a["state"][name], b["state"][name]) for name in a["state"])


def test_one_value_per_channel_is_the_bias_not_a_traceback() -> None:
    layer = synchronise(nn.BatchNorm1d(3))
    layer.bias.data.fill_(0.5)
    assert torch.equal(layer(torch.randn(1, 3)), torch.full((1, 3), 0.5))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_timm_models_keep_their_keys_and_outputs(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).train()
    keys = list(model.state_dict())
    x = torch.randn(4, 3, 32, 32)
    expected = model(x)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(0)
    same = synchronise(timm.create_model(name, num_classes=0).train())
    assert list(same.state_dict()) == keys
    assert not any(type(m) in (nn.BatchNorm2d, BatchNormAct2d) for m in same.modules())
    assert torch.equal(same(x), expected)
    assert all(torch.equal(value, state[key]) for key, value in same.state_dict().items())


def test_a_norm_of_unknown_kind_is_refused() -> None:
    class Odd(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return input

    with pytest.raises(ConfigError, match="Odd"):
        synchronise(nn.Sequential(Odd(3)))
