"""How well copies of pictures are found again, how many different pictures are taken for copies, and how long it takes.

    python benchmarks/look_alikes.py [--data ../shared/data] [--num 400] [--large 100000] [--quick]

Pictures: ML-AID (150 px) and GID-MTL5 (224 px), 4,391 different ones. Copies: --num of them, changed as people change
pictures. Recall is the share of copies whose most similar picture, of all, is the one that they were made of. A false
pair is two of the 4,391 that are taken for copies of each other. Time and memory: --large crops of the same pictures.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from marc_dist.packing.look_alikes import HASHED, Looks, Place, grey_copy, look_at, looks_of, partners

OUT = Path(__file__).parent / "out"
SHOWN_RECALL = 0.95  # what is claimed of every change in CLAIMED
CLAIMED = ("JPEG 90", "JPEG 50", "half size", "double size", "brighter", "darker", "contrast", "grey", "mirrored",
           "turned", "crop 2 %", "half size, JPEG 50, mirrored")  # fmt: skip
Change = Callable[[Image.Image], Image.Image]


def jpeg(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        data = BytesIO()
        image.save(data, "JPEG", quality=quality)
        return Image.open(BytesIO(data.getvalue())).convert("RGB")

    return change


def scaled(by: float) -> Change:
    return lambda image: image.resize((round(image.width * by), round(image.height * by)), Image.Resampling.BICUBIC)


def cropped(share: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        x, y = round(image.width * share / 2), round(image.height * share / 2)
        return image.crop((x, y, image.width - x, image.height - y))

    return change


def noisy(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image) + np.random.default_rng(0).normal(0, 10, (image.height, image.width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


CHANGES: dict[str, Change] = {
    "JPEG 90": jpeg(90),
    "JPEG 50": jpeg(50),
    "JPEG 20": jpeg(20),
    "half size": scaled(0.5),
    "double size": scaled(2),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
    "noise": noisy,
    "mirrored": ImageOps.mirror,
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "half size, JPEG 50, mirrored": lambda image: ImageOps.mirror(jpeg(50)(scaled(0.5)(image))),
    "crop 2 %": cropped(0.02),
    "crop 5 %": cropped(0.05),
    "crop 10 %": cropped(0.1),
}


def png(image: Image.Image) -> bytes:
    data = BytesIO()
    image.save(data, "PNG", compress_level=1)
    return data.getvalue()


def joined(*parts: Looks) -> Looks:
    return Looks(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def recall(files: list[Path], looks: Looks, change: Change, chosen: list[int]) -> float:
    """Share of the changed pictures that are found to be like their origin."""
    copies = []
    for row in chosen:
        data = png(change(Image.open(files[row]).convert("RGB")))
        copies.append((data, grey_copy(data, "copy")))
    split = np.r_[np.zeros(len(files), dtype=np.int64), np.ones(len(chosen), dtype=np.int64)]
    found = partners(joined(looks, looks_of(copies)), split, 2).sample[len(files) :, 0]
    return float(np.mean(found == np.array(chosen)))


def crops(files: list[Path], num: int) -> Iterator[tuple[bytes, Image.Image]]:
    """Squares of half the side, at random places: not copies, and no stranger than real tiles."""
    draw = random.Random(0)
    pictures = [Image.open(file).convert("L") for file in files]
    for number in range(num):
        image = pictures[number % len(pictures)]
        side = image.width // 2
        x, y = draw.randrange(image.width - side), draw.randrange(image.height - side)
        cut = image.crop((x, y, x + side, y + side)).resize((HASHED, HASHED), Image.Resampling.LANCZOS)
        yield number.to_bytes(4, "big"), cut


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data")
    parser.add_argument("--num", type=int, default=400)
    parser.add_argument("--large", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    files = [
        file for name in ("ml-aid-150px", "gid-mtl5/image") for file in sorted((options.data / name).rglob("*.jpg"))
    ]
    if not files:
        print(f"{options.data}: neither ML-AID nor GID-MTL5 there; nothing measured")
        return 0
    if options.quick:
        files, options.num, options.large = files[:200], 20, 1000
    start = time.process_time()
    looks = look_at([Place(file) for file in files])
    each = (time.process_time() - start) / len(files)
    print(f"{len(files)} pictures looked at, {each * 1e3:.2f} ms each of one core")
    false = int((partners(looks, np.zeros(len(files), dtype=np.int64), 1).sample >= 0).sum())
    print(f"different pictures that are taken for copies: {false} of {len(files)}")
    chosen = sorted(random.Random(0).sample(range(len(files)), options.num))
    table = {name: recall(files, looks, change, chosen) for name, change in CHANGES.items()}
    for name, share in table.items():
        print(f"  found again, {name:<30} {share:.3f}")
    large = looks_of(crops(files, options.large))
    start = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = partners(large, np.zeros(options.large, dtype=np.int64), 1).sample[:, 0]
    seconds = time.process_time() - start
    alike = np.flatnonzero(found >= 0)
    strange = int((alike % len(files) != found[alike] % len(files)).sum())
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    print(
        f"{options.large} crops compared with each other: {seconds:.1f} s of one core, {more:.0f} MB more; "
        f"{len(alike)} are like another, {strange} of them like a crop of another picture"
    )
    claims = {
        f"every change of {len(CLAIMED)} is found in {SHOWN_RECALL:.0%}": min(table[name] for name in CLAIMED)
        >= SHOWN_RECALL,
        "no two different pictures are a pair": false == 0,
        "100,000 pictures take less than three minutes of one core": each * 1e5 + seconds * 1e5 / options.large < 180,
    }
    OUT.mkdir(exist_ok=True)
    facts = {
        "ms_each": each * 1e3,
        "false": false,
        "recall": table,
        "large": options.large,
        "seconds": seconds,
        "strange": strange,
        "mb": more,
    }
    (OUT / "look_alikes.json").write_text(json.dumps(facts, indent=1) + "\n")
    for claim, holds in claims.items():
        print("ok  " if holds else "MISS", claim)
    return 0 if options.quick or all(claims.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
