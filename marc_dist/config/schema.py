"""Every setting of a run: type, unit, range, default, one line of help; ``loss`` and ``augment`` have their own files.

The dotted path (``loss.tau``) is the spelling in YAML, on the command line, in search spaces, results and plots.
Defaults are ours, not the paper's: its settings were never published (see ``docs/objective.md``).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from marc_dist.config.augment import COLOURS, DROPOUT, AugmentConfig
from marc_dist.config.bands import BandName, check_bands
from marc_dist.config.loss import LossConfig
from marc_dist.config.section import Section

Interpolation = Literal["bilinear", "bicubic"]
Positive = Annotated[float, Field(gt=0.0)]
ValidationMetric = Literal["mAP", "label_mAP", "rare_mAP", "medium_mAP", "common_mAP", "nDCG@10", "P@10"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


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
    bands: tuple[BandName, ...] | None = Field(
        None, description="which bands of the pictures, in this order: [B04, B03, B02, B08]; null = all that are named"
    )
    scaling: Literal["percentiles", "range", "reflectance"] = Field(
        "percentiles",
        description="named bands: what becomes 0 and 1: percentiles 2 and 98 of the band; data.range; or 0 and 10,000",
    )
    range: tuple[float, float] | None = Field(
        None, description="data.scaling=range: the two values; null = the smallest and the largest of whole numbers"
    )
    mean: tuple[float, ...] | None = Field(
        None,
        description="mean of red, green and blue that pixels in 0..1 are normalised by; null = the backbone's; of "
        "named bands, of each band's scaled values; null = the training split's",
    )
    std: tuple[Positive, ...] | None = Field(
        None, description="their standard deviation; null = the backbone's, of named bands the training split's"
    )
    interpolation: Interpolation | None = Field(
        None, description="how pictures are resized, antialiased; null = as the backbone was trained"
    )
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
    feature_views: int = Field(
        0,
        ge=0,
        le=64,
        description="model.freeze=backbone: augmented views of each picture whose features are kept, too, beside the "
        "picture as it is",
    )
    features_dir: str | None = Field(
        None,
        description="where features of frozen backbones are kept, seen by all ranks; null = the folder features beside "
        "the run folder",
    )
    sampler: Literal["uniform", "label_aware"] = Field(
        "uniform", description="every sample once an epoch; or rare labels more often, each label twice in a batch"
    )
    repeat_threshold: float = Field(
        0.05, gt=0.0, le=1.0, description="share of samples below which a label's carriers are visited more often"
    )
    repeat_max: float = Field(4.0, ge=1.0, le=1000.0, description="largest repeat factor, visits of a sample an epoch")

    @model_validator(mode="after")
    def _bands_fit(self) -> DataConfig:
        check_bands(self.bands, self.scaling, self.range)
        return self


class ModelConfig(Section):
    """Encoder = timm backbone + projection head. ``eval.features`` says which vector is searched."""

    backbone: str = Field(
        "tf_efficientnet_lite0",
        min_length=1,
        description="timm's name, also with a tag (resnet18.a1_in1k), or hf-hub:ORG/NAME",
    )
    pretrained: bool | Annotated[str, Field(min_length=1)] = Field(
        True, description="start from the backbone's published weights: true, or the tag of some; false = random ones"
    )
    weights: str | None = Field(
        None, description="start from a local file of the backbone or an encoder: .safetensors, .pth, .pt, .bin"
    )
    freeze: Literal["none", "backbone"] | tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        "none",
        description="what keeps its weights: none; backbone: the head alone is trained, on kept features, in seconds; "
        "or a list of the backbone's parts, [conv_stem, blocks.0]",
    )
    thaw_after: int | None = Field(
        None, ge=1, description="epochs after which what freeze names begins to learn, too; null = never"
    )
    drop_path: float | None = Field(
        None,
        ge=0.0,
        lt=1.0,
        description="stochastic depth: how often the deepest block is left out of a sample; null = the backbone's own",
    )
    drop_rate: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of the backbone's features set to zero before the head, of pictures"
    )
    head_hidden: int = Field(512, ge=0, le=65536, description="width of the head's hidden layer; 0 = one linear layer")
    head_dim: int = Field(128, ge=2, le=65536, description="width of the projection that the loss sees")
    batch_norm: Literal["auto", "sync", "frozen", "plain"] = Field(
        "auto",
        description="statistics: frozen as published; over all ranks (sync); or of each rank alone (plain: results "
        "then depend on ranks); auto = frozen where first weights are published or given, else sync",
    )

    @property
    def head_only(self) -> bool:
        """Whether the backbone never learns: the head alone is trained, on kept features."""
        return self.freeze == "backbone" and self.thaw_after is None

    @property
    def norm(self) -> str:
        """``batch_norm`` without ``auto``."""
        if self.batch_norm != "auto":
            return self.batch_norm
        # a short fine-tuning with live statistics ends far below the encoder it began with (docs/results.md)
        return "frozen" if self.pretrained or self.weights is not None else "sync"


class OptimConfig(Section):
    """Optimiser and learning-rate schedule (linear warm-up, then cosine to zero)."""

    name: Literal["adamw", "sgd", "nadamw", "lamb", "lion", "adan"] = Field(
        "adamw", description="optimiser; the last four are timm's, with their own betas"
    )
    lr: float = Field(1e-3, gt=0.0, le=100.0, description="peak learning rate")
    backbone_lr_scale: float = Field(
        1.0, gt=0.0, le=100.0, description="learning rate of the backbone, as a multiple of the head's"
    )
    layer_decay: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="learning rate of each layer of the backbone, as a share of the next one's; null = all alike",
    )
    weight_decay: float = Field(
        1e-4, ge=0.0, le=10.0, description="decoupled, save in sgd and lamb; none on norms and biases"
    )
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
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads of a rank; null = what the launcher gives; float32 rounds otherwise with others",
    )
    precision: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        "auto", description="arithmetic of the encoder; the loss is float32 or better; auto = bfloat16 on a capable GPU"
    )
    checkpoint_every: int = Field(200, ge=1, description="global steps between checkpoints (one more at each end)")
    keep_checkpoints: int = Field(2, ge=1, le=1000, description="newest checkpoints kept")
    log_every: int = Field(10, ge=1, description="global steps between log lines")
    timeout_s: float = Field(
        600.0,
        ge=2.0,
        le=86400.0,
        description="longest time without progress, seconds; then the late rank is named, and the run ends",
    )
    validate_every: int = Field(
        1, ge=1, description="epochs between scores of the validation samples, if there are any"
    )
    keep_best: ValidationMetric | None = Field(
        None, description="export the encoder of the epoch that is best by this validation score; null = the last one"
    )
    patience: int | None = Field(
        None, ge=1, description="stop after this many validations without a better train.keep_best; null = never"
    )
    ema: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="decay of a moving average of the weights, which is validated and exported in their place",
    )
    digest_every: int = Field(
        0,
        ge=0,
        description="global steps between comparisons of weights and optimiser state over all ranks, to find faulty "
        "hardware; 0 = never",
    )
    compile: bool = Field(False, description="compile the backbone with torch.compile: slower start, faster steps")
    trackers: tuple[Literal["wandb", "mlflow"], ...] = Field(
        (), description="mirror figures to Weights & Biases or MLflow, too; needs marc-dist[wandb] or marc-dist[mlflow]"
    )
    tracker_project: str = Field("marc-dist", min_length=1, description="project (W&B), experiment (MLflow) there")
    max_nonfinite: int = Field(10, ge=1, description="consecutive skipped steps (non-finite loss) before the run stops")


class EvalConfig(Section):
    """Retrieval: who asks, who answers, how it is scored."""

    protocol: Literal["test_vs_train", "oml", "leave_one_out", "transfer"] = Field(
        "test_vs_train",
        description="queries x archive: test x train; 20 % x 80 % of test; test x rest of test; test x train of other "
        "data over the labels that both know",
    )
    name: Name | None = Field(
        None, description="keeps this evaluation beside others of its protocol, in RUN/eval/PROTOCOL-NAME"
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
    features: Literal["backbone", "hidden", "projection", "concat"] = Field(
        "projection",
        description="which vector is searched: the backbone's features, the head's hidden layer, the head's output; or "
        "all three, each of length 1, one after the other",
    )
    label_map: str | None = Field(
        None, description="YAML file of transfer: which labels of the data sets mean the same, labels: {from: to}"
    )
    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field((10, 100), min_length=1, description="cut-offs")
    gain: Literal["count", "jaccard", "cosine"] = Field("count", description="graded relevance of ACG, nDCG, wAP")
    relevance: Literal["any", "exact", "subset"] | Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        "any", description="what counts as relevant; a number t means label Jaccard >= t"
    )
    denominator: Literal["hits", "min", "all", "k"] = Field(
        "hits",
        description="what mAP@k divides by: the hits among the first k; the smaller of k and R; R, the number of "
        "relevant images; or k",
    )
    ideal: Literal["database", "retrieved"] = Field(
        "database",
        description="what nDCG compares with: the best list of the whole archive; or the retrieved images in their "
        "best order, which is optimistic",
    )
    ndcg_form: Literal["auto", "linear", "exponential"] = Field(
        "auto", description="gain inside nDCG: g; or 2^g - 1; auto = exponential for gain=count, else linear"
    )
    without_relevant: Literal["zero", "skip"] = Field(
        "zero", description="queries without a relevant image: score 0 and count; or are left out of the means"
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
        of_pictures = [] if self.data.feature_views else [n for n in type(self.augment).model_fields if n != DROPOUT]
        idle: list[tuple[bool, str, list[str]]] = [
            (self.data.sampler == "uniform", "data", ["repeat_threshold", "repeat_max"]),
            (self.data.reader == "indexed", "data", ["urls", "lanes", "shuffle"]),
            (self.data.reader == "streamed", "data", ["cache", "cache_dir"]),
            (not self.data.validation_share, "data", ["validation_seed"]),
            (self.data.bands is not None, "augment", list(COLOURS)),
            (not self.data.validation_share, "train", ["validate_every"]),
            (self.model.freeze != "backbone", "data", ["feature_views"]),
            (self.model.freeze != "backbone", "augment", [DROPOUT]),
            (self.eval.protocol != "transfer", "eval", ["label_map"]),
            (self.model.freeze == "none", "model", ["thaw_after"]),
            # nothing decodes or augments pictures after the first run, and nothing runs the backbone
            (self.model.head_only, "data", ["cache", "cache_dir", "augment_on"]),
            (self.model.head_only, "model", ["batch_norm", "drop_path", "drop_rate"]),
            (self.model.head_only, "augment", of_pictures),
            (self.model.head_only, "optim", ["backbone_lr_scale"]),
            (self.model.head_only, "train", ["compile"]),
            (not self.train.trackers, "train", ["tracker_project"]),
            (self.optim.name not in ("adamw", "sgd"), "optim", ["momentum"]),
        ]
        keys = [f"{section}.{name}" for holds, section, names in idle if holds for name in names]
        return [f"loss.{name}" for name in self.loss.unread()] + [key for key in keys if self._is_set(key)]

    def _is_set(self, key: str) -> bool:
        """Whether a setting differs from its default."""
        section, name = key.split(".")
        part = getattr(self, section)
        return bool(getattr(part, name) != type(part).model_fields[name].default)

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
        if self.model.freeze == "backbone" and self.data.reader == "streamed":
            raise ValueError(
                "model.freeze=backbone keeps the features of every picture, but data.reader=streamed takes pictures as "
                "they come; use data.reader=indexed"
            )
        if self.model.freeze == "backbone" and self.data.on_error == "skip":
            raise ValueError(
                "model.freeze=backbone keeps every picture's features, so data.on_error=skip cannot leave one out; "
                "use data.on_error=stop, and take out what marc-shard --verify names"
            )
        self._fits_recipe()
        if self.eval.features == "hidden" and not self.model.head_hidden:
            raise ValueError("eval.features=hidden: model.head_hidden=0 has no hidden layer; use projection")
        if self.loss.name == "ntxent" and self.data.num_views < 2:
            raise ValueError("loss.name=ntxent has other views as positives, but data.num_views is 1; use at least 2")
        return self

    def _fits_recipe(self) -> None:
        """Settings of a fine-tuning that mean nothing without others."""
        if self.train.patience is not None and self.train.keep_best is None:
            raise ValueError(
                "train.patience waits for a better score, but train.keep_best names none; give one, as mAP"
            )
        if self.train.keep_best is not None and not self.data.validation_share:
            raise ValueError(
                f"train.keep_best={self.train.keep_best} is a score of validation samples, but "
                "data.validation_share=0 leaves none; give a share: 0.1"
            )
        if self.model.thaw_after is not None and self.model.thaw_after >= self.train.epochs:
            raise ValueError(
                f"model.thaw_after={self.model.thaw_after} comes after the end of train.epochs={self.train.epochs}; "
                "give fewer epochs before it, or more in all"
            )
        if not self.model.head_only:
            return
        if self.train.ema is not None:
            raise ValueError(
                "train.ema averages an encoder's weights, but model.freeze=backbone trains the head alone; leave one "
                "out, or give model.thaw_after"
            )
        if self.optim.layer_decay is not None:
            raise ValueError(
                "optim.layer_decay slows layers of the backbone, but model.freeze=backbone trains the head alone; "
                "leave one out, or give model.thaw_after"
            )
