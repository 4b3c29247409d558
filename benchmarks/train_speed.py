"""Training: ours against the loop that a researcher writes with torchvision, torch's DataLoader and timm, side by side.

    python benchmarks/train_speed.py [--source FOLDER] [--num 512] [--batch 64] [--epochs 3] [--repeats 2] [--quick]

Both train the same encoder (timm's backbone and our head, float32) with the same loss (MACL), AdamW and clipping, on
two views of the same pictures with the same changes at the same chances, in batches of the same size, with as many
loader processes and threads. In turn, in one process:

    plain   ImageFolder with torchvision's v2 transforms, DataLoader(persistent_workers=True), a loop of ten lines
    ours    marc_dist.training.trainer.train on shards of these pictures, with its guards, log and decoded pictures
    floor   the plain loop's steps on one batch that is already in memory: no loader at all
    floor, channels last    the same with images laid out as ours are

Epochs after the first count; the first, from nothing to its end, is shown beside them, and the number of epochs after
which ours, which decodes everything in its first, is ahead. No loader is faster than its floor, so the share of the
plain loop that the floor takes ("encoder") bounds what is to be gained: see the cases. Pictures are generated, or those
of --source: JPEG files, whose class is the name up to the last ``_``.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import verdict, write
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from marc_dist.augment.views import IMAGENET
from marc_dist.config import AugmentConfig, Config, build
from marc_dist.encoder.model import Encoder, build_encoder
from marc_dist.objective import objective
from marc_dist.packing.pack import pack
from marc_dist.packing.reading.recipes import load_recipe
from marc_dist.packing.reading.source import read_source
from marc_dist.training.schedule import build_optimiser
from marc_dist.training.trainer import train

SIDE = 256
CLASSES = 16


@dataclass(frozen=True)
class Case:
    """An encoder, the side of its images, and a share of the pictures and of the batch: large images take long."""

    backbone: str
    image_size: int
    share: float = 1.0


CLAIMED = Case("resnet18", 96)  # what real_data.py trains
CASES = (
    CLAIMED,
    Case("resnet18", 224, 0.25),
    Case("resnet18", 64),
    Case("mobilenetv3_small_050", 96),
    Case("test_resnet", 96),
)


def generate(folder: Path, num: int) -> list[tuple[Path, str]]:
    """JPEG pictures of smooth noise with the bytes a pixel of aerial tiles, and their classes."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(num):
        coarse, fine = (rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (8, SIDE // 2))
        layers = [Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for noise in (coarse, fine)]
        path = folder / f"c{number % CLASSES:02d}_{number:05d}.jpg"
        Image.blend(*layers, alpha=0.6).save(path, "JPEG", quality=80)
        found.append((path, path.stem.rsplit("_", 1)[0]))
    return found


def of_source(folder: Path) -> list[tuple[Path, str]]:
    """The pictures of a folder, at any depth, in random order, and their classes."""
    found = [(path.absolute(), path.stem.rsplit("_", 1)[0]) for path in sorted(folder.rglob("*.jpg"))]
    random.Random(0).shuffle(found)
    return found


def prepare(pictures: list[tuple[Path, str]], folder: Path) -> None:
    """The same pictures as a folder for ImageFolder, of links, and as shards."""
    (folder / "in").mkdir(parents=True)
    with (folder / "in" / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "labels", "split"])
        for path, name in pictures:
            (folder / "in" / name).mkdir(exist_ok=True)
            (folder / "in" / name / path.name).symlink_to(path)
            table.writerow([f"{name}/{path.name}", name, "train"])
    pack(read_source(load_recipe("folder"), [folder / "in"]), folder / "shards", workers=1)


def transform(config: AugmentConfig, image_size: int) -> v2.Compose:
    """Our changes by torchvision, on Pillow's pictures: on tensors they take a quarter longer."""
    ratio = (1 / config.crop_ratio, config.crop_ratio)
    jitter = v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)
    return v2.Compose(
        [
            v2.RandomResizedCrop(image_size, (config.crop_min, config.crop_max), ratio, antialias=True),
            v2.RandomHorizontalFlip(config.hflip),
            v2.RandomVerticalFlip(config.vflip),
            v2.RandomChoice([v2.RandomRotation((angle, angle)) for angle in (0, 90, 180, 270)]),
            v2.RandomApply([jitter], config.jitter),
            v2.RandomGrayscale(config.gray),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(IMAGENET.mean), list(IMAGENET.std)),
        ]
    )


class TwoViews:
    """Two views of a picture."""

    def __init__(self, one: v2.Compose) -> None:
        self.one = one

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """(3, S, S) each."""
        return self.one(image), self.one(image)


class Plain:
    """The encoder and the step of the plain loop."""

    def __init__(self, config: Config, num_classes: int) -> None:
        self.config, self.num_classes = config, num_classes
        self.encoder: Encoder = build_encoder(config.model, config.train.seed, config.data.image_size)
        self.optimiser = build_optimiser(config.optim, self.encoder)
        self.settings = config.loss

    def step(self, views: list[Tensor], targets: Tensor) -> None:
        """One step on a batch as DataLoader gives it."""
        labels = torch.nn.functional.one_hot(targets, self.num_classes).bool().repeat(2, 1)
        z = torch.nn.functional.normalize(self.encoder(torch.cat(views))[1], dim=1)
        parts = objective(z, z, labels, labels, first=0, settings=self.settings)
        self.optimiser.zero_grad(set_to_none=True)
        (parts.sum / parts.count).backward()
        torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), self.config.optim.clip_norm or 1.0)
        self.optimiser.step()
        float(parts.sum.detach())  # a loop looks at its loss


def plain(root: Path, config: Config) -> list[float]:
    """Seconds of each epoch."""
    start = time.perf_counter()
    images = ImageFolder(str(root), transform=TwoViews(transform(config.augment, config.data.image_size)))
    workers = config.data.num_workers
    loader = DataLoader(
        images,
        config.train.global_batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=True,
    )
    run = Plain(config, len(images.classes))
    seconds = []
    for _ in range(config.train.epochs):
        for views, targets in loader:
            run.step(views, targets)
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    return seconds


def ours(config: Config, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of each epoch, and the share of it that the encoder waited for pictures."""
    start = time.time()
    with contextlib.redirect_stderr(io.StringIO()):
        train(config)
    path = Path(config.train.run_dir) / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    ends = [line for line in lines if line["step"] % steps == 0]
    times = [start, *(line["time"] for line in ends)]
    return [end - begin for begin, end in zip(times, times[1:], strict=False)], [line["loader_wait"] for line in ends]


def floor(config: Config, steps: int, layout: torch.memory_format) -> list[float]:
    """Seconds of each step, times the steps of an epoch, after two unmeasured ones."""
    run = Plain(config, CLASSES)
    shape = (config.train.global_batch, 3, config.data.image_size, config.data.image_size)
    views = [torch.randn(shape).contiguous(memory_format=layout) for _ in range(2)]
    targets = torch.arange(shape[0]) % CLASSES
    seconds = []
    for _ in range(min(steps, 4) + 2):
        start = time.perf_counter()
        run.step(views, targets)
        seconds.append((time.perf_counter() - start) * steps)
    return seconds[2:]


def measure(case: Case, folder: Path, num: int, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """All in turn; seconds of every epoch of every turn."""
    steps = num // batch
    layouts = {"floor": torch.contiguous_format, "floor, channels last": torch.channels_last}
    epochs: dict[str, list[float]] = {name: [] for name in (*layouts, "plain", "ours")}
    firsts: dict[str, list[float]] = {"plain": [], "ours": []}
    waits: list[float] = []
    for turn in range(args.repeats):
        with tempfile.TemporaryDirectory(dir=folder) as work:
            words = {
                "data.dir": str(folder / "shards"),
                "data.cache_dir": f"{work}/cache",
                "train.run_dir": f"{work}/run",
            }
            words |= {"data.image_size": case.image_size, "data.num_workers": args.workers, "train.device": "cpu"}
            words |= {
                "model.backbone": case.backbone,
                "model.pretrained": False,
                "train.global_batch": batch,
                "train.epochs": args.epochs,
            }
            words |= {"train.log_every": steps, "train.checkpoint_every": steps * args.epochs, "train.seed": turn}
            words |= {"train.precision": "float32"}
            config = build(Config, words)
            for name, layout in layouts.items():
                epochs[name] += floor(config, steps, layout)
            seconds = {"plain": plain(folder / "in", config)}
            seconds["ours"], wait = ours(config, steps)
        waits += wait[1:]
        for name, values in seconds.items():
            firsts[name].append(values[0])
            epochs[name] += values[1:]
    return {"num": num, "epochs_s": epochs, "first_epochs_s": firsts, "loader_wait": waits}


def tell(case: Case, found: dict[str, Any]) -> float:
    """Print a case; how much faster ours is."""
    median = {name: statistics.median(values) for name, values in found["epochs_s"].items()}
    first = {name: statistics.median(values) for name, values in found["first_epochs_s"].items()}
    print(f"{case.backbone}, {case.image_size} px, {found['num']} pictures")
    for name, value in median.items():
        low, high = (2 * found["num"] / pick(found["epochs_s"][name]) for pick in (max, min))
        own = "floor" if name == "plain" else "floor, channels last" if name == "ours" else name
        share, ratio = min(median[own] / value, 1), median["plain"] / value
        line = f"  {name:21s}{2 * found['num'] / value:6.0f} views/s ({low:.0f} to {high:.0f})  epoch {value:6.2f} s"
        line += f"  encoder {share:4.0%} {ratio:6.2f} x"
        print(line + (f"  first epoch {first[name]:.1f} s" if name in first else ""))
    gain, late = median["plain"] - median["ours"], first["ours"] - first["plain"]
    ahead = "from the first epoch" if late <= 0 else f"after {1 + late / gain:.1f} epochs" if gain > 0 else "never"
    print(f"  ours waits for its loader {statistics.median(found['loader_wait']):.0%} of the time; it is ahead {ahead}")
    return median["plain"] / median["ours"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="folder of JPEG pictures; generated ones otherwise")
    parser.add_argument("--num", type=int, default=512, help="pictures of an epoch")
    parser.add_argument("--batch", type=int, default=64, help="pictures of a batch")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of a run; those after the first count")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each")
    parser.add_argument("--workers", type=int, default=2, help="loader processes, for both")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of the encoder, for both")
    parser.add_argument("--only", type=int, help="one case by number, from 0")
    parser.add_argument("--quick", action="store_true", help="one small case, to see that the script runs; no verdict")
    args = parser.parse_args()
    cases: tuple[Case, ...] = CASES if args.only is None else (CASES[args.only],)
    if args.quick:
        args.num, args.batch, args.epochs, args.repeats = 32, 16, 2, 1
        cases = (Case("test_resnet", 32),)
    torch.set_num_threads(args.threads)
    figures: dict[str, Any] = {}
    ratios: dict[Case, float] = {}
    with tempfile.TemporaryDirectory(prefix="train-speed-") as temporary:
        work = Path(temporary)
        (work / "made").mkdir()
        pictures = of_source(args.source) if args.source else generate(work / "made", args.num)
        mean = statistics.mean(path.stat().st_size for path, _ in pictures) / 1e3
        print(f"pictures of {mean:.1f} kB, batches of {args.batch}, {args.workers} workers, {args.threads} threads")
        for case in cases:
            batch = max(int(args.batch * case.share), 2)
            num = int(min(args.num, len(pictures)) * case.share) // batch * batch
            if not (work / str(num)).exists():
                prepare(pictures[:num], work / str(num))
            found = measure(case, work / str(num), num, batch, args)
            figures[f"{case.backbone}, {case.image_size} px"] = found
            ratios[case] = tell(case, found)
    write("train_speed" + "-quick" * args.quick, {"batch": args.batch, "workers": args.workers, "cases": figures})
    if CLAIMED not in ratios:
        return 0
    return 0 if verdict("resnet18, 96 px: ours / plain", ratios[CLAIMED], 1.5, "x", at_least=True) else 1


if __name__ == "__main__":
    sys.exit(main())
