"""Label counts and co-occurrence counts: sums over rows, hence over ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from marc_dist.objective.checks import check_label_kind, check_labels, check_tensor, got


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
        labels: (N, L) multi-hot: bool, or numbers that are 0 or 1.
        multiplicity: (N,) how often each row occurs, whole numbers of 0 or more; once each when None.

    Raises:
        ValueError: no tensor, another shape, or other numbers.
    """
    check_label_kind("labels", labels)
    check_labels("labels", labels)
    if multiplicity is not None:
        check_tensor("multiplicity", multiplicity)
        if multiplicity.shape != labels.shape[:1]:
            raise ValueError(f"multiplicity: expected shape {tuple(labels.shape[:1])}, {got(multiplicity)}")
        _check_counts("multiplicity", multiplicity)
    return count_labels(labels, multiplicity)


def count_labels(labels: Tensor, multiplicity: Tensor | None = None) -> LabelStatistics:
    """``label_statistics`` of labels that were checked before.

    Args:
        labels: (N, L) multi-hot.
        multiplicity: (N,) how often each row occurs; once each when None.
    """
    rows = labels.to(torch.float64)
    weighted = rows if multiplicity is None else rows * multiplicity.to(torch.float64)[:, None]
    cooccurrence = weighted.T @ rows
    return LabelStatistics(cooccurrence.diagonal().clone(), cooccurrence)


def check_statistics(statistics: LabelStatistics | None, num_labels: int | None) -> None:
    """Refuse what is no label counts, or those of another number of labels.

    Args:
        statistics: None passes.
        num_labels: L that they must have; None = any.

    Raises:
        ValueError: what it is, the shapes, or the first count that is none.
    """
    if statistics is None:
        return
    if not isinstance(statistics, LabelStatistics):
        kind = type(statistics).__name__
        raise ValueError(f"statistics: expected what label_statistics(labels) gives, got {kind}")
    for name, part in statistics._asdict().items():
        check_tensor(f"statistics.{name}", part)
    shapes = tuple(statistics.counts.shape), tuple(statistics.cooccurrence.shape)
    num = statistics.counts.numel() if num_labels is None else num_labels
    expected = (num,), (num, num)
    if shapes != expected:
        raise ValueError(
            f"statistics: expected shapes {expected[0]} and {expected[1]}, got {shapes[0]} and {shapes[1]}"
        )
    for name, part in statistics._asdict().items():
        _check_counts(f"statistics.{name}", part)


def _check_counts(name: str, counts: Tensor) -> None:
    """Refuse numbers that count nothing; infinity less itself is NaN, and equals nothing."""
    right = torch.zeros_like(counts, dtype=torch.bool)
    if counts.dtype != torch.bool and not counts.is_complex():
        values = counts.to(torch.float64)
        right = (values >= 0) & (values - values.floor() == 0)
    if not bool(right.all()):
        wrong = counts[~right][0].item()
        raise ValueError(f"{name}: expected whole numbers of 0 or more, got {wrong}")
