"""Time and memory of the retrieval metrics over full rankings, against a loop over queries as in DeepHash-pytorch.

    python benchmarks/metrics_speed.py [--queries 10000] [--archive 100000] [--labels 17] [--sample 60] [--quick]

The peer is ``CalcTopMap`` of DeepHash-pytorch line by line (for each query: label product, Hamming distance of 64-bit
codes, argsort, gather, mean), and the same loop continued with the other metrics that ours computes by default, from
one argsort. It runs on a sample of the queries, its time a query is scaled. Ours scores every query; the rankings that
it is given are drawn beforehand in blocks, a few of them used again and again. Ranking is timed apart, on the sample.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import labels, verdict, write

from marc_dist import metrics
from marc_dist.metrics.intervals import resampled_means

GIB = 1 << 30
BLOCK = 64
BITS = 64
KS = (10, 100)
Array = np.ndarray[Any, Any]


def data(num_queries: int, num_archive: int, num_labels: int) -> tuple[Array, Array, Array, Array]:
    """Labels of queries and archive, and hash codes of -1 and 1 that follow the labels, float32."""
    rows = labels(2 * (num_queries + num_archive), num_labels).numpy()[: num_queries + num_archive]
    rng = np.random.default_rng(0)
    plane = rng.standard_normal((num_labels, BITS)).astype(np.float32)
    noise = rng.standard_normal((len(rows), BITS), dtype=np.float32)
    codes = np.where(rows.astype(np.float32) @ plane + noise > 0, 1, -1).astype(np.float32)
    return rows[:num_queries], rows[num_queries:], codes[:num_queries], codes[num_queries:]


class Clock:
    """Seconds of the peer's two parts, search and score."""

    def __init__(self) -> None:
        self.seconds = {"search": 0.0, "score": 0.0}
        self._last = time.perf_counter()

    def lap(self, part: str = "") -> None:
        """What passed since the last call belongs to ``part``."""
        now = time.perf_counter()
        if part:
            self.seconds[part] += now - self._last
        self._last = now


def average_precision(gnd: Array) -> float:
    """The body of ``CalcTopMap`` behind the gather."""
    tsum = np.sum(gnd).astype(int)
    if tsum == 0:
        return 0.0
    count = np.linspace(1, tsum, tsum)
    tindex = np.asarray(np.where(gnd == 1)) + 1.0
    return float(np.mean(count / tindex))


def peer_map(archive_codes: Array, query_codes: Array, archive: Array, queries: Array, clock: Clock) -> Array:
    """``CalcTopMap`` with topk = archive size, AP of each query."""
    out = np.zeros(len(queries))
    clock.lap()
    for i in range(len(queries)):
        gnd = (np.dot(queries[i, :], archive.transpose()) > 0).astype(np.float32)
        clock.lap("score")
        hamm = 0.5 * (BITS - np.dot(query_codes[i, :], archive_codes.transpose()))
        ind = np.argsort(hamm)
        clock.lap("search")
        out[i] = average_precision(gnd[ind])
        clock.lap("score")
    return out


def peer_all(
    archive_codes: Array, query_codes: Array, archive: Array, queries: Array, clock: Clock
) -> tuple[dict[str, Array], Array]:
    """The same loop, continued with what ``score_queries`` and ``score_labels`` compute by default."""
    out = {
        name: np.zeros(len(queries))
        for name in ["mAP", *(f"{m}@{k}" for m in ("mAP", "wAP", "nDCG", "ACG", "P") for k in KS)]
    }
    per_label = np.full(queries.shape, np.nan)
    clock.lap()
    for i in range(len(queries)):
        sim = np.dot(queries[i, :], archive.transpose())
        clock.lap("score")
        hamm = 0.5 * (BITS - np.dot(query_codes[i, :], archive_codes.transpose()))
        ind = np.argsort(hamm)
        clock.lap("search")
        sim = sim[ind]
        gnd = (sim > 0).astype(np.float32)
        out["mAP"][i] = average_precision(gnd)
        best = np.sort(sim)[::-1]
        for k in KS:
            top, hit, rank = sim[:k], gnd[:k], np.arange(1, k + 1)
            acg = np.cumsum(top) / rank
            out[f"mAP@{k}"][i] = average_precision(hit)
            out[f"wAP@{k}"][i] = np.sum(acg * hit) / max(np.sum(hit), 1)
            ideal = np.sum((2.0 ** best[:k] - 1) / np.log2(rank + 1))
            out[f"nDCG@{k}"][i] = np.sum((2.0**top - 1) / np.log2(rank + 1)) / ideal if ideal else 0.0
            out[f"ACG@{k}"][i], out[f"P@{k}"][i] = np.mean(top), np.mean(hit)
        for label in np.flatnonzero(queries[i]):
            per_label[i, label] = average_precision(archive[ind, label])
        clock.lap("score")
    return out, per_label


def ranked(query_codes: Array, archive_codes: Array) -> Array:
    """Rankings of a block, one argsort a query as the peer makes them."""
    return np.stack([np.argsort(0.5 * (BITS - np.dot(code, archive_codes.transpose()))) for code in query_codes])


def ours(
    rankings: list[Array], queries: Array, archive: metrics.DistinctSets, what: str, most: int
) -> dict[str, Array]:
    """All queries in blocks: ``map`` = mAP alone, ``default`` = what marc-eval prints, ``extra`` = everything.

    Neither side checks rankings of its own making; ``check_ranking`` is timed apart.
    """
    scoring = metrics.Scoring(KS)
    parts: list[dict[str, Array]] = []
    for at, start in enumerate(range(0, len(queries), BLOCK)):
        asked = queries[start : start + BLOCK]
        ranking, own = rankings[at % len(rankings)][: len(asked)], np.full(len(asked), -1)
        if what == "map":
            parts.append({"mAP": metrics.full_average_precision(ranking, asked, archive, own, "any", checked=True)})
            continue
        extra = what == "extra"
        cosine = np.zeros((len(asked), 10)) if extra else None
        block = metrics.score_queries(
            ranking, asked, archive, own, scoring,
            complete=True, extra=extra, most=most, cosine=cosine, checked=True,
        )  # fmt: skip
        label_ap = metrics.score_labels(ranking, asked, archive, own, complete=True, checked=True)
        parts.append({**block, "labels": label_ap})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def resident(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak(num_queries: int, num_archive: int, num_labels: int) -> tuple[int, int]:
    """Peak resident bytes of the whole process, and above its inputs, while everything is computed."""
    rng = np.random.default_rng(1)
    rows = labels(2 * (num_queries + num_archive), num_labels).numpy()[: num_queries + num_archive]
    ranking = np.stack([rng.permutation(num_archive) for _ in range(BLOCK)])
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    archive, queries = metrics.distinct_sets(rows[num_queries:]), rows[:num_queries]
    most = metrics.most_relevant(queries, archive, np.full(num_queries, -1), "any")
    scores = ours([ranking], queries, archive, "extra", most)
    resampled_means(np.column_stack([*scores.values()]))
    return resident("VmHWM"), resident("VmHWM") - before


def timed(run: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Microseconds a query of everything, after a check that both say the same."""
    queries, archive, query_codes, archive_codes = data(args.queries, args.archive, args.labels)
    sample = slice(0, args.sample)
    sets_s, sets = timed(lambda: metrics.distinct_sets(archive))
    print(
        f"{args.queries} queries, {args.archive} items, L = {args.labels}, {queries.sum(1).mean():.1f} labels a query"
    )
    most = metrics.most_relevant(queries, sets, np.full(len(queries), -1), "any")
    rankings = [ranked(query_codes[start : start + BLOCK], archive_codes) for start in (0, BLOCK, 2 * BLOCK)]
    wide = archive.astype(np.float32)
    us: dict[str, list[float]] = {}
    for turn in range(args.repeats + 1):  # side by side, the first turn unmeasured
        clocks = {"map": Clock(), "default": Clock()}
        theirs = peer_map(archive_codes, query_codes[sample], wide, queries[sample].astype(np.float32), clocks["map"])
        both = peer_all(archive_codes, query_codes[sample], wide, queries[sample].astype(np.float32), clocks["default"])
        one = {f"peer {w} search": 1e6 * c.seconds["search"] / args.sample for w, c in clocks.items()}
        one |= {f"peer {w} score": 1e6 * c.seconds["score"] / args.sample for w, c in clocks.items()}
        few = slice(0, args.queries if turn == args.repeats else max(args.sample, BLOCK))
        for what in ("map", "default", "extra"):
            seconds, got = timed(lambda what=what, few=few: ours(rankings, queries[few], sets, what, most))
            one[f"ours {what}"] = 1e6 * (seconds + (sets_s if few.stop == args.queries else 0)) / (few.stop)
            check(got, what, theirs, both, args.sample)
        seconds, _ = timed(lambda: [metrics.check_ranking(ranking, args.archive) for ranking in rankings])
        one["ours check_ranking"] = 1e6 * seconds / sum(map(len, rankings))
        if turn:
            for name, value in one.items():
                us.setdefault(name, []).append(value)
    return {name: float(np.median(values)) for name, values in us.items()}


def check(got: dict[str, Array], what: str, theirs: Array, both: tuple[dict[str, Array], Array], num: int) -> None:
    """Ours and the peer's agree on the queries that both scored from the same rankings."""
    num = min(num, BLOCK)
    assert np.allclose(got["mAP"][:num], theirs[:num], atol=1e-9)
    if what != "map":
        for name, values in both[0].items():
            assert np.allclose(got[name][:num], values[:num], atol=1e-6), name
        assert np.allclose(got["labels"][:num], both[1][:num], atol=1e-9, equal_nan=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=10_000, help="queries that ours scores")
    parser.add_argument("--archive", type=int, default=100_000, help="items of the archive")
    parser.add_argument("--labels", type=int, default=17, help="number of labels")
    parser.add_argument("--sample", type=int, default=60, help="queries that the peer scores, at most 64")
    parser.add_argument("--repeats", type=int, default=3, help="measured rounds; the median counts")
    parser.add_argument("--quick", action="store_true", help="a small archive, to see that the script runs; no verdict")
    args = parser.parse_args()
    if args.quick:
        args.queries, args.archive, args.sample, args.repeats = 200, 2_000, 10, 1
    us = measure(args)
    for name, value in us.items():
        print(f"{name:24s} {value:10.0f} us a query   {value * args.queries / 1e6:8.1f} s for all")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        highest, above = pool.apply(peak, (args.queries, args.archive, args.labels))
    print(f"peak of a fresh process, everything computed: {highest / GIB:.2f} GiB, {above / GIB:.2f} above its inputs")
    figures = {"queries": args.queries, "archive": args.archive, "labels": args.labels, "sample": args.sample}
    write(
        "metrics_speed" + "-quick" * args.quick, {**figures, "us_a_query": us, "peak": highest, "above_inputs": above}
    )
    if args.quick:
        return 0
    search = us["peer map search"]
    held = []
    for what, told in (("map", "mAP"), ("default", "all default metrics")):
        whole = us[f"peer {what} search"] + us[f"peer {what} score"]
        ratio = whole / us[f"ours {what}"]
        held.append(
            verdict(f"peer's loop, its argsort included / ours from rankings, {told}", ratio, 20, "x", at_least=True)
        )
        print(f"      scoring alone / scoring alone: {us[f'peer {what} score'] / us[f'ours {what}']:.1f}x")
        print(f"      both with the peer's search: {whole / (search + us[f'ours {what}']):.2f}x")
    held.append(verdict("peak of a fresh process", highest / GIB, 2, " GiB"))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
