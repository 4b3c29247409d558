"""Early stopping: Ray's own rule where trials come one after the other; decisions that depend on numbers alone."""

from __future__ import annotations

import random
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from marc_dist.tuning.asha import cutoff, rungs, stops_at, value_at


def test_rungs() -> None:
    assert rungs(27, 1, 3) == (1, 3, 9)
    assert rungs(28, 1, 3) == (1, 3, 9, 27)
    assert rungs(100, 4, 4) == (4, 16, 64)
    assert rungs(9, 2, 1.5) == (2, 3, 5, 7)
    assert rungs(1, 1, 3) == ()


def test_the_cutoff_is_the_quantile() -> None:
    generator = np.random.default_rng(0)
    for num in range(1, 20):
        values = generator.random(num).tolist()
        for eta in (2.0, 3.0, 4.0, 1.3):
            expected = np.percentile(values, 100 * (1 - 1 / eta))
            assert cutoff(values, eta) == pytest.approx(expected, rel=1e-12)
    assert cutoff([], 3) is None


def test_a_rung_takes_the_first_value_at_or_after_it() -> None:
    assert value_at({2: 0.5, 4: 0.7}, 3) == 0.7
    assert value_at({2: 0.5, 4: 0.7}, 2) == 0.5
    assert value_at({2: 0.5}, 3) is None


@pytest.mark.parametrize("eta", [2, 3, 4])
def test_one_after_the_other_it_is_rays_rule(eta: int) -> None:
    """200 trials in a row, each against all before it, decision by decision against Ray's scheduler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bracket_of = pytest.importorskip("ray.tune.schedulers.async_hyperband")._Bracket
    epochs, grace = 28, 1
    bracket, at = bracket_of(grace, epochs - 1, eta, 0), rungs(epochs, grace, eta)
    draw, before, stopped = random.Random(eta), [], 0
    for number in range(200):
        trial, curve = SimpleNamespace(trial_id=str(number)), {}
        height = draw.random()
        for epoch in range(1, epochs):
            curve[epoch] = height * epoch + 0.3 * draw.random()
            theirs = bracket.on_result(trial, epoch, curve[epoch]) == "STOP"
            assert (stops_at(curve, before, at, eta) is not None) == theirs, (number, epoch)
            if theirs:
                stopped += 1
                break
        before.append(curve)
    assert 100 < stopped < 200


def test_without_anything_to_compare_with_it_goes_on() -> None:
    assert stops_at({1: 0.0, 3: 0.0}, [], (1, 3), 3) is None
    assert stops_at({1: 0.1}, [{1: 0.5}], (1, 3), 3) == 1
    assert stops_at({1: 0.5, 3: 0.1}, [{1: 0.5, 3: 0.5}], (1, 3), 3) == 3
    assert stops_at({1: 0.5, 3: 0.5}, [{1: 0.5, 3: 0.5}], (1, 3), 3) is None  # equal is not below
