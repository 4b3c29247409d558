"""Is one loss better than another? Intervals over seeds and queries, paired tests, ranks over data sets; pure.

What each figure is, where its formula comes from and when to use it: docs/comparing.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from marc_dist.metrics import Float, mean_known
from marc_dist.metrics.intervals import LEVEL, resampled_means

DRAWS = 2000
SIGNIFICANT = 0.05
"""A p below it counts; two-sided."""


class Interval(NamedTuple):
    """A mean and the interval that holds the true one in ``level`` of all studies; NaN = there is none."""

    mean: float
    low: float
    high: float


class Paired(NamedTuple):
    """Two losses over the same seeds. NaN = undefined.

    Attributes:
        difference: mean of a - b.
        low: lower end of its interval over seeds (Student's t).
        high: upper end.
        t_p: two-sided p of the paired t test.
        wilcoxon_p: two-sided p of the Wilcoxon signed rank test.
        d_z: Cohen's: mean of the differences / their standard deviation.
        rank_biserial: (ranks of a > b - ranks of a < b) / all ranks, -1 to 1.
    """

    difference: float
    low: float
    high: float
    t_p: float
    wilcoxon_p: float
    d_z: float
    rank_biserial: float


class Ranks(NamedTuple):
    """Losses ranked over data sets.

    Attributes:
        mean_ranks: (losses,), 1 = best.
        friedman_p: p of "all losses are alike".
        critical_difference: mean ranks that differ by less cannot be told apart (Nemenyi, 0.05).
        groups: runs of two or more losses, best first, that cannot be told apart; none lies within another.
    """

    mean_ranks: Float
    friedman_p: float
    critical_difference: float
    groups: list[tuple[int, ...]]


def hierarchical_interval(values: Float, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Mean of a metric over runs and queries, with its bootstrap interval over both.

    All runs answer the same queries, so runs and queries are drawn independently of each other (Owen 2007). Each part
    of the spread is widened for its number of rows (Hesterberg 2015): resampling 3 runs alone tells far too little.
    One run gives an interval over queries, one query (or a column of means) one over runs; one of each gives none.

    Args:
        values: (runs, queries) of one metric, or of the difference of two losses; NaN = the query does not count.
        level: share of studies whose interval holds the true mean.
        draws: bootstrap samples.
        seed: of the draws.

    Returns:
        The mean over runs of the runs' means over queries that count, and its interval.

    Raises:
        ValueError: not two dimensions, none of one, or a level that is not between 0 and 1.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"values: expected (runs, queries), one or more of each, got shape {values.shape}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: expected a number between 0 and 1, got {level}")
    of_runs = mean_known(values.T)
    of_runs = of_runs[~np.isnan(of_runs)]
    num_queries = int((~np.isnan(values)).any(axis=0).sum())
    if len(of_runs) * num_queries < 2:
        return Interval(float(of_runs.mean()) if len(of_runs) else math.nan, math.nan, math.nan)
    mean = of_runs.mean()
    picked = np.random.default_rng([seed, len(of_runs)]).integers(0, len(of_runs), size=(draws, len(of_runs)))
    away = _widening(len(of_runs), level) * (of_runs[picked].mean(axis=1) - mean)
    if num_queries > 1:
        drawn = mean_known(resampled_means(values.T, draws, seed).T)
        away = away + _widening(num_queries, level) * (drawn - mean)
    tail = 50.0 * (1.0 - level)
    low, high = np.nanpercentile(away, [tail, 100.0 - tail])
    return Interval(float(mean), float(mean + low), float(mean + high))


def _widening(num: int, level: float) -> float:
    """By how much a bootstrap of the mean of ``num`` values is too narrow: z * sqrt((n - 1) / n) where t is right."""
    if num < 2:
        return 0.0
    end = 0.5 + 0.5 * level
    return float(stats.t.ppf(end, num - 1) / stats.norm.ppf(end) * math.sqrt(num / (num - 1)))


def seeds_needed(comparisons: int = 1, significant: float = SIGNIFICANT) -> int:
    """The fewest seeds with which a two-sided Wilcoxon test can be significant: m * 2^(1-n) <= p.

    Args:
        comparisons: m, how many tests Holm's correction goes over.
        significant: p.

    Raises:
        ValueError: no comparison, or a p that is not between 0 and 1.
    """
    if comparisons < 1 or not 0.0 < significant < 1.0:
        raise ValueError(f"expected one comparison or more and 0 < p < 1, got {comparisons} and {significant}")
    return 1 + math.ceil(math.log2(comparisons / significant))


def paired_tests(a: Float, b: Float, *, level: float = LEVEL) -> Paired:
    """Is ``a`` better than ``b``? Both tests over the same seeds, with effect sizes.

    Args:
        a: (seeds,) a metric of one loss; NaN = undefined.
        b: (seeds,) of another, in the same order.
        level: of the interval of the difference.

    Returns:
        Of the seeds for which both are known. All NaN where these are fewer than ``seeds_needed()``. Where all
        differences are 0: p = 1 and no effect. Where all are equal, but not 0: no t test and no d_z.

    Raises:
        ValueError: other shapes, or too few seeds for any test to say something.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"expected two lists of one figure a seed, got shapes {a.shape} and {b.shape}")
    if len(a) < seeds_needed():
        raise ValueError(
            f"expected {seeds_needed()} seeds or more, got {len(a)}: no two-sided Wilcoxon test of fewer gets below "
            f"{SIGNIFICANT}"
        )
    gaps = (a - b)[~np.isnan(a - b)]
    if len(gaps) < seeds_needed():
        return Paired(*[math.nan] * 7)
    mean, ranks = float(gaps.mean()), stats.rankdata(np.abs(gaps[gaps != 0.0]))
    if not len(ranks):
        return Paired(0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0)
    wilcoxon_p = float(stats.wilcoxon(gaps).pvalue)
    biserial = float(ranks @ np.sign(gaps[gaps != 0.0]) / ranks.sum())
    if np.ptp(gaps) == 0.0:
        return Paired(mean, mean, mean, math.nan, wilcoxon_p, math.nan, biserial)
    deviation = float(gaps.std(ddof=1))
    test = stats.ttest_1samp(gaps, 0.0)
    ends = test.confidence_interval(level)
    return Paired(mean, float(ends.low), float(ends.high), float(test.pvalue), wilcoxon_p, mean / deviation, biserial)


def holm(p: Sequence[float]) -> list[float]:
    """P values corrected for their number (Holm 1979): below 0.05 with a chance of 5 % at most if nothing differs.

    Args:
        p: of all tests of one question, in any order; NaN = no test, which is not counted.

    Returns:
        One a test, 1 at most; NaN where there was none.

    Raises:
        ValueError: not between 0 and 1.
    """
    given = np.asarray(p, dtype=np.float64)
    if ((given < 0.0) | (given > 1.0)).any():
        raise ValueError(f"p: expected numbers from 0 to 1, got {list(p)}")
    order = np.argsort(given, kind="stable")[: int((~np.isnan(given)).sum())]  # NaN comes last
    corrected = np.full(len(given), np.nan)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(given[order] * np.arange(len(order), 0, -1)))
    return [float(value) for value in corrected]


def rank_diagram(scores: Float) -> Ranks:
    """Losses ranked on every data set: Friedman's test, and Nemenyi's critical difference at 0.05 (Demsar 2006).

    Args:
        scores: (data sets, losses), higher is better. A data set with NaN ranks nothing and is left out.

    Raises:
        ValueError: fewer than 3 losses, or than 2 data sets without NaN.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] < 3:
        raise ValueError(f"scores: expected (data sets, losses) with 3 losses or more, got shape {scores.shape}")
    known = scores[~np.isnan(scores).any(axis=1)]
    num, losses = known.shape
    if num < 2:
        raise ValueError(f"scores: expected 2 data sets or more where every loss has a score, got {num}")
    ranks = stats.rankdata(-known, axis=1)
    mean = ranks.mean(axis=0)
    equal = bool((ranks == ranks[:, :1]).all())
    p = 1.0 if equal else float(stats.friedmanchisquare(*known.T).pvalue)
    q = float(stats.studentized_range.ppf(1.0 - SIGNIFICANT, losses, np.inf)) / math.sqrt(2.0)
    difference = q * math.sqrt(losses * (losses + 1) / (6.0 * num))
    return Ranks(mean, p, difference, _groups(mean, difference))


def _groups(mean: Float, difference: float) -> list[tuple[int, ...]]:
    """The longest stretches of the ranking, best first, whose ends differ by less than the critical difference."""
    order = np.argsort(mean, kind="stable")
    groups, last = [], 0
    for first in range(len(order)):
        end = int(np.searchsorted(mean[order], mean[order[first]] + difference, side="left"))
        if end > max(last, first + 1):  # else it lies within the one before, or is alone
            groups.append(tuple(int(at) for at in order[first:end]))
        last = max(last, end)
    return groups
