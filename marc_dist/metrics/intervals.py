"""Bootstrap confidence intervals over queries; pure.

The queries of an evaluation are a sample; another draw would have given other means. Q of them are drawn with
replacement, B times; the interval runs between two percentiles of the B means (percentile bootstrap, Efron 1979). It
says nothing about other archives, seeds of training, or data sets.

The same seed and Q draw the same queries, so means of two encoders over the same queries are paired: the interval of
their difference is that of ``resampled_means(one) - resampled_means(other)``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from marc_dist.metrics.arguments import Int
from marc_dist.metrics.label_scores import label_groups, mean_known
from marc_dist.metrics.label_sets import Float

DRAWS = 1000
LEVEL = 0.95
BLOCK_BYTES = 64 << 20
"""Of drawn indices, of their counts as integers, and of the counts as float64: three times this at most."""


class Resampled(NamedTuple):
    """What an encoder would have scored on other draws of the queries.

    Attributes:
        scores: (B, M) of every metric.
        labels: (B, L) AP of every label; NaN for a label for which one query counts: all its draws are that query.
        thirds: (B, 4) AP of ``label_groups``: all labels, and each third.
    """

    scores: Float
    labels: Float
    thirds: Float


def resampled(scores: Float, label_ap: Float, third: Int) -> Resampled:
    """The means of all metrics and labels over the same draws of the queries.

    In its third, a label keeps its mean over all queries where a draw has none for it; else the draws would be means
    over other labels.

    Args:
        scores: (Q, M).
        label_ap: (Q, L), NaN where a query says nothing of a label.
        third: (L,) of ``label_thirds``.
    """
    drawn = resampled_means(label_ap)
    filled = np.where(np.isnan(drawn), mean_known(label_ap), drawn)
    thirds = [mean_known(filled[:, chosen].T) for chosen in label_groups(third).values()]
    labels = np.where((~np.isnan(label_ap)).sum(axis=0) > 1, drawn, np.nan)
    return Resampled(resampled_means(scores), labels, np.stack(thirds, axis=1))


def resampled_means(values: Float, draws: int = DRAWS, seed: int = 0) -> Float:
    """Means of every metric over ``draws`` samples of the queries, (draws, M).

    A function of its arguments alone: neither threads nor blocks change a bit of it.

    Args:
        values: (Q, M) one row a query; NaN = this query does not count for this metric.
        draws: B.
        seed: of the draws.

    Returns:
        NaN where a sample holds no query that counts.
    """
    num, rng = len(values), np.random.default_rng(seed)
    means = np.full((draws, values.shape[1]), np.nan)
    if not num:
        return means
    known = ~np.isnan(values)
    columns = np.ascontiguousarray(np.where(known, values, 0.0).T)
    partly = np.flatnonzero(~known.all(axis=0))
    weights = np.ascontiguousarray(known[:, partly].T, dtype=np.float64)
    step = max(1, BLOCK_BYTES // (8 * num))
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        drawn = rng.integers(0, num, size=(rows, num))
        drawn += num * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * num).reshape(rows, num).astype(np.float64)
        # not a matrix product: that of BLAS may round otherwise with another number of threads
        total = np.einsum("bq,mq->bm", counts, columns)
        below = np.full(total.shape, float(num))
        below[:, partly] = np.einsum("bq,mq->bm", counts, weights)
        means[start : start + rows] = np.divide(total, below, out=np.full_like(total, np.nan), where=below > 0)
    return means


def percentile_interval(means: Float, level: float = LEVEL) -> tuple[Float, Float]:
    """Lower and upper end of the interval that holds ``level`` of the (B, M) resampled means, (M,) each.

    Samples without a value are left out; NaN where none has one.
    """
    low, high = np.full(means.shape[1], np.nan), np.full(means.shape[1], np.nan)
    tail = 50.0 * (1.0 - level)
    for column, values in enumerate(means.T):
        known = values[~np.isnan(values)]
        if len(known):
            low[column], high[column] = np.percentile(known, [tail, 100.0 - tail])
    return low, high
