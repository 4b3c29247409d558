"""The Triton kernels as machine code for NVIDIA GPUs, which takes no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton exists for Linux only")

COMPILE = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from marc_dist.objective import fused, kernels

def compile_kernel(kernel, rows, dtype, capability, labels, bias, width=32, overlap=0, form=0, dynamic=0):
    switches = dict(LABELS=labels, BIAS=bias, WIDTH=width, BLOCK_L=fused.LABEL_BLOCK, OVERLAP=overlap, FORM=form,
                    DYNAMIC=dynamic, BLOCK_R=rows, BLOCK_C=fused.BLOCK_COLUMNS)
    pointers = dict(own_ptr="*i64", row_kinds_ptr="*i32", column_kinds_ptr="*i32", table_ptr="*fp16")
    signature = {
        name: "constexpr" if name in switches else pointers.get(name, "*" + dtype if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
    }
    code = triton.compile(ASTSource(kernel, signature, switches), target=GPUTarget("cuda", capability, 32))
    assert len(code.asm["cubin"]) > 1000
    print(kernel.__name__, dtype, capability)

for kernel, rows in ((kernels.reduce_tile, fused.REDUCE_ROWS), (kernels.slope_tile, fused.SLOPE_ROWS)):
    compile_kernel(kernel, rows, "fp32", 80, True, False)
    compile_kernel(kernel, rows, "fp32", 90, True, False, 512, 3, 1, 1)
    compile_kernel(kernel, rows, "fp32", 90, False, True)
    compile_kernel(kernel, rows, "fp64", 90, True, False, 32, 4, 2, 2)
"""


def test_they_compile_for_gpus(tmp_path: Path) -> None:
    """In a process of its own: here the interpreter stands in for the compiler."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    script = tmp_path / "compile_kernels.py"
    script.write_text(COMPILE)
    run = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert len(run.stdout.splitlines()) == 8
