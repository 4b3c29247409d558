"""Weights and temperatures worked out by hand, each where two orders of operations differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from marc_dist.objective import LabelStatistics, LossParts
from tests.objective.cases import run


def figures(labels: list[list[int]], **options: Any) -> LossParts:
    rows = torch.tensor(labels)
    z = torch.nn.functional.normalize(torch.randn(len(rows), 4, generator=torch.Generator().manual_seed(1)), dim=1)
    return run(z.double(), rows, **options)


def weights(parts: LossParts) -> list[float]:
    """Smallest, largest, and sum over the ordered positive pairs."""
    return [-float(parts.highest["weight_min"]), float(parts.highest["weight_max"]), float(parts.stats["weight_sum"])]


def temperatures(parts: LossParts) -> list[float]:
    return [
        -float(parts.highest["temperature_min"]),
        float(parts.highest["temperature_max"]),
        float(parts.stats["temperature_sum"]),
    ]


def close(*values: float) -> Any:
    return pytest.approx(list(values), rel=1e-6)


# six rows with the common label, two with the rare one: raw is 1/6 in 30 ordered pairs and 1/2 in 2, on average 6/32,
# so the relative weights are 8/9 and 8/3
SIX_AND_TWO = [[1, 0]] * 6 + [[0, 1]] * 2


@pytest.mark.parametrize("implementation", ["dense", "streamed"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"strength": 1.0}, (8 / 9, 8 / 3, 32.0)),
        # both ends of the clip bind, then the strength halves the way to 1: 1 + (0.9 - 1) / 2 and 1 + (2 - 1) / 2
        ({"strength": 0.5, "clip_min": 0.9, "clip_max": 2.0}, (0.95, 1.5, 30 * 0.95 + 2 * 1.5)),
        # the clip binds what is relative to the mean: 1/6 and 1/2 themselves both lie below 0.6
        ({"strength": 1.0, "clip_min": 0.6, "clip_max": 2.5}, (8 / 9, 2.5, 30 * 8 / 9 + 5)),
        # gamma 2: 1/36 and 1/4, on average (30/36 + 2/4) / 32 = 1/24
        ({"strength": 1.0, "gamma": 2.0}, (2 / 3, 6.0, 32.0)),
        # as they are, not relative
        ({"strength": 0.5, "weight_norm": "none", "clip_min": 0.0}, (7 / 12, 3 / 4, 30 * 7 / 12 + 1.5)),
    ],
    ids=str,
)
def test_weights(options: dict[str, Any], expected: tuple[float, ...], implementation: str) -> None:
    options = {"clip_min": 0.0, "clip_max": 10.0, "gamma": 1.0, **options}
    parts = figures(SIX_AND_TWO, implementation=implementation, **options)
    assert weights(parts) == close(*expected)


def test_an_anchor_with_two_labels_weighs_all_pairs_of_shared_labels() -> None:
    # c = [[3, 2], [2, 2]]; rows 0 and 1 share both labels: (1/3 + 1/2 + 1/2 + 1/2) / 4 = 11/24; with row 2 they share
    # the first: 1/3. Six ordered pairs: mean (2 * 11/24 + 4/3) / 6 = 3/8
    parts = figures([[1, 1], [1, 1], [1, 0]], strength=1.0, clip_min=0.0)
    assert weights(parts) == close(8 / 9, 11 / 9, 6.0)


# label 0 in all four rows (rarity 0), label 1 in the last alone (3/4): rarity of the last row 3/8 on average, 3/4 at
# most, label 2 in none; Jaccard 1 among the first three rows, 1/2 with the last
ONE_RARE = [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 0]]


@pytest.mark.parametrize("implementation", ["dense", "streamed"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature_form": "soften"}, (0.25, 0.31, 6 * 0.3 + 3 * 0.25 + 3 * 0.31)),
        ({"temperature_form": "soften", "rarity": "max"}, (0.25, 0.37, 6 * 0.3 + 3 * 0.25 + 3 * 0.37)),
        # the floor holds the temperature itself: 2/15 and 0.2/1.55 rise to 0.15, 0.16 stays
        ({"temperature_form": "sharpen", "t_min": 0.15}, (0.15, 0.16, 9 * 0.15 + 3 * 0.16)),
        ({"temperature_form": "soften_sharpen"}, (0.25 / 1.3, 0.3, 6 * 0.3 + 3 * 0.25 + 3 * 0.25 / 1.3)),
        ({"temperature_form": "multiplicative"}, (0.1, 0.15, 6 * 0.1 + 3 * 0.15 + 3 * 0.15 * 0.7)),
    ],
    ids=str,
)
def test_temperatures(options: dict[str, Any], expected: tuple[float, ...], implementation: str) -> None:
    parts = figures(ONE_RARE, tau=0.2, alpha=0.5, beta=0.8, implementation=implementation, **options)
    assert temperatures(parts) == close(*expected)


def statistics(counts: list[int], pairs: list[list[int]]) -> LabelStatistics:
    return LabelStatistics(torch.tensor(counts), torch.tensor(pairs))


def test_given_counts_stand_for_those_of_the_batch() -> None:
    given = statistics([4, 3, 0], [[4, 2, 0], [2, 3, 0], [0, 0, 0]])  # rarity of the last row (0 + 1/4) / 2, not 3/8
    parts = figures(ONE_RARE, tau=0.2, alpha=0.5, beta=0.8, temperature_form="soften", statistics=given)
    assert temperatures(parts) == close(0.25, 0.3, 6 * 0.3 + 3 * 0.25 + 3 * 0.27)
    two_and_two = [
        [1, 0],
        [1, 0],
        [0, 1],
        [0, 1],
    ]  # raw 1/4 and 1/2 by the given counts, both 1/2 by those of the batch
    parts = figures(two_and_two, strength=1.0, statistics=statistics([4, 2], [[4, 0], [0, 2]]))
    assert weights(parts) == close(2 / 3, 4 / 3, 4.0)
    parts = figures(two_and_two, aggregate="class_balanced", statistics=statistics([4, 2], [[4, 0], [0, 2]]))
    assert float(parts.count) == pytest.approx(2 / 4 + 2 / 2)
