"""Statistics of a study: against scipy and loops, and by simulation: coverage of intervals, size of tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from marc_dist.metrics import Float
from marc_dist.study.statistics import (
    Interval,
    hierarchical_interval,
    holm,
    paired_tests,
    rank_diagram,
    seeds_needed,
)


def drawn(rng: np.random.Generator, runs: int, queries: int, of_run: float, of_query: float, rest: float) -> Float:
    """Scores whose true mean is 0: a part of the run, a skewed part of the query as AP has it, and what is left."""
    skewed = (rng.beta(0.8, 0.5, queries) - 0.8 / 1.3) / 0.32
    noise = rng.normal(size=(runs, queries))
    return np.asarray(of_run * rng.normal(size=(runs, 1)) + of_query * skewed + rest * noise)


@pytest.mark.parametrize("runs", [2, 3, 5, 10])
@pytest.mark.parametrize(
    ("queries", "of_run", "of_query", "rest", "most"),
    [
        (100, 0.02, 0.25, 0.05, 1.0),  # a score: queries differ much more than runs do
        (100, 0.05, 0.10, 0.05, 1.0),  # a difference of two losses: runs count
        (100, 0.0, 0.0, 0.2, 1.0),  # neither: the rest is seen in both parts
        (60, 0.2, 0.0, 0.0, 0.98),  # runs alone
    ],
)
def test_an_interval_covers_what_it_says(
    runs: int, queries: int, of_run: float, of_query: float, rest: float, most: float
) -> None:
    rng, num = np.random.default_rng(runs), 400
    hits = 0
    for _ in range(num):
        found = hierarchical_interval(drawn(rng, runs, queries, of_run, of_query, rest), draws=400)
        hits += found.low <= 0.0 <= found.high
    error = math.sqrt(0.95 * 0.05 / num)
    assert 0.95 - 3 * error <= hits / num <= most


def test_resampling_alone_would_cover_too_little() -> None:
    """Why runs are widened: the same simulation, by the books' plain bootstrap over runs and queries."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        values = drawn(rng, 3, 100, 0.05, 0.1, 0.05)
        runs, queries = rng.integers(0, 3, (300, 3)), rng.integers(0, 100, (300, 100))
        means = [values[np.ix_(a, b)].mean() for a, b in zip(runs, queries, strict=True)]
        low, high = np.percentile(means, [2.5, 97.5])
        hits += low <= 0.0 <= high
    assert hits / 200 < 0.88


def test_many_runs_and_queries_meet_the_normal_interval() -> None:
    values = drawn(np.random.default_rng(1), 300, 400, 0.05, 0.1, 0.05)
    found = hierarchical_interval(values, draws=4000)
    error = math.hypot(
        values.mean(axis=1).std(ddof=1) / math.sqrt(300), values.mean(axis=0).std(ddof=1) / math.sqrt(400)
    )
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    half = hierarchical_interval(values, level=0.5)
    assert found.low < half.low < half.mean < half.high < found.high


def test_an_interval_depends_on_its_arguments_alone() -> None:
    values = np.random.default_rng(2).random((4, 30))
    assert hierarchical_interval(values) == hierarchical_interval(values.copy())
    assert hierarchical_interval(values) != hierarchical_interval(values, seed=1)


def test_one_run_or_one_query() -> None:
    rng = np.random.default_rng(3)
    queries = rng.random((1, 3000))
    found = hierarchical_interval(queries)
    error = 1.96 * queries.std(ddof=1) / math.sqrt(3000)
    assert found.low == pytest.approx(queries.mean() - error, abs=0.1 * error)
    runs = rng.random((8, 1))
    assert hierarchical_interval(runs) == pytest.approx(hierarchical_interval(np.repeat(runs, 5, axis=1)))
    alone = hierarchical_interval(np.array([[0.25]]))
    assert alone.mean == 0.25 and math.isnan(alone.low) and math.isnan(alone.high)


def test_queries_without_a_value_do_not_count() -> None:
    values = np.random.default_rng(4).random((5, 40))
    values[:, ::4] = np.nan
    found, without = hierarchical_interval(values), hierarchical_interval(values[:, ~np.isnan(values[0])])
    assert found.mean == pytest.approx(without.mean)
    assert found.high - found.low == pytest.approx(without.high - without.low, rel=0.15)
    values[2] = np.nan  # a run whose metric is undefined
    assert hierarchical_interval(values).mean == pytest.approx(np.nanmean(np.delete(values, 2, axis=0)))
    assert all(math.isnan(value) for value in hierarchical_interval(np.full((3, 4), np.nan)))
    assert hierarchical_interval(np.full((3, 4), 0.5)) == Interval(0.5, 0.5, 0.5)


def test_paired_tests_are_those_of_scipy() -> None:
    rng = np.random.default_rng(5)
    for num in (6, 7, 12, 30):
        a, b = rng.normal(0.3, 1.0, num), rng.normal(0.0, 1.0, num)
        found, gaps = paired_tests(a, b), a - b
        assert found.t_p == pytest.approx(stats.ttest_rel(a, b).pvalue)
        assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(a, b).pvalue)
        assert (found.low, found.high) == pytest.approx(
            stats.t.interval(0.95, num - 1, loc=gaps.mean(), scale=stats.sem(gaps))
        )
        assert found.difference == pytest.approx(gaps.mean())
        assert found.d_z == pytest.approx(stats.ttest_rel(a, b).statistic / math.sqrt(num))
        signs = [np.sign(gaps[i] + gaps[j]) for i in range(num) for j in range(i + 1)]  # Walsh averages
        assert found.rank_biserial == pytest.approx(np.mean(signs))


def test_paired_tests_reject_one_of_twenty_where_nothing_differs() -> None:
    """Size: if nothing differs, p < 0.05 in 5 % of all studies."""
    rng, num = np.random.default_rng(6), 1500
    low_t = low_wilcoxon = 0
    for _ in range(num):
        found = paired_tests(rng.normal(size=10), rng.normal(size=10))
        low_t += found.t_p < 0.05
        low_wilcoxon += found.wilcoxon_p < 0.05
    error = math.sqrt(0.05 * 0.95 / num)
    assert low_t / num == pytest.approx(0.05, abs=3 * error)
    assert 0.048 - 3 * error <= low_wilcoxon / num <= 0.05 + 3 * error  # its p are steps: 25 of 512 signs


def test_undefined_seeds_and_equal_ones() -> None:
    a, b = np.arange(8.0), np.arange(8.0)[::-1] ** 2
    a[1] = np.nan
    assert paired_tests(a, b) == paired_tests(np.delete(a, 1), np.delete(b, 1))
    a[2:4] = np.nan
    assert all(math.isnan(value) for value in paired_tests(a, b))
    assert paired_tests(b, b) == (0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0)
    shifted = paired_tests(b + 1.0, b)
    assert shifted[:3] == (1.0, 1.0, 1.0) and shifted.wilcoxon_p == 2**-7 and shifted.rank_biserial == 1.0
    assert math.isnan(shifted.t_p) and math.isnan(shifted.d_z)


def test_too_few_seeds_are_refused_in_one_line() -> None:
    for num in range(1, 12):
        best = stats.wilcoxon(np.arange(1.0, num + 1)).pvalue
        assert (best < 0.05) == (num >= seeds_needed())
        assert (36 * best < 0.05) == (num >= seeds_needed(36))
    with pytest.raises(ValueError, match=r"^expected 6 seeds or more, got 5: no two-sided Wilcoxon test of fewer"):
        paired_tests(np.ones(5), np.zeros(5))
    with pytest.raises(ValueError, match="expected two lists of one figure a seed"):
        paired_tests(np.ones(7), np.zeros(6))
    with pytest.raises(ValueError, match="one comparison or more"):
        seeds_needed(0)
    with pytest.raises(ValueError, match=r"expected \(runs, queries\), one or more of each, got shape \(0, 3\)"):
        hierarchical_interval(np.ones((0, 3)))
    with pytest.raises(ValueError, match="level: expected a number between 0 and 1"):
        hierarchical_interval(np.ones((2, 3)), level=95)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # p.adjust(.., "holm") of R
    assert holm([0.01, math.nan, 0.04])[0::2] == pytest.approx([0.02, 0.04])
    assert math.isnan(holm([0.01, math.nan, 0.04])[1])
    assert holm([]) == [] and holm([0.7, 0.8]) == [1.0, 1.0]
    with pytest.raises(ValueError, match="numbers from 0 to 1"):
        holm([1.2])
    rng = np.random.default_rng(7)
    for _ in range(50):  # by its definition: step down, stop at the first that is not significant
        p = rng.random(6) ** 3
        order, rejected = np.argsort(p), np.zeros(6, dtype=bool)
        for at, which in enumerate(order):
            if p[which] > 0.05 / (6 - at):
                break
            rejected[which] = True
        assert [value <= 0.05 for value in holm(p.tolist())] == rejected.tolist()


def test_ranks_over_data_sets_are_those_of_scipy() -> None:
    rng = np.random.default_rng(8)
    scores = rng.random((12, 5)) + 0.2 * np.arange(5)
    found = rank_diagram(scores)
    assert found.friedman_p == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)
    assert found.mean_ranks == pytest.approx(stats.rankdata(-scores, axis=1).mean(axis=0))
    assert found.mean_ranks.argmin() == 4


def test_critical_difference_is_that_of_the_table() -> None:
    """Demsar 2006, table 5: q at 0.05 is 2.343, 2.569, 2.728, 3.164 for 3, 4, 5, 10 classifiers."""
    rng = np.random.default_rng(9)
    for losses, q in ((3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)):
        found = rank_diagram(rng.random((14, losses)))
        assert found.critical_difference == pytest.approx(q * math.sqrt(losses * (losses + 1) / 84), abs=1e-3)


def test_groups_are_what_the_critical_difference_cannot_tell_apart() -> None:
    scores = np.tile(np.arange(6.0), (60, 1))  # all data sets agree
    found = rank_diagram(scores)
    assert found.critical_difference < 1.0 and found.groups == []
    assert found.mean_ranks.tolist() == [6, 5, 4, 3, 2, 1] and found.friedman_p < 1e-9
    found = rank_diagram(scores[:20])
    assert 1.0 < found.critical_difference < 2.0
    assert found.groups == [(5, 4), (4, 3), (3, 2), (2, 1), (1, 0)]
    assert rank_diagram(scores[:2]).groups == [(5, 4, 3, 2, 1, 0)]
    even = rank_diagram(np.ones((4, 3)))
    assert even.friedman_p == 1.0 and even.groups == [(0, 1, 2)] and even.mean_ranks.tolist() == [2, 2, 2]


def test_data_sets_that_rank_nothing() -> None:
    scores = np.random.default_rng(10).random((6, 4))
    holed = np.vstack([scores, [0.1, np.nan, 0.2, 0.3]])
    assert rank_diagram(holed).mean_ranks.tolist() == rank_diagram(scores).mean_ranks.tolist()
    with pytest.raises(ValueError, match="2 data sets or more where every loss has a score, got 1"):
        rank_diagram(holed[5:])
    with pytest.raises(ValueError, match="3 losses or more"):
        rank_diagram(scores[:, :2])


def test_friedman_rejects_in_no_more_than_five_of_a_hundred() -> None:
    rng, num = np.random.default_rng(11), 500
    low = sum(rank_diagram(rng.random((10, 4))).friedman_p < 0.05 for _ in range(num))
    assert 0.015 < low / num <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / num)
