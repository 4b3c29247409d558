"""Time and memory of the loss on a GPU, beside the bare tiled product and exponential that no such loss can avoid.

    python benchmarks/loss_gpu.py [--dim 512] [--labels 17] [--rows 4096,...,131072] [--repeats 5] [--quick]

Both run at the same precision: IEEE float32, and TF32 (``loss.tf32``).
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from common import floor, labels, side_by_side, vectors, verdict, write
from torch import Tensor

from marc_dist.config import LossConfig
from marc_dist.objective import objective

TILE = 4096  # of the floor; the loss's own default


def bare(z: Tensor, tf32: bool) -> Tensor:
    """``common.floor`` at the precision asked for."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        return floor(z, TILE)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def loss(z: Tensor, y: Tensor, **options: Any) -> Tensor:
    """Gradient of a loss of ours."""
    leaf = z.requires_grad_()
    parts = objective(leaf, leaf, y, y, first=0, settings=LossConfig(**options))
    (grad,) = torch.autograd.grad(parts.sum, leaf)
    z.requires_grad_(False)
    return grad


def memory(run: Any) -> int:
    """Bytes of GPU memory at the highest moment, above what lay there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=512, help="width of the embeddings")
    parser.add_argument("--labels", type=int, default=17, help="number of labels")
    parser.add_argument("--rows", default="4096,8192,16384,32768,65536,131072", help="rows of the global batch")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds; the median counts")
    parser.add_argument("--quick", action="store_true", help="a small batch, to see that the script runs; no verdict")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("loss_gpu: expected an NVIDIA GPU, found none; nothing was measured")
        return 0
    sizes = [2048] if args.quick else [int(n) for n in args.rows.split(",")]
    table: list[dict[str, Any]] = []
    print(f"{torch.cuda.get_device_name()}, D = {args.dim}, L = {args.labels}; ms forward + backward, GB above inputs")
    for num in sizes:
        z, y = vectors(num, args.dim).cuda(), labels(num, args.labels).cuda()
        for tf32 in (False, True):
            runs = {
                "floor": lambda z=z, tf32=tf32: bare(z, tf32),
                "macl": lambda z=z, y=y, tf32=tf32: loss(z, y, implementation="triton", tf32=tf32),
                "supcon": lambda z=z, y=y, tf32=tf32: loss(z, y, name="supcon_any", implementation="triton", tf32=tf32),
                "macl streamed": lambda z=z, y=y, tf32=tf32: loss(z, y, implementation="streamed", tf32=tf32),
            }
            seconds = side_by_side(runs, 1 if args.quick else args.repeats)
            peaks = {name: memory(run) for name, run in runs.items()}
            table.append({"num": num, "tf32": tf32, "seconds": seconds, "peak_bytes": peaks})
            cells = "  ".join(f"{name} {1e3 * s:9.1f} {peaks[name] / 1e9:5.2f}" for name, s in seconds.items())
            ratio = seconds["macl"] / seconds["floor"]
            print(f"N = {num:6d} {'tf32' if tf32 else 'ieee'}  {cells}  macl / floor {ratio:.2f}")
    write("loss_gpu" + "-quick" * args.quick, {"dim": args.dim, "labels": args.labels, "table": table})
    claimed = [row for row in table if row["num"] == 65536]
    held = []
    for row in claimed:
        name = "tf32" if row["tf32"] else "ieee"
        held.append(
            verdict(f"N = 65,536 {name}: macl / floor", row["seconds"]["macl"] / row["seconds"]["floor"], 1.5, "x")
        )
        held.append(verdict(f"N = 65,536 {name}: memory", row["peak_bytes"]["macl"] / 1e9, 0.4, " GB"))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
