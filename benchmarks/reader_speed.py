"""Reading samples: the indexed reader, in random order, against webdataset's iterator over the same tars, side by side.

    python benchmarks/reader_speed.py [--num 16000] [--size 256] [--repeats 3] [--quick]

One process each. Bytes only, and decoded to RGB; warm (all in the page cache) and cold (every shard is dropped from the
page cache with posix_fadvise before the run; a disk below may still have a cache of its own). What each does:

    indexed         every sample once in the random order of an epoch: pread, CRC-32 checked; labels are in the index;
                    as the loader does, the system is told of samples to come, 64 at a time
    indexed, no CRC the same with data.verify_crc=false
    webdataset      WebDataset(tars, shardshuffle=False): every sample once in the order of the tar, picture and JSON
                    as bytes, nothing checked, nothing shuffled

The sums of the lengths of what was read are compared. An eighth of the shards is decoded.
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import verdict, write
from PIL import Image

from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.data.plan import epoch_order
from marc_dist.data.reader import IndexedReader
from marc_dist.packing.pack import pack
from marc_dist.packing.reading.recipes import load_recipe
from marc_dist.packing.reading.source import read_source

PER_SHARD = 1000
WINDOW = 64


def generate(folder: Path, num: int, side: int) -> Dataset:
    """Shards of JPEG pictures; a hundred different ones, told apart by bytes after their end."""
    rng = np.random.default_rng(0)
    kinds = []
    for _ in range(100):
        noise = rng.integers(0, 256, (side // 2, side // 2, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=80)
        kinds.append(buffer.getvalue())
    (folder / "in").mkdir()
    with (folder / "in" / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "labels", "split"])
        for number in range(num):
            (folder / "in" / f"p{number:06d}.jpg").write_bytes(kinds[number % 100] + number.to_bytes(8, "big"))
            table.writerow([f"p{number:06d}", f"class {number % 17}", "train"])
    source = read_source(load_recipe("folder"), [folder / "in"])
    pack(source, folder / "out", samples_per_shard=PER_SHARD, workers=1)
    return open_dataset(folder / "out")


def decoded(data: bytes) -> None:
    Image.open(io.BytesIO(data)).convert("RGB")


def indexed(dataset: Dataset, num_shards: int, verify_crc: bool, use: Callable[[bytes], None] | None) -> int:
    reader = IndexedReader(dataset, verify_crc=verify_crc)
    order = epoch_order(np.flatnonzero(dataset.shard < num_shards), seed=0, epoch=0, fingerprint=dataset.fingerprint)
    total = 0
    reader.expect(order[:WINDOW])
    for place, sample in enumerate(order.tolist()):
        if place % WINDOW == 0:
            reader.expect(order[place + WINDOW : place + 2 * WINDOW])
        data = reader.read(sample)
        total += len(data)
        if use is not None:
            use(data)
    reader.close()
    return total


def iterated(dataset: Dataset, num_shards: int, use: Callable[[bytes], None] | None) -> int:
    import webdataset

    total = 0
    urls = [str(dataset.root / name) for name in dataset.shards[:num_shards]]
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        total += len(sample["jpg"])
        if use is not None:
            use(sample["jpg"])
    return total


def drop(dataset: Dataset) -> None:
    """Out of the page cache with every shard."""
    for name in dataset.shards:
        handle = os.open(dataset.root / name, os.O_RDONLY)
        try:
            os.fsync(handle)  # dirty pages cannot be dropped
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def measure(dataset: Dataset, runs: dict[str, Callable[[], int]], cold: bool, repeats: int) -> dict[str, float]:
    """Median seconds of each, in turn."""
    sizes: set[int] = set()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            if cold:
                drop(dataset)
            start = time.perf_counter()
            sizes.add(run())
            if turn:  # the first round also warms the page cache
                seconds[name].append(time.perf_counter() - start)
    assert len(sizes) == 1, "the same bytes were read by all"
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=16000, help="samples")
    parser.add_argument("--size", type=int, default=256, help="side of a picture, pixels")
    parser.add_argument("--repeats", type=int, default=3, help="measured rounds; the median counts")
    parser.add_argument("--quick", action="store_true", help="few samples, to see that the script runs; no verdict")
    args = parser.parse_args()
    num, repeats = (100, 1) if args.quick else (args.num, args.repeats)
    warnings.simplefilter("ignore")
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="reader-speed-") as temporary:
        dataset = generate(Path(temporary), num, args.size)
        print(f"{num} samples, {dataset.size.mean() / 1e3:.1f} kB each, {len(dataset.shards)} shards")
        every = len(dataset.shards)
        for what, use, shards in (("bytes", None, every), ("decoded", decoded, -(-every // 8))):
            runs: dict[str, Callable[[], int]] = {
                "indexed": functools.partial(indexed, dataset, shards, True, use),
                "indexed, no CRC": functools.partial(indexed, dataset, shards, False, use),
                "webdataset": functools.partial(iterated, dataset, shards, use),
            }
            count = int((dataset.shard < shards).sum())
            for state in ("warm", "cold"):
                seconds = measure(dataset, runs, state == "cold", repeats)
                figures[f"{what}, {state}"] = seconds
                for name, value in seconds.items():
                    ratio = seconds["webdataset"] / value
                    print(
                        f"{what:8s} {state}  {name:16s} {value:7.3f} s {count / value:9,.0f} samples/s {ratio:6.2f} x"
                    )
    write("reader_speed" + "-quick" * args.quick, {"num": num, "size": args.size, "seconds": figures})
    if args.quick:
        return 0
    held = []
    for state, bound in (("warm", 5), ("cold", 2)):
        seconds = figures[f"bytes, {state}"]
        for ours in ("indexed, no CRC", "indexed"):  # the same work; and what we do by default
            ratio = seconds["webdataset"] / seconds[ours]
            held.append(verdict(f"bytes, {state}: webdataset / {ours}", ratio, bound, "x", at_least=True))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
