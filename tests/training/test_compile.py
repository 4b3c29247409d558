"""train.compile: the same run to rounding, resumed to the bit; refused in one line where it cannot help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import register_model
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

from marc_dist.config import ConfigError, ModelConfig
from marc_dist.encoder.compiled import check_compile, try_compiler
from marc_dist.encoder.export import load_encoder
from marc_dist.encoder.model import build_encoder
from tests.training.test_trainer import _difference, _state, _train, _words
from tests.worlds import run_in_world

STEPS = 4
RTOL = 1e-12


@register_model
def marc_small_net(num_classes: int, drop_path_rate: float = 0.0, **of_timm: Any) -> ByobNet:
    """Five convolutions with batch norms: what is compiled in seconds."""
    block = ByoBlockCfg(type="basic", d=1, c=8, s=2, gs=0, br=1.0)
    cfg = ByoModelCfg(blocks=(block, block), stem_chs=8, stem_pool="", stem_type="3x3")
    return ByobNet(cfg, num_classes=num_classes, drop_path_rate=drop_path_rate)


def _runs(sample: Path, folder: Path) -> list[int]:
    """Plain; compiled; compiled, stopped after a step and resumed. How many graphs torch had compiled after each."""
    from torch._dynamo.utils import counters

    graphs = []
    for name, stop in (("plain", None), ("compiled", None), ("resumed", (0, 1)), ("resumed", None)):
        # of 53 samples, the third step has one: a rank has none then
        words = _words(sample, folder / name, model__backbone="marc_small_net", model__batch_norm="frozen")
        words |= {"train.global_batch": 26, "train.max_steps": STEPS, "model.drop_path": 0.3, "model.drop_rate": 0.1}
        result = _train(words | {"train.compile": name != "plain"}, signal_at=stop)
        assert result["step"] == (STEPS if stop is None else 1)
        graphs.append(counters["stats"]["unique_graphs"])
    return graphs


def test_a_compiled_run_is_the_plain_one_to_rounding_and_resumes_to_the_bit(small_dir: Path, tmp_path: Path) -> None:
    graphs = run_in_world(_runs, 2, small_dir, tmp_path, limit_s=400)  # a compiler runs
    for none, one, two, three in graphs:  # a start compiles an addition and the backbone for one size, or finds them
        assert none == 0 and one == 2 and two - one <= 2 and three - two <= 2
    plain, compiled, resumed = (_state(tmp_path / name, STEPS) for name in ("plain", "compiled", "resumed"))
    assert 0 < _difference(plain, compiled) < RTOL
    assert _difference(compiled, resumed) == 0
    encoder, _ = load_encoder(tmp_path / "resumed")
    assert all(torch.equal(value, resumed[f"model.{name}"]) for name, value in encoder.state_dict().items())


def _thawed(sample: Path, folder: Path) -> None:
    """Plain and compiled: the head first, then everything, a few rows at a time, from the thaw on."""
    for name in ("plain", "compiled"):
        words = _words(sample, folder / name, model__backbone="marc_small_net", model__batch_norm="frozen")
        words |= {"train.global_batch": 26, "train.max_steps": 5, "train.chunk": 16, "model.drop_path": 0.3}
        words |= {"model.freeze": "backbone", "model.thaw_after": 1, "data.features_dir": str(folder / "features")}
        assert _train(words | {"train.compile": name == "compiled"})["step"] == 5


def test_a_compiled_run_may_thaw_and_encode_in_chunks(small_dir: Path, tmp_path: Path) -> None:
    run_in_world(_thawed, 1, small_dir, tmp_path, limit_s=400)  # a compiler runs
    plain, compiled = (_state(tmp_path / name, 5) for name in ("plain", "compiled"))
    assert 0 < _difference(plain, compiled) < RTOL


def test_no_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        ConfigError, match=r"^train.compile: no g\+\+ here; .*apt-get install g\+\+.*train.compile=false"
    ):
        try_compiler(torch.device("cpu"))


def _compile_live_norms() -> None:
    encoder = build_encoder(ModelConfig(backbone="test_resnet", pretrained=False), 0, 32)
    with pytest.raises(ConfigError, match=r"^train.compile: the batch norms of test_resnet .*batch_norm=frozen"):
        check_compile(encoder, torch.device("cpu"))


def test_batch_norms_of_several_ranks_are_refused() -> None:
    run_in_world(_compile_live_norms, 2)
