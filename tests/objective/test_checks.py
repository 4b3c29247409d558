"""What the objective refuses when people call it directly, and what it must let pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from marc_dist.config import LossConfig
from marc_dist.config.loss import READ_BY_ALL, READS
from marc_dist.objective import LabelStatistics, LossParts, label_statistics, objective
from marc_dist.objective.checks import check_device
from tests.objective import naive
from tests.objective.cases import CONSTANTS, MIXED, make, prototypes, run

RAW, LABELS = make(MIXED)
Z = naive.unit(RAW)


def test_labels_that_are_not_0_or_1_are_refused() -> None:
    for labels, words in (
        (2 * LABELS.int(), "expected 0 or 1, got 2 in row 0, label 0"),
        (0.7 * LABELS, "expected 0 or 1, got 0.7 in row 0, label 0"),
        (torch.where(LABELS, torch.nan, 0.0), "expected 0 or 1, got nan"),
        (-1 * LABELS.int(), "got -1"),
    ):
        with pytest.raises(ValueError, match=words):
            run(Z, labels)


def test_labels_of_every_type_that_hold_0_and_1_are_equal() -> None:
    want = run(Z, LABELS)
    for dtype in (torch.uint8, torch.int64, torch.float32, torch.float64):
        assert torch.equal(run(Z, LABELS.to(dtype)).sum, want.sum)


@pytest.mark.parametrize("name", ["macl", "ntxent", "msc", "triplet"])
def test_vectors_that_were_not_normalised_are_refused(name: str) -> None:
    long = Z.clone()
    long[3] *= 1.5
    with pytest.raises(ValueError, match="expected unit vectors, got length 1.5 in row 3; divide"):
        run(long, LABELS, name=name)
    other = Z.clone()
    with pytest.raises(ValueError, match="candidates: expected unit vectors"):
        objective(Z[:2], torch.cat([other[:6], 2 * other[6:]]), LABELS[:2], LABELS, first=0, settings=LossConfig())
    with pytest.raises(ValueError, match="prototypes: expected unit vectors"):
        run(Z, LABELS, name="msc", prototypes=2 * prototypes(5, 5))


def test_what_normalising_makes_passes() -> None:
    """Half-precision rounding, and what a network gone wrong gives: guards behind the loss deal with that."""
    half = torch.nn.functional.normalize(RAW.bfloat16(), dim=1)
    assert run(half, LABELS).sum.isfinite()
    dead = Z.clone()
    dead[2] = 0.0
    assert run(dead, LABELS).sum.isfinite()
    dead[2] = torch.nan
    assert not run(dead, LABELS).sum.isfinite()


def test_kinds_and_shapes_are_refused() -> None:
    def call(anchors: Any = Z, candidates: Any = Z, mine: Any = LABELS, all_labels: Any = LABELS) -> LossParts:
        return objective(anchors, candidates, mine, all_labels, first=0, settings=LossConfig())

    for options, words in (
        ({"mine": LABELS.int()}, "labels: expected one type"),
        ({"anchors": Z[:, :3]}, "candidates: expected 3 columns like the anchors, got 5"),
        ({"anchors": Z.long()}, "anchors: expected a .* tensor of floats"),
        ({"all_labels": LABELS[:, 0]}, "candidate_labels: expected a .*one_hot"),
    ):
        with pytest.raises(ValueError, match=words):
            call(**options)
    with pytest.raises(ValueError, match=r"statistics: expected shapes \(5,\) and \(5, 5\), got \(3,\) and \(3, 3\)"):
        run(Z, LABELS, statistics=LabelStatistics(torch.ones(3), torch.ones(3, 3)))


def test_what_is_no_dense_tensor_is_refused() -> None:
    def call(vectors: Any, labels: Any = LABELS, **options: Any) -> LossParts:
        return objective(vectors, vectors, labels, labels, first=0, **{"settings": LossConfig(), **options})

    msc, ntxent = LossConfig(name="msc"), LossConfig(name="ntxent")
    given: list[tuple[Any, str]] = [
        (lambda: call(Z.numpy()), "anchors: expected a torch tensor, got ndarray; use torch.as_tensor"),
        (lambda: call(Z, LABELS.tolist()), "anchor_labels: expected a torch tensor, got list"),
        (
            lambda: call(Z, LABELS.float().to_sparse()),
            "anchor_labels: expected a dense tensor, got torch.sparse_coo; use",
        ),
        (lambda: call(Z.to("meta")), "anchors: expected a tensor with numbers in it, got one on the device meta"),
        (lambda: call(Z[:, :0]), "anchors: expected one column or more"),
        (lambda: call(Z, LABELS[:, :0]), "candidate_labels: expected one column or more"),
        (lambda: call(Z, settings={"tau": 1}), r"settings: expected build\(LossConfig, {...}\), got dict"),
        (lambda: call(Z, settings=msc, prototypes=[[1.0]]), "prototypes: expected a torch tensor, got list"),
        (lambda: call(Z, settings=ntxent, candidate_ids=[1] * 7), "candidate_ids: expected a torch tensor, got list"),
        (lambda: call(Z, settings=ntxent, candidate_ids=torch.ones(7)), r"candidate_ids: expected \(rows,\) whole"),
    ]
    for make_one, words in given:
        with pytest.raises(ValueError, match=words):
            make_one()
    with pytest.raises(ValueError, match="candidates: expected on cpu like the anchors, got cuda"):
        check_device("candidates", _Elsewhere(), "anchors", Z)  # type: ignore[arg-type]


class _Elsewhere:
    device = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (torch.ones(5), r"statistics: expected what label_statistics\(labels\) gives, got Tensor"),
        ((torch.ones(5), torch.ones(5, 5)), "statistics: expected what .* got tuple"),
        (LabelStatistics([1] * 5, torch.ones(5, 5)), "statistics.counts: expected a torch tensor, got list"),  # type: ignore[arg-type]
        (LabelStatistics(torch.ones(5), -torch.ones(5, 5)), "statistics.cooccurrence: expected whole .* got -1.0"),
        (LabelStatistics(torch.ones(5), torch.full((5, 5), torch.nan)), "statistics.cooccurrence: .* got nan"),
        (LabelStatistics(torch.ones(5) / 2, torch.ones(5, 5)), "statistics.counts: expected whole .* got 0.5"),
        (LabelStatistics(torch.ones(5) / 0, torch.ones(5, 5)), "statistics.counts: expected whole .* got inf"),
        (LabelStatistics(torch.ones(5) > 0, torch.ones(5, 5)), "statistics.counts: expected whole .* got True"),
    ],
)
def test_what_counts_no_labels_is_refused(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(Z, LABELS, statistics=given)


def test_labels_are_counted_when_they_are_labels() -> None:
    assert label_statistics(LABELS.int(), torch.arange(len(Z))).counts.shape == (5,)
    given: list[tuple[tuple[Any, ...], str]] = [
        ((LABELS.numpy(),), "labels: expected a torch tensor, got ndarray"),
        ((0.5 * LABELS,), "labels: expected 0 or 1, got 0.5 in row 0, label 0"),
        ((LABELS[:, 0],), "labels: expected a .*one_hot"),
        ((LABELS, torch.ones(3)), r"multiplicity: expected shape \(7,\), got shape \(3,\)"),
        ((LABELS, -torch.ones(len(Z))), "multiplicity: expected whole numbers of 0 or more, got -1.0"),
        ((LABELS, [1] * len(Z)), "multiplicity: expected a torch tensor, got list"),
    ]
    for arguments, words in given:
        with pytest.raises(ValueError, match=words):
            label_statistics(*arguments)


OTHER: dict[str, Any] = {
    "positives": "any", "aggregate": "anchor_mean", "tau": 0.3, "t_min": 0.19, "alpha": 0.2, "beta": 0.1,
    "temperature_form": "multiplicative", "temperature_scope": "positives_only", "overlap": "dice", "rarity": "max",
    "rarity_scale": "inverse_minmax", "strength": 0.3, "gamma": 2.0, "weight_pairs": "cross",
    "weight_norm": "sum_to_one", "clip_min": 0.9, "clip_max": 1.1, "threshold": 0.9, "msc_beta": 0.7, "margin": 0.3,
    "selection": "relevant", "num_selected": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", READS)
def test_the_table_of_what_a_loss_reads_is_what_it_reads(name: Any) -> None:
    """Another value changes the loss exactly where the table says that the setting is read."""
    labels = LABELS if name != "supcon_single" else LABELS & (LABELS.cumsum(dim=1) == 1)
    ids, options = (
        torch.arange(len(Z)) % 4,
        {**CONSTANTS, "temperature_form": "sharpen", "threshold": 0.3, "num_selected": 2},
    )
    before = run(Z, labels, name=name, ids=ids, **options)
    changes = []
    for key, value in OTHER.items():
        after = run(Z, labels, name=name, ids=ids, **{**options, key: value})
        if abs(float(after.sum / after.count) - float(before.sum / before.count)) > 1e-9:
            changes.append(key)
    assert set(changes) == set(READS[name]) - {"counts"}
    assert set(OTHER) == set(LossConfig.model_fields) - {"name", "counts", "memory", *READ_BY_ALL}
