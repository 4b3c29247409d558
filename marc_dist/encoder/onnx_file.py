"""An encoder as an ONNX file that takes any number of pictures, compared with torch before anybody gets it."""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from marc_dist.config import ConfigError, LaunchError, first_line
from marc_dist.encoder.model import Encoder

BOUND = 1e-5
"""Largest difference of two unit vectors, number by number, between ONNX Runtime and torch, float32 on a CPU."""
NEEDED = ("onnx", "onnxscript", "onnxruntime")
PIXELS, VECTORS = "pixels", "vectors"
"""Names of the file's input, (B, C, S, S) normalised pixels, and of its output, (B, d) unit vectors."""
CHECKED = (1, 3, 4)
"""Numbers of pictures that it is compared with torch on."""


def check_onnx() -> None:
    """Whether the libraries that write and check ONNX are installed.

    Raises:
        ConfigError: names the one that is missing, and what installs it.
    """
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"--onnx: {name} is not installed; install it with: pip install 'marc-dist[onnx]'")


class _Searched(nn.Module):
    """(B, C, S, S) normalised pixels -> (B, d) unit vectors."""

    def __init__(self, encoder: Encoder, features: str) -> None:
        super().__init__()
        self.encoder, self.features = encoder, features

    def forward(self, pixels: Tensor) -> Tensor:
        found = self.encoder.searched(self.encoder.backbone(pixels), self.features)
        return nn.functional.normalize(found, dim=1)


def as_onnx(encoder: Encoder, features: str, num_bands: int, image_size: int) -> tuple[bytes, float]:
    """The file's bytes, float32, and by how much its vectors differ from torch's.

    Args:
        encoder: in evaluation mode; a float64 one is made float32.
        features: which vectors: backbone, hidden, projection, concat.
        num_bands: C, 3 for colours.
        image_size: S, side of the pictures; the file takes no other.

    Raises:
        ConfigError: ONNX is not installed, or has no such operation as this backbone needs.
        LaunchError: its vectors differ from torch's by more than ``BOUND``.
    """
    check_onnx()
    searched = _Searched(copy.deepcopy(encoder).float().cpu(), features).eval()
    rng = torch.Generator().manual_seed(0)
    shape = num_bands, image_size, image_size
    pixels = torch.randn(2, *shape, generator=rng)
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                searched,
                (pixels,),
                input_names=[PIXELS],
                output_names=[VECTORS],
                dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1)}},
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        data: bytes = program.model_proto.SerializeToString()
    except Exception as error:  # torch raises whatever comes up
        raise ConfigError(
            f"--onnx: {encoder.name} cannot be written as ONNX ({first_line(error)}); leave --onnx out"
        ) from None
    return data, _difference(data, searched, shape, rng)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's talk, which is about torch's own operators."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def onnx_vectors(data: bytes, pixels: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What ONNX Runtime makes of pixels on a CPU, with one thread: (B, C, S, S) -> (B, d)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([VECTORS], {PIXELS: pixels})[0])


def _difference(data: bytes, searched: _Searched, shape: tuple[int, int, int], rng: torch.Generator) -> float:
    worst = 0.0
    for num in CHECKED:
        pixels = torch.randn(num, *shape, generator=rng)
        pixels[0] = 0.0  # a plain picture
        with torch.inference_mode():
            wanted = searched(pixels).numpy()
        found = onnx_vectors(data, pixels.numpy())
        worst = max(worst, float(np.abs(found - wanted).max())) if np.isfinite(found).all() else float("inf")
    if worst > BOUND:
        raise LaunchError(
            f"model.onnx: expected unit vectors within {BOUND:g} of torch's, got a difference of {worst:.3g}; leave "
            "--onnx out"
        )
    return worst
