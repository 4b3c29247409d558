"""The one entry: this rank's anchors and everybody's candidates -> (sum, count, statistics).

The formulas of each loss, what is exact and what is our reconstruction: ``docs/objective.md``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from marc_dist.objective.dense import dense_sum
from marc_dist.objective.pairs import make_pairs
from marc_dist.objective.settings import LossParts, ObjectiveSettings
from marc_dist.objective.statistics import LabelStatistics
from marc_dist.objective.streamed import streamed_sum

DENSE_ENTRIES = 1 << 22  # pairs up to which `auto` takes the dense form: 16 MiB of float32 a matrix


def objective(
    anchors: Tensor,
    candidates: Tensor,
    anchor_labels: Tensor,
    candidate_labels: Tensor,
    *,
    first: int,
    settings: ObjectiveSettings,
    statistics: LabelStatistics | None = None,
    anchor_ids: Tensor | None = None,
    candidate_ids: Tensor | None = None,
) -> LossParts:
    """A contrastive loss over the global batch, as this rank's share of it.

    The loss is (sum of ``sum`` over ranks) / (sum of ``count`` over ranks); for its gradient a data-parallel trainer
    backpropagates ``world * sum / global count``. Half-precision vectors are raised to float32.

    Args:
        anchors: (A, D) unit vectors of this rank; A may be 0.
        candidates: (C, D) unit vectors of all ranks; anchor i is candidate ``first + i`` and never its own candidate.
        anchor_labels: (A, L) multi-hot.
        candidate_labels: (C, L) multi-hot; a row without labels is a negative of everybody and no anchor.
        first: position of anchor 0 among the candidates.
        settings: which loss, and its constants.
        statistics: label counts that weigh rarity; those of the candidates (every view counts) when None.
        anchor_ids: (A,) sample ids; views of one sample share theirs.
        candidate_ids: (C,) sample ids; needed by ``ntxent``.

    Raises:
        ValueError: shapes or labels that contradict each other.
    """
    own = slice(first, first + len(anchors))
    if len(anchor_labels) != len(anchors) or len(candidate_labels) != len(candidates):
        raise ValueError(
            f"labels: expected {len(anchors)} anchor and {len(candidates)} candidate rows, "
            f"got {len(anchor_labels)} and {len(candidate_labels)}"
        )
    if not 0 <= first <= len(candidates) - len(anchors) or not torch.equal(anchor_labels, candidate_labels[own]):
        raise ValueError(f"first: expected anchor 0 to be candidate {first}; their labels or counts differ")
    with torch.autocast(anchors.device.type, enabled=False):
        dtype = anchors.dtype if anchors.dtype == torch.float64 else torch.float32
        pairs = make_pairs(
            candidate_labels,
            len(anchors),
            first=first,
            settings=settings,
            statistics=statistics,
            candidate_ids=candidate_ids,
            dtype=dtype,
        )
        dense = len(anchors) * len(candidates) <= DENSE_ENTRIES
        if settings.implementation != "auto":
            dense = settings.implementation == "dense"
        a, c = anchors.to(dtype), candidates.to(dtype)
        total = dense_sum(a, c, pairs) if dense else streamed_sum(a, c, pairs, settings.tile)
    return LossParts(total, pairs.count, pairs.stats)
