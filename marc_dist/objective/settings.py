"""What goes into the objective and what comes out: plain values, no configuration object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """The loss and its constants; fields, ranges, help and defaults are those of ``config.schema.LossConfig``.

    Formulas: ``docs/objective.md`` and the docstrings of ``targets.py``, ``weights.py``, ``temperatures.py``.
    """

    name: Literal[
        "macl", "mulsupcon", "supcon_single", "supcon_any", "supcon_all", "ntxent", "jaccard", "multisupcon", "msc",
        "similarity_dissimilarity", "triplet",
    ] = "macl"  # fmt: skip
    positives: Literal["per_label", "any", "all"] = "per_label"
    aggregate: Literal["pair_mean", "anchor_mean", "class_balanced"] = "pair_mean"
    tau: float = 0.1
    t_min: float = 0.01
    alpha: float = 0.5
    beta: float = 0.5
    temperature_form: Literal["sharpen", "soften", "multiplicative"] = "sharpen"
    temperature_scope: Literal["all_pairs", "positives_only", "per_positive_row"] = "all_pairs"
    overlap: Literal["jaccard", "anchor_recall", "dice", "cosine", "count_over_labels"] = "jaccard"
    rarity: Literal["mean", "max"] = "mean"
    rarity_scale: Literal["one_minus_relative", "inverse_minmax"] = "one_minus_relative"
    strength: float = 1.0
    gamma: float = 1.0
    weight_pairs: Literal["shared", "cross", "offdiag", "single"] = "shared"
    weight_norm: Literal["batch_mean", "sum_to_one", "none"] = "batch_mean"
    clip_min: float = 0.1
    clip_max: float = 10.0
    threshold: float = 0.5
    msc_beta: float = 0.1
    margin: float = 1.2
    selection: Literal["relevant", "hard", "diverse"] = "hard"
    num_selected: int = 4
    implementation: Literal["auto", "dense", "streamed", "triton"] = "auto"
    tile: int | None = None
    tf32: bool = False


@dataclass(frozen=True)
class LossParts:
    """This rank's share of a loss over the global batch.

    Attributes:
        sum: scalar with gradient; the loss is the sum over ranks divided by the count over ranks.
        count: scalar, how many terms ``sum`` holds (their total weight for ``class_balanced``).
        stats: scalars that add up over ranks: ``anchors``, ``positives`` (pairs), ``anchors_without_partner``,
            ``temperature_sum`` and ``weight_sum`` (over the positive pairs).
        highest: scalars of which the largest over ranks counts: ``temperature_max``, ``weight_max``, and the minima
        with
            their sign turned, ``temperature_min`` and ``weight_min`` (over the positive pairs; -inf where there is
            none); ``label_coverage``, the share of labels that some candidate carries.
        chosen: the implementation that ran.
    """

    sum: Tensor
    count: Tensor
    stats: dict[str, Tensor]
    highest: dict[str, Tensor]
    chosen: str
