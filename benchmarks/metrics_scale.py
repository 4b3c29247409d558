"""Every metric of whole rankings in an archive of a million images: time, memory, and what each part of it takes.

    python benchmarks/metrics_scale.py [--queries 10000] [--archive 1000000] [--dim 128] [--ranks 2] [--quick]

The vectors lie in a file that is mapped, as an evaluation keeps them; ``rank_and_score`` runs as ``marc-eval`` runs it,
on ranks of one thread each that meet over gloo. Three queries are ranked again by a stable sort of float64 scores and
scored from that list: the figures must be equal to the last bit. The parts (scores, order, metrics) are timed apart on
a few queries, in processor seconds, and say what an evaluation of another size takes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from common import labels, verdict, write
from search_memory import status

PART = 32
"""Queries on which the parts are timed."""
OWN_GIB = 2.0
"""What a rank may hold beside the mapped file."""
ESTIMATE = 55_000, 549_488
"""Queries and archive of BigEarthNet's size."""


class Mapped:
    """Unit vectors in a file; stands where a ``Store`` does."""

    def __init__(self, path: Path) -> None:
        self._rows = np.load(path, mmap_mode="r")

    def rows(self, ids: Any) -> Any:
        """The rows that follow each other from the first of ``ids`` on."""
        return self._rows[int(ids[0]) : int(ids[-1]) + 1]


def fill(folder: Path, args: argparse.Namespace) -> None:
    """Vectors that follow the labels, with noise; labels long-tailed and correlated."""
    from marc_dist.retrieval.exact import exact_unit

    rng = np.random.default_rng(0)
    plane = rng.standard_normal((args.labels, args.dim)).astype(np.float32)
    rows = labels(2 * (args.queries + args.archive), args.labels).numpy()[: args.queries + args.archive]
    for name, some in (("queries", rows[: args.queries]), ("archive", rows[args.queries :])):
        np.save(folder / f"{name}-labels.npy", some)
        file = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (len(some), args.dim))
        for at in range(0, len(some), 50_000):
            noise = rng.standard_normal((len(some[at : at + 50_000]), args.dim), dtype=np.float32)
            file[at : at + 50_000] = exact_unit(some[at : at + 50_000].astype(np.float32) @ plane + 2 * noise)
        file.flush()


def protocol_of(folder: Path) -> Any:
    from marc_dist.retrieval.protocols import Protocol, Side

    sides = []
    for name in ("queries", "archive"):
        rows = np.load(folder / f"{name}-labels.npy")
        sides.append(Side(SimpleNamespace(fingerprint=name), np.arange(len(rows)), rows))  # type: ignore[arg-type]
    classes = tuple(str(number) for number in range(sides[0].labels.shape[1]))
    return Protocol(sides[0], sides[1], classes, "")


class Peak(threading.Thread):
    """The largest anonymous memory of this process, GiB, looked up ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over, self.gib = threading.Event(), 0.0

    def run(self) -> None:
        """Look until it is over."""
        while not self.over.wait(0.1):
            self.gib = max(self.gib, status("RssAnon"))


def child(folder: Path, rank: int, world: int) -> None:
    """One rank: the evaluation, its memory; rank 0 then compares and times the parts."""
    from marc_dist import comm
    from marc_dist.config import Config
    from marc_dist.retrieval.evaluate import rank_and_score
    from marc_dist.retrieval.index.spec import parse_spec

    if world > 1:
        comm.join_file(rank, world, folder / "meeting", timeout_s=3600)
    protocol, config = protocol_of(folder), Config()
    asking, answering = Mapped(folder / "queries.npy"), Mapped(folder / "archive.npy")
    before, peak = status("RssAnon"), Peak()
    peak.start()
    start, busy = time.perf_counter(), time.process_time()
    told = (lambda line: print(line, file=sys.stderr, flush=True)) if rank == 0 else (lambda line: None)
    searched, _ = rank_and_score(asking, answering, protocol, config, parse_spec("flat"), None, told)  # type: ignore[arg-type]
    figures = {"seconds": time.perf_counter() - start, "cpu_s": time.process_time() - busy}
    peak.over.set()
    peak.join()
    figures |= {"own_gib": peak.gib, "own_before_gib": before, "peak_gib": status("VmHWM")}
    if rank == 0:
        figures |= parts(protocol, asking, answering, searched)
    comm.leave()
    (folder / f"rank-{rank}.json").write_text(json.dumps(figures))


def parts(protocol: Any, asking: Mapped, answering: Mapped, searched: Any) -> dict[str, float]:
    """Processor seconds a query of each part, after a check of three queries against a plain sort."""
    from marc_dist import metrics
    from marc_dist.retrieval.exact import full_ranking

    queries, archive = asking.rows(protocol.queries.ids), answering.rows(protocol.archive.ids)
    asked, answers = protocol.queries.labels, protocol.archive.labels
    for query in np.linspace(0, len(queries) - 1, 3).astype(int).tolist():
        wide = queries[query].astype(np.float64)
        scores = np.concatenate(
            [archive[at : at + 50_000].astype(np.float64) @ wide for at in range(0, len(archive), 50_000)]
        )
        order = np.argsort(-scores, kind="stable")
        ranks = 1.0 + np.flatnonzero((answers[order] & asked[query]).any(axis=1))
        ap = float((np.arange(1.0, len(ranks) + 1) / ranks).sum() / len(ranks)) if len(ranks) else 0.0
        assert searched.scores["mAP"][query] == ap, query
        for label in np.flatnonzero(asked[query]).tolist():
            ranks = 1.0 + np.flatnonzero(answers[order, label])
            ap = float((np.arange(1.0, len(ranks) + 1) / ranks).sum() / len(ranks))
            assert searched.label_ap[query, label] == ap, (query, label)
    few = min(PART, len(queries))
    none, sets = np.full(few, -1), metrics.distinct_sets(answers)
    wide, out = queries[:few].astype(np.float64), np.empty((few, 4096))
    start = time.process_time()
    for at in range(0, len(archive), 4096):
        block = archive[at : at + 4096]
        np.matmul(wide, block.astype(np.float64).T, out=out[:, : len(block)])
    products = time.process_time() - start
    start = time.process_time()
    ranking = full_ranking(queries[:few], archive, none)
    ranked = time.process_time() - start
    start = time.process_time()
    metrics.score_all(ranking, asked[:few], sets, none, metrics.Scoring(), checked=True)
    scored = time.process_time() - start
    return {"scores_s": products / few, "order_s": (ranked - products) / few, "metrics_s": scored / few}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"queries": 10_000, "archive": 1_000_000, "dim": 128, "labels": 17, "ranks": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--quick", action="store_true", help="a small archive, to see that the script runs; no verdict")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        folder, rank, world = args.child.split(",")
        child(Path(folder), int(rank), int(world))
        return 0
    if args.quick:
        args.queries, args.archive = 200, 5_000
    with tempfile.TemporaryDirectory() as place:
        fill(Path(place), args)
        words = [sys.executable, __file__, "--child"]
        threads = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        start = time.perf_counter()
        ranks = [subprocess.Popen([*words, f"{place},{rank},{args.ranks}"], env=threads) for rank in range(args.ranks)]
        failed = [rank.wait() for rank in ranks]
        if any(failed):
            return 1
        whole = time.perf_counter() - start
        found = [json.loads((Path(place) / f"rank-{rank}.json").read_text()) for rank in range(args.ranks)]
    first = found[0]
    a_query = sum(one["cpu_s"] for one in found) / args.queries
    print(f"{args.queries} queries x {args.archive} images, D = {args.dim}, L = {args.labels}, {args.ranks} ranks")
    print(f"{first['seconds']:.1f} s on the clock, {whole:.1f} s with start and check")
    print(f"{1e3 * a_query:.1f} ms of processor a query")
    parts_ms = {name: 1e3 * first[f"{name}_s"] for name in ("scores", "order", "metrics")}
    print("of it, a query: " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in parts_ms.items()))
    own = max(one["own_gib"] for one in found)
    peak = max(one["peak_gib"] for one in found)
    print(f"a rank: peak {peak:.2f} GiB, of it its own {own:.2f} GiB ({first['own_before_gib']:.2f} before)")
    queries, archive = ESTIMATE
    core_s = queries * a_query * archive / args.archive
    print(f"estimate for {queries:,} x {archive:,}: {core_s / 60:.0f} minutes of one core")
    write("metrics_scale" + "-quick" * args.quick, {**vars(args), "ranks_figures": found, "estimate_core_s": core_s})
    if args.quick:
        return 0
    return 0 if verdict("memory of a rank beside the mapped file", own, OWN_GIB, " GiB") else 1


if __name__ == "__main__":
    sys.exit(main())
