"""The encoder: a timm backbone and a projection head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from marc_dist.config import ConfigError, ModelConfig, first_line, user_path
from marc_dist.encoder.draws import Draws, KeyedDrop, key_layers
from marc_dist.encoder.fetching import fetched_by_rank_0_first
from marc_dist.encoder.norm import SyncBatchNorm, batch_norms, synchronise
from marc_dist.encoder.published import Published, published
from marc_dist.encoder.weights import (
    WeightsSource,
    fill_from_package,
    load_backbone,
    obtain,
    refuse_broken_weights,
    refuse_code,
)
from marc_dist.torch_imports import load_timm


class Head(nn.Sequential):
    """The projection head: features -> (x - mean) / std -> one linear layer, or two with a ReLU between them.

    ``mean`` and ``std`` leave features as they are until ``standardise`` sets them: once, before training, from the
    features of a frozen backbone. They are part of the head's weights and never learnt.

    Args:
        width: F, numbers of a feature vector.
        hidden: width of the hidden layer; 0 = one linear layer.
        dim: D, numbers of a projection.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, hidden: int, dim: int) -> None:
        sizes = [width, hidden, dim] if hidden else [width, dim]
        layers: list[nn.Module] = [nn.Linear(sizes[0], sizes[1])]
        layers += [nn.ReLU(), nn.Linear(hidden, dim)] if hidden else []
        super().__init__(*layers)
        self.width, self.hidden, self.dim = width, hidden, dim
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Weights of a run before heads had ``mean`` and ``std`` leave features as they are."""
        state_dict.setdefault(f"{prefix}mean", torch.zeros(self.width))
        state_dict.setdefault(f"{prefix}std", torch.ones(self.width))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def standardise(self, mean: Tensor, std: Tensor) -> None:
        """Bring features of these (F,) means and deviations to mean 0 and deviation 1 from now on."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def both(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F) features -> (B, hidden) after the ReLU, none without a hidden layer, and (B, D) projection."""
        x = (features - self.mean) / self.std
        if not self.hidden:
            return x[:, :0], self[0](x)
        hidden = self[1](self[0](x))
        return hidden, self[2](hidden)

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) features -> (B, D) projection, not normalised."""
        return self.both(features)[1]


class Encoder(nn.Module):
    """images -> (features of the backbone, projection that the loss sees); neither is normalised.

    Images have C channels: 3 colours, or the bands that ``encoder.json`` names.

    A rank without rows still takes part: it runs one blank image through the network as a listener (no statistics, no
    gradient), so that every collective inside is met whatever the backbone does with empty tensors.

    Args:
        backbone: a timm model without classifier; parts that ``config.freeze`` names stop learning.
        num_features: F, numbers of the backbone's feature vector.
        config: sizes of the head, batch norm, what is frozen, what is dropped before the head.
        create: the options that ``timm.create_model`` made the backbone with; ``encoder.json`` keeps them.
    """

    def __init__(self, backbone: nn.Module, num_features: int, config: ModelConfig, create: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_features = num_features
        self.head = Head(num_features, config.head_hidden, config.head_dim)
        self.frozen = config.norm == "frozen"
        self.name = config.backbone  # as plain timm knows it
        self.origin = ""  # where its first weights come from, for people
        self.create = create  # what timm.create_model was given, for encoder.json
        self.compiled_rows: int | None = None  # see ``compiled``
        learnt = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
        self.frozen_parts = freeze(backbone, config.freeze)
        frozen = [parameter for parameter in learnt if not parameter.requires_grad]
        self.to_thaw = [] if config.thaw_after is None else frozen  # they learn after ``thaw``
        self.draws = Draws()  # the keys of the rows that pass through, for the layers that drop something
        key_layers(backbone, self.draws)
        self.drop = KeyedDrop(self.draws, 0, config.drop_rate, None)

    def thaw(self) -> None:
        """Let what ``model.freeze`` has taken out of training learn from now on."""
        for parameter in self.to_thaw:
            parameter.requires_grad_(True)
        self.to_thaw, self.frozen_parts = [], []
        self.train(self.training)

    def train(self, mode: bool = True) -> Encoder:
        """Switch training mode; frozen batch norms and frozen parts stay as they are in evaluation."""
        super().train(mode)
        if self.frozen:
            for norm in batch_norms(self):
                norm.eval()
        for part in self.frozen_parts:
            self.backbone.get_submodule(part).eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, S, S) normalised pixels -> (B, num_features), (B, head_dim); B may be zero."""
        if images.shape[0] == 0:
            return self._listen(images)
        features = self._extract(images)
        return features, self.head(self.drop(features))

    def features(self, images: Tensor) -> Tensor:
        """(B, C, S, S) normalised pixels -> (B, num_features) of the backbone; outside of training.

        Channels last: convolutions run fastest so, on CPUs and GPUs.
        """
        return self._extract(images.contiguous(memory_format=torch.channels_last))

    def _extract(self, images: Tensor) -> Tensor:
        if self.compiled_rows is None:
            return cast(Tensor, self.backbone(images))
        whole = self.training and images.shape[0] == self.compiled_rows
        with torch.compiler.set_stance("default" if whole else "force_eager"):
            return cast(Tensor, self.backbone(images))

    def searched(self, features: Tensor, what: str) -> Tensor:
        """The vectors that are searched.

        Args:
            features: (B, num_features) of the backbone.
            what: ``eval.features``.

        Returns:
            (B, ``searched_width(what)``); of ``concat``, the three vectors divided by their lengths, side by side.
        """
        if what == "backbone":
            return features
        hidden, projection = self.head.both(features)
        if what != "concat":
            return hidden if what == "hidden" else projection
        parts = [part for part in (features, hidden, projection) if part.shape[1]]
        return torch.cat([nn.functional.normalize(part, dim=1) for part in parts], dim=1)

    def searched_width(self, what: str) -> int:
        """Numbers of a vector that is searched.

        Raises:
            ConfigError: the head has no such layer.
        """
        widths = {"backbone": self.num_features, "hidden": self.head.hidden, "projection": self.head.dim}
        if what == "hidden" and not self.head.hidden:
            raise ConfigError("eval.features=hidden: the head of this encoder has no hidden layer; use projection")
        return sum(widths.values()) if what == "concat" else widths[what]

    def _listen(self, images: Tensor) -> tuple[Tensor, Tensor]:
        modes = [(module, module.training) for module in self.modules()]
        training = self.training
        for module, _ in modes:
            module.training = isinstance(module, SyncBatchNorm) and module.training
            if isinstance(module, SyncBatchNorm):
                module.live = False
        try:
            features = self._extract(images.new_zeros((1, *images.shape[1:])))
            projection = self.head(features)
        finally:
            for module, mode in modes:
                module.training = mode
                if isinstance(module, SyncBatchNorm):
                    module.live = True
            self.training = training
        return features[:0], projection[:0]


class Learner(nn.Module):
    """What a loss trains: the encoder, and for ``msc`` one learnable prototype a label.

    Both go through one forward, so that data-parallel averaging treats the prototypes like any other parameter. A
    learner of a frozen backbone takes the backbone's features in place of pictures.

    Args:
        encoder: backbone and head.
        num_prototypes: L, the number of labels; 0 = no prototypes.
        dim: D, numbers of a prototype and of a projection.
        seed: of the prototypes' random start.
        on_features: the backbone is frozen: ``forward`` takes its features, and only the head learns.
        head_only: it stays so to the end.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_prototypes: int,
        dim: int,
        seed: int,
        *,
        on_features: bool = False,
        head_only: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.on_features, self.head_only = on_features, head_only
        self.prototypes: nn.Parameter | None = None
        if num_prototypes:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.prototypes = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_prototypes, dim)))

    @property
    def trained(self) -> nn.Module:
        """The part of the encoder that changes, and that checkpoints hold: all of it, or the head."""
        return self.encoder.head if self.head_only else self.encoder

    def thaw(self) -> None:
        """Take pictures from now on, and let everything learn."""
        self.on_features = False
        self.encoder.thaw()

    def no_weight_decay(self) -> set[str]:
        """Prototypes are normalised: decay would only change their learning rate."""
        return {"prototypes"}

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, S, S) pixels, or (B, F) features -> (B, head_dim) projection, and the (L, head_dim) prototypes."""
        projection: Tensor = self.encoder.head(inputs) if self.on_features else self.encoder(inputs)[1]
        return projection, None if self.prototypes is None else self.prototypes.clone()


def freeze(backbone: nn.Module, what: str | Sequence[str]) -> list[str]:
    """Take parts of a backbone out of training: no gradients, batch norms on their running statistics.

    Args:
        backbone: changed in place.
        what: ``model.freeze``: none, backbone, or names of modules inside.

    Returns:
        Names of the frozen modules; the empty name is the whole backbone.

    Raises:
        ConfigError: no such part; names the parts that there are.
    """
    names = {"none": [], "backbone": [""]}[what] if isinstance(what, str) else list(what)
    known = {name for name, _ in backbone.named_modules()}
    for name in names:
        if name not in known:
            parts = ", ".join(
                child for child, module in backbone.named_children() if any(True for _ in module.parameters())
            )
            raise ConfigError(f"model.freeze: the backbone has no part {name!r}; it has {parts}, and parts of these")
        backbone.get_submodule(name).requires_grad_(False)
    return names


def _create(
    weights: Published, image_size: int | None, source: WeightsSource | None, drop_path: float | None, in_chans: int
) -> tuple[nn.Module, dict[str, Any]]:
    """A headless timm model that takes ``image_size``, and the options that made it, save stochastic depth.

    Models of fixed input size (ViT, Swin) are asked to adapt while they keep the published shapes of their weights,
    else to be built for the size. Stochastic depth has no weights: who reads the result needs no such option. Of other
    than 3 channels, timm adapts the first layer's published weights: repeated over the channels and scaled, so that
    equal channels give what equal colours gave.
    """
    timm = load_timm()

    options: list[dict[str, Any]] = [{}]
    if image_size is not None and weights.cfg.get("fixed_input_size"):
        options = [{"dynamic_img_size": True}, {"img_size": image_size}, {}]
        if tuple(weights.cfg["input_size"][1:]) == (image_size, image_size):
            options = [{}]
    depth = {} if drop_path is None else {"drop_path_rate": drop_path}
    loading: dict[str, Any] = {}
    if source is not None and not source.package:
        refuse_code(source.path)
        loading = {"pretrained": True, "pretrained_cfg": {**weights.cfg, "file": str(source.path)}}
    channels = {} if in_chans == 3 else {"in_chans": in_chans}
    for option in options:
        create = {**weights.options, "num_classes": 0, **option, **channels}
        try:
            return timm.create_model(weights.name, **loading, **{**create, **depth}), create
        except TypeError as error:  # this architecture does not know the option
            if option is options[-1]:
                if "drop_path_rate" in str(error):
                    raise _no_stochastic_depth(drop_path, weights.name) from None
                raise
        except Exception as error:
            if source is None:
                raise
            raise ConfigError(
                f"model.pretrained: {source.path} is not the published weights of {weights.name} "
                f"({first_line(error)}); delete it to fetch it again, or give a file with model.weights"
            ) from None
    raise AssertionError("unreachable")


def _no_stochastic_depth(drop_path: float | None, name: str) -> ConfigError:
    return ConfigError(
        f"model.drop_path={drop_path}: {name} has no stochastic depth; leave it null, or take another model.backbone"
    )


def build_encoder(
    config: ModelConfig,
    seed: int,
    image_size: int | None = None,
    tick: Callable[[], None] = lambda: None,
    in_chans: int = 3,
) -> Encoder:
    """The encoder before training; equal settings and seed give equal weights anywhere.

    A collective when published weights are wanted: rank 0 fetches them before the others look for them.

    Args:
        config: backbone, head, batch norm and where the first weights come from.
        seed: of the random weights; the process's own generator is left untouched.
        image_size: side of the images, pixels; needed by backbones of fixed input size.
        tick: called now and then while published weights arrive, on every rank.
        in_chans: C, channels of a picture.

    Raises:
        ConfigError: unknown backbone, weights that do not fit or are not at hand.
    """
    source: WeightsSource | None = None
    if config.pretrained and config.weights is None:
        weights, source = fetched_by_rank_0_first(lambda moved: _obtained(config, moved), tick)
    else:
        weights = published(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drop_path = None if config.head_only else config.drop_path
        backbone, create = _create(weights, image_size, source, drop_path, in_chans)
        width = int(getattr(backbone, "head_hidden_size", None) or cast(int, backbone.num_features))
        encoder = Encoder(backbone, width, config, create)
    if drop_path and not any(isinstance(module, KeyedDrop) for module in backbone.modules()):
        raise _no_stochastic_depth(drop_path, weights.name)
    encoder.name, encoder.origin = weights.name, f"random, seed {seed}"
    if config.weights is not None:
        encoder.origin = load_backbone(backbone, user_path(config.weights))
    elif source is not None:
        encoder.origin = source.words
        if in_chans != 3:
            encoder.origin += f", first layer adapted to {in_chans} bands as timm does"
        if source.package:
            fill_from_package(backbone, source.path)
        refuse_broken_weights(backbone.state_dict(), f"model.pretrained: {source.path}")
    if config.norm == "sync" and not config.head_only:
        synchronise(encoder)
    return encoder.train()


def _obtained(config: ModelConfig, moved: Callable[[], None]) -> tuple[Published, WeightsSource]:
    weights = published(config)
    return weights, obtain(weights, moved)
