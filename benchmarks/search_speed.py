"""Exact sharded search against a raw FAISS flat index, on the same vectors, in turns.

    python benchmarks/search_speed.py [--num 100000] [--queries 1000] [--dim 512] [--k 100] [--repeats 5]

Raw FAISS proposes in float32 and leaves ties to chance; ours scores its candidates again in float64, orders ties by id
and checks that nothing was missed. Prints the time of both, their ratio, how many lists differ, and one table of other
indexes with their recall against the exact lists. With a GPU, a table for it, too.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as every command of ours sets it; read when torch is loaded

import numpy as np
import torch

# isort: split
import faiss
from common import side_by_side, verdict, write

from marc_dist.retrieval.exact import Float32, exact_unit
from marc_dist.retrieval.index.parts import FlatPart
from marc_dist.retrieval.index.spec import parse_spec
from marc_dist.retrieval.search import make_part, top_k

INDEXES = ("sign", "itq64", "IVF1024,Flat", "IVF1024,SQ8", "HNSW32")


def cloud(num: int, dim: int, seed: int) -> Float32:
    """Vectors around 500 centres, as classes of pictures lie."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((500, dim)).astype(np.float32)
    parts = []
    for start in range(0, num, 1 << 16):
        size = min(1 << 16, num - start)
        noise = rng.standard_normal((size, dim)).astype(np.float32)
        parts.append(exact_unit(centres[rng.integers(0, 500, size)] + noise))
    return np.concatenate(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"num": 100_000, "queries": 1000, "dim": 512, "k": 100, "repeats": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    archive, queries = cloud(options.num, options.dim, 1), cloud(options.queries, options.dim, 2)
    ids, nobody = np.arange(options.num, dtype=np.int64), np.full(options.queries, -1, dtype=np.int64)
    raw = faiss.IndexFlatIP(options.dim)
    raw.add(archive)
    ours = FlatPart(archive, ids)
    seconds = side_by_side(
        {"raw": lambda: raw.search(queries, options.k), "ours": lambda: top_k(ours, queries, nobody, options.k)},
        options.repeats,
    )
    ratio = seconds["ours"] / seconds["raw"]
    _, exact = top_k(ours, queries, nobody, options.k)
    differ = float((raw.search(queries, options.k)[1] != exact).any(axis=1).mean())
    found: dict[str, Any] = {**vars(options), **seconds, "ratio": ratio, "raw_lists_that_differ": differ}
    threads = faiss.omp_get_max_threads()
    print(f"{options.num} x {options.dim}, {options.queries} queries, k = {options.k}, {threads} threads")
    print(f"raw FAISS {seconds['raw']:.3f} s, ours {seconds['ours']:.3f} s")
    print(f"lists of raw FAISS in another order than the exact one: {100 * differ:.2f} %")
    for word in INDEXES:
        start = time.perf_counter()
        part = make_part(parse_spec(word), lambda at: archive[at], ids, ids, None, float16=False, say=lambda _: None)
        built = time.perf_counter() - start
        start = time.perf_counter()
        listed = top_k(part, queries, nobody, options.k)[1]
        searched = time.perf_counter() - start
        share = float(np.mean([len(np.intersect1d(a, b)) / options.k for a, b in zip(exact, listed, strict=True)]))
        found[word] = {"build_s": built, "search_s": searched, "recall": share}
        print(f"{word:14} built in {built:6.1f} s, search {searched:.3f} s, recall@{options.k} {share:.3f}")
    if torch.cuda.is_available():
        for float16 in (False, True):
            gpu = FlatPart(archive, ids, 0, float16=float16)
            taken = side_by_side({"gpu": lambda gpu=gpu: top_k(gpu, queries, nobody, options.k)}, options.repeats)
            same = bool(np.array_equal(top_k(gpu, queries, nobody, options.k)[1], exact))
            found[gpu.where] = {"search_s": taken["gpu"], "same_lists": same}
            print(f"{gpu.where}: {taken['gpu']:.4f} s, the same lists: {same}")
    holds = verdict("exact search over raw FAISS", ratio, 1.05, "x")
    write("search_speed", found)
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
