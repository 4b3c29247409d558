"""Before a run: does every node see the same data, folder, code and time, and does the network between them work?

A sick node costs hours when it is found by a run that hangs, or worse, learns something else. Here each rank looks at
its own machine, rank 0 compares what they say, and every node that fails is named, not only the first. Answers travel
through the store in which the ranks met (``Exchange``), so that a hanging disk or a dead network is told within
``limit_s`` and with the rank's name. What the findings mean is in ``rules`` and ``network_rules``.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from marc_dist import comm
from marc_dist.config import Config, LaunchError
from marc_dist.encoder.device import resolve_device
from marc_dist.files import write_atomic
from marc_dist.place import World
from marc_dist.preflight import machine, network_rules, rules
from marc_dist.preflight.links import Links, known_data
from marc_dist.preflight.machine import or_error
from marc_dist.preflight.rules import Finding, Pair, Report
from marc_dist.preflight.store_exchange import Exchange
from marc_dist.run.folder import plain_settings
from marc_dist.run.rank_ends import node_name

PREFLIGHT = "MARC_PREFLIGHT"
"""Environment variable that asks a run for its preflight: 1."""
FLOOR = "MARC_PREFLIGHT_MIN_GBPS"
"""Environment variable with ``min_gbps`` of that preflight; without it bandwidth is only reported."""
LIMIT_S = 60.0
SETTLE_S = 3.0
"""How long a file of another node may take to appear in a shared folder."""
WIDTH = 160
"""Columns of a table in a log."""


def preflight(
    config: Config,
    here: World,
    device: torch.device,
    *,
    min_gbps: float | None = None,
    limit_s: float = LIMIT_S,
    at: Callable[[int, str], None] | None = None,
    clock: Callable[[], float] = time.time,
    data: Callable[[int, int, torch.device], Tensor] = known_data,
) -> Report:
    """Look at all nodes; every rank of the present process group calls this and gets the same report.

    Args:
        config: the run's settings.
        here: this process among the others.
        device: of the run; ``cuda`` tests the GPUs and NCCL, ``cpu`` gloo.
        min_gbps: GB/s below which a node pair fails (on one node: the all-reduce); None only reports.
        limit_s: seconds for each stage; who says nothing for so long has failed. A message over the network has half.
        at: told (step, phase) before each stage; see ``heartbeats.PHASES``.
        clock: this machine's time, seconds.
        data: what a rank sends; see ``known_data``.

    Raises:
        LaunchError: rank 0 says nothing. What the checks find is in the report: see ``Report.require``.
    """
    return _Preflight(config, here, device, min_gbps, limit_s, at or (lambda step, phase: None), clock, data).run()


def preflight_of_run(config: Config, here: World, device: torch.device, at: Callable[[int, str], None] | None) -> None:
    """The preflight of a run that begins: rank 0 prints one line, or the table of what is not well.

    Args:
        config: the run's settings.
        here: this process among the others.
        device: of the run.
        at: told (step, phase) before each stage; see ``heartbeats.PHASES``.

    Raises:
        LaunchError: something failed; names every failing node.
    """
    report = preflight(config, here, device, min_gbps=_floor(), at=at)
    if here.rank == 0:
        console = Console(stderr=True, width=None if sys.stderr.isatty() else WIDTH, soft_wrap=True)
        if not report.failures:
            console.print(Text(report.line()))
        if report.failures or report.warnings:
            show(report, console)
    report.require()


def check_rank(config: Config) -> tuple[World, Report]:
    """One rank of ``marc-train --check``: join the world, look, leave."""
    device = resolve_device(config.train.device)
    here = comm.join(device.type, timeout_s=config.train.timeout_s, folder=Path(config.train.run_dir) / "logs")
    report = preflight(config, here, device, min_gbps=_floor())
    if not report.failures:  # else the group may be stuck, and the process ends anyway
        comm.leave()
    return here, report


def _floor() -> float | None:
    """The launcher's ``min_gbps``.

    Raises:
        LaunchError: not a number.
    """
    text = os.environ.get(FLOOR)
    try:
        return float(text) if text else None
    except ValueError:
        raise LaunchError(f"{FLOOR}: expected a number of GB/s, got {text!r}; unset it, or use marc-launch") from None


class _Silent(Exception):
    """A rank does not answer: no further stage makes sense."""


class _Preflight:
    """One rank's part; what only rank 0 knows is empty elsewhere."""

    def __init__(
        self,
        config: Config,
        here: World,
        device: torch.device,
        min_gbps: float | None,
        limit_s: float,
        at: Callable[[int, str], None],
        clock: Callable[[], float],
        data: Callable[[int, int, torch.device], Tensor],
    ) -> None:
        self.config, self.here, self.device, self.min_gbps, self.limit_s = config, here, device, min_gbps, limit_s
        self.at, self.clock = at, clock
        self.links = Links(device, limit_s / 2, data)  # who waits in vain can still say so in time
        self.run_dir = Path(config.train.run_dir)
        self.exchange = Exchange()
        self.nodes = [f"rank {rank}" for rank in range(here.world)]
        self.rows: list[Finding] = []
        self.pairs: list[Pair] = []
        self.stuck = self.unfit = self.apart = False
        self.folder: Path | None = None
        self.made_run_dir, self.failed = not self.run_dir.exists(), True

    def run(self) -> Report:
        began = time.monotonic()
        try:
            with suppress(_Silent):
                self._meet()
                self._look()
                self._cross()
            report = Report(tuple(self.nodes), tuple(self.rows), tuple(self.pairs), time.monotonic() - began)
            told = self.exchange.publish(report.plain(), self._patience())
            # rank 0 must not end, and the store with it, before all have read
            self.exchange.collect(None, 5.0)
            report = rules.report_of(told)
            self.failed = bool(report.failures)
            return report
        finally:
            self._clean()

    def _patience(self) -> float:
        """How long others wait for rank 0, which may itself wait for somebody."""
        return 2 * self.limit_s + 5.0

    def _gather(self, stage: str, value: Any) -> dict[int, Any]:
        """Everybody's value, on rank 0, where silence is a finding."""
        found = self.exchange.collect(value, self.limit_s)
        if self.here.rank == 0:
            silent = rules.judge_silence(self.nodes, found, stage, self.limit_s)
            self.rows += silent
            self.stuck |= bool(silent)
        return found

    def _tell(self, value: Any) -> Any:
        """Rank 0's value to all, or the end of all stages."""
        told = self.exchange.publish([self.stuck, value], self._patience())
        if told[0]:
            raise _Silent
        return told[1]

    def _meet(self) -> None:
        """Who is where; and, in the moment in which all hear it, the clocks."""
        self.at(0, "checking")
        names = self._gather("the start", [node_name(), machine.host_name()])
        if self.here.rank == 0:
            self.nodes = [names.get(rank, [f"rank {rank}"])[0] for rank in range(self.here.world)]
            self.apart = len({host for _, host in names.values()}) >= len(set(self.nodes))
            self.folder = self.run_dir / f".preflight-{uuid.uuid4().hex[:12]}"
        began = self.clock()
        self.nodes, folder = self._tell([self.nodes, None if self.folder is None else self.folder.name])
        clocks = self._gather("reading the clock", self.clock())
        if self.here.rank == 0:
            self.rows += rules.judge_clocks(self.nodes, clocks, began, self.clock())
        self.folder = self.run_dir / folder
        # a node is looked at by its first rank; by every first process of a machine, where machines share a name
        self.leads = self.here.local_rank == 0 or self.nodes.index(self.nodes[self.here.rank]) == self.here.rank

    def _look(self) -> None:
        """What each node, and each rank, sees of its own machine."""
        self.at(0, "checking")
        written = or_error(self._write_first) if self.here.rank == 0 else {}
        written = self._tell(written)
        found = self._gather("looking at its machine", self._facts(written))
        if self.here.rank == 0:
            self._judge(found, written)

    def _facts(self, written: dict[str, Any]) -> dict[str, Any]:
        facts: dict[str, Any] = {"versions": machine.versions(self.device), "settings": plain_settings(self.config)}
        facts["gpu"] = or_error(lambda: machine.gpu(self.device))
        if self.leads:
            facts["shards"] = or_error(lambda: machine.shards(self.config))
            facts["folder"] = {} if "error" in written else or_error(self._answer)
            facts["disk"] = or_error(lambda: machine.disk(self.run_dir))
            rows, cpu = -(-self.config.train.global_batch // self.here.world), self.device.type == "cpu"
            facts["memory"] = or_error(lambda: machine.memory(self.config, rows, cpu))
        if self.here.rank == 0:
            facts["needed"] = machine.bytes_needed(self.config, facts["disk"].get("free", 0))
        return facts

    def _write_first(self) -> dict[str, Any]:
        assert self.folder is not None
        write_atomic(self.folder / "rank-0", b"0")
        return {}

    def _answer(self) -> dict[str, Any]:
        """Write a file beside rank 0's: each node's first rank must see the one, rank 0 the others."""
        assert self.folder is not None
        write_atomic(self.folder / f"rank-{self.here.rank}", str(self.here.rank).encode())
        if not machine.wait_for_file(self.folder / "rank-0", time.monotonic() + SETTLE_S):
            raise LaunchError(
                f"{self.run_dir.absolute()}: not the folder of rank 0, whose file does not appear here within "
                f"{SETTLE_S:g} s; give a train.run_dir that all nodes share"
            )
        (self.folder / "rank-0").read_bytes()
        return {}

    def _judge(self, found: dict[int, Any], written: dict[str, Any]) -> None:
        def of(key: str) -> dict[int, Any]:
            return {rank: facts[key] for rank, facts in found.items() if key in facts}

        errors = {0: written["error"]} if "error" in written else self._folder_errors(of("folder"))
        need, text = found[0]["needed"]
        self.rows += rules.judge_shards(self.nodes, of("shards"))
        self.rows += rules.judge_folder(self.nodes, errors)
        remedy = "use one environment on all nodes (the same container or virtual environment)"
        self.rows += rules.judge_equal("versions", self.nodes, of("versions"), remedy)
        remedy = "start all ranks with the same words and the same run file"
        self.rows += rules.judge_equal("settings", self.nodes, of("settings"), remedy)
        self.rows += rules.judge_disk(self.nodes, of("disk"), need, text)
        self.rows += rules.judge_memory(self.nodes, of("memory"))
        gpus = rules.judge_gpus(self.nodes, of("gpu"))
        self.rows += gpus
        self.unfit = any(row.state == rules.FAIL for row in gpus)

    def _folder_errors(self, told: dict[int, Any]) -> dict[int, str | None]:
        """What each node says of the run folder, and whether rank 0 sees what the others wrote."""
        assert self.folder is not None
        errors: dict[int, str | None] = {rank: one.get("error") for rank, one in told.items()}
        deadline = time.monotonic() + SETTLE_S
        for rank in [rank for rank, error in errors.items() if error is None]:
            if not machine.wait_for_file(self.folder / f"rank-{rank}", deadline):
                errors[rank] = f"{self.run_dir.absolute()}: rank 0 does not see what is written here; share that folder"
        return errors

    def _cross(self) -> None:
        """The network: sums of known numbers over all ranks, then each two nodes alone."""
        if not self._tell(not self.unfit):
            return  # without GPUs of their own ranks cannot meet in NCCL
        if self.here.world == 1:
            self.rows.append(Finding("all-reduce", rules.ALL, rules.OK, "one process, no network"))
            return
        self.at(0, "checking")
        found = self._gather("the all-reduce", or_error(self.links.sum))
        if self.here.rank == 0:
            failed = any("error" in one for one in found.values())
            wrong = not failed and any(one["wrong"] for one in found.values())
            if not wrong:
                self.rows += network_rules.judge_sums(self.nodes, found, self.min_gbps, self.links.num_bytes)
            self._tell("stop" if failed else "trace" if wrong else "pairs")
            (self._trace if wrong else self._stop if failed else self._meet_pairs)(found)
            return
        {"stop": self._stop, "trace": self._trace, "pairs": self._meet_pairs}[self._tell(None)]({})

    def _stop(self, found: dict[int, Any]) -> None:
        """After a failed collective the group is of no use."""

    def _trace(self, found: dict[int, Any]) -> None:
        """Sums are wrong: every rank sends its part to all, who compare."""
        self.at(0, "checking")
        seen = self._gather("tracing wrong sums", or_error(self.links.compare))
        if self.here.rank == 0:
            told = {
                rank: {int(source): wrong for source, wrong in one.items()}
                for rank, one in seen.items()
                if "error" not in one
            }
            self.rows += network_rules.judge_wrong(self.nodes, found, told)

    def _meet_pairs(self, found: dict[int, Any]) -> None:
        """Each two nodes alone, as many pairs at a time as there are: rounds of a tournament."""
        self.at(0, "checking")
        firsts = [self.nodes.index(name) for name in dict.fromkeys(self.nodes)]
        rounds = network_rules.tournament(len(firsts))[: network_rules.MAX_ROUNDS] if len(firsts) > 1 else []
        swaps: list[list[Any]] = []
        for number, meetings in enumerate(rounds):
            for a, b in meetings:
                if self.here.rank in (firsts[a], firsts[b]):
                    peer = firsts[b] if self.here.rank == firsts[a] else firsts[a]
                    swaps.append([firsts[a], firsts[b], number, or_error(partial(self.links.swap, peer))])
            if swaps and "error" in swaps[-1][3]:
                break
        every = self._gather("meeting other nodes", swaps)
        if self.here.rank == 0:
            self._judge_pairs(every)

    def _judge_pairs(self, every: dict[int, Any]) -> None:
        """A pair is as fast as its slower side says."""
        found: dict[tuple[int, int], Pair] = {}
        for swaps in every.values():
            for a, b, number, one in swaps:
                before = found.get((a, b))
                error, gbps = one.get("error", ""), one.get("gbps")
                if before is not None:
                    error = before.error or error
                    gbps = None if error else min(before.gbps or 0.0, gbps)
                found[a, b] = Pair(self.nodes[a], self.nodes[b], gbps, error, number)
        self.pairs = list(found.values())
        silent = len(every) < self.here.world  # and named for that: who met them, or waited for those who did, is well
        told = [pair for pair in self.pairs if pair.gbps is not None or not silent]
        self.rows += network_rules.judge_pairs(told, self.min_gbps, self.apart)

    def _clean(self) -> None:
        """Take away what this node wrote; where the folder is shared, the last one takes the folder."""
        if self.folder is None:
            return
        with suppress(OSError):
            if self.here.rank == 0 or self.failed:
                shutil.rmtree(self.folder, ignore_errors=True)
            else:
                (self.folder / f"rank-{self.here.rank}").unlink(missing_ok=True)
                self.folder.rmdir()
        if self.made_run_dir and (self.failed or self.here.rank == 0):  # a run that begins is begun by rank 0
            with suppress(OSError):  # not empty: somebody uses it
                self.run_dir.rmdir()


def show(report: Report, console: Console | None = None) -> None:
    """Print the findings as a table and, with several nodes, what goes between them, slowest pair first."""
    console = console or Console(width=None if sys.stdout.isatty() else WIDTH)
    colours = {rules.OK: "green", rules.WARN: "yellow", rules.FAIL: "bold red"}
    table = Table(title=Text(f"preflight: {len(report.nodes)} ranks, {report.seconds:.1f} s"))
    for column in ("check", "node", "", "found", "remedy"):
        table.add_column(column)
    for row in rules.grouped(report.rows):
        cells = (row.node, Text(row.state, colours[row.state]), row.found, row.remedy)
        table.add_row(row.check, *(cell if isinstance(cell, Text) else Text(cell) for cell in cells))
    console.print(table)
    if report.pairs:
        console.print(_matrix(report) if len(set(report.nodes)) <= 12 else _slowest(report))


def _matrix(report: Report) -> Table:
    names = list(dict.fromkeys(report.nodes))
    speed = {frozenset(pair[:2]): "-" if pair.gbps is None else f"{pair.gbps:.2f}" for pair in report.pairs}
    table = Table(title="GB/s between nodes, each way at once")
    table.add_column("")
    for name in names:
        table.add_column(Text(name), justify="right")
    for name in names:
        table.add_row(Text(name), *(speed.get(frozenset({name, other}), "") for other in names))
    return table


def _slowest(report: Report) -> Table:
    table = Table(title=f"GB/s between nodes, each way at once: the slowest of {len(report.pairs)} pairs")
    for column in ("node", "node", "GB/s"):
        table.add_column(column)
    for pair in network_rules.slowest_first(report.pairs)[:20]:
        table.add_row(Text(pair.a), Text(pair.b), "-" if pair.gbps is None else f"{pair.gbps:.2f}")
    return table
