"""Time of a default augmented view on the CPU: batched, one by one as the loader's workers do it, and one by one with
torchvision's functions, the latter two in worker processes and in threads; and batched on a GPU if there is one.

    python benchmarks/augment_speed.py [--batch 64] [--batches 8] [--cores 2] [--repeats 7] [--quick]

Everyone starts from the same decoded pictures of 256 x 256 and the same numbers, drawn before, and ends with batches of
normalised 224 x 224 views. torchvision resizes in 8 bits and recolours in float32, its fastest way here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from common import side_by_side, verdict, write
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as F

from marc_dist.augment.batched import apply_batch
from marc_dist.augment.views import IMAGENET, View, apply, draw
from marc_dist.config import AugmentConfig
from marc_dist.packing.drawn.sample import draw_tile

SIDE, SIZE = 256, 224


def torchvision_view(pixels: Tensor, view: View, image_size: int) -> Tensor:
    """``augment.apply`` written with torchvision's functions alone."""
    out = F.resized_crop(pixels, *view.crop_box(*pixels.shape[1:]), [image_size, image_size], antialias=True)
    out = F.horizontal_flip(out) if view.hflip else out
    out = F.vertical_flip(out) if view.vflip else out
    out = torch.rot90(out, view.turns, (1, 2)) if view.turns else out
    out = F.to_dtype(out, torch.float32, scale=True)
    out = F.adjust_brightness(out, view.brightness) if view.brightness != 1 else out
    out = F.adjust_contrast(out, view.contrast) if view.contrast != 1 else out
    out = F.adjust_saturation(out, view.saturation) if view.saturation != 1 else out
    out = F.adjust_hue(out, view.hue) if view.hue != 0 else out
    out = F.rgb_to_grayscale(out, num_output_channels=3) if view.gray else out
    return F.normalize(out, list(IMAGENET.mean), list(IMAGENET.std))


class Views(Dataset[Tensor]):
    """Augmented views one by one, for worker processes and threads."""

    def __init__(self, pictures: Tensor, views: Sequence[View], one: Callable[[Tensor, View, int], Tensor]) -> None:
        self.pictures, self.views, self.one = list(pictures), views, one

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, i: int) -> Tensor:
        return self.one(self.pictures[i % len(self.pictures)], self.views[i], SIZE)


def in_threads(dataset: Views, out: Tensor, cores: int) -> None:
    """Batches from a pool of threads, each view on one."""
    torch.set_num_threads(1)
    with ThreadPoolExecutor(cores) as pool:
        for first in range(0, len(dataset), len(out)):
            torch.stack(list(pool.map(dataset.__getitem__, range(first, first + len(out)))), out=out)
    torch.set_num_threads(cores)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="views of a batch")
    parser.add_argument("--batches", type=int, default=8, help="batches of a measured round")
    parser.add_argument("--cores", type=int, default=2, help="worker processes or threads, for everyone")
    parser.add_argument("--repeats", type=int, default=7, help="measured rounds; the median counts")
    parser.add_argument("--quick", action="store_true", help="a small batch, to see that the script runs; no verdict")
    args = parser.parse_args()
    batch, batches, repeats = (4, 2, 1) if args.quick else (args.batch, args.batches, args.repeats)
    torch.set_num_threads(args.cores)
    num = batch * batches
    tiles = [draw_tile(0, number)[1].resize((SIDE, SIDE), Image.Resampling.BICUBIC) for number in range(min(num, 48))]
    pictures = torch.from_numpy(np.stack([np.asarray(tile) for tile in tiles])).permute(0, 3, 1, 2)
    sizes = torch.full((len(pictures), 2), SIDE)
    views = [draw(AugmentConfig(), seed=0, epoch=0, sample=i, view=0) for i in range(num)]
    rows = [i % len(pictures) for i in range(num)]

    def batched(pixels: Tensor, out: Tensor | None) -> None:
        for first in range(0, num, batch):
            part = slice(first, first + batch)
            apply_batch(pixels, sizes, views[part], SIZE, IMAGENET, rows=rows[part], out=out)

    one_by_one = {
        "torchvision": Views(pictures, views, torchvision_view),
        "apply": Views(pictures, views, partial(apply, scale=IMAGENET)),
    }
    ours = apply_batch(pictures, sizes, views[:batch], SIZE, IMAGENET, rows=rows[:batch])
    for name, dataset in one_by_one.items():
        worst = max(float((ours[i] - dataset[i]).abs().max()) for i in range(batch))
        assert worst < 1e-4, (name, worst)  # the same views

    buffer = torch.empty(batch, 3, SIZE, SIZE)  # for those who take one; the loader makes its own
    runs: dict[str, Callable[[], Any]] = {}
    for name, dataset in one_by_one.items():
        loader = DataLoader(
            dataset, batch, num_workers=args.cores, persistent_workers=True, multiprocessing_context="fork"
        )
        runs[f"{name}, processes"] = lambda loader=loader: [None for _ in loader]
        runs[f"{name}, threads"] = lambda dataset=dataset: in_threads(dataset, buffer, args.cores)
    runs["batched"] = lambda: batched(pictures, buffer)
    runs["batched, fresh memory"] = lambda: batched(pictures, None)
    if torch.cuda.is_available():
        on_gpu = pictures.cuda()
        runs["batched, GPU"] = lambda: batched(on_gpu, None)
    seconds = {name: value / num for name, value in side_by_side(runs, repeats).items()}
    peer = min(seconds[f"torchvision, {way}"] for way in ("processes", "threads"))
    print(f"{num} views of {SIZE} x {SIZE}, batches of {batch}, {args.cores} cores")
    for name, value in seconds.items():
        print(f"{name:24s} {value * 1e3:7.3f} ms a view  {1 / value:9.0f} views/s  {peer / value:6.2f} x torchvision")
    write(
        "augment_speed" + "-quick" * args.quick,
        {"batch": batch, "cores": args.cores, "side": SIDE, "size": SIZE, "seconds_a_view": seconds},
    )
    if args.quick:
        return 0
    per_sample = min(seconds[f"apply, {way}"] for way in ("processes", "threads"))
    held = [
        verdict("torchvision / batched", peer / seconds["batched"], 4, "x", at_least=True),
        verdict("augment.apply one by one / batched", per_sample / seconds["batched"], 1.5, "x", at_least=True),
    ]
    if not torch.cuda.is_available():
        print("no GPU here: the batched path on one was not timed")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
