"""Precision of the loss's gradient against float64, for embeddings in float32 and bfloat16 at several temperatures.

    python benchmarks/loss_precision.py [--num 2048] [--dim 128] [--labels 17] [--quick]

The loss works in float32 whatever comes in; the last column shows why: the logits themselves in bfloat16.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from common import labels, vectors, verdict, write
from torch import Tensor

from marc_dist.config import LossConfig
from marc_dist.objective import objective

TAUS = (0.1, 0.07, 0.03, 0.01)


def gradient(z: Tensor, y: Tensor, options: dict[str, Any]) -> Tensor:
    """Of the loss in its vectors, in float64."""
    leaf = z.clone().requires_grad_()
    parts = objective(leaf, leaf, y, y, first=0, settings=LossConfig(**options))
    (grad,) = torch.autograd.grad(parts.sum / parts.count, leaf)
    return grad.double()


def supcon_of_logits(z: Tensor, y: Tensor, tau: float, dtype: torch.dtype) -> Tensor:
    """SupCon (any shared label) whose logits are of type ``dtype``; its gradient."""
    leaf = z.to(dtype).requires_grad_()
    eye = torch.eye(len(z), dtype=torch.bool)
    logits = (leaf @ leaf.T / tau).masked_fill(eye, float("-inf"))
    positive = ((y.double() @ y.double().T) > 0) & ~eye
    share = positive / positive.sum(1, keepdim=True).clamp(min=1)
    loss = -torch.where(positive, share * logits.log_softmax(1), 0.0).sum() / positive.any(1).sum()
    (grad,) = torch.autograd.grad(loss, leaf)
    return grad.double()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=2048, help="rows of the batch")
    parser.add_argument("--dim", type=int, default=128, help="width of the embeddings")
    parser.add_argument("--labels", type=int, default=17, help="number of labels")
    parser.add_argument("--quick", action="store_true", help="a small batch, to see that the script runs; no verdict")
    args = parser.parse_args()
    num = 256 if args.quick else args.num
    z, y = vectors(num, args.dim, dtype=torch.float64), labels(num, args.labels)
    rows: list[dict[str, Any]] = []
    print(f"relative gradient error, N = {num}\n{'loss':12s} {'tau':>5s}  float32   bfloat16  bfloat16 logits")
    for name in ("macl", "mulsupcon", "supcon_any"):
        for tau in TAUS:
            options = {"name": name, "tau": tau, "t_min": tau / 10, "implementation": "streamed"}
            exact = gradient(z, y, options)
            row: dict[str, Any] = {"loss": name, "tau": tau}
            for dtype in (torch.float32, torch.bfloat16):
                error = gradient(z.to(dtype), y, options) - exact
                row[str(dtype).removeprefix("torch.")] = float(error.norm() / exact.norm())
            if name == "supcon_any":
                error = supcon_of_logits(z, y, tau, torch.bfloat16) - exact
                row["bfloat16 logits"] = float(error.norm() / exact.norm())
            rows.append(row)
            last = f"{100 * row['bfloat16 logits']:8.2f} %" if "bfloat16 logits" in row else ""
            print(f"{name:12s} {tau:5.2f}  {row['float32']:.1e}  {100 * row['bfloat16']:6.2f} %  {last}")
    write("loss_precision" + "-quick" * args.quick, {"num": num, "dim": args.dim, "labels": args.labels, "rows": rows})
    if args.quick:
        return 0
    worst = max(row["bfloat16"] for row in rows if row["tau"] == 0.01)
    return 0 if verdict("bfloat16 embeddings at tau 0.01", 100 * worst, 1.0, " %") else 1


if __name__ == "__main__":
    sys.exit(main())
