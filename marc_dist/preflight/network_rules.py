"""What the figures of the network between nodes mean: pure rules that name broken links, slow and sick nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median_high
from typing import Any

from marc_dist.preflight.rules import ALL, FAIL, OK, WARN, Finding, Pair

SICK_SHARE = 0.5
MAX_ROUNDS = 63
"""Rounds of the tournament: in a larger cluster every node meets this many others, which is enough for the rule."""


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


def judge_pairs(pairs: Sequence[Pair], min_gbps: float | None, apart: bool = True) -> list[Finding]:
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
            Finding("node pairs", f"{pair.a}-{pair.b}", FAIL, pair.error, remedy)
            for pair in broken
            if pair.round == first
        ]
    sick = slow_nodes(pairs) if apart else []
    remedy = "look at that node's network card, cable and NCCL or gloo interface, or leave the node out"
    rows = []
    for node in sick:
        best = max(pair.gbps or 0.0 for pair in pairs if node in pair[:2])
        state = FAIL if min_gbps is not None and best < min_gbps else WARN
        rows.append(Finding("node pairs", node, state, f"slow with every other node, at best {best:.2f} GB/s", remedy))
    for pair in pairs:
        gbps = pair.gbps or 0.0
        if min_gbps is not None and gbps < min_gbps and not {pair.a, pair.b} & set(sick):
            text = f"{gbps:.2f} GB/s, expected at least {min_gbps:g}"
            rows.append(Finding("node pairs", f"{pair.a}-{pair.b}", FAIL, text, remedy))
    slowest = min(pairs, key=lambda pair: pair.gbps or 0.0, default=None)
    good = "one node, no pairs" if slowest is None else f"slowest pair {slowest.a}-{slowest.b} {slowest.gbps:.2f} GB/s"
    return rows or [Finding("node pairs", ALL, OK, good)]


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
) -> list[Finding]:
    """Whether the all-reduce ended, and its bus bandwidth.

    Args:
        nodes: the node of each rank.
        found: by rank ``seconds`` and ``wrong`` elements, or ``error``; silent ranks are absent.
        min_gbps: GB/s below which it fails on a single node; with several the pairs are judged.
        num_bytes: of the tensor.
    """
    remedy = "look at the network between the nodes, and at NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME"
    rows = [
        Finding("all-reduce", nodes[rank], FAIL, one["error"], remedy) for rank, one in found.items() if "error" in one
    ]
    if len(found) < len(nodes):  # they only waited for those who are silent, and who are named for that
        return []
    if rows:
        return rows
    world = len(nodes)
    gbps = num_bytes / max(one["seconds"] for one in found.values()) * 2 * (world - 1) / world / 1e9
    text = f"all-reduce right, {gbps:.2f} GB/s"
    if min_gbps is not None and len(set(nodes)) == 1 and gbps < min_gbps:
        return [Finding("all-reduce", nodes[0], FAIL, f"{text}, expected at least {min_gbps:g}", remedy)]
    return [Finding("all-reduce", ALL, OK, text)]


def judge_wrong(
    nodes: Sequence[str], found: Mapping[int, Mapping[str, Any]], seen: Mapping[int, Mapping[int, int]]
) -> list[Finding]:
    """Who spoils the sums: those whom ``wrong_ranks`` names, else all whose sums are wrong.

    Args:
        nodes: the node of each rank.
        found: by rank, ``wrong``: how many elements of its sum are wrong.
        seen: by receiver and sender, how many elements were wrong; a receiver that could not compare is absent.
    """
    remedy = "leave the node out: its memory, network card or GPU changes data"
    guilty = wrong_ranks(seen) or [rank for rank, one in found.items() if one["wrong"]]
    worst = max(one["wrong"] for one in found.values())
    return [
        Finding("all-reduce", nodes[rank], FAIL, f"rank {rank} spoils sums ({worst} elements are wrong)", remedy)
        for rank in guilty
    ]


def slowest_first(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs in the order in which somebody wants to look at them."""
    return sorted(pairs, key=lambda pair: -math.inf if pair.gbps is None else pair.gbps)
