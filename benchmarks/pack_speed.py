"""Time to pack a folder of pictures: marc-shard on two processes against webdataset's ShardWriter, side by side.

    python benchmarks/pack_speed.py [--num 6000] [--size 256] [--repeats 3] [--data ../shared/data] [--quick]

Pictures: generated JPEG and PNG, and ML-AID where it lies in --data. All sources are in the page cache. What each does:

    marc-shard           discover files, read labels, plan keys and splits; read and decode every picture (a damaged one
                         is named; JPEG to an eighth of its size, which reads and decodes all of its data), look for
                         equal pictures in two splits, CRC-32 and size of each sample, SHA-256 of each source and each
                         shard, fsync, index, statistics, publish by rename; from start to end
    ShardWriter, same    a loop over a ready list of (split, key, file, labels): read, decode, SHA-256 of the pixels to
                         find equal pictures in two splits, CRC-32, write; SHA-256 of each shard. No fsync, no index
    ShardWriter, decode  the same without hashes: nothing but that every picture can be decoded
    ShardWriter, copy    the same without decoding: a truncated picture is packed and found in the middle of a training

ShardWriter works in one process ("handle at the job level", webdataset issue 182). The claim is about two cores that
have nothing else to do: "CPU" is the processor time of all processes, and wall time cannot be less than half of it. The
bytes of the pictures in the shards of all of them are compared.
"""

from __future__ import annotations

import argparse
import csv
import functools
import hashlib
import io
import os
import resource
import shutil
import statistics
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Heavy modules are imported inside the functions: every helper process of marc-shard imports this file, too.
ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("buildings", "cars", "grass", "pavement", "sand", "trees", "water")
PER_SHARD = 500


class Item(NamedTuple):
    """What a user of ShardWriter has in hand before the loop."""

    split: str
    key: str
    file: Path
    meta: dict[str, Any]


def generate(folder: Path, num: int, side: int, ext: str) -> Path:
    """Pictures with the detail of aerial ones (octaves of noise), three labels each, a fifth of them for test."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "labels", "split"])
        for number in range(num):
            pixels = np.zeros((side, side, 3), dtype=np.float32)
            for octave in (4, 16, 64, side):
                small = rng.integers(0, 256, (min(octave, side), min(octave, side), 3), dtype=np.uint8)
                large = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
                pixels += np.asarray(large, dtype=np.float32) / (2 + octave**0.5)
            scaled = (pixels / pixels.max() * 255).astype(np.uint8)
            Image.fromarray(scaled).save(folder / f"p{number:05d}.{ext}", **({"quality": 88} if ext == "jpg" else {}))
            labels = sorted(CLASSES[i] for i in rng.choice(len(CLASSES), 3, replace=False))
            table.writerow([f"p{number:05d}", "|".join(labels), "test" if number % 5 == 0 else "train"])
    return folder


def ours(source_dir: Path, recipe: str, out: Path, workers: int) -> None:
    """All that marc-shard does after it has been started."""
    from marc_dist.packing.pack import pack
    from marc_dist.packing.reading.recipes import load_recipe
    from marc_dist.packing.reading.source import read_source

    source = read_source(load_recipe(recipe), [source_dir], workers=workers)
    pack(source, out, workers=workers, samples_per_shard=PER_SHARD, force=True)


def items(source_dir: Path, recipe: str) -> list[Item]:
    """The ready list for ShardWriter."""
    from marc_dist.packing.layout import plan_entries
    from marc_dist.packing.reading.recipes import load_recipe
    from marc_dist.packing.reading.source import read_source

    plan = plan_entries(read_source(load_recipe(recipe), [source_dir]), to_png=False)
    return [Item(split, e.key, e.file, e.meta) for split, pairs in plan.items() for _, e in pairs]


def shard_writer(ready: list[Item], out: Path, *, decode: bool, hashes: bool) -> None:
    """The loop that the webdataset documentation shows, with the checks that are asked for."""
    import webdataset
    from PIL import Image

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    seen: dict[str, str] = {}
    doubled: list[str] = []
    crc: dict[str, int] = {}
    for split in dict.fromkeys(item.split for item in ready):
        pattern = str(out / f"{split}-%06d.tar")
        with webdataset.ShardWriter(pattern, maxcount=PER_SHARD, verbose=0, mtime=0) as writer:
            for item in ready:
                if item.split != split:
                    continue
                data = item.file.read_bytes()
                if decode:
                    image = Image.open(io.BytesIO(data))
                    image.load()
                if hashes:
                    pixels = hashlib.sha256(image.tobytes()).hexdigest()
                    if seen.setdefault(pixels, split) != split:
                        doubled.append(item.key)
                    crc[item.key] = zlib.crc32(data)
                writer.write({"__key__": item.key, item.file.suffix[1:].lower(): data, "json": item.meta})
    if hashes:
        for path in sorted(out.glob("*.tar")):
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")


def same_pictures(one: Path, two: Path) -> bool:
    """Whether two folders of shards hold the same keys with the same bytes."""
    import webdataset

    def content(folder: Path) -> dict[str, bytes]:
        urls = sorted(map(str, folder.glob("*.tar")))
        samples = webdataset.WebDataset(urls, shardshuffle=False)
        return {s["__key__"]: next(s[e] for e in ("jpg", "png", "tif") if e in s) for s in samples}

    return content(one) == content(two)


def processor_time() -> float:
    """Processor seconds of this process and of its helpers that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def compare(name: str, folder: Path, recipe: str, work: Path, repeats: int, workers: int) -> dict[str, Any]:
    """Seconds of each on one folder."""
    from common import side_by_side

    ready = items(folder, recipe)
    megabytes = sum(item.file.stat().st_size for item in ready) / 1e6
    runs: dict[str, Callable[[], None]] = {
        f"marc-shard, {workers} processes": functools.partial(ours, folder, recipe, work / "ours", workers),
        "marc-shard, 1 process": functools.partial(ours, folder, recipe, work / "ours", 1),
        "ShardWriter, same": functools.partial(shard_writer, ready, work / "same", decode=True, hashes=True),
        "ShardWriter, decode": functools.partial(shard_writer, ready, work / "decode", decode=True, hashes=False),
        "ShardWriter, copy": functools.partial(shard_writer, ready, work / "copy", decode=False, hashes=False),
    }
    cpu: dict[str, list[float]] = {}

    def metered(run: str) -> None:
        before = processor_time()
        runs[run]()
        cpu.setdefault(run, []).append(processor_time() - before)

    seconds = side_by_side({run: functools.partial(metered, run) for run in runs}, repeats)
    assert all(same_pictures(work / "ours", work / peer) for peer in ("same", "decode", "copy"))
    best = seconds[f"marc-shard, {workers} processes"]
    print(f"{name}: {len(ready)} pictures, {megabytes:.1f} MB")
    for run, value in seconds.items():
        rate = f"{len(ready) / value:8,.0f} samples/s {megabytes / value:7.1f} MB/s"
        print(f"  {run:24s} {value:7.3f} s, CPU {statistics.median(cpu[run]):6.3f} s {rate} {value / best:6.2f} x")
    cpu_s = {run: statistics.median(values) for run, values in cpu.items()}
    return {"pictures": len(ready), "megabytes": megabytes, "seconds": seconds, "cpu_seconds": cpu_s}


def main() -> int:
    from common import verdict, write  # here, not above: it imports torch, and so would every helper process

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=6000, help="generated JPEG pictures; a third as many PNG")
    parser.add_argument("--size", type=int, default=256, help="side of a generated picture, pixels")
    parser.add_argument("--repeats", type=int, default=3, help="measured rounds; the median counts")
    parser.add_argument("--workers", type=int, default=2, help="processes; 0 = every core")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real files")
    parser.add_argument("--quick", action="store_true", help="few pictures, to see that the script runs; no verdict")
    args = parser.parse_args()
    num, repeats = (60, 1) if args.quick else (args.num, args.repeats)
    workers = args.workers or os.cpu_count() or 1
    warnings.simplefilter("ignore")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="pack-speed-") as temporary:
        work = Path(temporary)
        for ext, count in (("jpg", num), ("png", num // 3)):
            folder = generate(work / f"in-{ext}", count, args.size, ext)
            figures[ext] = compare(f"{ext}, {args.size} pixels", folder, "folder", work, repeats, workers)
        real = args.data / "ml-aid-150px"
        if args.quick or not real.is_dir():
            print("ML-AID: left out" if args.quick else f"ML-AID: SKIPPED, {real} is not there (see --data)")
        else:
            figures["ml-aid"] = compare("ML-AID, 150 pixels", real, "ml-aid", work, repeats, workers)
    write("pack_speed" + "-quick" * args.quick, {"workers": workers, "sets": figures})
    if args.quick:
        return 0
    held = []
    for name, figure in figures.items():
        seconds = figure["seconds"]
        ratio = seconds["ShardWriter, same"] / seconds[f"marc-shard, {workers} processes"]
        held.append(verdict(f"{name}: ShardWriter doing the same / marc-shard", ratio, 2, "x", at_least=True))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
