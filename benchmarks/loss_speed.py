"""Time of the loss, forward and backward, on the CPU: full MACL in tiles against SupCon in the same tiles, MACL written
pair by pair, MulSupCon as published, and the bare products and exponentials that no loss in tiles can avoid.

    python benchmarks/loss_speed.py [--num 8192] [--dim 128] [--labels 17] [--repeats 3] [--quick]
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
from marc_dist.objective.global_objective import TILE


def ours(z: Tensor, y: Tensor, **options: Any) -> Tensor:
    """One of our losses as a scalar."""
    parts = objective(z, z, y, y, first=0, settings=LossConfig(**options))
    return parts.sum / parts.count


def macl_pair_by_pair(
    z: Tensor, y: Tensor, tau: float = 0.1, alpha: float = 0.5, beta: float = 0.5, strength: float = 0.5
) -> Tensor:
    """MACL with its defaults as one writes it down from the formulas: a matrix for every quantity, then autograd."""
    y = y.float()
    num, eye = len(y), torch.eye(len(y), dtype=torch.bool)
    counts = y.sum(0)
    cooccurrence = y.T @ y
    shared = y @ y.T
    size = y.sum(1)
    jaccard = shared / (size[:, None] + size - shared).clamp(min=1)
    rho = (y * (1 - counts / counts.max())).sum(1) / size.clamp(min=1)
    temperature = (tau * (1 + alpha * jaccard + beta * rho[:, None])).clamp(min=0.01)
    inverse = 1 / cooccurrence.clamp(min=1)
    raw = torch.zeros(num, num)
    for k in range(y.shape[1]):
        raw += ((y[:, k, None] * inverse[k] * y) @ y.T) * y[:, k]
    raw /= shared.clamp(min=1) ** 2
    positive = (shared > 0) & ~eye
    weight = 1 + strength * ((raw / raw[positive].mean()).clamp(0.1, 10) - 1)
    valid = y * (counts > 1)
    target = (valid / (counts - 1).clamp(min=1)) @ y.T * weight * positive
    logits = (z @ z.T / temperature).masked_fill(eye, float("-inf"))
    log_sigma = logits.log_softmax(1).masked_fill(eye, 0.0)
    return -(target * log_sigma).sum() / valid.sum()


def mulsupcon_rows(z: Tensor, y: Tensor, tau: float = 0.1) -> Tensor:
    """MulSupCon in its published shape: one row of scores for every (anchor, label), log(softmax) made stable."""
    scores = (z @ z.T / tau).masked_fill(torch.eye(len(z), dtype=torch.bool), float("-inf"))
    anchor, label = y.nonzero(as_tuple=True)
    rows = scores[anchor].log_softmax(1)
    positive = y.T[label].float()
    positive[torch.arange(len(anchor)), anchor] = 0
    num = positive.sum(1)
    per_row = torch.where(positive > 0, rows, 0.0).sum(1) / num.clamp(min=1)
    return -per_row[num > 0].mean()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=8192, help="rows of the global batch")
    parser.add_argument("--dim", type=int, default=128, help="width of the embeddings")
    parser.add_argument("--labels", type=int, default=17, help="number of labels")
    parser.add_argument("--repeats", type=int, default=3, help="measured rounds; the median counts")
    parser.add_argument("--quick", action="store_true", help="a small batch, to see that the script runs; no verdict")
    args = parser.parse_args()
    num = 512 if args.quick else args.num
    y, z = labels(num, args.labels), vectors(num, args.dim)
    sets = len(torch.unique(y, dim=0))
    mean = float(y.sum(1).float().mean())
    print(f"N = {num}, D = {args.dim}, L = {args.labels}, {sets} label sets, {mean:.1f} labels a row")
    losses = {
        "macl": lambda x: ours(x, y, implementation="streamed"),
        "supcon": lambda x: ours(x, y, implementation="streamed", name="supcon_any"),
        "mulsupcon": lambda x: ours(x, y, implementation="streamed", name="mulsupcon"),
        "macl dense": lambda x: ours(x, y, implementation="dense"),
        "macl pair by pair": lambda x: macl_pair_by_pair(x, y),
        "mulsupcon as published": lambda x: mulsupcon_rows(x, y),
    }
    values = {name: float(loss(z)) for name, loss in losses.items()}
    for one, other in (("macl", "macl dense"), ("macl", "macl pair by pair"), ("mulsupcon", "mulsupcon as published")):
        assert abs(values[one] / values[other] - 1) < 1e-4, (one, values[one], values[other])  # the same loss

    def forward_backward(name: str) -> None:
        leaf = z.clone().requires_grad_()
        losses[name](leaf).backward()

    runs: dict[str, Any] = {name: lambda name=name: forward_backward(name) for name in losses}
    seconds = side_by_side({"floor": lambda: floor(z, TILE), **runs}, args.repeats)
    for name, value in seconds.items():
        print(f"{name:24s} {value:8.3f} s   {value / seconds['macl']:6.2f} x macl")
    write(
        "loss_speed" + "-quick" * args.quick,
        {"num": num, "dim": args.dim, "labels": args.labels, "sets": sets, "seconds": seconds},
    )
    if args.quick:
        return 0
    held = [
        verdict("macl / supcon, both in tiles", seconds["macl"] / seconds["supcon"], 2.5, "x"),
        verdict("macl dense / macl", seconds["macl dense"] / seconds["macl"], 20, "x", at_least=True),
        verdict("macl pair by pair / macl", seconds["macl pair by pair"] / seconds["macl"], 20, "x", at_least=True),
        verdict(
            "mulsupcon as published / macl", seconds["mulsupcon as published"] / seconds["macl"], 1, "x", at_least=True
        ),
    ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
