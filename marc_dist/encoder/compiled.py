"""torch.compile of the backbone, for passes of one size; all others run as they are."""

from __future__ import annotations

import os
import shutil

import torch

from marc_dist import comm
from marc_dist.config import ConfigError, first_line
from marc_dist.encoder.model import Encoder
from marc_dist.encoder.norm import SyncBatchNorm
from marc_dist.encoder.weights import rank_0_first


def compile_backbone(encoder: Encoder, rows: int) -> None:
    """Compile the backbone where it trains on ``rows`` pictures; weights and their names stay. See ``check_compile``.

    One size, known before the run begins: each other (the last batch of an epoch, validation) would be compiled for
    minutes, and code for several sizes depends on which came first, so that a resumed run would round in another way.

    Args:
        encoder: changed in place.
        rows: of this rank's whole batches.

    """
    encoder.backbone.compile(dynamic=False)
    encoder.compiled_rows = rows


def check_compile(encoder: Encoder, device: torch.device) -> None:
    """Whether the backbone can be compiled, before anything is trained. A collective.

    Raises:
        ConfigError: batch norms that several ranks share, or nothing to compile with.
    """
    if comm.world() > 1 and any(isinstance(module, SyncBatchNorm) for module in encoder.backbone.modules()):
        raise ConfigError(
            f"train.compile: the batch norms of {encoder.name} exchange statistics between the ranks, and nothing is "
            "gained between two exchanges; set model.batch_norm=frozen or train.compile=false"
        )
    rank_0_first(lambda: try_compiler(device))


def try_compiler(device: torch.device) -> None:
    """Compile one addition, and run it.

    Raises:
        ConfigError: it fails; names the reason and the remedy.
    """
    needs = "a C++ compiler (apt-get install g++, or CXX=PATH)" if device.type == "cpu" else "Triton and a C compiler"
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:  # before torch looks, which may have kept a result
        raise ConfigError(f"train.compile: no {compiler} here; torch.compile needs {needs}; or set train.compile=false")
    try:
        torch.compile(lambda x: x + 1, dynamic=False)(torch.zeros(8, device=device))
    except Exception as error:  # torch raises whatever comes up
        raise ConfigError(
            f"train.compile: torch.compile does not work here ({first_line(error)}); it needs {needs}; or set "
            "train.compile=false"
        ) from None
