"""A learnt index written and read again: peak memory beside that of FAISS's bytes (``serialize_index``).

    python benchmarks/index_memory.py [--num 200000] [--dim 256] [--index IVF64,Flat]

Each step runs in a process of its own. Peak memory counts the pages of a mapped file that happen to be read; own
(anonymous) memory is what is left when the system wants those back.
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
from search_memory import status
from search_speed import cloud


def child(folder: Path, word: str, step: str) -> None:
    import faiss

    from marc_dist.retrieval.index.parts import FactoryPart, train
    from marc_dist.retrieval.index.spec import parse_spec

    spec, features = parse_spec(word), np.load(folder / "archive.npy", mmap_mode="r")
    ids, file = np.arange(len(features), dtype=np.int64), folder / "x.faiss"
    trained = b"" if "read" in step else train(spec, np.asarray(features[:20_000]))
    part = None if "read" in step else FactoryPart(spec, trained, features, ids)
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    base = status("RssAnon"), status("VmRSS")
    start = time.perf_counter()
    if step == "write bytes":
        file.write_bytes(bytes(faiss.serialize_index(part.index)))
    elif step == "write":
        with file.open("wb") as out:
            part.write(out.write)
    elif step == "read bytes":
        part = FactoryPart(spec, file.read_bytes(), features, ids[:0])
    else:
        part = FactoryPart(spec, file, features, ids)
    took = time.perf_counter() - start
    more = {"peak_gib": status("VmHWM") - base[1], "own_gib": status("RssAnon") - base[0], "seconds": took}
    start = time.perf_counter()
    part.index.search(np.ascontiguousarray(features[:1000]), 20)
    print(json.dumps({**more, "search_seconds": time.perf_counter() - start}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"num": 200_000, "dim": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--index", default="IVF64,Flat")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(Path(options.child[0]), options.index, options.child[1])
        return 0
    figures = {}
    with tempfile.TemporaryDirectory() as place:
        np.save(f"{place}/archive.npy", cloud(options.num, options.dim, 10))
        for step in ("write bytes", "write", "read bytes", "read"):
            words = [sys.executable, __file__, "--index", options.index, "--child", place, step]
            figures[step] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
            print(f"{step}: " + ", ".join(f"{key} {value:.3f}" for key, value in figures[step].items()))
        size = (Path(place) / "x.faiss").stat().st_size / 2**30
    print(f"{options.index}, {options.num} x {options.dim}: a file of {size:.2f} GiB")
    holds = verdict(
        "peak while it is written, beside the index", figures["write"]["peak_gib"] / size, 0.1, " x the file"
    )
    holds &= verdict("own memory of the index that was read", figures["read"]["own_gib"] / size, 0.25, " x the file")
    write("index_memory", {"index": options.index, "num": options.num, "dim": options.dim, "file_gib": size, **figures})
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
