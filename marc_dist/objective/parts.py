"""What comes out of the objective."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LossParts:
    """This rank's share of a loss over the global batch.

    Attributes:
        sum: scalar with gradient; the loss is the sum over ranks divided by the count over ranks.
        count: scalar, how many terms ``sum`` holds (their total weight for ``class_balanced``).
        stats: scalars that add up over ranks: ``anchors``, ``positives`` (pairs), ``anchors_without_partner``,
            ``temperature_sum`` and ``weight_sum`` (over the positive pairs).
        highest: scalars of which the largest over ranks counts: ``temperature_max``, ``weight_max``, and the minima
            with their sign turned, ``temperature_min`` and ``weight_min`` (over the positive pairs; -inf where there
            is none); ``label_coverage``, the share of labels that some candidate carries.
        chosen: the implementation that ran.
    """

    sum: Tensor
    count: Tensor
    stats: dict[str, Tensor]
    highest: dict[str, Tensor]
    chosen: str
