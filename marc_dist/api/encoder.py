"""Trained encoders in anybody's code: load one, embed pictures with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from marc_dist.api.arrays import check_path
from marc_dist.api.dataset import ShardDataset
from marc_dist.augment.views import PixelScale, eval_transform
from marc_dist.config import Config, DataError, EvalConfig, load_config, user_path
from marc_dist.data.bands.query import read_band_query
from marc_dist.data.decode import read_any
from marc_dist.data.loader import iter_eval
from marc_dist.encoder import export
from marc_dist.encoder.model import Encoder
from marc_dist.metrics import Float
from marc_dist.metrics.arguments import check_choice, check_k
from marc_dist.retrieval.exact import Float32, exact_unit

Picture = str | Path | Image.Image
FEATURES = get_args(EvalConfig.model_fields["features"].annotation)


@dataclass(frozen=True)
class Transform:
    """A PIL picture -> (3, S, S) float32 as the encoder sees it: the whole picture as a square, normalised.

    Of an encoder of bands: a (H, W, C) array of the files' values, bands in the encoder's order -> (C, S, S).

    Attributes:
        image_size: S.
        scale: mean, standard deviation, and how pictures are resized.
    """

    image_size: int
    scale: PixelScale

    def __call__(self, picture: Image.Image | NDArray[Any]) -> Tensor:
        """Pictures of other modes than RGB are converted.

        Raises:
            ValueError: of an encoder of bands, something else than an array of them; of another one, an array.
        """
        bands = self.scale.bands
        if bands is not None:
            if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != len(bands.names):
                got = getattr(picture, "shape", type(picture).__name__)
                raise ValueError(
                    f"picture: expected an array (H, W, C) of the bands {', '.join(bands.names)}, got {got}"
                )
            if picture.dtype.name != bands.dtype:
                raise ValueError(f"picture: expected {bands.dtype}, got {picture.dtype.name}")
            return eval_transform(picture, self.image_size, self.scale)
        if isinstance(picture, np.ndarray):
            raise ValueError("picture: expected a PIL picture; this encoder takes red, green and blue")
        rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
        return eval_transform(rgb, self.image_size, self.scale)


class ImageEncoder(nn.Module):
    """A trained encoder: (B, C, S, S) pixels of ``transform`` -> (B, d) unit vectors. Made by ``load_encoder``.

    Gradients flow, so it may be trained on; it comes in evaluation mode.

    Args:
        encoder: backbone and head, as ``encoder.export.load_encoder`` reads them.
        info: what it reads beside them, the content of ``encoder.json``.
        features: which vectors to give: backbone, hidden, projection, concat.

    Attributes:
        encoder: backbone and head.
        features: which vectors it gives: backbone, hidden, projection, concat.
        transform: what it expects of a picture.
        classes: labels of its training data.
        dim: d.
        info: what ``encoder.json`` says: backbone, image size, training data, step, ...
    """

    def __init__(self, encoder: Encoder, info: dict[str, Any], features: str) -> None:
        super().__init__()
        self.encoder, self.features, self.info = encoder, features, info
        self.transform = Transform(info["image_size"], export.pixel_scale(info))
        self.classes: tuple[str, ...] = tuple(info.get("classes", ()))
        self.dim = encoder.searched_width(features)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, d), each of length 1."""
        found = self.encoder.searched(self.encoder.features(pixels), self.features)
        return nn.functional.normalize(found, dim=1)


def load_encoder(path: str | Path, *, features: str | None = None, device: str | torch.device = "cpu") -> ImageEncoder:
    """The encoder that a run wrote, in evaluation mode.

    Args:
        path: a run folder or an exported one, or the ``.safetensors`` in it; or ``hf-hub:ORG/NAME``, an exported one
            on the Hugging Face Hub.
        features: which vectors: backbone, hidden, projection, concat; None = the run's own ``eval.features``.
        device: where it shall run.

    Raises:
        DataError: no encoder there, a damaged one, or one of another format.
        ValueError: a path that is none, no such features, or an encoder without a hidden layer.
    """
    check_path(path)
    encoder, info = export.load_encoder(path)
    if features is None:
        file = export.encoder_home(path) / "config.yaml"
        features = (load_config(file) if file.is_file() else Config()).eval.features
        features = str(info.get("features", features))
    check_choice("features", features, FEATURES)
    if features == "hidden" and not encoder.head.hidden:
        raise ValueError("features: hidden: this encoder's head has no hidden layer; use projection")
    return ImageEncoder(encoder, info, features).to(device).eval()


class _Pictures(TorchDataset[Tensor]):
    """Pictures and paths, decoded one by one."""

    def __init__(self, pictures: Sequence[Picture], transform: Transform) -> None:
        self.pictures, self.transform = pictures, transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, item: int) -> Tensor:
        picture = self.pictures[item]
        if not isinstance(picture, Image.Image):
            bands, path = self.transform.scale.bands, user_path(picture)
            if bands is not None:
                return self.transform(read_band_query(path, bands).values)
            picture = read_any(path, self.transform.image_size).image
        return self.transform(picture)


def embed(
    encoder: ImageEncoder, pictures: ShardDataset | Sequence[Picture], *, batch: int = 256, num_workers: int = 0
) -> Float32:
    """Unit vectors of pictures, (n, d) float32, in their order: what ``search`` and ``retrieval_metrics`` take.

    The vectors of a data set are those of ``marc-eval`` with the same ``eval.batch``, device and torch, bit for bit. An
    encoder is put into evaluation mode for it, and back.

    Args:
        encoder: of ``load_encoder``; runs where it is.
        pictures: of ``open_dataset`` (its own transform is passed over), or a list of PIL pictures and paths, of any
            size and kind.
        batch: pictures a forward pass.
        num_workers: processes that decode; 0 = this one.

    Raises:
        ValueError: no encoder of ``load_encoder``, ``batch`` below 1, ``num_workers`` below 0, or
            something that is no picture in the list.
        DataError: a picture that cannot be read, or vectors that are not finite; names it.
    """
    if not isinstance(encoder, ImageEncoder):
        raise ValueError(f"encoder: expected what load_encoder gives, got {type(encoder).__name__}")
    check_k(batch, "batch")
    if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 0:
        raise ValueError(f"num_workers: expected a whole number of 0 or more, got {num_workers!r:.60}")
    if not isinstance(pictures, ShardDataset):
        _check(pictures)
    parameter, modes = next(encoder.parameters()), [(module, module.training) for module in encoder.modules()]
    parts = [np.empty((0, encoder.dim), dtype=np.float32)]
    encoder.eval()
    try:
        with torch.inference_mode():
            for pixels in _batches(encoder, pictures, batch, num_workers):
                features = encoder.encoder.features(pixels.to(parameter.device, parameter.dtype))
                found: Float = encoder.encoder.searched(features, encoder.features).float().cpu().numpy()
                _refuse_not_finite(found, pictures, sum(map(len, parts)))
                parts.append(exact_unit(found))
    finally:
        for module, mode in modes:
            module.training = mode
    return np.concatenate(parts)


def _check(pictures: Any) -> None:
    if isinstance(pictures, str | Path | Image.Image) or not isinstance(pictures, Sequence):
        raise ValueError(
            f"pictures: expected open_dataset(...) or a list of PIL pictures and paths, got {type(pictures).__name__}"
        )
    for at, picture in enumerate(pictures):
        if not isinstance(picture, str | Path | Image.Image):
            raise ValueError(f"pictures: expected PIL pictures and paths, got {type(picture).__name__} at place {at}")


def _batches(
    encoder: ImageEncoder, pictures: ShardDataset | Sequence[Picture], batch: int, num_workers: int
) -> Iterator[Tensor]:
    size, scale = encoder.transform.image_size, encoder.transform.scale
    if isinstance(pictures, ShardDataset):
        crc = pictures.verify_crc
        for pixels, _ in iter_eval(pictures.index, pictures.ids, size, scale, batch, num_workers, crc):
            yield pixels
    else:
        yield from DataLoader(_Pictures(pictures, encoder.transform), batch, num_workers=num_workers)


def _refuse_not_finite(found: Float, pictures: ShardDataset | Sequence[Picture], start: int) -> None:
    wrong = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(wrong):
        at = start + int(wrong[0])
        one = pictures.keys[at] if isinstance(pictures, ShardDataset) else pictures[at]
        name = one if isinstance(one, str | Path) else f"picture {at}"
        raise DataError(f"{name}: its vector is not finite; check whether the training diverged")
