"""What goes into the objective and what comes out: plain values, no configuration object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """The loss and its constants; the fields, ranges and defaults are those of ``config.schema.LossConfig``.

    Attributes:
        name: which loss.
        aggregate: ``pair_mean`` counts every (anchor, label) alike, ``anchor_mean`` every anchor.
        tau: base temperature, > 0.
        t_min: floor of a pair's temperature, > 0.
        alpha: pull of label overlap on the temperature, >= 0.
        beta: pull of the anchor's rarity on the temperature, >= 0.
        strength: share of the pair weight that follows label-pair frequency, 0 to 1.
        gamma: exponent of the inverse co-occurrence count, >= 0.
        clip_min: floor of a relative weight.
        clip_max: ceiling of a relative weight.
        implementation: ``dense``, ``streamed`` or ``auto``.
        tile: rows and columns of a tile of ``streamed``.
    """

    name: Literal["macl", "mulsupcon", "supcon_any", "supcon_all", "ntxent"] = "macl"
    aggregate: Literal["pair_mean", "anchor_mean"] = "pair_mean"
    tau: float = 0.1
    t_min: float = 0.01
    alpha: float = 0.5
    beta: float = 0.5
    strength: float = 1.0
    gamma: float = 1.0
    clip_min: float = 0.1
    clip_max: float = 10.0
    implementation: Literal["auto", "dense", "streamed"] = "auto"
    tile: int = 1024


@dataclass(frozen=True)
class LossParts:
    """This rank's share of a loss over the global batch.

    Attributes:
        sum: scalar with gradient; the loss is the sum over ranks divided by the count over ranks.
        count: scalar, how many terms ``sum`` holds.
        stats: scalars that add up over ranks: ``anchors``, ``positives`` (pairs), ``anchors_without_partner``,
            ``temperature_sum`` and ``weight_sum`` (over the positive pairs).
    """

    sum: Tensor
    count: Tensor
    stats: dict[str, Tensor]
