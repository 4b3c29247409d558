"""Encoders are built and run without torch's compiler, and it works as ever once somebody loads it."""

from __future__ import annotations

import subprocess
import sys

ENCODER = """
import sys
import torch
import marc_dist.augment.views, marc_dist.retrieval.search
from marc_dist.torch_imports import load_timm
model = load_timm().create_model("resnet10t").eval()
with torch.no_grad():
    model(torch.zeros(1, 3, 32, 32))
loaded = [name for name in sys.modules if name.startswith("torch._dynamo")]
assert not loaded, loaded
assert "_dynamo" not in torch.__dict__
"""
COMPILED = """
import torch
from marc_dist.torch_imports import lazily_disabled, load_timm
load_timm()
from torchvision import tv_tensors
from torchvision.ops import roi_align
from torchvision.ops.roi_align import is_compile_supported
import torch._dynamo
assert torch._dynamo.utils.is_compile_supported("cpu") == is_compile_supported("cpu")
assert torch._dynamo.disable.__module__.startswith("torch._dynamo")

seen = []
@lazily_disabled
def outside(x):
    seen.append(torch.compiler.is_compiling())
    return x + 1

assert torch.compile(lambda x: outside(x * 2) * 2, backend="eager")(torch.ones(2)).tolist() == [6.0, 6.0]
assert seen == [False], seen
assert tv_tensors.wrap(torch.ones(1, 2, 2), like=tv_tensors.Image(torch.ones(1, 2, 2))).shape == (1, 2, 2)
"""


def _run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_an_encoder_runs_without_the_compiler() -> None:
    _run(ENCODER)


def test_the_compiler_still_leaves_out_what_is_disabled() -> None:
    _run(COMPILED)
