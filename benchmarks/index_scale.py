"""An index of millions of rows: what it costs to open, in the process and in a loader process, beside bare pyarrow.

    python benchmarks/index_scale.py [--rows 2000000 10000000] [--labels 20] [--workers 2]

Rows are made up: keys of 11 characters, 500 scenes, two splits, shards of 10000. Each figure is taken in a process of
its own, after a folder of 1000 rows was opened. Memory is what is left when the call is over, a shared page in equal
parts (Pss); a worker's is what is its own (Private), after it has been given the index and has asked for places and
labels of batches. Bare pyarrow reads the same file into a table, checks nothing, and cannot be given away. Peak is the
highest resident memory on the way. Seconds are by the clock, and (of a core) of work.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import verdict, write

SHARD = 10_000
OPEN_S, PROCESS, WORKER = 1.0, 60, 5
"""What is claimed: seconds at 2 million rows, bytes a row, bytes a row."""


def make(folder: Path, num: int, num_labels: int) -> None:
    """A shard folder without its tars; in it another one, of few rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    ids = np.arange(num)
    width, names = -(-num_labels // 8), [f"train-{at:06d}.tar" for at in range(-(-num // SHARD))]
    kinds = rng.random((400, num_labels)) < np.logspace(-0.25, -1.7, num_labels)
    labels = np.packbits(kinds[rng.integers(0, 400, num)] ^ (rng.random((num, num_labels)) < 0.01), 1, "little")
    sizes = rng.integers(10_000, 60_000, num)
    scenes = pa.array([f"scene-{at:03d}" for at in range(500)]).take(pa.array(rng.integers(0, 500, num)))
    table = pa.table(
        {
            "key": pa.array([f"img-{at:07d}" for at in ids.tolist()]),
            "split": pa.array(["train", "test"]).take(pa.array((ids % 10 == 0).astype(np.int64))),
            "shard": pa.array(names).take(pa.array(ids // SHARD)),
            "offset": (ids % SHARD) * 65_536 + 512,
            "size": sizes.astype(np.int64),
            "crc32": rng.integers(0, 1 << 32, num, dtype=np.uint32),
            "labels": pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), num, [None, pa.py_buffer(labels)]).cast(
                pa.binary()
            ),
            "scene": scenes,
            "width": np.full(num, 256, dtype=np.int32),
            "height": np.full(num, 256, dtype=np.int32),
            "ext": pa.array(["jpg"] * num),
        }
    )
    pq.write_table(table, folder / "index.parquet", compression="zstd")
    digest = hashlib.sha256((folder / "index.parquet").read_bytes()).hexdigest()
    shards = [{"name": name, "size": SHARD * 65_536 + 1024, "sha256": "0" * 64, "num_samples": SHARD} for name in names]
    meta = {
        "format": 1, "name": "scale", "title": "Scale", "classes": [f"c{at}" for at in range(num_labels)],
        "fingerprint": "0" * 64, "index_sha256": digest, "shards": shards,
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(meta))
    if folder.name != "few":
        (folder / "few").mkdir(exist_ok=True)
        make(folder / "few", 1000, num_labels)


def memory(kind: str) -> int:
    """Bytes of this process: Pss, Private, Rss; or VmHWM, the peak."""
    if kind == "VmHWM":
        lines = Path("/proc/self/status").read_text().splitlines()
    else:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(kind))


def measured(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    import pyarrow as pa

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, rss = memory("Pss:"), memory("Rss:")
    start, cpu = time.perf_counter(), time.process_time()
    kept = call()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    gc.collect()
    pa.default_memory_pool().release_unused()
    return kept, {"seconds": seconds, "cpu_s": cpu, "bytes": memory("Pss:") - before, "peak": memory("VmHWM") - rss}


def child(folder: Path, what: str, workers: int) -> dict[str, Any]:
    """One measurement, in this process."""
    import pyarrow.parquet as pq

    from marc_dist.data.dataset import open_dataset

    pq.read_table(folder / "few" / "index.parquet")  # what is imported late
    open_dataset(folder / "few", shards=False)
    if what == "pyarrow":
        table, told = measured(lambda: pq.read_table(folder / "index.parquet"))
        return {**told, "rows": len(table)}
    dataset, told = measured(lambda: open_dataset(folder, shards=False))
    start = time.process_time()
    dataset.cooccurrence("train")
    told["cooccurrence_s"] = time.process_time() - start
    rows = dataset.rows("train")
    start = time.process_time()
    both = np.zeros((len(dataset.classes),) * 2, dtype=np.int64)
    for at in range(0, min(len(rows), 200_000), 65_536):
        part = dataset.label_rows(rows[at : at + 65_536]).astype(np.int64)
        both += part.T @ part
    told["cooccurrence_without_blas_s"] = (time.process_time() - start) * len(rows) / min(len(rows), 200_000)
    pool = multiprocessing.get_context("spawn").Pool(workers)  # nothing is inherited
    try:
        told["worker_bytes"] = max(pool.map(in_worker, [dataset] * workers, chunksize=1))
    finally:
        pool.terminate()
    return {**told, "rows": len(dataset)}


KEPT: list[Any] = []


def in_worker(dataset: Any) -> int:
    """Own bytes of a worker that holds the index and has used every part of it, less those before it came."""
    ids = np.random.default_rng(1).integers(0, len(dataset), 4096)
    KEPT.append(dataset)
    for at in range(0, len(ids), 128):
        some = ids[at : at + 128]
        dataset.label_rows(some)
        [dataset.place(sample) for sample in some.tolist()]
        [column[some].sum() for column in (dataset.offset, dataset.size, dataset.crc32)]
    gc.collect()
    return memory("Private") - BEFORE


BEFORE = memory("Private") if __name__ == "__mp_main__" else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000_000, 10_000_000])
    parser.add_argument("--labels", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(Path(options.child[0]), options.child[1], options.workers)))
        return 0
    figures: dict[str, Any] = {}
    holds = True
    for num in options.rows:
        with tempfile.TemporaryDirectory() as place:
            subprocess.run(  # memory of the making goes with its process
                [sys.executable, "-c", MAKE, place, str(num), str(options.labels)],
                cwd=Path(__file__).parent,
                check=True,
            )
            size = (Path(place) / "index.parquet").stat().st_size
            print(f"{num} rows, {options.labels} labels: index.parquet of {size / num:.1f} bytes a row")
            told = {}
            for what in ("pyarrow", "marc-dist"):
                words = [sys.executable, __file__, "--workers", str(options.workers), "--child", place, what]
                told[what] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
                one = told[what]
                print(
                    f"  {what}: open {one['seconds']:.2f} s ({one['cpu_s']:.2f} s of a core), "
                    f"{one['bytes'] / num:.1f} bytes a row, peak {one['peak'] / num:.0f} bytes a row"
                )
        ours = told["marc-dist"]
        print(f"  co-occurrence {ours['cooccurrence_s']:.2f} s of a core")
        print(f"  the same by int64 {ours['cooccurrence_without_blas_s']:.2f} s")
        if num <= 2_000_000:
            holds &= verdict("seconds to open", ours["seconds"], OPEN_S, " s")
        holds &= verdict("memory of a process", ours["bytes"] / num, PROCESS, " bytes a row")
        holds &= verdict("own memory of a worker", ours["worker_bytes"] / num, WORKER, " bytes a row")
        figures[str(num)] = {"index_bytes": size, **told}
    write("index_scale", {"labels": options.labels, "workers": options.workers, "rows": figures})
    return 0 if holds else 1


MAKE = (
    "import sys; from pathlib import Path; import index_scale as m; m.make(Path(sys.argv[1]), *map(int, sys.argv[2:]))"
)

if __name__ == "__main__":
    raise SystemExit(main())
