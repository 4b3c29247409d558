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
    reader: Literal["indexed", "streamed"] = Field(
        "indexed", description="shards on a file system, any sample at once; or tars from anywhere, from end to end"
    )
    urls: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="streamed: paths, globs, {000..004}, https://, s3:// or pipe: of the tars; none = those in dir"
    )
    lanes: int = Field(8, ge=1, le=4096, description="streamed: shards read side by side, over all ranks")
    shuffle: int = Field(1000, ge=1, le=10_000_000, description="streamed: samples of a lane's shuffle buffer")
    train_split: Name = Field("train", description="split to train on")
    validation_share: float = Field(
        0.0, ge=0.0, le=0.9, description="share of train_split kept from training, to choose settings by; 0 = none"
    )
    validation_seed: int = Field(0, ge=0, lt=1 << 32, description="seed of the draw of these samples, by their keys")
    image_size: int = Field(224, ge=16, le=4096, description="side of the square given to the encoder, pixels")
    num_views: int = Field(2, ge=1, le=8, description="augmented views of each sample in a batch")
    num_workers: int = Field(2, ge=0, le=256, description="loader processes per rank; 0 loads in the main process")
    verify_crc: bool = Field(True, description="check the CRC-32 of every image as it is read")
    cache: Literal["auto", "none"] = Field(
        "auto", description="decode every training picture once a node, when they fit; or each time it is used"
    )
    augment_on: Literal["auto", "workers", "device"] = Field(
        "auto", description="who augments: loader processes; or the device that trains, in batches; auto = a GPU does"
    )
    cache_dir: str | None = Field(
        None, description="where decoded pictures lie; null = MARC_CACHE_DIR, or the node's temporary directory"
    )
    retries: int = Field(3, ge=0, le=20, description="further tries of a read that fails, 0.1 s, 0.2 s, ... apart")
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="a sample that cannot be read or decoded: end the run; or leave it out, listed and counted"
    )
    max_bad: int = Field(100, ge=1, description="on_error=skip: the run ends when more samples than this are bad")
    sampler: Literal["uniform", "label_aware"] = Field(
        "uniform", description="every sample once an epoch; or rare labels more often, each label twice in a batch"
    )
    repeat_threshold: float = Field(
        0.05, gt=0.0, le=1.0, description="share of samples below which a label's carriers are visited more often"
    )
    repeat_max: float = Field(4.0, ge=1.0, le=1000.0, description="largest repeat factor, visits of a sample an epoch")


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
    cutout: Probability = Field(0.0, description="probability of filling a box with the mean colour")
    cutout_size: float = Field(
        0.3, gt=0.0, le=1.0, description="largest side of that box, share of the image; the smallest is half of it"
    )

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


LossName = Literal[
    "macl", "mulsupcon", "supcon_single", "supcon_any", "supcon_all", "ntxent", "jaccard", "multisupcon", "msc",
    "similarity_dissimilarity", "triplet",
]  # fmt: skip


class LossConfig(Section):
    """The objective; formulas in ``docs/objective.md``. alpha = beta = strength = 0 is MulSupCon exactly."""

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
    temperature_form: Literal["sharpen", "soften", "multiplicative"] = Field(
        "sharpen", description="tau / (1 + alpha o + beta r); tau (1 + alpha o + beta r); tau (1 - alpha o)(1 - beta r)"
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
    strength: float = Field(1.0, ge=0.0, le=1.0, description="how much label-pair frequency changes a pair's weight")
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
        read = {"name", "implementation", "memory", "tf32"}
        if self.implementation != "dense":
            read |= {"tile"}
        if self.name != "triplet":
            read |= {"tau"}
        own: dict[str, set[str]] = {
            "macl": self._read_by_macl(),
            "mulsupcon": {"aggregate"} | ({"counts"} if self.aggregate == "class_balanced" else set()),
            "multisupcon": {"threshold"},
            "msc": {"msc_beta"},
            "triplet": {"threshold", "margin", "selection", "num_selected"},
        }
        read |= own.get(self.name, set())
        fields = type(self).model_fields
        return [name for name, field in fields.items() if name not in read and getattr(self, name) != field.default]

    def _read_by_macl(self) -> set[str]:
        read = {"positives", "t_min", "strength"}
        floored = self.temperature_form != "soften" and self.tau <= self.t_min  # every temperature lies on the floor
        if not floored:
            read |= {"alpha", "beta"}
        alpha, beta = (0.0, 0.0) if floored else (self.alpha, self.beta)
        read |= {"overlap"} if alpha else set()
        read |= {"rarity", "rarity_scale"} if beta else set()
        read |= {"temperature_form", "temperature_scope"} if alpha or beta else set()
        read |= {"aggregate"} if self.positives == "per_label" else set()
        read |= {"gamma", "weight_pairs", "weight_norm", "clip_min", "clip_max"} if self.strength else set()
        read |= {"counts"} if self.strength or beta or self.aggregate == "class_balanced" else set()
        return read


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
    chunk: int | None = Field(
        None, ge=1, description="rows (views) of a rank encoded at a time, twice, to save memory; null = all at once"
    )
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
    timeout_s: float = Field(
        600.0, ge=2.0, le=86400.0, description="longest wait for another rank, seconds; then the late one is named"
    )
    validate_every: int = Field(
        1, ge=1, description="epochs between scores of the validation samples, if there are any"
    )
    max_nonfinite: int = Field(10, ge=1, description="consecutive skipped steps (non-finite loss) before the run stops")


class EvalConfig(Section):
    """Retrieval: who asks, who answers, how it is scored."""

    protocol: Literal["test_vs_train", "oml", "leave_one_out", "transfer"] = Field(
        "test_vs_train",
        description="queries x archive: test x train; 20 % x 80 % of test; test x rest of test; test x train of other "
        "data over the labels that both know",
    )
    queries_dir: str | None = Field(None, description="shard folder that asks; null = data.dir")
    archive_dir: str | None = Field(None, description="shard folder that answers; null = that of the queries")
    query_split: Name = Field("test", description="split that queries come from")
    archive_split: Name = Field("train", description="archive of test_vs_train and transfer")
    index: str = Field(
        "flat",
        description="flat (exact); sign or itqN (binary codes); or a FAISS factory string, with parameters after a "
        "colon: IVF256,PQ32:nprobe=16",
    )
    float16: bool = Field(False, description="a GPU keeps the archive in half precision; lists stay exact")
    features: Literal["backbone", "projection"] = Field(
        "backbone", description="which vector of the encoder is searched"
    )
    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field((10, 100), min_length=1, description="cut-offs")
    gain: Literal["count", "jaccard", "cosine"] = Field("count", description="graded relevance of ACG, nDCG, wAP")
    relevance: Literal["any", "exact", "subset"] | Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        "any", description="what counts as relevant; a number t means label Jaccard >= t"
    )
    extra: bool = Field(False, description="all further metrics of docs/metrics.md, too")
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

    def unread(self) -> list[str]:
        """Dotted keys that differ from their defaults although nothing reads them beside the others."""
        keys = [f"loss.{name}" for name in self.loss.unread()]
        fields = type(self.data).model_fields
        if self.data.sampler == "uniform":
            names: tuple[str, ...] = ("repeat_threshold", "repeat_max")
            keys += [f"data.{name}" for name in names if getattr(self.data, name) != fields[name].default]
        if not self.data.validation_share:
            keys += ["data.validation_seed"] if self.data.validation_seed != fields["validation_seed"].default else []
            every = type(self.train).model_fields["validate_every"].default
            keys += ["train.validate_every"] if self.train.validate_every != every else []
        names = ("urls", "lanes", "shuffle") if self.data.reader == "indexed" else ("cache", "cache_dir")
        keys += [f"data.{name}" for name in names if getattr(self.data, name) != fields[name].default]
        return keys

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.data.reader == "streamed" and self.data.sampler != "uniform":
            raise ValueError(
                "data.sampler=label_aware chooses samples, but data.reader=streamed takes them as they come"
            )
        if self.data.reader == "streamed" and self.data.validation_share:
            raise ValueError(
                "data.validation_share keeps samples from training, but data.reader=streamed takes them as they come; "
                "use data.reader=indexed"
            )
        if self.loss.name == "ntxent" and self.data.num_views < 2:
            raise ValueError("loss.name=ntxent has other views as positives, but data.num_views is 1; use at least 2")
        return self
