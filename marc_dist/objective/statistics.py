"""Label counts and co-occurrence counts: sums over rows, hence over ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LabelStatistics(NamedTuple):
    """n_l and c_kl of a set of samples.

    Attributes:
        counts: (L,) samples that carry label l.
        cooccurrence: (L, L) samples that carry both k and l; the diagonal holds ``counts``.
    """

    counts: Tensor
    cooccurrence: Tensor


def label_statistics(labels: Tensor, multiplicity: Tensor | None = None) -> LabelStatistics:
    """Counts over rows in float64, exact up to 2^53 rows.

    Args:
        labels: (N, L) multi-hot, any dtype.
        multiplicity: (N,) how often each row occurs; once each when None.
    """
    rows = labels.to(torch.float64)
    weighted = rows if multiplicity is None else rows * multiplicity.to(torch.float64)[:, None]
    cooccurrence = weighted.T @ rows
    return LabelStatistics(cooccurrence.diagonal().clone(), cooccurrence)
