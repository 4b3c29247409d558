"""What is published of a backbone, looked up by its name: architecture, tag of the weights, what its pixels look like.

Names are timm's (``resnet18``), timm's with the tag of some weights (``vit_base_patch14_dinov2.lvd142m``), or those of
repositories in timm's format on the Hugging Face Hub (``hf-hub:org/name``). Only the last needs a file: its
``config.json``, from the hub or from the local cache.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from marc_dist.augment.views import IMAGENET, PixelScale
from marc_dist.config import Config, ConfigError, DataConfig, ModelConfig
from marc_dist.config.suggest import suggestion
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.encoder.band_scale import band_scale
from marc_dist.encoder.hub import NotAtHand, hub_file
from marc_dist.torch_imports import load_timm

HUB = ("hf-hub:", "hf_hub:")
FACTORY = frozenset(
    {
        "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn",
        "pretrained_custom_load", "pretrained_model_args", "checkpoint_path", "cache_dir", "scriptable", "exportable",
        "no_jit", "features_only", "feature_cfg", "kwargs_filter", "model_name",
    }
)  # fmt: skip
"""Options of ``timm.create_model`` that are not about the architecture; no file may set them."""


@dataclass(frozen=True)
class Published:
    """A backbone by name.

    Attributes:
        name: what ``timm.create_model`` takes without a network: the architecture, with a tag if one was asked for.
        options: of ``timm.create_model``, which a repository on the hub was saved with.
        cfg: timm's pretrained settings; empty when it has none.
        repo: on the Hugging Face Hub; None = nowhere.
    """

    name: str
    options: dict[str, Any]
    cfg: dict[str, Any]
    repo: str | None


def sound_options(options: dict[str, Any]) -> bool:
    """Whether options are about the architecture alone, and plain values."""
    plain = (bool, int, float, str, type(None))

    def fits(value: Any) -> bool:
        items = value if isinstance(value, list) else [value]
        return all(isinstance(x, plain) and (isinstance(x, bool | str | None) or abs(x) <= 65536) for x in items)

    return (
        not FACTORY & set(options)
        and all(isinstance(k, str) and k.isidentifier() for k in options)
        and all(fits(value) for value in options.values())
    )


def check_backbone(name: str) -> None:
    """Refuse a name, with or without a tag, that timm does not know.

    Raises:
        ConfigError: with the nearest name.
    """
    timm = load_timm()

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture) or "/" in name:
        near = suggestion(architecture, timm.list_models())
        hub = "; a repository on the Hugging Face Hub is written hf-hub:ORG/NAME" if "/" in name else ""
        raise ConfigError(f"model.backbone: timm has no model named {name!r}{near}{hub}")


def published(model: ModelConfig) -> Published:
    """Look up ``model.backbone`` and, when it is a tag, ``model.pretrained``.

    Raises:
        ConfigError: no such backbone, with the nearest name; no such tag, with those that there are; a repository on
            the hub that is not at hand or not in timm's format.
    """
    timm = load_timm()

    tag = model.pretrained if isinstance(model.pretrained, str) else None
    if model.backbone.startswith(HUB):
        if tag is not None:
            raise ConfigError(
                f"model.pretrained: expected true or false beside model.backbone={model.backbone}, which names its "
                f"weights itself, got {tag!r}"
            )
        return _on_hub(model.backbone)
    check_backbone(model.backbone)
    architecture, _, own = model.backbone.partition(".")
    if own and tag and own != tag:
        raise ConfigError(
            f"model.pretrained={tag}: model.backbone={model.backbone} names another tag; give one of them"
        )
    tag = own or tag
    known = [name.partition(".")[2] for name in timm.models.get_arch_pretrained_cfgs(architecture)]
    known = [name for name in known if name]
    if tag and tag not in known:
        key = "model.backbone" if own else "model.pretrained"
        raise ConfigError(
            f"{key}: timm has no weights {tag!r} of {architecture}; it has {', '.join(known) or 'none'}"
            f"{suggestion(tag, known)}"
        )
    name = f"{architecture}.{tag}" if tag else architecture
    cfg = timm.get_pretrained_cfg(name)
    settings = {} if cfg is None else cfg.to_dict()
    return Published(name, {}, settings, settings.get("hf_hub_id") or None)


def _on_hub(backbone: str) -> Published:
    """A repository in timm's format, by its ``config.json``."""
    timm = load_timm()

    repo = backbone.partition(":")[2]
    try:
        path, _ = hub_file(repo, ["config.json"])
    except NotAtHand as error:
        raise ConfigError(
            f"model.backbone: {backbone} is not at hand ({error}); fill the cache where there is a network with: hf "
            f"download {repo.partition('@')[0]}; or name a backbone that timm has itself"
        ) from None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        cfg = dict(told.get("pretrained_cfg", told))
        architecture, options = str(told["architecture"]), dict(told.get("model_args") or {})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ConfigError(
            f"model.backbone: {backbone} is not in timm's format (its config.json names no architecture)"
        ) from None
    if not timm.is_model(architecture):
        raise ConfigError(
            f"model.backbone: {backbone} is a {architecture}, which this timm ({timm.__version__}) does not know"
        )
    for key in ("num_classes", "pretrained_cfg"):
        options.pop(key, None)
    if options.pop("in_chans", 3) != 3 or not sound_options(options):
        raise ConfigError(
            f"model.backbone: {backbone} was saved with options that cannot be used here: {options!r:.200}; expected "
            "plain values of an architecture with 3 channels"
        )
    known = timm.models.PretrainedCfg.__dataclass_fields__
    cfg = {key: value for key, value in cfg.items() if key in known and key not in ("file", "state_dict", "source")}
    return Published(architecture, options, {**cfg, "num_classes": told.get("num_classes", 1000)}, repo)


def scale_of(data: DataConfig, cfg: dict[str, Any], place: str) -> PixelScale:
    """``data.mean``, ``data.std`` and ``data.interpolation``; what is null there comes from the backbone's settings.

    Args:
        data: the run's settings.
        cfg: ``Published.cfg``.
        place: the backbone's name, for messages.

    Raises:
        ConfigError: settings of other than three channels, of the run or of the backbone.
    """
    for name, given in (("mean", data.mean), ("std", data.std)):
        if given is not None and len(given) != 3:
            raise ConfigError(f"data.{name}: expected 3 numbers, of red, green and blue, got {len(given)}")
    mean = _numbers(data.mean or cfg.get("mean") or IMAGENET.mean)
    std = _numbers(data.std or cfg.get("std") or IMAGENET.std)
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError(
            f"model.backbone: {place} has pixels of mean {mean} and std {std}, expected three channels each; give "
            "data.mean and data.std, or take another backbone"
        )
    how = data.interpolation or cfg.get("interpolation", IMAGENET.interpolation)
    return PixelScale(
        tuple(map(float, mean)),
        tuple(map(float, std)),
        "bilinear" if how == "bilinear" else "bicubic",
    )


def _numbers(value: Any) -> tuple[float, ...]:
    """What a repository on the hub calls mean or std, as numbers; none of them when it is something else."""
    listed = value if isinstance(value, list | tuple) else ()
    return tuple(listed) if all(isinstance(one, int | float) for one in listed) else ()


def resolve_scale(config: Config, dataset: Dataset | None = None) -> PixelScale:
    """What the run's encoder expects of pixels: its backbone's published settings, or what ``data`` says instead; of
    named bands, what the training split is like.

    Args:
        config: the run's settings.
        dataset: what it is trained on; None = ``data.dir`` if the settings name bands, else plain RGB pictures.

    timm's ``crop_pct`` is not followed; ``augment.views.eval_transform`` says why.

    Raises:
        ConfigError: see ``published``, ``scale_of`` and ``band_scale``.
        DataError: see ``band_scale``.
    """
    cfg = published(config.model).cfg
    if dataset is None and config.data.bands is not None:
        dataset = open_dataset(config.data.dir, shards=config.data.reader == "indexed")
    if dataset is not None:
        how = config.data.interpolation or cfg.get("interpolation", IMAGENET.interpolation)
        own = band_scale(config.data, dataset, "bilinear" if how == "bilinear" else "bicubic")
        if own is not None:
            return own
    return scale_of(config.data, cfg, config.model.backbone)
