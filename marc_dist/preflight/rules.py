"""What the findings of a preflight mean: pure rules from numbers and texts to rows that name nodes.

The rules for the network between nodes are in ``network_rules``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
MEMORY_WARN = GIB
"""Memory a rank: torch alone takes half of it."""


class Finding(NamedTuple):
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
    rows: tuple[Finding, ...]
    pairs: tuple[Pair, ...]
    seconds: float

    @property
    def failures(self) -> tuple[Finding, ...]:
        """Rows that must keep the run from starting."""
        return tuple(row for row in self.rows if row.state == FAIL)

    @property
    def warnings(self) -> tuple[Finding, ...]:
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
    return Report(tuple(nodes), tuple(Finding(*row) for row in rows), tuple(Pair(*pair) for pair in pairs), seconds)


def grouped(rows: Sequence[Finding]) -> list[Finding]:
    """Rows that differ in their node only, as one."""
    nodes: dict[Finding, list[str]] = {}
    for row in rows:
        known = nodes.setdefault(row._replace(node=""), [])
        known += [row.node] * (row.node not in known)
    return [row._replace(node=", ".join(names)) for row, names in nodes.items()]


def most_common(values: Sequence[Any]) -> Any:
    """The most frequent value, at a tie the one that comes first (rank 0's)."""
    texts = [repr(value) for value in values]  # values may be lists, which do not count
    return values[texts.index(Counter(texts).most_common(1)[0][0])]


def _or_passed(check: str, rows: list[Finding], good: str) -> list[Finding]:
    return rows or [Finding(check, ALL, OK, good)]


def size(num_bytes: float) -> str:
    """Bytes in words."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / MIB:.0f} MiB"


def judge_silence(nodes: Sequence[str], answered: Mapping[int, Any], stage: str, limit_s: float) -> list[Finding]:
    """A failure for each rank without an answer.

    Args:
        nodes: the node of each rank.
        answered: by rank, whatever it said.
        stage: what the ranks were doing, in words.
        limit_s: seconds that rank 0 waited.
    """
    remedy = "see its log; look at that machine, its storage and its network, or leave the node out"
    return [
        Finding("answers", node, FAIL, f"rank {rank}: no word within {limit_s:g} s of {stage}", remedy)
        for rank, node in enumerate(nodes)
        if rank not in answered
    ]


def judge_shards(nodes: Sequence[str], found: Mapping[int, Mapping[str, Any]]) -> list[Finding]:
    """Whether all nodes see the same shards.

    Args:
        nodes: the node of each rank.
        found: by rank (one or more a node) ``fingerprint`` and ``place``, or ``error``.
    """
    rows = [Finding("shards", nodes[rank], FAIL, one["error"]) for rank, one in found.items() if "error" in one]
    whole = {rank: one for rank, one in found.items() if "error" not in one}
    if not whole:
        return rows
    most = most_common([one["fingerprint"] for one in whole.values()])
    remedy = "copy the same shards to every node, or give a data.dir that all share"
    for rank, one in whole.items():
        if one["fingerprint"] != most:
            text = f"{one['place']}: expected fingerprint {most[:12]} as elsewhere, got {one['fingerprint'][:12]}"
            rows.append(Finding("shards", nodes[rank], FAIL, text, remedy))
    return _or_passed("shards", rows, f"same shards ({most[:12]})")


def judge_folder(nodes: Sequence[str], errors: Mapping[int, str | None]) -> list[Finding]:
    """Whether the run folder is one that all nodes can write: what went wrong by rank, None where nothing did."""
    rows = [Finding("run folder", nodes[rank], FAIL, error) for rank, error in errors.items() if error]
    return _or_passed("run folder", rows, "run folder shared" if len(set(nodes)) > 1 else "run folder writable")


def judge_equal(check: str, nodes: Sequence[str], found: Mapping[int, Mapping[str, Any]], remedy: str) -> list[Finding]:
    """Whether all ranks have the same values, whatever they are; the most frequent one is taken for right.

    Args:
        check: what is compared, in a word or two.
        nodes: the node of each rank.
        found: by rank, name -> value; a name that a rank lacks counts as None.
        remedy: what helps where they differ.
    """
    keys = dict.fromkeys(key for one in found.values() for key in one)
    most = {key: most_common([one.get(key) for one in found.values()]) for key in keys}
    rows = []
    for rank, one in found.items():
        others = [f"{key} {one.get(key)} (elsewhere {most[key]})" for key in keys if one.get(key) != most[key]]
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        if others:
            rows.append(Finding(check, nodes[rank], FAIL, ", ".join(others[:3]) + more, remedy))
    return _or_passed(check, list(dict.fromkeys(rows)), f"same {check}")


def judge_clocks(nodes: Sequence[str], read: Mapping[int, float], began: float, ended: float) -> list[Finding]:
    """How far clocks are from rank 0's.

    Args:
        nodes: the node of each rank.
        read: the clock of each rank, seconds, read between ``began`` and ``ended``.
        began: rank 0's clock before any other was read.
        ended: rank 0's clock after all were. Half the time between is the uncertainty, in favour of the node.
    """
    middle, doubt = (began + ended) / 2, (ended - began) / 2
    rows: dict[str, Finding] = {}
    for rank, value in read.items():
        off = value - middle
        sure = abs(off) - doubt
        if rank and sure > CLOCK_WARN_S:
            state = FAIL if sure > CLOCK_FAIL_S else WARN
            text = f"clock {abs(off):.1f} s {'ahead of' if off > 0 else 'behind'} rank 0's (+- {doubt:.2f} s)"
            remedy = "set the clock there (chronyc makestep): logs and the watchdog compare times of nodes"
            rows.setdefault(nodes[rank], Finding("clocks", nodes[rank], state, text, remedy))
    far = max([abs(value - middle) for rank, value in read.items() if rank], default=0.0)
    one = len(set(nodes)) == 1
    return _or_passed("clocks", list(rows.values()), "one clock" if one else f"clocks within {far + doubt:.2f} s")


def judge_disk(
    nodes: Sequence[str], found: Mapping[int, Mapping[str, Any]], need: int | None, text: str
) -> list[Finding]:
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
    rows = [
        Finding("free disk", nodes[rank], FAIL, one["error"], remedy) for rank, one in found.items() if "error" in one
    ]
    whole = {rank: one for rank, one in found.items() if "error" not in one}
    for rank, one in whole.items():
        if one["inodes"] is not None and one["inodes"] < INODES_FAIL:
            few = f"{one['place']}: room for {one['inodes']} more files"
            rows.append(Finding("free disk", nodes[rank], FAIL, few, "delete files, or choose another train.run_dir"))
        if one["free"] < enough:
            state = FAIL if one["free"] < least else WARN
            lack = f"{one['place']}: {size(one['free'])} free, {text}"
            rows.append(Finding("free disk", nodes[rank], state, lack, remedy))
    free = min((one["free"] for one in whole.values()), default=0)
    return _or_passed("free disk", rows, f"{size(free)} free")


def judge_memory(nodes: Sequence[str], found: Mapping[int, Mapping[str, Any]]) -> list[Finding]:
    """Whether batches fit through /dev/shm, and whether ranks have memory, also by the limit of a container or job.

    Args:
        nodes: the node of each rank.
        found: by rank (one or more a node) ``shm`` (free bytes, None where nothing passes through it), ``batch`` and
            ``ahead`` (bytes of a batch of one rank, and of those that its workers make ahead), ``free`` and ``limit``
            (of memory; None where the system does not say), or ``error``.
    """
    rows = []
    for rank, one in found.items():
        num = nodes.count(nodes[rank])
        if "error" in one:
            rows.append(Finding("memory", nodes[rank], WARN, one["error"]))
            continue
        if one["shm"] is not None and one["shm"] < num * one["ahead"]:
            state = FAIL if one["shm"] < one["batch"] else WARN
            lack = f"/dev/shm: {size(one['shm'])} free, batches of {num} ranks take {size(num * one['ahead'])}"
            remedy = "give it more (docker run --shm-size=8g), or lower data.num_workers; 0 needs none"
            rows.append(Finding("memory", nodes[rank], state, lack, remedy))
        if one["free"] is not None and one["free"] < num * MEMORY_WARN:
            limit = "" if one["limit"] is None else f", the limit of its container or job is {size(one['limit'])}"
            lack = f"{size(one['free'])} of memory left for {num} ranks{limit}"
            rows.append(Finding("memory", nodes[rank], WARN, lack, "raise the limit, or end what else runs there"))
    free = min((one["free"] for one in found.values() if one.get("free") is not None), default=None)
    return _or_passed("memory", rows, "memory unknown" if free is None else f"{size(free)} of memory")


def judge_gpus(nodes: Sequence[str], found: Mapping[int, Mapping[str, Any]]) -> list[Finding]:
    """Whether every rank has a GPU of its own, and all have the same.

    Args:
        nodes: the node of each rank.
        found: by rank ``device`` and, with cuda, ``visible``, ``name``, ``memory`` (bytes) and ``uuid``; or ``error``.
    """
    rows = [Finding("GPUs", nodes[rank], FAIL, one["error"]) for rank, one in found.items() if "error" in one]
    whole = {rank: one for rank, one in found.items() if "error" not in one}
    devices = [one["device"] for one in whole.values()]
    if not whole or set(devices) == {"cpu"}:
        return _or_passed("GPUs", rows, "device cpu")
    if "cpu" in devices:
        remedy = "look at the driver there (nvidia-smi), or set train.device=cpu for all"
        text = "torch sees no GPU here, but elsewhere"
        return rows + [
            Finding("GPUs", nodes[r], FAIL, text, remedy) for r, one in whole.items() if one["device"] == "cpu"
        ]
    rows += _shared_gpus(nodes, whole)
    remedy = "ask for equal nodes (a constraint, a typed GPU), or look at nvidia-smi there: the slowest sets the pace"
    for key, words in (("visible", "GPUs visible"), ("name", "model"), ("memory", "memory")):
        shown = {rank: size(one[key]) if key == "memory" else str(one[key]) for rank, one in whole.items()}
        most = most_common(list(shown.values()))
        odd = [(rank, value) for rank, value in shown.items() if value != most]
        rows += [
            Finding("GPUs", nodes[rank], WARN, f"{words} {value} (elsewhere {most})", remedy) for rank, value in odd
        ]
    first = next(iter(whole.values()))
    return _or_passed("GPUs", list(dict.fromkeys(rows)), f"{len(whole)} x {first['name']} ({size(first['memory'])})")


def _shared_gpus(nodes: Sequence[str], found: Mapping[int, Mapping[str, Any]]) -> list[Finding]:
    ranks: dict[str, list[int]] = {}
    for rank, one in found.items():
        ranks.setdefault(one["uuid"] or f"unknown {rank}", []).append(rank)
    remedy = "start one rank a GPU, and let each see its own or all of the node's"
    return [
        Finding("GPUs", nodes[same[0]], FAIL, f"ranks {', '.join(map(str, same))} sit on one GPU ({uuid})", remedy)
        for uuid, same in ranks.items()
        if len(same) > 1
    ]
