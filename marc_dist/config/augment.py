"""The section ``augment``: random changes of a training view."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from marc_dist.config.section import Section

DROPOUT = "feature_dropout"
"""The one setting here that changes kept features, not pictures."""
COLOURS = ("saturation", "hue", "gray")
"""The settings that are about red, green and blue: of named bands they change nothing."""
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class AugmentConfig(Section):
    """Random changes of a training view; every draw depends on (seed, epoch, sample, view) alone."""

    crop_min: float = Field(0.3, gt=0.0, le=1.0, description="smallest area of a random crop, share of the image")
    crop_max: float = Field(1.0, gt=0.0, le=1.0, description="largest area of a random crop, share of the image")
    crop_ratio: float = Field(1.33, ge=1.0, le=4.0, description="largest aspect ratio of a crop (and its inverse)")
    hflip: Probability = Field(0.5, description="probability of a left-right flip")
    vflip: Probability = Field(0.5, description="probability of a top-bottom flip")
    quarter_turns: bool = Field(True, description="rotate by 0, 90, 180 or 270 degrees with equal chance")
    jitter: Probability = Field(0.8, description="probability of a change of colour")
    brightness: float = Field(0.3, ge=0.0, le=1.0, description="largest relative change of brightness")
    contrast: float = Field(0.3, ge=0.0, le=1.0, description="largest relative change of contrast")
    saturation: float = Field(0.3, ge=0.0, le=1.0, description="largest relative change of saturation")
    hue: float = Field(0.05, ge=0.0, le=0.5, description="largest turn of hue, share of the colour circle")
    gray: Probability = Field(0.1, description="probability of turning a view grey")
    band_brightness: float = Field(
        0.1, ge=0.0, le=1.0, description="named bands: largest relative change of brightness of each band by itself"
    )
    band_contrast: float = Field(
        0.1, ge=0.0, le=1.0, description="named bands: largest relative change of contrast of each band by itself"
    )
    band_dropout: Probability = Field(
        0.0, description="named bands: probability of leaving each band out of a view; one always stays"
    )
    blur: Probability = Field(0.0, description="probability of a Gaussian blur")
    feature_dropout: float = Field(
        0.1,
        ge=0.0,
        lt=1.0,
        description="model.freeze=backbone: share of the kept features that a view sets to zero, the others grow",
    )
    cutout: Probability = Field(0.0, description="probability of filling a box with the mean colour")
    cutout_size: float = Field(
        0.3, gt=0.0, le=1.0, description="largest side of that box, share of the image; the smallest is half of it"
    )

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        if self.crop_min > self.crop_max:
            raise ValueError(f"crop_min must not exceed crop_max, got {self.crop_min} and {self.crop_max}")
        return self
