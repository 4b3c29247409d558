"""Every setting of a run: type, unit, range, default and one line of help. Imports nothing of ours.

The dotted path (``loss.tau``) is the spelling in YAML, on the command line, in search spaces, results and plots.
Defaults are ours, not the paper's: its settings were never published (see ``docs/objective.md``).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Section(BaseModel):
    """A frozen group of settings; unknown keys are errors, never dropped."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class DataConfig(Section):
    """Where samples come from and how they reach the encoder."""

    dir: str = Field("data/sample", min_length=1, description="shard folder written by marc-shard")
    train_split: Name = Field("train", description="split to train on")
    image_size: int = Field(224, ge=16, le=4096, description="side of the square given to the encoder, pixels")
    num_views: int = Field(2, ge=1, le=8, description="augmented views of each sample in a batch")
    num_workers: int = Field(2, ge=0, le=256, description="loader processes per rank; 0 loads in the main process")
    verify_crc: bool = Field(True, description="check the CRC-32 of every image as it is read")


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
    blur: Probability = Field(0.0, description="probability of a Gaussian blur")

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        if self.crop_min > self.crop_max:
            raise ValueError(f"crop_min must not exceed crop_max, got {self.crop_min} and {self.crop_max}")
        return self


class ModelConfig(Section):
    """Encoder = timm backbone + projection head. Retrieval uses the backbone's features unless asked otherwise."""

    backbone: str = Field("resnet18", min_length=1, description="timm model name")
    pretrained: bool = Field(False, description="start from timm's published weights (needs them in the local cache)")
    weights: str | None = Field(None, description="start from a local .safetensors of the backbone or of an encoder")
    head_hidden: int = Field(512, ge=0, le=65536, description="width of the head's hidden layer; 0 = one linear layer")
    head_dim: int = Field(128, ge=2, le=65536, description="width of the projection that the loss sees")
    batch_norm: Literal["sync", "frozen", "plain"] = Field(
        "sync", description="statistics over all ranks; frozen; or of each rank alone (results then depend on ranks)"
    )


class LossConfig(Section):
    """The objective: DESIGN section 6. alpha = beta = strength = 0 is MulSupCon exactly."""

    name: Literal["macl", "mulsupcon", "supcon_any", "supcon_all", "ntxent"] = Field("macl", description="objective")
    aggregate: Literal["pair_mean", "anchor_mean"] = Field(
        "pair_mean", description="MACL: every (anchor, label) equal; Weighted MACL (anchor_mean): every anchor equal"
    )
    tau: float = Field(0.1, gt=0.0, le=10.0, description="base temperature that divides cosine similarities")
    t_min: float = Field(0.01, gt=0.0, le=10.0, description="floor of a pair's temperature")
    alpha: float = Field(0.5, ge=0.0, le=100.0, description="how much label overlap changes a pair's temperature")
    beta: float = Field(0.5, ge=0.0, le=100.0, description="how much the anchor's label rarity changes it")
    strength: float = Field(1.0, ge=0.0, le=1.0, description="how much label-pair frequency changes a pair's weight")
    gamma: float = Field(1.0, ge=0.0, le=4.0, description="exponent of the inverse co-occurrence count")
    clip_min: float = Field(0.1, ge=0.0, description="floor of a relative pair weight")
    clip_max: float = Field(10.0, gt=0.0, description="ceiling of a relative pair weight")
    counts: Literal["batch", "train"] = Field("batch", description="label counts of the global batch or of the split")
    implementation: Literal["auto", "dense", "streamed"] = Field(
        "auto", description="dense holds anchors x candidates; streamed holds tiles only; auto picks"
    )
    tile: int = Field(1024, ge=1, le=1 << 20, description="rows and columns of a tile of the streamed version")

    @model_validator(mode="after")
    def _ordered(self) -> LossConfig:
        if self.clip_min > self.clip_max:
            raise ValueError(f"clip_min must not exceed clip_max, got {self.clip_min} and {self.clip_max}")
        return self


class OptimConfig(Section):
    """Optimiser and learning-rate schedule (linear warm-up, then cosine to zero)."""

    name: Literal["adamw", "sgd"] = Field("adamw", description="optimiser")
    lr: float = Field(1e-3, gt=0.0, le=100.0, description="peak learning rate")
    weight_decay: float = Field(1e-4, ge=0.0, le=10.0, description="decoupled for adamw; none on norms and biases")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="momentum of sgd, first beta of adamw")
    warmup_share: float = Field(0.05, ge=0.0, le=1.0, description="share of all steps with a rising learning rate")
    clip_norm: float | None = Field(1.0, gt=0.0, description="largest global gradient norm; null = no clipping")


class TrainConfig(Section):
    """The run: how long, how large a batch, on what, saved how often."""

    run_dir: str = Field(
        "runs/default", min_length=1, description="run folder; continues there when it has checkpoints"
    )
    seed: int = Field(0, ge=0, lt=1 << 32, description="seed of weights, order and augmentation")
    epochs: int = Field(100, ge=1, le=1_000_000, description="passes over the training split")
    max_steps: int | None = Field(None, ge=1, description="stop (and save) after this global step; the schedule stays")
    global_batch: int = Field(256, ge=2, le=1 << 22, description="samples per global step, over all ranks")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the encoder runs")
    precision: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        "auto", description="arithmetic of the encoder; the loss is float32 or better; auto = bfloat16 on a capable GPU"
    )
    checkpoint_every: int = Field(200, ge=1, description="global steps between checkpoints (one more at each end)")
    keep_checkpoints: int = Field(2, ge=1, le=1000, description="newest checkpoints kept")
    log_every: int = Field(10, ge=1, description="global steps between log lines")
    max_nonfinite: int = Field(10, ge=1, description="consecutive skipped steps (non-finite loss) before the run stops")


class EvalConfig(Section):
    """Retrieval: who asks, who answers, how it is scored."""

    protocol: Literal["test_vs_train", "oml", "leave_one_out"] = Field(
        "test_vs_train", description="queries against archive: test x train; 20 % x 80 % of test; test x rest of test"
    )
    query_split: Name = Field("test", description="split that queries come from")
    archive_split: Name = Field("train", description="archive of test_vs_train")
    features: Literal["backbone", "projection"] = Field(
        "backbone", description="which vector of the encoder is searched"
    )
    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field((10, 100), min_length=1, description="cut-offs")
    gain: Literal["count", "jaccard", "cosine"] = Field("count", description="graded relevance of ACG, nDCG, wAP")
    relevance: Literal["any", "exact", "subset"] | Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        "any", description="what counts as relevant; a number t means label Jaccard >= t"
    )
    batch: int = Field(256, ge=1, description="images per forward pass, per rank")
    seed: int = Field(24, ge=0, lt=1 << 32, description="seed of the oml query draw")
    baseline: bool = Field(True, description="score the untrained encoder too, side by side")
    panels: int = Field(6, ge=0, le=50, description="query panels in the report")


class Config(Section):
    """A whole run. The resolved form is written to ``RUN/config.yaml`` and is itself a valid run file."""

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
