"""Batches and calls that the tests of the objective share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from marc_dist.config import LossConfig
from marc_dist.objective import LossParts, objective
from tests.objective import naive

CONSTANTS: dict[str, Any] = dict(
    tau=0.2, t_min=0.01, alpha=0.7, beta=0.6, strength=0.8, gamma=0.9, clip_min=0.3, clip_max=2.5
)
PLAIN = dict(CONSTANTS, alpha=0.0, beta=0.0, strength=0.0)
MIXED = [
    [1, 1, 0, 0, 0],
    [0, 1, 1, 0, 0],
    [0, 0, 0, 0, 0],
    [0, 1, 1, 0, 0],
    [0, 0, 0, 1, 0],
    [1, 0, 0, 0, 0],
    [1, 1, 1, 0, 0],
]
CASES = {
    "mixed, an empty set, a lonely label, duplicates": MIXED,
    "single labels": [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]],
    "a lonely label beside shared ones": [[1, 1, 0, 1], [1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0]],
    "nothing shared": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "all empty": [[0, 0], [0, 0], [0, 0]],
    "all equal": [[1, 1], [1, 1], [1, 1]],
    "alone": [[1, 0]],
}
NAMES = [
    "macl", "mulsupcon", "supcon_any", "supcon_all", "ntxent", "jaccard", "multisupcon", "msc",
    "similarity_dissimilarity",
]  # fmt: skip


def make(labels: list[list[int]] | Tensor, dim: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    rows = torch.as_tensor(labels, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(rows), dim, dtype=torch.float64, generator=generator), rows


def prototypes(num_labels: int, dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(99)
    return naive.unit(torch.randn(num_labels, dim, dtype=torch.float64, generator=generator))


def long_tailed(num: int, num_labels: int, seed: int = 1) -> Tensor:
    """(num, L) labels of which the first is rare, the last common; some rows are empty."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num, num_labels, generator=generator) < torch.linspace(0.05, 0.6, num_labels)


def run(z: Tensor, labels: Tensor, **options: Any) -> LossParts:
    """The objective in one process; options are settings, ids, prototypes or statistics."""
    ids = options.pop("ids", torch.arange(len(z)))
    statistics = options.pop("statistics", None)
    units = options.pop("prototypes", prototypes(labels.shape[1], z.shape[1]).to(z))
    chosen = LossConfig(**options)
    return objective(
        z, z, labels, labels, first=0, settings=chosen, statistics=statistics, candidate_ids=ids, prototypes=units
    )


def everything(**options: Any) -> dict[str, Any]:
    """All settings as a mapping, for the naive loops."""
    return LossConfig(**options).model_dump()


def valid(options: dict[str, Any]) -> bool:
    """Whether the schema accepts a combination of settings."""
    try:
        LossConfig(**options)
    except ValueError:
        return False
    return True


def compare(expected: tuple[Tensor, float], leaf: Tensor, parts: LossParts, tolerance: float = 1e-10) -> None:
    """Value, count and gradient against (sum, count) of the naive loops."""
    total, count = expected
    assert abs(float(parts.count) - count) <= tolerance * max(count, 1)
    torch.testing.assert_close(parts.sum, total, rtol=tolerance, atol=tolerance)
    (want,) = torch.autograd.grad(total, leaf, retain_graph=True, allow_unused=True) if total.requires_grad else (None,)
    (got,) = torch.autograd.grad(parts.sum, leaf, retain_graph=True)
    torch.testing.assert_close(got, torch.zeros_like(leaf) if want is None else want, rtol=tolerance, atol=tolerance)
