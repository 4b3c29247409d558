"""A million vectors searched from a memory map: peak memory, and how little of it is the process's own.

    python benchmarks/search_memory.py [--num 1000000] [--dim 512] [--queries 1000] [--k 100]

The vectors lie in a file as ``marc-search`` keeps them. The search runs in a process of its own, whose peak of resident
memory counts the pages of the file that happen to be mapped; its own (anonymous) memory is what an archive beyond the
machine's memory would need.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import verdict, write
from search_speed import cloud

BOUND_GIB = 6.0


def status(key: str) -> float:
    """A line of this process's ``/proc/self/status``, GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**20 for line in lines if line.startswith(key))


def child(folder: Path, k: int) -> None:
    from marc_dist.retrieval.index.parts import FlatPart
    from marc_dist.retrieval.search import top_k

    archive = np.load(folder / "archive.npy", mmap_mode="r")
    queries = np.load(folder / "queries.npy")
    before = status("RssAnon")
    start = time.perf_counter()
    index = FlatPart(archive, np.arange(len(archive), dtype=np.int64))
    _, ids = top_k(index, queries, np.full(len(queries), -1, dtype=np.int64), k)
    seconds = time.perf_counter() - start
    rows = np.linspace(0, len(queries) - 1, 5).astype(int)  # against one float64 product each
    ids_of_all, blocks = np.arange(len(archive)), range(0, len(archive), 50_000)
    for row in rows.tolist():
        query = queries[row].astype(np.float64)
        scores = np.concatenate([archive[at : at + 50_000].astype(np.float64) @ query for at in blocks])
        assert ids[row].tolist() == np.lexsort((ids_of_all, -scores))[:k].tolist(), row
    figures = {"seconds": seconds, "peak_gib": status("VmHWM"), "own_gib": status("RssAnon"), "own_before_gib": before}
    print(json.dumps(figures))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"num": 1_000_000, "dim": 512, "queries": 1000, "k": 100}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.k)
        return 0
    with tempfile.TemporaryDirectory() as place:
        shape = (options.num, options.dim)
        archive = np.lib.format.open_memmap(f"{place}/archive.npy", mode="w+", dtype=np.float32, shape=shape)
        for number, start in enumerate(range(0, options.num, 100_000)):
            size = min(100_000, options.num - start)
            archive[start : start + size] = cloud(size, options.dim, 10 + number)
        archive.flush()
        np.save(f"{place}/queries.npy", cloud(options.queries, options.dim, 2))
        words = [sys.executable, __file__, "--child", place, "--k", str(options.k)]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout)
    print(f"{options.num} x {options.dim}, {options.queries} queries, k = {options.k}: {figures['seconds']:.1f} s")
    print(f"peak {figures['peak_gib']:.2f} GiB, of it the process's own {figures['own_gib']:.2f} GiB")
    holds = verdict("peak of resident memory", figures["peak_gib"], BOUND_GIB, " GiB")
    write("search_memory", {**{key: value for key, value in vars(options).items() if key != "child"}, **figures})
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
