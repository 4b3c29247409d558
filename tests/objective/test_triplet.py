"""The triplet loss against loops that sort every candidate, any split over ranks, and memory."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from marc_dist.config import LossConfig
from marc_dist.objective import LossParts, objective
from marc_dist.objective import triplet as triplet_module
from tests.objective import naive
from tests.objective.cases import CASES, compare, long_tailed, make

SELECTIONS = ["relevant", "hard", "diverse"]


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Zero, and without a gradient, between equal rows."""
    return (a - b).square().sum().sqrt() if not torch.equal(a, b) else torch.zeros((), dtype=a.dtype)


def spread(shortlist: list[int], z: Tensor, num: int) -> list[int]:
    chosen: list[int] = []
    while shortlist and len(chosen) < num:
        far = [min((float(-(z[p] @ z[c])) for c in chosen), default=0.0) for p in shortlist]
        chosen.append(shortlist.pop(far.index(max(far))))
    return chosen


def naive_triplet(z: Tensor, labels: Tensor, s: LossConfig) -> tuple[Tensor, int]:
    sets, fixed = naive.label_sets(labels), z.detach()
    total, count = naive.zero(z), 0
    for i in range(len(z)):
        overlap = [naive.jaccard(sets[i], other) for other in sets]
        groups = []
        for sign in (1, -1):  # positives, negatives
            found = [p for p in range(len(z)) if p != i and (overlap[p] >= s.threshold) == (sign == 1)]
            hard = sorted(found, key=lambda p: sign * float(fixed[i] @ fixed[p]))
            if s.selection == "relevant":
                hard = sorted(hard, key=lambda p: -sign * overlap[p])
            if s.selection == "diverse":
                hard = spread(hard[: 4 * s.num_selected], fixed, s.num_selected)
            groups.append(hard[: s.num_selected])
        pairs = list(product(*groups))
        if pairs:
            margins = [distance(z[i], z[p]) - distance(z[i], z[n]) + s.margin for p, n in pairs]
            total = total + sum((m.clamp(min=0) for m in margins), naive.zero(z)) / len(pairs)
            count += 1
    return total, count


def run(z: Tensor, labels: Tensor, first: int = 0, rows: int | None = None, **options: Any) -> LossParts:
    chosen = LossConfig(name="triplet", **options)
    own = slice(first, first + (len(z) if rows is None else rows))
    return objective(z[own], z, labels[own], labels, first=first, settings=chosen)


def check(labels: list[list[int]], seed: int = 0, **options: Any) -> None:
    raw, rows = make(labels, seed=seed)
    raw.requires_grad_()
    z = naive.unit(raw)
    compare(naive_triplet(z, rows, LossConfig(name="triplet", **options)), raw, run(z, rows, **options))


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_naive_loops(case: str, selection: str) -> None:
    for threshold, margin, num in product((0.3, 0.5, 1.0), (0.2, 1.2), (1, 3)):
        check(CASES[case] * 2, selection=selection, threshold=threshold, margin=margin, num_selected=num, tile=3)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(2, 24), st.sampled_from(SELECTIONS), st.integers(1, 4), st.integers(1, 30),
    st.sampled_from([0.25, 1 / 3, 0.5, 1.0]),
)  # fmt: skip
def test_equals_the_naive_loops_on_random_labels(
    seed: int, num: int, selection: str, selected: int, tile: int, threshold: float
) -> None:
    labels = long_tailed(num, 5, seed=seed).int().tolist()
    check(labels, seed=seed, selection=selection, num_selected=selected, tile=tile, threshold=threshold)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("layout", [[40], [20, 0, 19, 1], [0, 40], [13, 13, 14]], ids=str)
def test_any_split_over_ranks_adds_up_to_the_whole(
    layout: list[int], selection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = long_tailed(40, 6)
    z = naive.unit(torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(8)))
    leaf = z.clone().requires_grad_()
    whole = run(leaf, labels, selection=selection)
    (want,) = torch.autograd.grad(whole.sum, leaf)
    monkeypatch.setattr(triplet_module, "ENTRIES", 1000)  # several parts of anchors
    leaf = z.clone().requires_grad_()
    first, parts = 0, []
    for rows in layout:
        parts.append(run(leaf, labels, first, rows, selection=selection, tile=7))
        first += rows
    (got,) = torch.autograd.grad(sum((part.sum for part in parts), naive.zero(z)), leaf)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert sum(float(part.count) for part in parts) == float(whole.count) > 10
    for key, value in whole.stats.items():
        assert sum(float(part.stats[key]) for part in parts) == float(value)


def test_the_figures_count_positives_before_any_is_chosen() -> None:
    labels = long_tailed(40, 6)
    z = naive.unit(torch.randn(40, 6, generator=torch.Generator().manual_seed(8)))
    sets = naive.label_sets(labels)
    positive = [[naive.jaccard(a, b) >= 0.5 for p, b in enumerate(sets) if p != i] for i, a in enumerate(sets)]
    stats = run(z, labels, num_selected=1).stats
    assert float(stats["positives"]) == sum(map(sum, positive))
    assert float(stats["anchors_without_partner"]) == sum(not any(row) for row in positive) > 0


def test_duplicates_have_a_finite_gradient() -> None:
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).requires_grad_()
    labels = torch.tensor([[1, 0], [1, 0], [0, 1]])
    (grad,) = torch.autograd.grad(run(z, labels, margin=2.0).sum, z)
    assert torch.isfinite(grad).all() and float(grad.abs().sum()) > 0


@pytest.mark.parametrize("selection", SELECTIONS)
def test_memory_kept_for_backward_is_linear(selection: str) -> None:
    def kept(num: int) -> int:
        labels, sizes = long_tailed(num, 5), {}
        leaf = naive.unit(torch.randn(num, 16, generator=torch.Generator().manual_seed(4))).requires_grad_()

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            parts = run(leaf, labels, selection=selection)
        parts.sum.backward()
        return sum(sizes.values())

    assert kept(512) <= 2.2 * kept(256)
