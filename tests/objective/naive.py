"""The formulas of ``docs/objective.md`` as plain loops over anchors, labels and pairs, in float64.

Written from the formulas alone: no folded targets, no label sets, no matrix products. One process, the whole batch.
``s`` is a mapping with the fields of ``LossConfig``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

Sets = list[set[int]]
Counts = tuple[list[int], list[list[int]]]
Result = tuple[Tensor, float]


def label_sets(labels: Tensor) -> Sets:
    return [{int(label) for label in row.nonzero()} for row in labels]


def counts_of(sets: Sets, num_labels: int) -> Counts:
    n = [sum(label in s for s in sets) for label in range(num_labels)]
    c = [[sum(k in s and l in s for s in sets) for l in range(num_labels)] for k in range(num_labels)]
    return n, c


def jaccard(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def raw_weight(a: set[int], b: set[int], c: list[list[int]], gamma: float, kind: str = "shared") -> float:
    shared = a & b
    if kind == "single":
        pairs = [(l, l) for l in shared]
    elif kind == "cross":
        pairs = list(product(a, b))
    elif kind == "offdiag" and len(shared) > 1:
        pairs = [(k, l) for k, l in product(shared, shared) if k != l]
    else:
        pairs = list(product(shared, shared))
    return sum(max(c[k][l], 1) ** -gamma for k, l in pairs) / len(pairs)


def is_positive(i: int, p: int, sets: Sets, kind: str) -> bool:
    return bool(sets[i] & sets[p]) and (kind != "all" or sets[i] == sets[p])


def weight(i: int, p: int, sets: Sets, c: list[list[int]], s: dict[str, Any]) -> float:
    if s["strength"] == 0:
        return 1.0
    relative = raw_weight(sets[i], sets[p], c, s["gamma"], s["weight_pairs"])
    if s["weight_norm"] != "none":
        num = range(len(sets))
        positive = [(a, b) for a in num for b in num if a != b and is_positive(a, b, sets, s["positives"])]
        every = [raw_weight(sets[a], sets[b], c, s["gamma"], s["weight_pairs"]) for a, b in positive]
        relative /= sum(every) / len(every)
    return 1 + s["strength"] * (min(max(relative, s["clip_min"]), s["clip_max"]) - 1)


def rarity(i: int, sets: Sets, n: list[int], s: dict[str, Any]) -> float:
    if not sets[i]:
        return 0.0
    if s["rarity_scale"] == "one_minus_relative":
        each = [1 - n[l] / max(max(n), 1) for l in sets[i]]
    else:
        inverse = [1 / x for x in n if x > 0]
        low, high = min(inverse, default=0.0), max(inverse, default=0.0)
        each = [1.0 if n[l] == 0 else ((1 / n[l] - low) / (high - low) if high > low else 0.0) for l in sets[i]]
    return max(each) if s["rarity"] == "max" else sum(each) / len(each)


def overlap(a: set[int], b: set[int], num_labels: int, kind: str) -> float:
    if not a & b:
        return 0.0
    shared = len(a & b)
    return {
        "jaccard": jaccard(a, b),
        "anchor_recall": shared / len(a),
        "dice": 2 * shared / (len(a) + len(b)),
        "cosine": shared / math.sqrt(len(a) * len(b)),
        "count_over_labels": shared / num_labels,
    }[kind]


def temperature(i: int, p: int, sets: Sets, n: list[int], s: dict[str, Any]) -> float:
    o = overlap(sets[i], sets[p], len(n), s["overlap"])
    r = rarity(i, sets, n, s)
    t = {
        "sharpen": s["tau"] / (1 + s["alpha"] * o + s["beta"] * r),
        "soften": s["tau"] * (1 + s["alpha"] * o + s["beta"] * r),
        "multiplicative": s["tau"] * (1 - s["alpha"] * o) * (1 - s["beta"] * r),
        "soften_sharpen": s["tau"] * (1 + s["alpha"] * o) / (1 + s["beta"] * r),
    }[s["temperature_form"]]
    return max(s["t_min"], t)


def log_sigma(z: Tensor, i: int, p: int, t: list[float], bias: list[float] | None = None) -> Tensor:
    """log of exp(s_ip / t_p) / sum over a != i of exp(s_ia / t_a + bias_a)."""
    bias = bias or [0.0] * len(z)
    logits = [(z[i] * z[a]).sum() / t[a] + bias[a] for a in range(len(z)) if a != i]
    top = max(float(x.detach()) for x in logits)
    denominator = sum((torch.exp(x - top) for x in logits), torch.zeros((), dtype=z.dtype))
    return (z[i] * z[p]).sum() / t[p] - top - torch.log(denominator)


def _pair_log(z: Tensor, i: int, sets: Sets, n: list[int], s: dict[str, Any]) -> Callable[[int], Tensor]:
    """p -> log sigma_ip under the temperature scope."""
    own = [temperature(i, p, sets, n, s) for p in range(len(z))]
    if s["temperature_scope"] == "all_pairs":
        return lambda p: log_sigma(z, i, p, own)
    if s["temperature_scope"] == "per_positive_row":
        return lambda p: log_sigma(z, i, p, [own[p]] * len(z))
    flat = max(s["tau"], s["t_min"])
    mixed = [own[a] if is_positive(i, a, sets, s["positives"]) else flat for a in range(len(z))]
    return lambda p: log_sigma(z, i, p, mixed)


def zero(z: Tensor) -> Tensor:
    return torch.zeros((), dtype=z.dtype)


def macl(
    z: Tensor, labels: Tensor, s: dict[str, Any], given: Counts | None = None, anchors: range | None = None
) -> Result:
    """(sum, count) over ``anchors``; w = 1 and T = tau give MulSupCon."""
    sets = label_sets(labels)
    n, c = given or counts_of(sets, labels.shape[1])
    total, count = zero(z), 0.0
    for i in anchors if anchors is not None else range(len(z)):
        log = _pair_log(z, i, sets, n, s)
        others = [p for p in range(len(z)) if p != i and is_positive(i, p, sets, s["positives"])]
        if s["positives"] == "per_label":
            groups = [(l, [p for p in others if l in sets[p]]) for l in sorted(sets[i])]
        else:
            groups = [(-1, others)]
        terms = []
        for label, partners in groups:
            weights = [weight(i, p, sets, c, s) for p in partners]
            divisor = sum(weights) if s["weight_norm"] == "sum_to_one" else len(partners)
            if divisor > 0:
                pulled = sum((w * log(p) for w, p in zip(weights, partners, strict=True)), zero(z))
                terms.append((label, -pulled / divisor))
        for label, term in terms:
            share = 1.0
            if s["positives"] == "per_label" and s["aggregate"] == "anchor_mean":
                share = 1 / len(terms)
            if s["aggregate"] == "class_balanced":
                share = 1 / max(n[label], 1)
            total, count = total + share * term, count + share
    return total, count


def by_positives(z: Tensor, pull: list[list[float]], divisor: list[float], tau: float) -> Result:
    """(sum, count) of - sum_p pull_ip log sigma_ip / divisor_i; anchors whose divisor is 0 drop out."""
    total, count = zero(z), 0
    for i in range(len(z)):
        if divisor[i] > 0:
            pulled = [pull[i][p] * log_sigma(z, i, p, [tau] * len(z)) for p in range(len(z)) if p != i and pull[i][p]]
            total, count = total - sum(pulled, zero(z)) / divisor[i], count + 1
    return total, count


def baseline(z: Tensor, labels: Tensor, s: dict[str, Any], ids: list[int]) -> Result:
    """The losses with one term an anchor."""
    sets, num = label_sets(labels), range(len(labels))
    name = s["name"]

    def positive(i: int, p: int) -> float:
        if name == "ntxent":
            return float(ids[i] == ids[p])
        if name == "supcon_all":
            return float(bool(sets[i]) and sets[i] == sets[p])
        if name == "multisupcon":
            return float(jaccard(sets[i], sets[p]) >= s["threshold"])
        return float(bool(sets[i] & sets[p]))

    def pull(i: int, p: int) -> float:
        if name in ("jaccard", "multisupcon"):
            return jaccard(sets[i], sets[p]) * positive(i, p)
        if name == "similarity_dissimilarity":
            if not positive(i, p):
                return 0.0
            return len(sets[i] & sets[p]) / len(sets[i]) / (1 + len(sets[p] - sets[i]))
        return positive(i, p)

    pulls = [[pull(i, p) for p in num] for i in num]
    of = pull if name == "jaccard" else positive
    divisor = [sum(of(i, p) for p in num if p != i) for i in num]
    return by_positives(z, pulls, divisor, s["tau"])


def msc(z: Tensor, labels: Tensor, s: dict[str, Any], prototypes: Tensor) -> Result:
    sets, num = label_sets(labels), len(labels)
    every = torch.cat([z, prototypes])
    bias = [math.log(s["msc_beta"])] * num + [0.0] * len(prototypes)
    total, count = zero(z), 0
    for i in range(num):
        if not sets[i]:
            continue
        log = [log_sigma(every, i, a, [s["tau"]] * len(every), bias) if a != i else zero(z) for a in range(len(every))]
        term = zero(z)
        for l in sets[i]:
            shares = {j: 1 / len(sets[i] | sets[j]) for j in range(num) if j != i and l in sets[j]}
            divisor = 1 + sum(shares.values())
            for j, share in shares.items():
                term = term + share / divisor * log[j]
            term = term + log[num + l] / divisor
        total, count = total - term / len(sets[i]), count + 1
    return total, count


def loss(z: Tensor, labels: Tensor, s: dict[str, Any], ids: list[int], prototypes: Tensor | None = None) -> Result:
    """(sum, count) of any loss but the triplet, which has a file of its own."""
    if s["name"] == "macl":
        return macl(z, labels, s)
    if s["name"] == "mulsupcon":
        plain = {"alpha": 0.0, "beta": 0.0, "strength": 0.0, "t_min": 0.0, "positives": "per_label"}
        return macl(z, labels, {**s, **plain, "temperature_scope": "all_pairs", "weight_norm": "batch_mean"})
    if s["name"] == "msc":
        assert prototypes is not None
        return msc(z, labels, s, prototypes)
    return baseline(z, labels, s, ids)


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=math.ulp(1.0))
