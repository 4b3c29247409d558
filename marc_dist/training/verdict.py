"""What the findings of a preflight mean: pure rules from numbers and texts to rows that name nodes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_high
from typing import Any, NamedTuple

from marc_dist.config import LaunchError

OK, WARN, FAIL = "ok", "warn", "fail"
ALL = "all"
"""The node of a row that speaks of every node; a row of a pair has ``a-b``."""
CLOCK_WARN_S, CLOCK_FAIL_S = 2.0, 30.0
MIB, GIB = 2**20, 2**30
FREE_FAIL, FREE_WARN = 100 * MIB, GIB
"""Free bytes: the least where a checkpoint's size is unknown, and what should be left beyond the checkpoints."""
INODES_FAIL = 100
SICK_SHARE = 0.5
MAX_ROUNDS = 63
"""Rounds of the tournament: in a larger cluster every node meets this many others, which is enough for the rule."""


class Row(NamedTuple):
    """One finding: which check, which node (``ALL``), ``OK``, ``WARN`` or ``FAIL``, what was found, what helps."""

    check: str
    node: str
    state: str
    found: str
    remedy: str = ""


class Pair(NamedTuple):
    """Two nodes and what went between them, GB/s each way at once; None when it did not end, with the reason."""

    a: str
    b: str
    gbps: float | None
    error: str = ""
    round: int = 0


@dataclass(frozen=True)
class Report:
    """What a preflight found.

    Attributes:
        nodes: the node of each rank.
        rows: in the order of the checks.
        pairs: node pairs that were measured.
        seconds: that it took.
    """

    nodes: tuple[str, ...]
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    seconds: float

    @property
    def failures(self) -> tuple[Row, ...]:
        """Rows that must keep the run from starting."""
        return tuple(row for row in self.rows if row.state == FAIL)

    @property
    def warnings(self) -> tuple[Row, ...]:
        """Rows that somebody should know of."""
        return tuple(row for row in self.rows if row.state == WARN)

    def line(self) -> str:
        """All that is well, in one line."""
        good = [row.found for row in self.rows if row.state == OK]
        sizes = [f"{number} {name}{'s' * (number != 1)}" for number, name in self._sizes()]
        return f"preflight: {', '.join([*sizes, *good])}, {self.seconds:.1f} s"

    def _sizes(self) -> list[tuple[int, str]]:
        return [(len(set(self.nodes)), "node"), (len(self.nodes), "rank")]

    def require(self) -> None:
        """Refuse to go on after a failure.

        Raises:
            LaunchError: one line with every failing node, what was found there, and what helps.
        """
        if self.failures:
            nodes = ", ".join(dict.fromkeys(row.node for row in self.failures))  # first: a long line may be cut
            texts = [
                f"{row.check} on {row.node}: {row.found}" + (f"; {row.remedy}" if row.remedy else "")
                for row in grouped(self.failures)
            ]
            raise LaunchError(f"preflight: {nodes} failed: {' | '.join(texts)}")

    def plain(self) -> list[Any]:
        """As JSON can hold it; see ``report_of``."""
        return [list(self.nodes), [list(row) for row in self.rows], [list(pair) for pair in self.pairs], self.seconds]


def report_of(plain: Sequence[Any]) -> Report:
    """A report from its ``plain`` form."""
    nodes, rows, pairs, seconds = plain
    return Report(tuple(nodes), tuple(Row(*row) for row in rows), tuple(Pair(*pair) for pair in pairs), seconds)


def grouped(rows: Sequence[Row]) -> list[Row]:
    """Rows that differ in their node only, as one."""
    nodes: dict[Row, list[str]] = {}
    for row in rows:
        known = nodes.setdefault(row._replace(node=""), [])
        known += [row.node] * (row.node not in known)
    return [row._replace(node=", ".join(names)) for row, names in nodes.items()]


def usual(values: Sequence[Any]) -> Any:
    """The most frequent value, at a tie the one that comes first (rank 0's)."""
    texts = [repr(value) for value in values]  # values may be lists, which do not count
    return values[texts.index(Counter(texts).most_common(1)[0][0])]


def _or_good(check: str, rows: list[Row], good: str) -> list[Row]:
    return rows or [Row(check, ALL, OK, good)]


def size(num_bytes: float) -> str:
    """Bytes in words."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / MIB:.0f} MiB"


def judge_silence(nodes: Sequence[str], answered: Mapping[int, Any], stage: str, limit_s: float) -> list[Row]:
    """Ranks without an answer."""
    remedy = "see its log; look at that machine, its storage and its network, or leave the node out"
    return [
        Row("answers", node, FAIL, f"rank {rank}: no word within {limit_s:g} s of {stage}", remedy)
        for rank, node in enumerate(nodes)
        if rank not in answered
    ]


def judge_shards(nodes: Sequence[str], found: Mapping[int, Mapping[str, Any]]) -> list[Row]:
    """Whether all nodes see the same shards.

    Args:
        nodes: the node of each rank.
        found: by rank (one or more a node) ``fingerprint`` and ``place``, or ``error``.
    """
    rows = [Row("shards", nodes[rank], FAIL, one["error"]) for rank, one in found.items() if "error" in one]
    whole = {rank: one for rank, one in found.items() if "error" not in one}
    if not whole:
        return rows
    most = usual([one["fingerprint"] for one in whole.values()])
    remedy = "copy the same shards to every node, or give a data.dir that all share"
    for rank, one in whole.items():
        if one["fingerprint"] != most:
            text = f"{one['place']}: expected fingerprint {most[:12]} as elsewhere, got {one['fingerprint'][:12]}"
            rows.append(Row("shards", nodes[rank], FAIL, text, remedy))
    return _or_good("shards", rows, f"same shards ({most[:12]})")


def judge_folder(nodes: Sequence[str], errors: Mapping[int, str | None]) -> list[Row]:
    """Whether the run folder is one that all nodes can write: what went wrong by rank, None where nothing did."""
    rows = [Row("run folder", nodes[rank], FAIL, error) for rank, error in errors.items() if error]
    return _or_good("run folder", rows, "run folder shared" if len(set(nodes)) > 1 else "run folder writable")


def judge_equal(check: str, nodes: Sequence[str], found: Mapping[int, Mapping[str, Any]], remedy: str) -> list[Row]:
    """Whether all ranks have the same values, whatever they are; the most frequent one is taken for right."""
    keys = dict.fromkeys(key for one in found.values() for key in one)
    most = {key: usual([one.get(key) for one in found.values()]) for key in keys}
    rows = []
    for rank, one in found.items():
        others = [f"{key} {one.get(key)} (elsewhere {most[key]})" for key in keys if one.get(key) != most[key]]
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        if others:
            rows.append(Row(check, nodes[rank], FAIL, ", ".join(others[:3]) + more, remedy))
    return _or_good(check, list(dict.fromkeys(rows)), f"same {check}")


def judge_clocks(nodes: Sequence[str], read: Mapping[int, float], began: float, ended: float) -> list[Row]:
    """How far clocks are from rank 0's.

    Args:
        nodes: the node of each rank.
        read: the clock of each rank, seconds, read between ``began`` and ``ended``.
        began: rank 0's clock before any other was read.
        ended: rank 0's clock after all were. Half the time between is the uncertainty, in favour of the node.
    """
    middle, doubt = (began + ended) / 2, (ended - began) / 2
    rows: dict[str, Row] = {}
    for rank, value in read.items():
        off = value - middle
        sure = abs(off) - doubt
        if rank and sure > CLOCK_WARN_S:
            state = FAIL if sure > CLOCK_FAIL_S else WARN
            text = f"clock {abs(off):.1f} s {'ahead of' if off > 0 else 'behind'} rank 0's (+- {doubt:.2f} s)"
            remedy = "set the clock there (chronyc makestep): logs and the watchdog compare times of nodes"
            rows.setdefault(nodes[rank], Row("clocks", nodes[rank], state, text, remedy))
    far = max([abs(value - middle) for rank, value in read.items() if rank], default=0.0)
    one = len(set(nodes)) == 1
    return _or_good("clocks", list(rows.values()), "one clock" if one else f"clocks within {far + doubt:.2f} s")


def judge_disk(nodes: Sequence[str], found: Mapping[int, Mapping[str, Any]], need: int | None, text: str) -> list[Row]:
    """Whether checkpoints fit.

    Args:
        nodes: the node of each rank.
        found: by rank (one or more a node) ``free`` bytes, ``inodes`` (None where the file system does not say) and
            ``place``, or ``error``.
        need: bytes of the checkpoints to come; None when unknown.
        text: what they are, in words.
    """
    least = FREE_FAIL if need is None else max(need, FREE_FAIL)
    enough = FREE_WARN if need is None else max(need, FREE_FAIL) + FREE_WARN
    remedy = "free space, lower train.keep_checkpoints, or choose another train.run_dir"
    rows = [Row("free disk", nodes[rank], FAIL, one["error"], remedy) for rank, one in found.items() if "error" in one]
    whole = {rank: one for rank, one in found.items() if "error" not in one}
    for rank, one in whole.items():
        if one["inodes"] is not None and one["inodes"] < INODES_FAIL:
            few = f"{one['place']}: room for {one['inodes']} more files"
            rows.append(Row("free disk", nodes[rank], FAIL, few, "delete files, or choose another train.run_dir"))
        if one["free"] < enough:
            state = FAIL if one["free"] < least else WARN
            lack = f"{one['place']}: {size(one['free'])} free, {text}"
            rows.append(Row("free disk", nodes[rank], state, lack, remedy))
    free = min((one["free"] for one in whole.values()), default=0)
    return _or_good("free disk", rows, f"{size(free)} free")


def judge_gpus(nodes: Sequence[str], found: Mapping[int, Mapping[str, Any]]) -> list[Row]:
    """Whether every rank has a GPU of its own, and all have the same.

    Args:
        nodes: the node of each rank.
        found: by rank ``device`` and, with cuda, ``visible``, ``name``, ``memory`` (bytes) and ``uuid``; or ``error``.
    """
    rows = [Row("GPUs", nodes[rank], FAIL, one["error"]) for rank, one in found.items() if "error" in one]
    whole = {rank: one for rank, one in found.items() if "error" not in one}
    devices = [one["device"] for one in whole.values()]
    if not whole or set(devices) == {"cpu"}:
        return _or_good("GPUs", rows, "device cpu")
    if "cpu" in devices:
        remedy = "look at the driver there (nvidia-smi), or set train.device=cpu for all"
        text = "torch sees no GPU here, but elsewhere"
        return rows + [Row("GPUs", nodes[r], FAIL, text, remedy) for r, one in whole.items() if one["device"] == "cpu"]
    rows += _shared_gpus(nodes, whole)
    remedy = "ask for equal nodes (a constraint, a typed GPU), or look at nvidia-smi there: the slowest sets the pace"
    for key, words in (("visible", "GPUs visible"), ("name", "model"), ("memory", "memory")):
        shown = {rank: size(one[key]) if key == "memory" else str(one[key]) for rank, one in whole.items()}
        most = usual(list(shown.values()))
        odd = [(rank, value) for rank, value in shown.items() if value != most]
        rows += [Row("GPUs", nodes[rank], WARN, f"{words} {value} (elsewhere {most})", remedy) for rank, value in odd]
    first = next(iter(whole.values()))
    return _or_good("GPUs", list(dict.fromkeys(rows)), f"{len(whole)} x {first['name']} ({size(first['memory'])})")


def _shared_gpus(nodes: Sequence[str], found: Mapping[int, Mapping[str, Any]]) -> list[Row]:
    ranks: dict[str, list[int]] = {}
    for rank, one in found.items():
        ranks.setdefault(one["uuid"] or f"unknown {rank}", []).append(rank)
    remedy = "start one rank a GPU, and let each see its own or all of the node's"
    return [
        Row("GPUs", nodes[same[0]], FAIL, f"ranks {', '.join(map(str, same))} sit on one GPU ({uuid})", remedy)
        for uuid, same in ranks.items()
        if len(same) > 1
    ]


def tournament(num: int) -> list[list[tuple[int, int]]]:
    """Rounds of disjoint pairs in which each of ``num`` players meets each other exactly once (circle method)."""
    ring: list[int | None] = [*range(num), *[None] * (num % 2)]
    half = len(ring) // 2
    rounds = []
    for _ in range(len(ring) - 1):
        meetings = zip(ring[:half], reversed(ring[half:]), strict=True)
        rounds.append([(min(a, b), max(a, b)) for a, b in meetings if a is not None and b is not None])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return rounds


def slow_nodes(pairs: Sequence[Pair]) -> list[str]:
    """Nodes that are slow in all their pairs: sick themselves, not the way to one other node.

    The rule: a node is as good as its best pair. Sick is a node whose best pair is slower than ``SICK_SHARE`` of the
    median node's (the upper median, so that it holds while fewer than half of the nodes are sick). A slow cable between
    two racks, or one slow pair, makes no node sick. Two nodes have one pair: nobody can tell which of them it is.
    """
    best: dict[str, float] = {}
    for pair in pairs:
        for node in (pair.a, pair.b):
            best[node] = max(best.get(node, 0.0), pair.gbps or 0.0)
    if len(best) < 3:
        return []
    floor = SICK_SHARE * median_high(best.values())
    return [node for node, gbps in best.items() if gbps < floor]


def judge_pairs(pairs: Sequence[Pair], min_gbps: float | None, apart: bool = True) -> list[Row]:
    """Broken, slow and sick: rows of the bandwidth between nodes.

    Args:
        pairs: as measured.
        min_gbps: GB/s below which a pair fails; None reports only.
        apart: each node is a machine; virtual nodes of one take each other's time, and ``slow_nodes`` says nothing.
    """
    broken = [pair for pair in pairs if pair.gbps is None]
    if broken:  # who waited for a partner that was stuck is stuck in a later round
        first = min(pair.round for pair in broken)
        remedy = "look at the network of these nodes, or leave them out"
        return [
            Row("node pairs", f"{pair.a}-{pair.b}", FAIL, pair.error, remedy) for pair in broken if pair.round == first
        ]
    sick = slow_nodes(pairs) if apart else []
    remedy = "look at that node's network card, cable and NCCL or gloo interface, or leave the node out"
    rows = []
    for node in sick:
        best = max(pair.gbps or 0.0 for pair in pairs if node in pair[:2])
        state = FAIL if min_gbps is not None and best < min_gbps else WARN
        rows.append(Row("node pairs", node, state, f"slow with every other node, at best {best:.2f} GB/s", remedy))
    for pair in pairs:
        gbps = pair.gbps or 0.0
        if min_gbps is not None and gbps < min_gbps and not {pair.a, pair.b} & set(sick):
            text = f"{gbps:.2f} GB/s, expected at least {min_gbps:g}"
            rows.append(Row("node pairs", f"{pair.a}-{pair.b}", FAIL, text, remedy))
    slowest = min(pairs, key=lambda pair: pair.gbps or 0.0, default=None)
    good = "one node, no pairs" if slowest is None else f"slowest pair {slowest.a}-{slowest.b} {slowest.gbps:.2f} GB/s"
    return _or_good("node pairs", rows, good)


def wrong_ranks(seen: Mapping[int, Mapping[int, int]]) -> list[int]:
    """Which ranks spoil data, when everybody knows what everybody should have sent.

    Args:
        seen: by receiver and sender, how many elements were wrong.

    Returns:
        Senders whose data most receivers find wrong; then receivers that find others' data wrong. May be empty.
    """
    senders = [
        source
        for source in seen
        if 2 * sum(bool(row.get(source)) for row in seen.values()) > len(seen) or seen[source].get(source)
    ]
    rest = [r for r, row in seen.items() if any(n for source, n in row.items() if source not in senders)]
    return sorted({*senders, *rest})


def judge_sums(
    nodes: Sequence[str], found: Mapping[int, Mapping[str, Any]], min_gbps: float | None, num_bytes: int
) -> list[Row]:
    """Whether the all-reduce ended, and its bus bandwidth.

    Args:
        nodes: the node of each rank.
        found: by rank ``seconds`` and ``wrong`` elements, or ``error``; silent ranks are absent.
        min_gbps: GB/s below which it fails on a single node; with several the pairs are judged.
        num_bytes: of the tensor.
    """
    remedy = "look at the network between the nodes, and at NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME"
    rows = [Row("all-reduce", nodes[rank], FAIL, one["error"], remedy) for rank, one in found.items() if "error" in one]
    if len(found) < len(nodes):  # they only waited for those who are silent, and who are named for that
        return []
    if rows:
        return rows
    world = len(nodes)
    gbps = num_bytes / max(one["seconds"] for one in found.values()) * 2 * (world - 1) / world / 1e9
    text = f"all-reduce right, {gbps:.2f} GB/s"
    if min_gbps is not None and len(set(nodes)) == 1 and gbps < min_gbps:
        return [Row("all-reduce", nodes[0], FAIL, f"{text}, expected at least {min_gbps:g}", remedy)]
    return [Row("all-reduce", ALL, OK, text)]


def judge_wrong(
    nodes: Sequence[str], found: Mapping[int, Mapping[str, Any]], seen: Mapping[int, Mapping[int, int]]
) -> list[Row]:
    """Who spoils the sums: those whom ``wrong_ranks`` names, else all whose sums are wrong."""
    remedy = "leave the node out: its memory, network card or GPU changes data"
    guilty = wrong_ranks(seen) or [rank for rank, one in found.items() if one["wrong"]]
    worst = max(one["wrong"] for one in found.values())
    return [
        Row("all-reduce", nodes[rank], FAIL, f"rank {rank} spoils sums ({worst} elements are wrong)", remedy)
        for rank in guilty
    ]


def slowest_first(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs in the order in which somebody wants to look at them."""
    return sorted(pairs, key=lambda pair: -math.inf if pair.gbps is None else pair.gbps)
