"""Bootstrap intervals: against a loop over the same draws, the textbook's normal interval, and edge cases."""

from __future__ import annotations

import numpy as np
import pytest

from marc_dist.metrics import intervals
from marc_dist.metrics.intervals import percentile_interval, resampled_means

RNG = np.random.default_rng(0)


def test_against_a_loop_over_the_same_draws() -> None:
    values = RNG.random((23, 3))
    values[:9, 1] = np.nan
    rng = np.random.default_rng(5)
    expected = [np.nanmean(values[rng.integers(0, 23, 23)], axis=0) for _ in range(40)]
    assert resampled_means(values, draws=40, seed=5) == pytest.approx(np.array(expected), abs=1e-12)


def test_blocks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    values = RNG.random((50, 4))
    values[3, 0] = np.nan
    whole = resampled_means(values, draws=30)
    monkeypatch.setattr(intervals, "BLOCK_BYTES", 7 * 8 * 50)  # seven draws at once
    assert np.array_equal(resampled_means(values, draws=30), whole)
    monkeypatch.setattr(intervals, "BLOCK_BYTES", 1)
    assert np.array_equal(resampled_means(values, draws=30), whole)
    assert not np.array_equal(resampled_means(values, draws=30, seed=1), whole)


def test_it_meets_the_normal_interval() -> None:
    values = np.random.default_rng(1).random((2000, 1))
    low, high = percentile_interval(resampled_means(values, draws=2000))
    error = 1.96 * values.std(ddof=1) / np.sqrt(2000)
    assert low[0] == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert high[0] == pytest.approx(values.mean() + error, abs=0.1 * error)
    narrow = percentile_interval(resampled_means(values, draws=2000), level=0.5)
    assert low[0] < narrow[0][0] < values.mean() < narrow[1][0] < high[0]


def test_differences_are_paired() -> None:
    """Two encoders that differ by a constant differ by it in every draw, however much queries differ."""
    values = 10 * RNG.random((60, 1))
    low, high = percentile_interval(resampled_means(values + 0.1) - resampled_means(values))
    assert low[0] == pytest.approx(0.1) and high[0] == pytest.approx(0.1)


def test_metrics_do_not_disturb_each_other() -> None:
    values = RNG.random((30, 3))
    values[4, 1] = np.nan
    together = resampled_means(values, draws=20)
    for column in range(3):
        assert np.array_equal(resampled_means(values[:, [column]], draws=20)[:, 0], together[:, column])


def test_nothing_known_is_told_as_such() -> None:
    values = np.array([[np.nan, 1.0], [np.nan, np.nan], [np.nan, np.nan]])
    means = resampled_means(values, draws=200)
    assert np.isnan(means[:, 0]).all()
    assert np.isnan(means[:, 1]).any() and np.nanmin(means[:, 1]) == np.nanmax(means[:, 1]) == 1.0
    low, high = percentile_interval(means)
    assert np.isnan(low[0]) and np.isnan(high[0]) and low[1] == high[1] == 1.0
    assert np.isnan(resampled_means(np.empty((0, 2)), draws=3)).all()
    assert (resampled_means(np.array([[0.25]]), draws=3) == 0.25).all()
