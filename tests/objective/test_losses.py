"""Loss and gradient against naive loops, golden values, identities and every split over ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from marc_dist.objective import LossParts, ObjectiveSettings, label_statistics, objective
from marc_dist.objective import pairs as pairs_module
from tests.objective import naive

CONSTANTS = dict(tau=0.2, t_min=0.01, alpha=0.7, beta=0.6, strength=0.8, gamma=0.9, clip_min=0.3, clip_max=2.5)
PLAIN = dict(CONSTANTS, alpha=0.0, beta=0.0, strength=0.0)


def make(labels: list[list[int]] | Tensor, dim: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    rows = torch.as_tensor(labels, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(rows), dim, dtype=torch.float64, generator=generator), rows


def run(z: Tensor, labels: Tensor, **options: Any) -> LossParts:
    """The objective in one process; options are settings, ids or statistics."""
    ids = options.pop("ids", torch.arange(len(z)))
    statistics = options.pop("statistics", None)
    chosen = ObjectiveSettings(**options)
    return objective(
        z, z, labels, labels, first=0, settings=chosen, statistics=statistics, anchor_ids=ids, candidate_ids=ids
    )


def compare(z: Tensor, labels: Tensor, expected: tuple[Tensor, int], leaf: Tensor, parts: LossParts) -> None:
    total, count = expected
    assert int(parts.count) == count
    torch.testing.assert_close(parts.sum, total, rtol=1e-10, atol=1e-10)
    (want,) = torch.autograd.grad(total, leaf, retain_graph=True, allow_unused=True) if total.requires_grad else (None,)
    (got,) = torch.autograd.grad(parts.sum, leaf, retain_graph=True)
    torch.testing.assert_close(got, torch.zeros_like(leaf) if want is None else want, rtol=1e-10, atol=1e-10)


CASES = {
    "mixed, an empty set, a lonely label, duplicates": [
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0],
    ],
    "single labels": [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]],
    "nothing shared": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "all empty": [[0, 0], [0, 0], [0, 0]],
    "all equal": [[1, 1], [1, 1], [1, 1]],
    "alone": [[1, 0]],
}


@pytest.mark.parametrize("implementation", ["dense", "streamed"])
@pytest.mark.parametrize("aggregate", ["pair_mean", "anchor_mean"])
@pytest.mark.parametrize("case", CASES)
def test_macl_equals_the_naive_loops(case: str, aggregate: str, implementation: str) -> None:
    raw, labels = make(CASES[case])
    raw.requires_grad_()
    z = naive.unit(raw)
    parts = run(z, labels, aggregate=aggregate, implementation=implementation, tile=3, **CONSTANTS)
    compare(z, labels, naive.macl(z, labels, aggregate, CONSTANTS), raw, parts)


label_rows = st.integers(1, 5).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, 1), min_size=width, max_size=width), min_size=2, max_size=8)
)


@settings(max_examples=40, deadline=None)
@given(
    label_rows, st.sampled_from(["pair_mean", "anchor_mean"]), st.sampled_from(["dense", "streamed"]), st.integers(1, 9)
)
def test_random_labels(rows: list[list[int]], aggregate: str, implementation: str, tile: int) -> None:
    raw, labels = make(rows, seed=len(rows))
    raw.requires_grad_()
    z = naive.unit(raw)
    parts = run(z, labels, aggregate=aggregate, implementation=implementation, tile=tile, **CONSTANTS)
    compare(z, labels, naive.macl(z, labels, aggregate, CONSTANTS), raw, parts)


@pytest.mark.parametrize("implementation", ["dense", "streamed"])
def test_counts_of_the_training_split_replace_those_of_the_batch(implementation: str) -> None:
    raw, labels = make(CASES["mixed, an empty set, a lonely label, duplicates"])
    raw.requires_grad_()
    z = naive.unit(raw)
    _, split = make([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 1, 0]])
    given_counts = naive.counts_of(naive.label_sets(split), 5)
    expected = naive.macl(z, labels, "pair_mean", CONSTANTS, given_counts)
    statistics = label_statistics(split)
    parts = run(z, labels, implementation=implementation, tile=2, statistics=statistics, **CONSTANTS)
    compare(z, labels, expected, raw, parts)
    own = run(z, labels, implementation=implementation, tile=2, **CONSTANTS)
    assert abs(float((own.sum - parts.sum).detach())) > 1e-3


@pytest.mark.parametrize("implementation", ["dense", "streamed"])
@pytest.mark.parametrize("name", ["supcon_any", "supcon_all", "ntxent"])
def test_supcon_and_ntxent_equal_the_naive_loops(name: str, implementation: str) -> None:
    raw, labels = make(CASES["mixed, an empty set, a lonely label, duplicates"] * 2)
    ids = [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 7]  # two views, the last of which has lost its partner
    raw.requires_grad_()
    z = naive.unit(raw)
    parts = run(z, labels, name=name, tau=0.3, implementation=implementation, tile=4, ids=torch.tensor(ids))
    compare(z, labels, naive.by_positives(z, naive.positives(name, labels, ids), 0.3), raw, parts)


@pytest.mark.parametrize("implementation", ["dense", "streamed"])
@pytest.mark.parametrize("aggregate", ["pair_mean", "anchor_mean"])
def test_switched_off_macl_is_mulsupcon_and_single_labels_are_supcon(aggregate: str, implementation: str) -> None:
    raw, labels = make(CASES["mixed, an empty set, a lonely label, duplicates"])
    z = naive.unit(raw)
    common: dict[str, Any] = dict(aggregate=aggregate, implementation=implementation, tile=4)
    off = run(z, labels, **common, **PLAIN)
    mulsupcon = run(z, labels, name="mulsupcon", tau=PLAIN["tau"], **common)
    assert torch.equal(off.count, mulsupcon.count)
    torch.testing.assert_close(off.sum, mulsupcon.sum, rtol=1e-14, atol=0)
    raw, labels = make(CASES["single labels"])
    z = naive.unit(raw)
    single = run(z, labels, name="mulsupcon", tau=0.2, **common)
    for name in ("supcon_any", "supcon_all"):
        other = run(z, labels, name=name, tau=0.2, **common)
        assert torch.equal(single.count, other.count)
        torch.testing.assert_close(single.sum, other.sum, rtol=1e-13, atol=0)


GOLDEN = {
    ("mulsupcon", "pair_mean", 0.0): 1.06804020171,
    ("mulsupcon", "anchor_mean", 0.0): 0.96804020171,
    ("supcon_any", "anchor_mean", 0.0): 0.96804020171,
    ("macl", "pair_mean", 0.5): 1.04136057488,
    ("macl", "anchor_mean", 0.5): 0.91636057488,
}


@pytest.mark.parametrize("implementation", ["dense", "streamed"])
@pytest.mark.parametrize("key", GOLDEN, ids=str)
def test_golden_values(key: tuple[str, str, float], implementation: str) -> None:
    name, aggregate, alpha = key
    z = torch.tensor([(1, 0), (0.6, 0.8), (0, 1), (-0.8, 0.6)], dtype=torch.float64)
    labels = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1]])
    parts = run(
        z, labels, name=name, aggregate=aggregate, tau=0.5, alpha=alpha, beta=0.0, strength=0.0, tile=3,
        implementation=implementation,
    )  # fmt: skip
    assert float(parts.sum / parts.count) == pytest.approx(GOLDEN[key], abs=1e-11)


def test_raw_weight_golden_values() -> None:
    """Reference section 2.2: c = [[10,4,1],[4,5,2],[1,2,3]], gamma 1."""
    matrix = 1 / torch.tensor([[10, 4, 1], [4, 5, 2], [1, 2, 3]], dtype=torch.float64)
    sets = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    raw = pairs_module.quadratic(sets, sets, matrix).diagonal() / sets.sum(1) ** 2
    torch.testing.assert_close(raw, torch.tensor([0.2, 0.1, 1 / 3], dtype=torch.float64))


@pytest.mark.parametrize("tables", [True, False], ids=["looked up", "by tile"])
@pytest.mark.parametrize("layout", [[48], [24, 24], [20, 0, 27, 1], [1, 2, 3, 4, 5, 6, 7, 20], [0, 48]], ids=str)
def test_any_split_over_ranks_adds_up_to_the_whole(
    layout: list[int], tables: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not tables:
        monkeypatch.setattr(pairs_module, "TABLE_ENTRIES", 0)
        monkeypatch.setattr(pairs_module, "CHUNK_ENTRIES", 7)
    generator = torch.Generator().manual_seed(1)
    labels = torch.rand(48, 7, generator=generator) < torch.linspace(0.05, 0.6, 7)
    z = naive.unit(torch.randn(48, 6, dtype=torch.float64, generator=generator))
    for name in ("macl", "supcon_any", "supcon_all", "ntxent"):
        for implementation in ("dense", "streamed"):
            chosen = ObjectiveSettings(name=name, implementation=implementation, tile=11, **CONSTANTS)  # type: ignore[arg-type]
            ids = torch.arange(48) % 24
            leaf = z.clone().requires_grad_()
            whole = objective(leaf, leaf, labels, labels, first=0, settings=chosen, candidate_ids=ids)
            (want,) = torch.autograd.grad(whole.sum, leaf)
            total, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
            stats = {key: torch.zeros((), dtype=torch.float64) for key in whole.stats}
            leaf = z.clone().requires_grad_()
            first = 0
            for rows in layout:
                own = slice(first, first + rows)
                part = objective(leaf[own], leaf, labels[own], labels, first=first, settings=chosen, candidate_ids=ids)
                total, count, first = total + part.sum, count + part.count, first + rows
                stats = {key: stats[key] + part.stats[key] for key in stats}
            (got,) = torch.autograd.grad(total, leaf)
            assert torch.equal(count, whole.count)
            torch.testing.assert_close(total, whole.sum, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
            for key, value in stats.items():
                torch.testing.assert_close(value, whole.stats[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["macl", "mulsupcon", "supcon_any", "supcon_all", "ntxent"])
def test_streamed_equals_dense_at_any_tile(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.rand(70, 6, generator=generator) < 0.3
    z = naive.unit(torch.randn(70, 4, dtype=torch.float64, generator=generator))
    results = []
    for implementation, tile in [("dense", 1), ("streamed", 1), ("streamed", 7), ("streamed", 64), ("streamed", 500)]:
        leaf = z.clone().requires_grad_()
        parts = run(
            leaf, labels, name=name, implementation=implementation, tile=tile, ids=torch.arange(70) // 2, **CONSTANTS
        )
        results.append((parts.sum.detach(), *torch.autograd.grad(parts.sum, leaf)))
    for total, grad in results[1:]:
        torch.testing.assert_close(total, results[0][0], rtol=1e-12, atol=0)
        torch.testing.assert_close(grad, results[0][1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("implementation", ["dense", "streamed"])
def test_gradcheck(implementation: str) -> None:
    raw, labels = make(CASES["mixed, an empty set, a lonely label, duplicates"], dim=3)
    raw.requires_grad_()
    chosen = ObjectiveSettings(implementation=implementation, tile=3, **CONSTANTS)  # type: ignore[arg-type]

    def total(anchors: Tensor, candidates: Tensor) -> Tensor:
        return objective(anchors, candidates, labels[2:5], labels, first=2, settings=chosen).sum

    other = raw[2:5].detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(total, (other, raw))


def test_permuting_the_batch_changes_nothing() -> None:
    raw, labels = make(CASES["mixed, an empty set, a lonely label, duplicates"])
    z = naive.unit(raw)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(3))
    one, two = run(z, labels, **CONSTANTS), run(z[order], labels[order], **CONSTANTS)
    torch.testing.assert_close(one.sum, two.sum, rtol=1e-12, atol=0)
    assert torch.equal(one.count, two.count)


def test_statistics_are_those_of_plain_loops() -> None:
    raw, labels = make(CASES["mixed, an empty set, a lonely label, duplicates"])
    sets = naive.label_sets(labels)
    n, c = naive.counts_of(sets, labels.shape[1])
    num = range(len(sets))
    positive = [(i, p) for i in num for p in num if i != p and sets[i] & sets[p]]
    stats = run(naive.unit(raw), labels, **CONSTANTS).stats
    assert float(stats["anchors"]) == len(sets)
    assert float(stats["positives"]) == len(positive)
    assert float(stats["anchors_without_partner"]) == len(sets) - len({i for i, _ in positive}) == 2
    assert float(stats["temperature_sum"]) == pytest.approx(
        sum(naive.temperature(i, p, sets, n, CONSTANTS) for i, p in positive)
    )
    assert float(stats["weight_sum"]) == pytest.approx(sum(naive.weight(i, p, sets, c, CONSTANTS) for i, p in positive))


def kept_bytes(num: int, tile: int) -> int:
    generator = torch.Generator().manual_seed(4)
    labels = torch.rand(num, 5, generator=generator) < 0.3
    leaf = torch.randn(num, 16, generator=generator).requires_grad_()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        parts = run(leaf, labels, implementation="streamed", tile=tile)
    parts.sum.backward()
    return sum(kept.values())


def test_memory_kept_for_backward_is_linear_and_free_of_the_tile() -> None:
    assert kept_bytes(512, 64) == kept_bytes(512, 200)
    assert kept_bytes(1024, 64) == 2 * kept_bytes(512, 64)


def test_half_precision_is_raised_to_float32_even_under_autocast() -> None:
    raw, labels = make(CASES["mixed, an empty set, a lonely label, duplicates"])
    z = naive.unit(raw).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = run(z, labels, **CONSTANTS)
    assert parts.sum.dtype == torch.float32
    exact = run(z.double(), labels, **CONSTANTS)
    assert float(parts.sum) == pytest.approx(float(exact.sum), rel=1e-5)


def test_small_temperatures_do_not_overflow() -> None:
    raw, labels = make(CASES["mixed, an empty set, a lonely label, duplicates"])
    for implementation in ("dense", "streamed"):
        leaf = naive.unit(raw).float().requires_grad_()
        parts = run(leaf, labels, implementation=implementation, tau=0.001, t_min=0.001, alpha=0.0, beta=0.0)
        (grad,) = torch.autograd.grad(parts.sum, leaf)
        assert torch.isfinite(parts.sum) and torch.isfinite(grad).all()


def test_contradictions_are_refused() -> None:
    raw, labels = make(CASES["single labels"])
    chosen = ObjectiveSettings()
    with pytest.raises(ValueError, match="first"):
        objective(raw[:2], raw, labels[:2], labels, first=1, settings=chosen)
    with pytest.raises(ValueError, match="first"):
        objective(raw, raw, labels, labels, first=1, settings=chosen)
    with pytest.raises(ValueError, match="candidate rows"):
        objective(raw, raw, labels, labels[:2], first=0, settings=chosen)
    with pytest.raises(ValueError, match="ntxent"):
        objective(raw, raw, labels, labels, first=0, settings=ObjectiveSettings(name="ntxent"))
