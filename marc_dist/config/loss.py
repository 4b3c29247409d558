"""The section ``loss``: which objective, and its constants.

This is the one definition of a loss's settings: the run file, the objective and the loss modules all read it. It stands
here, on the lowest floor and without torch, because a login node validates it and ``objective`` may import it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from marc_dist.config.section import Section

LossName = Literal[
    "macl", "mulsupcon", "supcon_single", "supcon_any", "supcon_all", "ntxent", "jaccard", "multisupcon", "msc",
    "similarity_dissimilarity", "triplet",
]  # fmt: skip

READ_BY_ALL = ("implementation", "tile", "tf32")
"""Settings that every loss reads."""

READS: dict[LossName, tuple[str, ...]] = {
    "macl": (
        "positives", "aggregate", "tau", "t_min", "alpha", "beta", "temperature_form", "temperature_scope", "overlap",
        "rarity", "rarity_scale", "strength", "gamma", "weight_pairs", "weight_norm", "clip_min", "clip_max", "counts",
    ),
    "mulsupcon": ("aggregate", "tau", "counts"),
    "supcon_single": ("tau",),
    "supcon_any": ("tau",),
    "supcon_all": ("tau",),
    "ntxent": ("tau",),
    "jaccard": ("tau",),
    "multisupcon": ("tau", "threshold"),
    "msc": ("tau", "msc_beta"),
    "similarity_dissimilarity": ("tau",),
    "triplet": ("threshold", "margin", "selection", "num_selected"),
}  # fmt: skip
"""Settings that a loss reads beside ``READ_BY_ALL``; ``memory`` belongs to the trainer, whatever the loss."""


class LossConfig(Section):
    """The objective; formulas in ``docs/objective.md``. alpha = beta = strength = 0 is MulSupCon exactly.

    Make one by ``build(LossConfig, {"name": "msc", "tau": 0.2})`` (``build`` is in ``marc_dist.config``): a setting
    that cannot be right is then one line, a ``ConfigError``. The class alone raises pydantic's ValidationError.
    """

    name: LossName = Field("macl", description="objective")
    positives: Literal["per_label", "any", "all"] = Field(
        "per_label", description="macl: a term for each anchor label; or one an anchor: share a label; equal label sets"
    )
    aggregate: Literal["pair_mean", "anchor_mean", "class_balanced"] = Field(
        "pair_mean",
        description="every (anchor, label) equal: MACL; every anchor equal: Weighted MACL; every label equal",
    )
    tau: float = Field(0.1, gt=0.0, le=10.0, description="base temperature that divides cosine similarities")
    t_min: float = Field(0.01, gt=0.0, le=10.0, description="floor of a pair's temperature")
    alpha: float = Field(0.5, ge=0.0, le=100.0, description="how much label overlap changes a pair's temperature")
    beta: float = Field(0.5, ge=0.0, le=100.0, description="how much the anchor's label rarity changes it")
    temperature_form: Literal["sharpen", "soften", "multiplicative", "soften_sharpen"] = Field(
        "soften",
        description="tau / (1 + alpha o + beta r); tau (1 + alpha o + beta r); tau (1 - alpha o)(1 - beta r); "
        "tau (1 + alpha o) / (1 + beta r)",
    )
    temperature_scope: Literal["all_pairs", "positives_only", "per_positive_row"] = Field(
        "all_pairs", description="which similarities have a temperature of their own; last: a softmax for each positive"
    )
    overlap: Literal["jaccard", "anchor_recall", "dice", "cosine", "count_over_labels"] = Field(
        "jaccard", description="overlap o of two label sets"
    )
    rarity: Literal["mean", "max"] = Field("mean", description="rarity r of an anchor from its labels' rarities")
    rarity_scale: Literal["one_minus_relative", "inverse_minmax"] = Field(
        "one_minus_relative", description="rarity of a label: 1 - n / max n; or 1 / n scaled to 0..1"
    )
    strength: float = Field(0.5, ge=0.0, le=1.0, description="how much label-pair frequency changes a pair's weight")
    gamma: float = Field(1.0, ge=0.0, le=4.0, description="exponent of the inverse co-occurrence count")
    weight_pairs: Literal["shared", "cross", "offdiag", "single"] = Field(
        "shared",
        description="label pairs that weigh: both shared; anchor's x positive's; shared, unequal; single",
    )
    weight_norm: Literal["batch_mean", "sum_to_one", "none"] = Field(
        "batch_mean",
        description="weights relative to their mean; then also summing to 1 an (anchor, label); as is",
    )
    clip_min: float = Field(0.1, ge=0.0, description="floor of a relative pair weight")
    clip_max: float = Field(10.0, gt=0.0, description="ceiling of a relative pair weight")
    counts: Literal["batch", "train"] = Field("batch", description="label counts of the global batch or of the split")
    threshold: float = Field(
        0.5, gt=0.0, le=1.0, description="multisupcon, triplet: smallest label Jaccard of a positive"
    )
    msc_beta: float = Field(0.1, gt=0.0, le=100.0, description="msc: weight of samples beside prototypes")
    margin: float = Field(1.2, gt=0.0, le=4.0, description="triplet: margin between distances of unit vectors")
    selection: Literal["relevant", "hard", "diverse"] = Field(
        "hard", description="triplet: which positives and negatives of an anchor are taken"
    )
    num_selected: int = Field(4, ge=1, le=1024, description="triplet: positives, and negatives, taken for an anchor")
    memory: int = Field(0, ge=0, le=1 << 26, description="embeddings of earlier steps kept as candidates; 0 = none")
    implementation: Literal["auto", "dense", "streamed", "triton"] = Field(
        "auto", description="dense holds anchors x candidates; streamed and triton hold tiles only; auto picks"
    )
    tile: int | None = Field(
        None, ge=1, le=1 << 16, description="rows and columns of a tile: 4 tile^2 bytes of memory; null = by device"
    )
    tf32: bool = Field(False, description="NVIDIA: products of the loss in TF32; several times faster, 1e-3 precision")

    @model_validator(mode="after")
    def _fits(self) -> LossConfig:
        if self.clip_min > self.clip_max:
            raise ValueError(f"clip_min must not exceed clip_max, got {self.clip_min} and {self.clip_max}")
        if self.name == "triplet" and self.implementation in ("dense", "triton"):
            raise ValueError(f"implementation: triplet has one of its own, got {self.implementation}; leave it at auto")
        if self.name == "macl":
            self._fits_macl()
        return self

    def _fits_macl(self) -> None:
        if self.tau < self.t_min:
            raise ValueError(
                f"tau={self.tau} lies below the floor t_min={self.t_min} of every temperature; lower t_min too"
            )
        if self.positives != "per_label" and self.aggregate == "class_balanced":
            raise ValueError(
                f"aggregate=class_balanced weighs the labels of an anchor, but positives={self.positives} has one term "
                "an anchor, none a label; use positives=per_label, or aggregate=anchor_mean"
            )
        if self.temperature_form == "multiplicative" and max(self.alpha, self.beta) > 1:
            raise ValueError(
                f"temperature_form=multiplicative needs alpha and beta of at most 1, got {self.alpha} and {self.beta}: "
                "a temperature cannot be negative"
            )
        if self.weight_norm == "none" and self.strength > 0 and self.clip_min > 0:
            raise ValueError(
                f"weight_norm=none clips count^-gamma itself, which lies far below clip_min={self.clip_min}, so all "
                "weights would be equal; set clip_min=0"
            )

    def unread(self) -> list[str]:
        """Settings that differ from their defaults although nothing reads them beside the others."""
        read = {"name", "memory", *READ_BY_ALL, *READS[self.name]}
        if self.implementation == "dense":
            read -= {"tile"}
        if self.name == "mulsupcon" and self.aggregate != "class_balanced":
            read -= {"counts"}
        if self.name == "macl":
            read -= set(READS["macl"]) - self._read_by_macl()
        fields = type(self).model_fields
        return [name for name, field in fields.items() if name not in read and getattr(self, name) != field.default]

    def _read_by_macl(self) -> set[str]:
        read = {"positives", "tau", "t_min", "strength"}
        # where no temperature can exceed tau, tau at the floor means that every temperature lies on the floor
        rising = {"soften": True, "soften_sharpen": self.alpha > 0}
        floored = not rising.get(self.temperature_form, False) and self.tau <= self.t_min
        if not floored:
            read |= {"alpha", "beta"}
        if self.temperature_form == "soften_sharpen":
            read |= {"alpha"}  # it lifts temperatures off the floor
        alpha, beta = (0.0, 0.0) if floored else (self.alpha, self.beta)
        read |= {"overlap"} if alpha else set()
        read |= {"rarity", "rarity_scale"} if beta else set()
        read |= {"temperature_form", "temperature_scope"} if alpha or beta else set()
        read |= {"aggregate"} if self.positives == "per_label" else set()
        read |= {"gamma", "weight_pairs", "weight_norm", "clip_min", "clip_max"} if self.strength else set()
        read |= {"counts"} if self.strength or beta or self.aggregate == "class_balanced" else set()
        return read
