"""What safety costs: a durable checkpoint, a comparison of weights over ranks, the checksum of a decoded picture.

    python benchmarks/robust_cost.py [--samples 32] [--rounds 5]

Prints, as JSON lines, times, MB/s, shares of a step or of a picture's work, and the smallest ``train.digest_every``
that costs less than 0.5 % of the training. One process with one thread, this machine's temporary folder. ``_ms`` is
time on the clock, ``_cpu_ms`` that of the processor: the one to read where other work shares the cores. A step takes
no loader: where a run waits for one, the shares are smaller.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from marc_dist.augment.batched import apply_batch
from marc_dist.augment.views import IMAGENET, draw
from marc_dist.config import AugmentConfig, LossConfig, ModelConfig
from marc_dist.encoder.model import Learner, build_encoder
from marc_dist.objective import objective
from marc_dist.training.checkpoint import save_checkpoint
from marc_dist.training.digest import Common, Comparison, sums
from marc_dist.training.memory import Memory

BACKBONES = {"EfficientNet-Lite0": "tf_efficientnet_lite0", "ViT-B/16": "vit_base_patch16_224"}
CPU = torch.device("cpu")
SIDE = 224
LIMIT = 0.005
"""Share of the training time that a check which is always on may cost."""


class Taken(NamedTuple):
    """Seconds on the clock and of the processor."""

    wall: float
    cpu: float

    def row(self, name: str) -> dict[str, float]:
        """In milliseconds."""
        return {f"{name}_ms": round(1e3 * self.wall, 3), f"{name}_cpu_ms": round(1e3 * self.cpu, 3)}


def median(work: Callable[[], Any], rounds: int = 5) -> Taken:
    """Medians over some rounds, after one that does not count."""
    taken = []
    for _ in range(rounds + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        taken.append(Taken(time.perf_counter() - wall, time.process_time() - cpu))
    return Taken(*(statistics.median(one) for one in zip(*taken[1:], strict=True)))


def parts(backbone: str, side: int = SIDE) -> tuple[Learner, torch.optim.Optimizer]:
    """An encoder and AdamW after one step, as a run has them."""
    encoder = build_encoder(ModelConfig(backbone=backbone, pretrained=False), 0, side)
    learner = Learner(encoder, 0, 128, 0)
    optimiser = torch.optim.AdamW(learner.parameters())
    for parameter in learner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    return learner, optimiser


def save_cost(learner: Learner, optimiser: torch.optim.Optimizer, folder: Path, rounds: int) -> dict[str, float]:
    """A durable save: checksum, temporary file, fsync, rename."""
    payload = {"model": learner.trained.state_dict(), "optimiser": optimiser.state_dict()}
    numbers = iter(range(1, 1000))
    size = 0

    def save() -> None:
        nonlocal size
        size = save_checkpoint(folder, next(numbers), payload, 1).stat().st_size

    taken = median(save, rounds)
    return {**taken.row("save"), "save_MB": round(size / 1e6, 1), "save_MB_per_s": round(size / 1e6 / taken.wall, 1)}


def digest_cost(learner: Learner, optimiser: torch.optim.Optimizer, rounds: int) -> tuple[Taken, dict[str, float]]:
    """A step that is compared: sums before and after it, and a copy of the state; without exchanging some kilobytes."""
    common = Common(learner, optimiser, None, Memory(0, 128, 1, torch.float32, CPU))
    comparison = Comparison(lambda: common, CPU)
    added, kept = median(lambda: sums(common.tensors(), CPU), rounds), median(comparison.keep, rounds)
    both = Taken(2 * added.wall + kept.wall, 2 * added.cpu + kept.cpu)
    return both, {**added.row("sums"), **kept.row("copy"), **both.row("digest")}


def step_cost(learner: Learner, optimiser: torch.optim.Optimizer, samples: int, side: int, rounds: int) -> Taken:
    """A training step: two views of each sample through the encoder, MACL, backward, AdamW."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2 * samples, 3, side, side, generator=generator)
    labels = (torch.rand(samples, 17, generator=generator) < 0.2).float().repeat(2, 1)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        z = F.normalize(learner(images)[0])
        parts = objective(z, z, labels, labels, first=0, settings=LossConfig())
        (parts.sum / parts.count.clamp(min=1)).backward()
        optimiser.step()

    return median(step, rounds)


def digest_share(samples: int, rounds: int) -> dict[str, Any]:
    """The share of training time that ``train.digest_every=N`` takes, for the default backbone at 96 px."""
    learner, optimiser = parts(BACKBONES["EfficientNet-Lite0"], 96)
    step = step_cost(learner, optimiser, samples, 96, rounds)
    digest, row = digest_cost(learner, optimiser, rounds)
    share = digest.cpu / step.cpu
    return {
        "what": f"EfficientNet-Lite0 at 96 px, {samples} samples of two views a rank",
        **step.row("step"),
        **row,
        "share_at_every_1": round(share, 5),
        "share_at_every_200": round(share / 200, 7),
        "below_half_a_percent_from": math.floor(share / LIMIT) + 1,
    }


def machine() -> dict[str, Any]:
    """What was measured where."""
    name = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "what": "machine",
        "cpu": name[0] if name else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1),
        "commit": commit,
    }


def picture_cost() -> dict[str, float]:
    """CRC-32 of a decoded picture, beside the augmentation of its two views."""
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
    crc, work = median(lambda: zlib.crc32(one.data), 50), median(augment)
    return {
        **crc.row("crc"),
        **Taken(work.wall / num, work.cpu / num).row("augment"),
        "share": crc.cpu * num / work.cpu,
    }


def main() -> None:
    """Print everything as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32, help="of a rank in a step")
    parser.add_argument("--rounds", type=int, default=5, help="that are measured; the median counts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(machine()))
    print(json.dumps({"what": f"picture of {SIDE} x {SIDE}, two views", **picture_cost()}), flush=True)
    print(json.dumps(digest_share(args.samples, args.rounds)), flush=True)
    for name, backbone in BACKBONES.items():
        learner, optimiser = parts(backbone)
        with tempfile.TemporaryDirectory() as folder:
            found = save_cost(learner, optimiser, Path(folder), args.rounds)
        print(json.dumps({"what": name, **found, **digest_cost(learner, optimiser, args.rounds)[1]}), flush=True)


if __name__ == "__main__":
    main()
