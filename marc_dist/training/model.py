"""The encoder: a timm backbone and a projection head."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from marc_dist.config import ConfigError, ModelConfig, user_path
from marc_dist.config.suggest import suggestion
from marc_dist.training.norm import SyncBatchNorm, batch_norms, synchronise


class Encoder(nn.Module):
    """images -> (features of the backbone, projection that the loss sees); neither is normalised.

    A rank without rows still takes part: it runs one blank image through the network as a listener (no statistics, no
    gradient), so that every collective inside is met whatever the backbone does with empty tensors.
    """

    def __init__(self, backbone: nn.Module, num_features: int, config: ModelConfig, create: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_features = num_features
        self.head = make_head(num_features, config.head_hidden, config.head_dim)
        self.frozen = config.batch_norm == "frozen"
        self.create = create  # what timm.create_model was given, for encoder.json

    def train(self, mode: bool = True) -> Encoder:
        """Switch training mode; frozen batch norms stay on their running statistics."""
        super().train(mode)
        if self.frozen:
            for norm in batch_norms(self):
                norm.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) normalised pixels -> (B, num_features), (B, head_dim); B may be zero."""
        if images.shape[0] == 0:
            return self._listen(images)
        features = self.backbone(images)
        return features, self.head(features)

    def _listen(self, images: Tensor) -> tuple[Tensor, Tensor]:
        modes = [(module, module.training) for module in self.modules()]
        training = self.training
        for module, _ in modes:
            module.training = isinstance(module, SyncBatchNorm) and module.training
            if isinstance(module, SyncBatchNorm):
                module.live = False
        try:
            features = self.backbone(images.new_zeros((1, *images.shape[1:])))
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

    Both go through one forward, so that data-parallel averaging treats the prototypes like any other parameter.
    """

    def __init__(self, encoder: Encoder, num_prototypes: int, dim: int, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.prototypes: nn.Parameter | None = None
        if num_prototypes:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.prototypes = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_prototypes, dim)))

    def no_weight_decay(self) -> set[str]:
        """Prototypes are normalised: decay would only change their learning rate."""
        return {"prototypes"}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, S, S) -> (B, head_dim) projection, not normalised, and the (L, head_dim) prototypes as they are."""
        projection: Tensor = self.encoder(images)[1]
        return projection, None if self.prototypes is None else self.prototypes.clone()


def make_head(width: int, hidden: int, dim: int) -> nn.Module:
    """The projection head: one linear layer, or two with ``hidden`` units between them."""
    if hidden == 0:
        return nn.Sequential(nn.Linear(width, dim))
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, dim))


def check_backbone(name: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        ConfigError: with the nearest name.
    """
    import timm

    if not timm.is_model(name):
        near = suggestion(name.split(".")[0], timm.list_models())
        raise ConfigError(f"model.backbone: timm has no model named {name!r}{near}")


def _create(name: str, image_size: int | None, pretrained: bool) -> tuple[nn.Module, dict[str, Any]]:
    """A headless timm model that takes ``image_size``, and the options that made it.

    Models of fixed input size (ViT, Swin) are asked to adapt while they keep the published shapes of their weights,
    else to be built for the size.
    """
    import timm

    check_backbone(name)
    options: list[dict[str, Any]] = [{}]
    settings = timm.get_pretrained_cfg(name)
    if image_size is not None and settings is not None and settings.fixed_input_size:
        options = [{"dynamic_img_size": True}, {"img_size": image_size}, {}]
        if tuple(settings.input_size[1:]) == (image_size, image_size):
            options = [{}]
    for option in options:
        create = {"num_classes": 0, **option}
        try:
            return timm.create_model(name, pretrained=pretrained, **create), create
        except TypeError:  # this architecture does not know the option
            if option is options[-1]:
                raise
        except Exception as error:
            if not pretrained:
                raise
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"model.pretrained: the published weights of {name} are not at hand ({first}); fill the local cache of "
                "Hugging Face first, or give a file with model.weights"
            ) from None
    raise AssertionError("unreachable")


def build_encoder(config: ModelConfig, seed: int, image_size: int | None = None) -> Encoder:
    """The encoder before training; equal settings and seed give equal weights anywhere.

    Args:
        config: backbone, head, batch norm and where the first weights come from.
        seed: of the random weights; the process's own generator is left untouched.
        image_size: side of the images, pixels; needed by backbones of fixed input size.

    Raises:
        ConfigError: unknown backbone, weights that do not fit or are not at hand.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone, create = _create(config.backbone, image_size, config.pretrained and config.weights is None)
        width = int(getattr(backbone, "head_hidden_size", None) or cast(int, backbone.num_features))
        encoder = Encoder(backbone, width, config, create)
    if config.weights is not None:
        load_backbone(backbone, user_path(config.weights))
    if config.batch_norm == "sync":
        synchronise(encoder)
    return encoder.train()


def load_backbone(backbone: nn.Module, path: Path) -> None:
    """Fill a backbone from a .safetensors file: ours, timm's (without its classifier) or with ``backbone.`` keys.

    Raises:
        ConfigError: no such file, not safetensors, or tensors that do not fit; names the first of them.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise ConfigError(f"model.weights: {path}: no such file")
    try:
        state = load_file(path)
    except Exception as error:  # safetensors raises whatever comes up
        raise ConfigError(f"model.weights: {path}: not a readable .safetensors file ({error})") from None
    if any(key.startswith("backbone.") for key in state):
        state = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    classifier = (getattr(backbone, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    own = backbone.state_dict()
    state = {
        key: value for key, value in state.items() if key in own or not key.startswith(tuple(f"{h}." for h in heads))
    }
    strange = sorted(set(own) ^ set(state))
    if strange:
        side = "missing in the file" if strange[0] in own else "not in the backbone"
        raise ConfigError(
            f"model.weights: {path}: another backbone; {strange[0]} is {side} ({len(strange)} such tensors)"
        )
    for key, value in own.items():
        if value.shape != state[key].shape:
            got, expected = tuple(state[key].shape), tuple(value.shape)
            raise ConfigError(f"model.weights: {path}: {key} has shape {got}, the backbone needs {expected}")
    backbone.load_state_dict(state, strict=True)
