"""Every loss and setting against naive loops, golden values, identities and every split over ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from marc_dist.config import Config, LossConfig
from marc_dist.config.schema import DataConfig
from marc_dist.objective import LabelStatistics, label_statistics, objective
from marc_dist.objective import sets as sets_module
from marc_dist.objective import weights as weights_module
from tests.objective import naive
from tests.objective.cases import (
    CASES,
    CONSTANTS,
    MIXED,
    NAMES,
    PLAIN,
    compare,
    everything,
    long_tailed,
    make,
    prototypes,
    run,
    valid,
)  # fmt: skip

IDS = [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 7]  # two views, the last of which has lost its partner
CHOICES: dict[str, list[Any]] = {
    "positives": ["per_label", "any", "all"],
    "aggregate": ["pair_mean", "anchor_mean", "class_balanced"],
    "temperature_form": ["sharpen", "soften", "multiplicative", "soften_sharpen"],
    "temperature_scope": ["all_pairs", "positives_only", "per_positive_row"],
    "overlap": ["jaccard", "anchor_recall", "dice", "cosine", "count_over_labels"],
    "rarity": ["mean", "max"],
    "rarity_scale": ["one_minus_relative", "inverse_minmax"],
    "weight_pairs": ["shared", "cross", "offdiag", "single"],
    "weight_norm": ["batch_mean", "sum_to_one", "none"],
    "clip_min": [0.0, 0.3],
    "strength": [0.0, 0.8, 1.0],
    "alpha": [0.0, 0.7],
    "beta": [0.0, 0.6],
    "gamma": [0.0, 0.9],
    "tau": [0.2, 0.05],
    "t_min": [0.01, 0.12],
}


def check(labels: list[list[int]], seed: int = 0, tolerance: float = 1e-10, **options: Any) -> None:
    """One loss, dense or streamed, against the loops."""
    raw, rows = make(labels, seed=seed)
    raw.requires_grad_()
    z = naive.unit(raw)
    ids = [IDS[place % len(IDS)] for place in range(len(rows))]
    units = prototypes(rows.shape[1], 5)
    parts = run(z, rows, ids=torch.tensor(ids), prototypes=units, **options)
    compare(naive.loss(z, rows, everything(**options), ids, units), raw, parts, tolerance)


@pytest.mark.parametrize("implementation", ["dense", "streamed"])
@pytest.mark.parametrize("aggregate", ["pair_mean", "anchor_mean", "class_balanced"])
@pytest.mark.parametrize("case", CASES)
def test_macl_equals_the_naive_loops(case: str, aggregate: str, implementation: str) -> None:
    check(CASES[case], aggregate=aggregate, implementation=implementation, tile=3, **CONSTANTS)


@pytest.mark.parametrize("implementation", ["dense", "streamed"])
@pytest.mark.parametrize("name", NAMES)
def test_every_loss_equals_the_naive_loops(name: str, implementation: str) -> None:
    for labels in CASES.values():
        check(labels * 2, name=name, tau=0.3, threshold=0.4, implementation=implementation, tile=4)


@pytest.mark.parametrize("implementation", ["dense", "streamed"])
@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in CHOICES.items() for value in values])
def test_every_setting_equals_the_naive_loops(key: str, value: Any, implementation: str) -> None:
    more = {key: value}
    if value == "none":
        more["clip_min"] = 0.0
    check(MIXED, implementation=implementation, tile=3, **{**CONSTANTS, **more})


label_rows = st.integers(1, 5).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, 1), min_size=width, max_size=width), min_size=2, max_size=7)
)


@settings(max_examples=150, deadline=None)
@given(
    label_rows,
    st.fixed_dictionaries({key: st.sampled_from(values) for key, values in CHOICES.items()}),
    st.sampled_from(["dense", "streamed"]),
    st.integers(1, 9),
)
def test_every_combination_is_exact_or_refused(
    rows: list[list[int]], chosen: dict[str, Any], implementation: str, tile: int
) -> None:
    options = {**CONSTANTS, **chosen}
    assume(valid(options))
    check(rows, seed=len(rows), implementation=implementation, tile=tile, **options)


def test_what_the_schema_refuses_has_a_reason() -> None:
    refused = {
        "one term an anchor": {"positives": "any", "aggregate": "class_balanced"},
        "cannot be negative": {"temperature_form": "multiplicative", "alpha": 1.5},
        "set clip_min=0": {"weight_norm": "none"},
        "clip_min must not exceed": {"clip_min": 2.0, "clip_max": 1.0},
        "leave it at auto": {"name": "triplet", "implementation": "dense"},
        "below the floor t_min": {"tau": 0.005},
    }
    for reason, options in refused.items():
        with pytest.raises(ValueError, match=reason):
            LossConfig(**options)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(label_rows, st.sampled_from(NAMES), st.sampled_from(["dense", "streamed"]), st.integers(1, 9))
def test_every_loss_on_random_labels(rows: list[list[int]], name: str, implementation: str, tile: int) -> None:
    check(rows, seed=len(rows), name=name, tau=0.15, implementation=implementation, tile=tile)


@pytest.mark.parametrize("implementation", ["dense", "streamed"])
@pytest.mark.parametrize("more", [{}, {"rarity_scale": "inverse_minmax"}, {"aggregate": "class_balanced"}], ids=str)
def test_counts_of_the_training_split_replace_those_of_the_batch(more: dict[str, Any], implementation: str) -> None:
    raw, labels = make(MIXED)
    raw.requires_grad_()
    z = naive.unit(raw)
    _, split = make([[1, 1, 0, 0, 1], [1, 1, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]])
    given_counts = naive.counts_of(naive.label_sets(split), 5)
    expected = naive.macl(z, labels, everything(**{**CONSTANTS, **more}), given_counts)
    statistics = label_statistics(split)
    parts = run(z, labels, implementation=implementation, tile=2, statistics=statistics, **{**CONSTANTS, **more})
    compare(expected, raw, parts)
    own = run(z, labels, implementation=implementation, tile=2, **{**CONSTANTS, **more})
    assert abs(float((own.sum / own.count - parts.sum / parts.count).detach())) > 1e-4


@pytest.mark.parametrize("implementation", ["dense", "streamed"])
@pytest.mark.parametrize(
    "more",
    [{}, {"weight_norm": "sum_to_one", "clip_min": 0.0}, {"positives": "any"}, {"weight_pairs": "offdiag"}],
    ids=str,
)
@pytest.mark.parametrize("gamma", [1.0, 3.0, 4.0])
def test_common_labels_of_the_split_do_not_drown_in_rounding(
    gamma: float, more: dict[str, Any], implementation: str
) -> None:
    """A label pair seen once beside labels seen 100,000 times: raw weights differ by twenty orders of magnitude."""
    raw, labels = make([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 0], [0, 1, 0]])
    raw.requires_grad_()
    z = naive.unit(raw)
    n, c = [100_000, 50_000, 2], [[100_000, 20_000, 1], [20_000, 50_000, 1], [1, 1, 2]]
    statistics = LabelStatistics(torch.tensor(n), torch.tensor(c))
    options = {"gamma": gamma, **more}
    expected = naive.macl(z, labels, everything(**options), (n, c))
    compare(expected, raw, run(z, labels, implementation=implementation, statistics=statistics, **options))


@pytest.mark.parametrize("implementation", ["dense", "streamed"])
@pytest.mark.parametrize(
    "more",
    [{}, {"aggregate": "anchor_mean", "weight_norm": "sum_to_one"}, {"temperature_scope": "per_positive_row"},
     {"positives": "any"}, {"rarity_scale": "inverse_minmax", "aggregate": "class_balanced"}],
    ids=str,
)  # fmt: skip
def test_candidates_of_earlier_steps_are_candidates_like_all(more: dict[str, Any], implementation: str) -> None:
    """Rows of a cross-batch memory: no anchors, but they count among labels, pairs and the mean weight."""
    raw, labels = make([*MIXED, *MIXED[2:6], [1, 0, 0, 0, 1]])
    raw.requires_grad_()
    z = naive.unit(raw)
    options = {**CONSTANTS, **more}
    expected = naive.macl(z, labels, everything(**options), anchors=range(len(MIXED)))
    chosen = LossConfig(implementation=implementation, tile=3, **options)  # type: ignore[arg-type]
    mine = slice(0, len(MIXED))
    compare(expected, raw, objective(z[mine], z, labels[mine], labels, first=0, settings=chosen))


@pytest.mark.parametrize("implementation", ["dense", "streamed"])
@pytest.mark.parametrize("aggregate", ["pair_mean", "anchor_mean"])
def test_switched_off_macl_is_mulsupcon_and_single_labels_are_supcon(aggregate: str, implementation: str) -> None:
    raw, labels = make(MIXED)
    z = naive.unit(raw)
    common: dict[str, Any] = dict(aggregate=aggregate, implementation=implementation, tile=4)
    off = run(z, labels, **common, **PLAIN)
    mulsupcon = run(z, labels, name="mulsupcon", tau=PLAIN["tau"], **common)
    assert torch.equal(off.count, mulsupcon.count)
    torch.testing.assert_close(off.sum, mulsupcon.sum, rtol=1e-14, atol=0)
    raw, labels = make(CASES["single labels"])
    z = naive.unit(raw)
    single = run(z, labels, name="mulsupcon", tau=0.2, **common)
    for name in ("supcon_single", "supcon_any", "supcon_all", "jaccard", "multisupcon", "similarity_dissimilarity"):
        other = run(z, labels, name=name, tau=0.2, **common)
        assert torch.equal(single.count, other.count)
        torch.testing.assert_close(single.sum, other.sum, rtol=1e-13, atol=0)


GOLDEN = {
    ("mulsupcon", "pair_mean", 0.0, "sharpen"): 1.06804020171,
    ("mulsupcon", "anchor_mean", 0.0, "sharpen"): 0.96804020171,
    ("supcon_any", "anchor_mean", 0.0, "sharpen"): 0.96804020171,
    ("jaccard", "anchor_mean", 0.0, "sharpen"): 0.90804020171,
    ("macl", "pair_mean", 0.5, "sharpen"): 1.04136057488,
    ("macl", "anchor_mean", 0.5, "sharpen"): 0.91636057488,
    ("macl", "pair_mean", 0.5, "soften"): 1.10311213303,
    ("macl", "anchor_mean", 0.5, "soften"): 1.02311213303,
}


@pytest.mark.parametrize("implementation", ["dense", "streamed"])
@pytest.mark.parametrize("key", GOLDEN, ids=str)
def test_golden_values(key: tuple[str, str, float, str], implementation: str) -> None:
    name, aggregate, alpha, form = key
    z = torch.tensor([(1, 0), (0.6, 0.8), (0, 1), (-0.8, 0.6)], dtype=torch.float64)
    labels = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1]])
    parts = run(
        z, labels, name=name, aggregate=aggregate, tau=0.5, alpha=alpha, beta=0.0, strength=0.0, tile=3,
        temperature_form=form, implementation=implementation,
    )  # fmt: skip
    assert float(parts.sum / parts.count) == pytest.approx(GOLDEN[key], abs=1e-11)


@pytest.mark.parametrize("features", [1, 4, 1024])
def test_raw_weight_golden_values(features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worked by hand: c = [[10,4,1],[4,5,2],[1,2,3]], gamma 1."""
    monkeypatch.setattr(weights_module, "ENTRIES", features)
    matrix = 1 / torch.tensor([[10, 4, 1], [4, 5, 2], [1, 2, 3]], dtype=torch.float64)
    sets = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    known = torch.triu(torch.ones(3, 3)).nonzero()
    raw = weights_module.pair_sums(sets, sets, matrix, known).diagonal() / sets.sum(1) ** 2
    torch.testing.assert_close(raw, torch.tensor([0.2, 0.1, 1 / 3], dtype=torch.float64))


@pytest.mark.parametrize("chunk", [1 << 21, 7], ids=["one chunk", "many chunks"])
@pytest.mark.parametrize("layout", [[48], [24, 24], [20, 0, 27, 1], [1, 2, 3, 4, 5, 6, 7, 20], [0, 48]], ids=str)
def test_any_split_over_ranks_adds_up_to_the_whole(
    layout: list[int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets_module, "CHUNK_ENTRIES", chunk)
    labels = long_tailed(48, 7)
    z = naive.unit(torch.randn(48, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    sum_to_one = dict(CONSTANTS, weight_norm="sum_to_one")
    per_row = dict(CONSTANTS, temperature_scope="per_positive_row")
    settings_of = [(name, CONSTANTS) for name in NAMES] + [("macl", sum_to_one), ("macl", per_row)]
    for name, constants in settings_of:
        for implementation in ("dense", "streamed"):
            chosen = LossConfig(name=name, implementation=implementation, tile=11, **constants)  # type: ignore[arg-type]
            _check_layout(layout, z, labels, chosen)


def _check_layout(layout: list[int], z: Tensor, labels: Tensor, chosen: LossConfig) -> None:
    more: dict[str, Any] = {
        "settings": chosen,
        "candidate_ids": torch.arange(48) % 24,
        "prototypes": prototypes(labels.shape[1], z.shape[1]),
    }
    leaf = z.clone().requires_grad_()
    whole = objective(leaf, leaf, labels, labels, first=0, **more)
    (want,) = torch.autograd.grad(whole.sum, leaf)
    total, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    stats = {key: torch.zeros((), dtype=torch.float64) for key in whole.stats}
    highest = dict.fromkeys(whole.highest, torch.tensor(-torch.inf, dtype=torch.float64))
    leaf = z.clone().requires_grad_()
    first = 0
    for rows in layout:
        own = slice(first, first + rows)
        part = objective(leaf[own], leaf, labels[own], labels, first=first, **more)
        total, count, first = total + part.sum, count + part.count, first + rows
        stats = {key: stats[key] + part.stats[key] for key in stats}
        highest = {key: torch.maximum(highest[key], part.highest[key]) for key in highest}
    (got,) = torch.autograd.grad(total, leaf)
    torch.testing.assert_close(count, whole.count, rtol=1e-14, atol=0)
    torch.testing.assert_close(total, whole.sum, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for key, value in stats.items():
        torch.testing.assert_close(value, whole.stats[key], rtol=1e-12, atol=1e-12)
    assert highest == whole.highest


@pytest.mark.parametrize("implementation", ["dense", "streamed"])
@pytest.mark.parametrize(
    "more", [{}, {"temperature_scope": "per_positive_row"}, {"name": "msc"}, {"name": "ntxent"}], ids=str
)
def test_gradcheck(more: dict[str, Any], implementation: str) -> None:
    raw, labels = make(MIXED, dim=3)
    chosen = LossConfig(implementation=implementation, tile=3, **{**CONSTANTS, **more})  # type: ignore[arg-type]
    units = prototypes(5, 3).requires_grad_()

    raw = naive.unit(raw).detach().requires_grad_()  # steps off the sphere are within what the objective lets pass

    def total(anchors: Tensor, candidates: Tensor, c: Tensor) -> Tensor:
        ids = torch.tensor([0, 1, 2, 3, 3, 1, 2])
        return objective(
            anchors, candidates, labels[2:5], labels, first=2, settings=chosen, candidate_ids=ids, prototypes=c
        ).sum

    other = raw[2:5].detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(total, (other, raw, units))


@pytest.mark.parametrize("name", NAMES)
def test_permuting_the_batch_changes_nothing(name: str) -> None:
    raw, labels = make(MIXED)
    z = naive.unit(raw)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([0, 1, 2, 0, 1, 2, 3])
    one, two = run(z, labels, name=name, ids=ids), run(z[order], labels[order], name=name, ids=ids[order])
    torch.testing.assert_close(one.sum, two.sum, rtol=1e-12, atol=0)
    torch.testing.assert_close(one.count, two.count, rtol=1e-14, atol=0)


def test_statistics_are_those_of_plain_loops() -> None:
    raw, labels = make(MIXED)
    sets = naive.label_sets(labels)
    n, c = naive.counts_of(sets, labels.shape[1])
    s = everything(**CONSTANTS)
    num = range(len(sets))
    positive = [(i, p) for i in num for p in num if i != p and sets[i] & sets[p]]
    parts = run(naive.unit(raw), labels, **CONSTANTS)
    stats, highest = parts.stats, parts.highest
    assert float(stats["anchors"]) == len(sets)
    assert float(stats["positives"]) == len(positive)
    assert float(stats["anchors_without_partner"]) == len(sets) - len({i for i, _ in positive}) == 2
    figures = {
        "temperature": [naive.temperature(i, p, sets, n, s) for i, p in positive],
        "weight": [naive.weight(i, p, sets, c, s) for i, p in positive],
    }
    for name, values in figures.items():
        assert float(stats[f"{name}_sum"]) == pytest.approx(sum(values))
        assert float(highest[f"{name}_max"]) == pytest.approx(max(values))
        assert -float(highest[f"{name}_min"]) == pytest.approx(min(values))
    assert float(highest["label_coverage"]) == 4 / 5
    nothing = run(naive.unit(raw), torch.zeros_like(labels))
    assert float(nothing.highest["weight_max"]) == -torch.inf
    assert float(nothing.stats["anchors_without_partner"]) == len(sets)


def test_contradictions_are_refused() -> None:
    raw, labels = make(CASES["single labels"])
    chosen = LossConfig()
    with pytest.raises(ValueError, match="first"):
        objective(raw[:2], raw, labels[:2], labels, first=1, settings=chosen)
    with pytest.raises(ValueError, match="first"):
        objective(raw, raw, labels, labels, first=1, settings=chosen)
    with pytest.raises(ValueError, match="candidate rows"):
        objective(raw, raw, labels, labels[:2], first=0, settings=chosen)
    raw = naive.unit(raw)
    with pytest.raises(ValueError, match="ntxent"):
        objective(raw, raw, labels, labels, first=0, settings=LossConfig(name="ntxent"))
    with pytest.raises(ValueError, match="msc: expected prototypes of shape"):
        objective(raw, raw, labels, labels, first=0, settings=LossConfig(name="msc"))
    _, several = make(MIXED)
    with pytest.raises(ValueError, match="at most one label"):
        run(naive.unit(raw.new_ones(7, 3)), several, name="supcon_single")


def test_settings_that_a_loss_does_not_read_are_named() -> None:
    assert LossConfig(name="supcon_any", alpha=0.1, strength=0.0, tau=0.3).unread() == ["alpha", "strength"]
    assert LossConfig(name="triplet", tau=0.3, threshold=0.4).unread() == ["tau"]
    floored = LossConfig(tau=0.01, alpha=0.1, beta=0.2, overlap="dice", temperature_form="sharpen")
    assert floored.unread() == ["alpha", "beta", "temperature_form", "overlap"]
    assert LossConfig(tau=0.01, alpha=0.1, temperature_form="soften").unread() == []
    assert LossConfig(tau=0.01, alpha=0.1, beta=0.2, temperature_form="soften_sharpen").unread() == []
    assert LossConfig(tau=0.01, alpha=0.0, beta=0.2, temperature_form="soften_sharpen").unread() == [
        "beta", "temperature_form"
    ]  # fmt: skip
    assert LossConfig(strength=0.0, beta=0.0, gamma=2.0, rarity="max", counts="train").unread() == [
        "rarity", "gamma", "counts"
    ]  # fmt: skip
    assert LossConfig(positives="any", aggregate="anchor_mean").unread() == ["aggregate"]
    assert LossConfig(implementation="dense", tile=3).unread() == ["tile"]
    assert Config(data=DataConfig(repeat_max=9.0)).unread() == ["data.repeat_max"]
    assert Config(data=DataConfig(repeat_max=9.0, sampler="label_aware")).unread() == []
    assert LossConfig(alpha=0.1, margin=1.0).unread() == ["margin"]
    assert LossConfig(name="mulsupcon", aggregate="anchor_mean", counts="train").unread() == ["counts"]
