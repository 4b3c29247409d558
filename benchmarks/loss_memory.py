"""Memory of the loss: bytes kept for backward, and the peak of one of several ranks above its inputs.

    python benchmarks/loss_memory.py [--num 65536] [--dim 256] [--labels 19] [--ranks 8] [--quick]

Every measurement has a process of its own. The peak is VmHWM of Linux, reset when the inputs stand: it counts the
gradients of anchors and candidates, tiles, everything.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch
from common import labels, vectors, verdict, write
from torch import Tensor

from marc_dist.config import LossConfig
from marc_dist.objective import objective

GIB = 1 << 30


def step(z: Tensor, y: Tensor, num_anchors: int, options: dict[str, Any]) -> None:
    """Forward and backward of one rank, the last of the world."""
    first = len(z) - num_anchors
    candidates = z.requires_grad_()
    anchors = z.detach()[first:].requires_grad_()
    settings = LossConfig(**options)
    objective(anchors, candidates, y[first:], y, first=first, settings=settings).sum.backward()


def resident(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak(num: int, dim: int, num_labels: int, ranks: int, options: dict[str, Any]) -> int:
    """Bytes above the inputs at the highest moment of a step."""
    step(vectors(64, dim), labels(64, num_labels), 64, options)  # libraries and thread pools are not the loss's
    z, y = vectors(num, dim), labels(num, num_labels)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    step(z, y, num // ranks, options)
    return resident("VmHWM") - before


def kept(num: int, dim: int, num_labels: int, options: dict[str, Any]) -> int:
    """Bytes that autograd keeps between forward and backward."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step(vectors(num, dim), labels(num, num_labels), num, options)
    return sum(sizes.values())


def alone(function: Any, *args: Any) -> int:
    """The result of a function in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return int(pool.apply(function, args))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=65536, help="rows of the global batch")
    parser.add_argument("--dim", type=int, default=256, help="width of the embeddings")
    parser.add_argument("--labels", type=int, default=19, help="number of labels")
    parser.add_argument("--ranks", type=int, default=8, help="ranks that share the batch")
    parser.add_argument("--quick", action="store_true", help="a small batch, to see that the script runs; no verdict")
    args = parser.parse_args()
    num = 2048 if args.quick else args.num
    small = num // 8
    shape = (args.dim, args.labels)
    streamed = {"implementation": "streamed"}

    bytes_kept = {n: alone(kept, n, *shape, streamed) for n in (small, 2 * small)}
    other_tile = alone(kept, small, *shape, {**streamed, "tile": 256})
    print(f"kept for backward, one process, N = {small}: {bytes_kept[small] / 2**20:.1f} MiB")

    peaks = {}
    for n in (num // 4, num // 2, num):
        peaks[n] = alone(peak, n, *shape, args.ranks, streamed)
        print(f"streamed, one of {args.ranks} ranks, N = {n}: {peaks[n] / GIB:.3f} GiB above the inputs")
    dense = alone(peak, num // 4, *shape, args.ranks, {"implementation": "dense"})
    print(f"dense, N = {num // 4}: {dense / GIB:.2f} GiB, {dense / peaks[num // 4]:.1f} x streamed")

    figures = {"kept": bytes_kept, "kept_other_tile": other_tile, "peak_streamed": peaks, "peak_dense": dense}
    write(
        "loss_memory" + "-quick" * args.quick,
        {"num": num, "dim": args.dim, "labels": args.labels, "ranks": args.ranks, **figures},
    )
    if args.quick:
        return 0
    held = [
        verdict("kept for backward, 2N / N", bytes_kept[2 * small] / bytes_kept[small], 2.0, "x"),
        verdict("kept, tile 256 / default tile", other_tile / bytes_kept[small], 1.0, "x"),
        verdict(f"peak of one of {args.ranks} ranks above its inputs", peaks[num] / GIB, 0.25, " GiB"),
    ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
