"""What safety costs: a durable checkpoint, a comparison of weights over ranks, the checksum of a decoded picture.

    python benchmarks/robust_cost.py

Prints milliseconds, MB/s and shares of a step or of a picture's work; one process, this machine's temporary folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from marc_dist.augment.batched import apply_batch
from marc_dist.augment.views import IMAGENET, draw
from marc_dist.config import AugmentConfig, ModelConfig
from marc_dist.encoder.model import Learner, build_encoder
from marc_dist.training.checkpoint import save_checkpoint
from marc_dist.training.digest import Common, sums
from marc_dist.training.memory import Memory

BACKBONES = {"EfficientNet-Lite0": "tf_efficientnet_lite0", "ViT-B/16": "vit_base_patch16_224"}
CPU = torch.device("cpu")
SIDE = 224


def median_s(work: Callable[[], Any], rounds: int = 5) -> float:
    """Median seconds of some rounds, after one that does not count."""
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def parts(backbone: str) -> tuple[Learner, torch.optim.Optimizer]:
    """An encoder and AdamW after one step, as a run has them."""
    encoder = build_encoder(ModelConfig(backbone=backbone, pretrained=False), 0, SIDE)
    learner = Learner(encoder, 0, 128, 0)
    optimiser = torch.optim.AdamW(learner.parameters())
    for parameter in learner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    return learner, optimiser


def save_cost(learner: Learner, optimiser: torch.optim.Optimizer, folder: Path) -> dict[str, float]:
    """A durable save: checksum, temporary file, fsync, rename."""
    payload = {"model": learner.trained.state_dict(), "optimiser": optimiser.state_dict()}
    numbers = iter(range(1, 1000))
    size = 0

    def save() -> None:
        nonlocal size
        size = save_checkpoint(folder, next(numbers), payload, 1).stat().st_size

    seconds = median_s(save)
    return {"save_ms": 1e3 * seconds, "save_MB": size / 1e6, "save_MB_per_s": size / 1e6 / seconds}


def digest_cost(learner: Learner, optimiser: torch.optim.Optimizer) -> dict[str, float]:
    """The sums of ``train.digest_every`` on this device, without the exchange of a few kilobytes."""
    common = Common(learner, optimiser, None, Memory(0, 128, 1, torch.float32, CPU))
    return {"digest_ms": 1e3 * median_s(lambda: sums(common.tensors(), CPU))}


def picture_cost() -> dict[str, float]:
    """CRC-32 of a decoded picture, beside the augmentation of its two views on one thread."""
    torch.set_num_threads(1)
    num = 16
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, SIDE, SIDE, 3), dtype=np.uint8))
    sizes = torch.full((num, 2), SIDE, dtype=torch.int32)
    views = [
        draw(AugmentConfig(), seed=0, epoch=0, sample=sample, view=view) for view in range(2) for sample in range(num)
    ]
    rows = [*range(num)] * 2

    def augment() -> None:
        apply_batch(pixels.permute(0, 3, 1, 2), sizes, views, SIDE, IMAGENET, rows=rows)

    one = pixels[0].numpy()
    crc, work = median_s(lambda: zlib.crc32(one.data), 50), median_s(augment) / num
    return {"crc_us": 1e6 * crc, "augment_us": 1e6 * work, "share": crc / work}


def main() -> None:
    """Print everything as JSON lines."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(json.dumps({"what": "picture of 224 x 224, two views", **picture_cost()}))
    for name, backbone in BACKBONES.items():
        learner, optimiser = parts(backbone)
        with tempfile.TemporaryDirectory() as folder:
            found = save_cost(learner, optimiser, Path(folder))
        print(json.dumps({"what": name, **found, **digest_cost(learner, optimiser)}), flush=True)


if __name__ == "__main__":
    main()
