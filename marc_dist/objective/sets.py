"""The distinct label sets of the candidates: whatever depends on labels alone is computed between them.

Letters: U distinct label sets, L labels, R and K some of the sets as rows and columns of a block.

Figures are float64 where a sum over many sets follows, and in the type of the similarities where a tile of pairs is
made (small integers and their ratios: exact to rounding in either).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from marc_dist.objective.statistics import LabelStatistics, count_labels

CHUNK_ENTRIES = 1 << 20  # entries of a block of set pairs: 8 MiB of float64


@dataclass(frozen=True)
class LabelSets:
    """Distinct label sets with their multiplicity, or some of them.

    Attributes:
        labels: (U, L) multi-hot.
        sizes: (U,) labels of each set.
        multiplicity: (U,) candidates that carry each set.
        statistics: n_l and c_kl that weigh rarity.
        own: n_l and c_kl of the candidates.
    """

    labels: Tensor
    sizes: Tensor
    multiplicity: Tensor
    statistics: LabelStatistics
    own: LabelStatistics

    def __len__(self) -> int:
        return len(self.labels)

    def chunks(self) -> Iterator[Tensor]:
        """Numbers of the sets in parts, so that part x all sets stays small."""
        if len(self):
            yield from torch.split(
                torch.arange(len(self), device=self.labels.device), max(1, CHUNK_ENTRIES // len(self))
            )

    def to(self, dtype: torch.dtype) -> LabelSets:
        """The same in another type, for blocks of pairs in the type of the similarities."""
        if self.labels.dtype == dtype:
            return self
        cast = LabelStatistics(*(part.to(dtype) for part in self.statistics))
        return LabelSets(self.labels.to(dtype), self.sizes.to(dtype), self.multiplicity, cast, self.own)

    def shared(self, rows: Tensor, columns: Tensor) -> Tensor:
        """(R, K) number of labels in common."""
        return self.labels[rows] @ self.labels[columns].T

    def union(self, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        """(R, K) number of labels in either set, at least 1.

        Args:
            rows: (R,) numbers of sets.
            columns: (K,) numbers of sets.
            shared: (R, K) their number of labels in common, see ``shared``.
        """
        return (self.sizes[rows][:, None] + self.sizes[columns] - shared).clamp(min=1)


def find_sets(labels: Tensor, statistics: LabelStatistics | None) -> tuple[LabelSets, Tensor]:
    """The distinct rows of ``labels`` in float64, and (C,) the number of each candidate's set among them.

    Args:
        labels: (C, L) multi-hot of the candidates.
        statistics: counts that weigh rarity; those of ``labels`` when None.
    """
    distinct, numbers, multiplicity = torch.unique(labels, dim=0, return_inverse=True, return_counts=True)
    rows = distinct.to(torch.float64)
    copies = multiplicity.to(rows)
    own = count_labels(rows, copies)
    given = own if statistics is None else LabelStatistics(*(part.to(rows) for part in statistics))
    return LabelSets(rows, rows.sum(dim=1), copies, given, own), numbers
