"""The formulas of DESIGN section 6 and reference section 3 as plain loops over anchors, labels and pairs, in float64.

Written from the formulas alone: no folded targets, no label sets, no matrix products. One process, the whole batch.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

Sets = list[set[int]]


def label_sets(labels: Tensor) -> Sets:
    return [{int(label) for label in row.nonzero()} for row in labels]


def counts_of(sets: Sets, num_labels: int) -> tuple[list[int], list[list[int]]]:
    n = [sum(label in s for s in sets) for label in range(num_labels)]
    c = [[sum(k in s and l in s for s in sets) for l in range(num_labels)] for k in range(num_labels)]
    return n, c


def raw_weight(shared: set[int], c: list[list[int]], gamma: float) -> float:
    pairs = list(product(shared, shared))
    return sum(max(c[k][l], 1) ** -gamma for k, l in pairs) / len(pairs)


def weight(i: int, p: int, sets: Sets, c: list[list[int]], s: dict[str, float]) -> float:
    if s["strength"] == 0:
        return 1.0
    num = len(sets)
    positive = [(a, b) for a in range(num) for b in range(num) if a != b and sets[a] & sets[b]]
    mean = sum(raw_weight(sets[a] & sets[b], c, s["gamma"]) for a, b in positive) / len(positive)
    relative = raw_weight(sets[i] & sets[p], c, s["gamma"]) / mean
    return 1 + s["strength"] * (min(max(relative, s["clip_min"]), s["clip_max"]) - 1)


def temperature(i: int, p: int, sets: Sets, n: list[int], s: dict[str, float]) -> float:
    union = sets[i] | sets[p]
    jaccard = len(sets[i] & sets[p]) / len(union) if union else 0.0
    rarity = sum(1 - n[l] / max(n) for l in sets[i]) / len(sets[i]) if sets[i] else 0.0
    return max(s["t_min"], s["tau"] / (1 + s["alpha"] * jaccard + s["beta"] * rarity))


def log_sigma(z: Tensor, i: int, p: int, t: list[float]) -> Tensor:
    logits = [(z[i] * z[a]).sum() / t[a] for a in range(len(z)) if a != i]
    top = max(float(x.detach()) for x in logits)
    denominator = sum((torch.exp(x - top) for x in logits), torch.zeros((), dtype=z.dtype))
    return (z[i] * z[p]).sum() / t[p] - top - torch.log(denominator)


def macl(
    z: Tensor,
    labels: Tensor,
    aggregate: str,
    s: dict[str, float],
    given: tuple[list[int], list[list[int]]] | None = None,
    anchors: range | None = None,
) -> tuple[Tensor, int]:
    """(sum, count) of MACL or Weighted MACL over ``anchors``; w = 1 and T = tau give MulSupCon."""
    sets = label_sets(labels)
    n, c = given or counts_of(sets, labels.shape[1])
    total, count = torch.zeros((), dtype=z.dtype), 0
    for i in anchors if anchors is not None else range(len(z)):
        t = [temperature(i, p, sets, n, s) for p in range(len(z))]
        terms = []
        for label in sorted(sets[i]):
            partners = [p for p in range(len(z)) if p != i and label in sets[p]]
            if partners:
                pulled = [weight(i, p, sets, c, s) * log_sigma(z, i, p, t) for p in partners]
                terms.append(-sum(pulled, torch.zeros((), dtype=z.dtype)) / len(partners))
        if aggregate == "pair_mean":
            total, count = total + sum(terms, torch.zeros((), dtype=z.dtype)), count + len(terms)
        elif terms:
            total, count = total + sum(terms, torch.zeros((), dtype=z.dtype)) / len(terms), count + 1
    return total, count


def by_positives(z: Tensor, positive: list[list[bool]], tau: float) -> tuple[Tensor, int]:
    """(sum, count) of SupCon with any positive rule; anchors without a positive drop out."""
    total, count = torch.zeros((), dtype=z.dtype), 0
    for i in range(len(z)):
        partners = [p for p in range(len(z)) if p != i and positive[i][p]]
        if partners:
            pulled = [log_sigma(z, i, p, [tau] * len(z)) for p in partners]
            total, count = total - sum(pulled, torch.zeros((), dtype=z.dtype)) / len(partners), count + 1
    return total, count


def positives(name: str, labels: Tensor, ids: list[int]) -> list[list[bool]]:
    sets = label_sets(labels)
    num = range(len(sets))
    if name == "supcon_any":
        return [[bool(sets[i] & sets[p]) for p in num] for i in num]
    if name == "supcon_all":
        return [[bool(sets[i]) and sets[i] == sets[p] for p in num] for i in num]
    return [[ids[i] == ids[p] for p in num] for i in num]


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=math.ulp(1.0))
