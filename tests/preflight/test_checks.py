"""A sick node is named: by real gloo ranks that call themselves nodes, and by the rules alone."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import marc_dist
from marc_dist import comm
from marc_dist.cli import train
from marc_dist.config import Config, LaunchError, build
from marc_dist.place import World
from marc_dist.preflight import checks, links, machine, network_rules, rules
from marc_dist.preflight.checks import show
from marc_dist.preflight.machine import bytes_needed
from marc_dist.preflight.rules import FAIL, OK, WARN, Finding, Pair, Report
from marc_dist.training.trainer import run_rank
from tests.worlds import run_in_world

CPU = torch.device("cpu")
CHECKS = [
    "clocks",
    "shards",
    "run folder",
    "versions",
    "settings",
    "free disk",
    "memory",
    "GPUs",
    "all-reduce",
    "node pairs",
]


def _words(data: Path | str, run: Path | str) -> dict[str, Any]:
    return {
        "data.dir": str(data),
        "data.image_size": 32,
        "data.num_workers": 0,
        "model.backbone": "test_resnet",
        "model.pretrained": False,
        "model.head_hidden": 16,
        "model.head_dim": 8,
        "train.run_dir": str(run),
        "train.global_batch": 13,
        "train.max_steps": 2,
        "train.device": "cpu",
    }


def _check(
    words: dict[str, Any], nodes: Sequence[str], sick: Callable[[int], dict[str, Any]] | None, cwd: str | None
) -> list[Any]:
    """The preflight on one rank, made sick by ``sick``; ``cwd`` holds a folder per node."""
    rank = comm.rank()
    os.environ["MARC_NODE"] = nodes[rank]
    links.NUM_BYTES["cpu"] = 2**18
    checks.SETTLE_S = 0.3
    if cwd is not None:
        os.chdir(Path(cwd) / nodes[rank])
    phases: list[str] = []
    options = {} if sick is None else sick(rank)
    options.setdefault("limit_s", 30.0)
    report = checks.preflight(
        build(Config, words),
        World(rank, comm.world(), rank),
        CPU,
        at=lambda step, phase: phases.append(phase),
        **options,
    )
    assert set(phases) == {"checking"}
    comm.barrier() if not report.failures else None
    return report.plain()


def _in_world(
    words: dict[str, Any],
    nodes: Sequence[str],
    sick: Callable[[int], dict[str, Any]] | None = None,
    cwd: Path | None = None,
) -> Report:
    """The one report that all ranks got."""
    plain = run_in_world(_check, len(nodes), words, nodes, sick, None if cwd is None else str(cwd))
    assert all(one == plain[0] for one in plain)
    return rules.report_of(plain[0])


def _failures(report: Report) -> set[tuple[str, str]]:
    return {(row.check, row.node) for row in report.failures}


def test_four_well_ranks_on_three_nodes(small_dir: Path, tmp_path: Path) -> None:
    report = _in_world(_words(small_dir, tmp_path / "run"), ["a", "a", "b", "c"])
    assert not report.failures
    assert not report.warnings
    assert [row.check for row in report.rows] == CHECKS
    assert {frozenset(pair[:2]) for pair in report.pairs} == {frozenset(two) for two in combinations("abc", 2)}
    assert all(pair.gbps is not None and pair.gbps > 0 for pair in report.pairs)
    assert report.nodes == ("a", "a", "b", "c")
    line = report.line()
    assert line.startswith("preflight: 3 nodes, 4 ranks, clocks within 0.")
    for text in ("same shards (", "run folder shared", "same versions, same settings", "free", "all-reduce right, "):
        assert text in line
    assert not (tmp_path / "run").exists()  # nothing is left, not even the folder


def test_one_process(small_dir: Path, tmp_path: Path) -> None:
    report = _in_world(_words(small_dir, tmp_path), ["a"])
    assert [row.state for row in report.rows] == [OK] * 9
    assert "1 node, 1 rank, one clock" in report.line()
    assert "one process, no network" in report.line()
    assert not list(tmp_path.iterdir())


def _fingerprint(folder: Path, digit: str) -> None:
    meta = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(meta | {"fingerprint": digit * 64}))


def _others_per_node(small_dir: Path, root: Path, nodes: str) -> None:
    for node in nodes:
        shutil.copytree(small_dir, root / node / "data")


def test_other_shards_missing_shards_and_an_unshared_run_folder_are_all_named(small_dir: Path, tmp_path: Path) -> None:
    _others_per_node(small_dir, tmp_path, "abcd")
    _fingerprint(tmp_path / "b" / "data", "0")
    shard = min((tmp_path / "c" / "data").glob("*.tar"))
    shard.unlink()
    (tmp_path / "shared").mkdir()
    for node in "abc":
        (tmp_path / node / "runs").symlink_to(tmp_path / "shared")
    report = _in_world(_words("data", "runs/x"), list("abcd"), cwd=tmp_path)
    assert _failures(report) == {("shards", "b"), ("shards", "c"), ("run folder", "d")}
    with pytest.raises(LaunchError) as error:
        report.require()
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("preflight: c, b, d failed: shards on c: ")
    assert "shards on b: data: expected fingerprint" in text
    assert "got 000000000000; copy the same shards" in text
    assert f"shards on c: data/{shard.name}: expected a shard of" in text
    assert f"run folder on d: {tmp_path}/d/runs/x: not the folder of rank 0" in text
    assert "all-reduce" in {row.check for row in report.rows}  # a sick disk keeps nobody from looking at the network
    assert not list((tmp_path / "shared").iterdir())
    assert not (tmp_path / "d" / "runs" / "x").exists()


@pytest.mark.parametrize("node", ["a", "b"])
def test_an_unwritable_run_folder(node: str, small_dir: Path, tmp_path: Path) -> None:
    _others_per_node(small_dir, tmp_path, "ab")
    (tmp_path / ("b" if node == "a" else "a") / "runs").mkdir()
    (tmp_path / node / "runs").write_text("a file in the way")
    report = _in_world(_words("data", "runs/x"), ["a", "b"], cwd=tmp_path)
    assert _failures(report) >= {("run folder", node)}
    found = next(row.found for row in report.failures if row.node == node and row.check == "run folder")
    assert "runs/x/.preflight-" in found
    assert "cannot be written (Not a directory)" in found


def _old(rank: int) -> dict[str, Any]:
    if rank == 2:
        marc_dist.__version__ = "0.0.9"
    return {}


def test_another_version_is_named_once_a_node(small_dir: Path, tmp_path: Path) -> None:
    report = _in_world(_words(small_dir, tmp_path), ["a", "b", "c"], _old)
    assert _failures(report) == {("versions", "c")}
    assert report.failures[0].found == f"marc-dist 0.0.9 (elsewhere {marc_dist.__version__})"


def _other_clock(rank: int) -> dict[str, Any]:
    shift = {0: 100.0, 1: 100.0 - 40.0, 2: 100.0 + 10.0}[rank]
    return {"clock": lambda: time.time() + shift}


def test_clocks_are_compared_with_that_of_rank_0(small_dir: Path, tmp_path: Path) -> None:
    report = _in_world(_words(small_dir, tmp_path), ["a", "b", "c"], _other_clock)
    assert _failures(report) == {("clocks", "b")}
    assert report.failures[0].found.startswith("clock 40.0 s behind rank 0's (+- ")
    warned = [row for row in report.warnings if row.check == "clocks"]
    assert [row.node for row in warned] == ["c"]
    assert warned[0].found.startswith("clock 10.0 s ahead of rank 0's")


def _spoilt(rank: int, count: int, device: torch.device) -> torch.Tensor:
    x = links.known_data(rank, count, device)
    x[count // 2] += 1
    return x


def _spoils(rank: int) -> dict[str, Any]:
    return {"data": _spoilt} if rank == 1 else {}


def test_one_wrong_element_of_a_sum_is_traced_to_its_rank(small_dir: Path, tmp_path: Path) -> None:
    report = _in_world(_words(small_dir, tmp_path), ["a", "b", "c"], _spoils)
    assert [(row.check, row.node, row.found) for row in report.failures] == [
        ("all-reduce", "b", "rank 1 spoils sums (1 elements are wrong)")
    ]


def _never_fast_enough(rank: int) -> dict[str, Any]:
    return {"min_gbps": 1e6}


def test_a_floor_fails_pairs_or_the_only_node(small_dir: Path, tmp_path: Path) -> None:
    report = _in_world(_words(small_dir, tmp_path), ["a", "b"], _never_fast_enough)
    assert _failures(report) == {("node pairs", "a-b")}
    report = _in_world(_words(small_dir, tmp_path), ["a", "a"], _never_fast_enough)
    assert _failures(report) == {("all-reduce", "a")}
    assert "expected at least 1e+06" in report.failures[0].found


def _no_answer(config: Config) -> dict[str, Any]:
    time.sleep(4)
    return {}


def _hangs(rank: int) -> dict[str, Any]:
    if rank == 1:
        machine.shards = _no_answer
    return {"limit_s": 1.0}


@pytest.mark.alone
def test_a_rank_that_hangs_is_named_in_time(small_dir: Path, tmp_path: Path) -> None:
    report = _in_world(_words(small_dir, tmp_path), ["a", "b", "c"], _hangs)
    assert _failures(report) == {("answers", "b")}
    assert report.failures[0].found == "rank 1: no word within 1 s of looking at its machine"
    assert 0.9 < report.seconds < 3.5


def _asleep(self: links.Links, peer: int) -> dict[str, Any]:
    time.sleep(6)
    return {"error": "asleep"}


def _stuck(rank: int) -> dict[str, Any]:
    if rank == 2:
        links.Links.swap = _asleep  # type: ignore[method-assign]
    return {"limit_s": 1.0}


def test_a_node_that_stops_in_a_pair_is_named_and_its_victims_are_not(small_dir: Path, tmp_path: Path) -> None:
    report = _in_world(_words(small_dir, tmp_path), list("abcd"), _stuck)
    assert _failures(report) == {("answers", "c")}
    assert {pair.error for pair in report.pairs if pair.gbps is None} == {"TimeoutError: not done within 0.5 s"}
    assert {(pair.a, pair.b) for pair in report.pairs if pair.gbps is None} > {("b", "c")}  # those who waited for b


def _late_sum(self: links.Links) -> dict[str, Any]:
    time.sleep(4)
    return {"error": "late"}


def _late(rank: int) -> dict[str, Any]:
    if rank == 1:
        links.Links.sum = _late_sum  # type: ignore[method-assign]
    return {"limit_s": 1.0}


def test_a_rank_that_misses_the_all_reduce_is_named_and_its_victims_are_not(small_dir: Path, tmp_path: Path) -> None:
    report = _in_world(_words(small_dir, tmp_path), ["a", "b", "c"], _late)
    assert _failures(report) == {("answers", "b")}


def _rank_0_dies(words: dict[str, Any]) -> str:
    here = World(comm.rank(), comm.world(), comm.rank())
    if here.rank == 0:
        links.Links.sum = lambda self: 1 / 0  # type: ignore[method-assign,assignment,return-value]
        network_rules.judge_sums = None  # type: ignore[assignment]
        checks._Preflight._clean = lambda self: None  # type: ignore[method-assign]
    with pytest.raises((LaunchError, TypeError)) as error:
        checks.preflight(build(Config, words), here, CPU, limit_s=0.5)
    return str(error.value)


def test_the_end_of_rank_0_is_told_and_leaves_nothing(small_dir: Path, tmp_path: Path) -> None:
    told = run_in_world(_rank_0_dies, 2, _words(small_dir, tmp_path))
    assert told[1] == "rank 1: no word from rank 0 for 6 s; see its log and its machine"
    assert not list(tmp_path.iterdir())


def _run(words: dict[str, Any]) -> tuple[int, str]:
    """A run in the world that is there already; what the rank prints."""
    rank, size = str(comm.rank()), str(comm.world())
    os.environ |= {"MARC_NODE": f"n{rank}", "MARC_PREFLIGHT": "1", "RANK": rank, "WORLD_SIZE": size}
    os.environ |= {"MASTER_ADDR": "nobody", "MASTER_PORT": "1"}
    comm.join = lambda *args, **more: World(int(rank), int(size), int(rank))
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        result = run_rank(build(Config, words))
    return result.step, err.getvalue()


def test_a_run_begins_with_one_line(small_dir: Path, tmp_path: Path) -> None:
    results = run_in_world(_run, 2, _words(small_dir, tmp_path / "run"))
    assert [step for step, _ in results] == [2, 2]
    lines = [line for line in results[0][1].splitlines() if line.startswith("preflight: ")]
    assert len(lines) == 1
    assert lines[0].startswith("preflight: 2 nodes, 2 ranks, ")
    assert "slowest pair n0-n1" in lines[0]
    assert "preflight" not in results[1][1]
    assert not list((tmp_path / "run").glob(".preflight*"))


def _arguments(words: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in words.items()]


def test_the_command_prints_a_table_and_starts_nothing(
    small_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = _arguments(_words(small_dir, tmp_path / "run"))
    assert train.main(["--check", *words]) == 0
    out = capsys.readouterr().out
    for check in CHECKS[:-1]:
        assert check in out
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("MARC_PREFLIGHT_MIN_GBPS", "much")
    assert train.main(["--check", *words]) == 2
    assert "MARC_PREFLIGHT_MIN_GBPS: expected a number of GB/s, got 'much'" in capsys.readouterr().err
    monkeypatch.delenv("MARC_PREFLIGHT_MIN_GBPS")
    shutil.copytree(small_dir, tmp_path / "data")
    min((tmp_path / "data").glob("*.tar")).write_bytes(b"short")
    words[0] = f"data.dir={tmp_path}/data"
    assert train.main(["--check", *words]) == 2
    told = capsys.readouterr()
    assert "fail" in told.out
    assert told.err.startswith("marc-train: error: preflight: ")
    assert told.err.count("\n") == 1
    assert "expected a shard of" in told.err


@pytest.mark.parametrize("num", range(2, 10))
def test_a_tournament_has_every_pair_once_in_rounds_of_disjoint_pairs(num: int) -> None:
    rounds = network_rules.tournament(num)
    pairs = [pair for meetings in rounds for pair in meetings]
    assert sorted(pairs) == list(combinations(range(num), 2))
    assert len(rounds) == num - 1 + num % 2
    for meetings in rounds:
        players = [player for pair in meetings for player in pair]
        assert len(players) == len(set(players)) == num - num % 2


def _pairs(slow: dict[str, float], nodes: str = "abcdef") -> list[Pair]:
    """10 GB/s everywhere but where ``slow`` names a node or a pair."""
    return [
        Pair(a, b, min(slow.get(a, 10.0), slow.get(b, 10.0), slow.get(a + b, 10.0))) for a, b in combinations(nodes, 2)
    ]


@pytest.mark.parametrize(
    ("pairs", "sick"),
    [
        (_pairs({}), []),
        (_pairs({"c": 1.0}), ["c"]),
        (_pairs({"a": 4.9}), ["a"]),
        (_pairs({"a": 5.1}), []),
        (_pairs({"cd": 0.1}), []),
        (_pairs({"a": 1.0, "e": 2.0}), ["a", "e"]),
        (_pairs({"b": 1.0}, "abc"), ["b"]),
        (_pairs({"ab": 1.0}, "ab"), []),
        (_pairs({a + b: 2.0 for a in "abc" for b in "def"}), []),
        ([], []),
    ],
    ids=["none", "one", "below half", "above half", "a pair", "two", "of three", "of two", "two racks", "no pairs"],
)
def test_slow_in_all_pairs_is_sick(pairs: list[Pair], sick: list[str]) -> None:
    assert network_rules.slow_nodes(pairs) == sick


def test_rows_of_pairs() -> None:
    assert network_rules.judge_pairs(_pairs({"cd": 9.1}), None) == [
        Finding("node pairs", "all", OK, "slowest pair c-d 9.10 GB/s")
    ]
    warned = network_rules.judge_pairs(_pairs({"c": 1.0}), None)
    assert [(row.node, row.state) for row in warned] == [("c", WARN)]
    assert network_rules.judge_pairs(_pairs({"c": 1.0}), None, apart=False)[0].state == OK
    failed = network_rules.judge_pairs(_pairs({"c": 1.0, "ab": 4.0}), 5.0)
    assert [(row.node, row.state) for row in failed] == [("c", FAIL), ("a-b", FAIL)]
    assert network_rules.judge_pairs([], 5.0)[0].found == "one node, no pairs"
    broken = [Pair("a", "b", None, "stuck", 1), Pair("c", "d", 1.0, "", 1), Pair("a", "c", None, "late", 2)]
    assert [(row.node, row.found) for row in network_rules.judge_pairs(broken, None)] == [("a-b", "stuck")]


@pytest.mark.parametrize(
    ("seen", "guilty"),
    [
        ({0: {0: 0, 1: 3, 2: 0}, 1: {0: 0, 1: 0, 2: 0}, 2: {0: 0, 1: 3, 2: 0}}, [1]),
        ({0: {0: 0, 1: 0, 2: 0}, 1: {0: 0, 1: 5, 2: 0}, 2: {0: 0, 1: 0, 2: 0}}, [1]),
        ({0: {0: 0, 1: 2, 2: 2}, 1: {0: 0, 1: 0, 2: 0}, 2: {0: 0, 1: 0, 2: 0}}, [0]),
        ({0: {0: 0, 1: 0}, 1: {0: 0, 1: 0}}, []),
    ],
    ids=["sender", "in its own memory", "receiver", "nobody"],
)
def test_who_spoils_data(seen: dict[int, dict[int, int]], guilty: list[int]) -> None:
    assert network_rules.wrong_ranks(seen) == guilty


def _gpu(**more: Any) -> dict[str, Any]:
    return {"device": "cuda", "visible": 2, "name": "H100", "memory": 80 * 2**30, "uuid": "x"} | more


def test_rows_of_gpus() -> None:
    nodes = ["a", "a", "b", "b"]
    well = {rank: _gpu(uuid=f"u{rank}") for rank in range(4)}
    assert rules.judge_gpus(nodes, well) == [Finding("GPUs", "all", OK, "4 x H100 (80.0 GiB)")]
    shared = rules.judge_gpus(nodes, well | {3: _gpu(uuid="u2")})
    assert [(row.node, row.state, row.found) for row in shared] == [("b", FAIL, "ranks 2, 3 sit on one GPU (u2)")]
    fewer = rules.judge_gpus(nodes, well | {2: _gpu(uuid="u2", visible=1, name="A100")})
    assert [(row.node, row.state, row.found) for row in fewer] == [
        ("b", WARN, "GPUs visible 1 (elsewhere 2)"),
        ("b", WARN, "model A100 (elsewhere H100)"),
    ]
    blind = rules.judge_gpus(nodes, well | {3: {"device": "cpu"}})
    assert [(row.node, row.state) for row in blind] == [("b", FAIL)]
    assert rules.judge_gpus(nodes, {rank: {"device": "cpu"} for rank in range(4)})[0].found == "device cpu"


@pytest.mark.parametrize(
    ("free", "inodes", "need", "state"),
    [
        (50 * 2**30, None, 2**30, OK),
        (2**30, 10**6, 2**29, WARN),
        (2**28, 10**6, 2**29, FAIL),
        (50 * 2**30, 3, 2**29, FAIL),
        (2**31, None, None, OK),
        (2**29, None, None, WARN),
        (2**26, None, None, FAIL),
        (2**26, None, 5, FAIL),
    ],
)
def test_rows_of_disk(free: int, inodes: int | None, need: int | None, state: str) -> None:
    rows = rules.judge_disk(["a"], {0: {"free": free, "inodes": inodes, "place": "/x"}}, need, "3 more")
    assert [row.state for row in rows] == [state]


def test_room_for_one_checkpoint_more_than_is_kept(small_dir: Path, tmp_path: Path) -> None:
    """The estimate from shapes alone is near what a run really writes."""

    words = _words(small_dir, tmp_path / "run") | {"train.keep_checkpoints": 4}
    estimate, text = bytes_needed(build(Config, words), 0)
    run_rank(build(Config, words))
    written = next((tmp_path / "run" / "checkpoints").glob("*.pt")).stat().st_size
    assert estimate is not None
    assert 0.9 < estimate / 5 / written < 1.1
    assert text.startswith("5 more checkpoints take ")
    assert bytes_needed(build(Config, words), 0)[0] == 4 * written
    nonsense = build(Config, words | {"model.backbone": "none", "train.run_dir": str(tmp_path / "other")})
    assert bytes_needed(nonsense, 100 * 2**30) == (None, "")  # nothing is built where there is room for anything
    assert bytes_needed(nonsense, 0) == (None, "size of a checkpoint unknown")


def test_settings_that_differ_are_named() -> None:
    found = {rank: {"loss.tau": 0.1, "optim.lr": 1.0} for rank in range(3)} | {1: {"loss.tau": 0.2, "optim.lr": 1.0}}
    rows = rules.judge_equal("settings", ["a", "b", "c"], found, "same words")
    assert rows == [Finding("settings", "b", FAIL, "loss.tau 0.2 (elsewhere 0.1)", "same words")]
    two = rules.judge_equal("settings", ["a", "b"], {0: {"k": [1]}, 1: {"k": [2]}}, "")
    assert [row.node for row in two] == ["b"]  # at a tie rank 0 is right


def test_rows_that_differ_in_the_node_only_are_one() -> None:
    rows = (
        Finding("x", "a", FAIL, "bad", "do"),
        Finding("x", "b", FAIL, "bad", "do"),
        Finding("x", "b", FAIL, "worse"),
    )
    report = Report(("a", "b"), rows, (Pair("a", "b", 1.5),), 1.0)
    with pytest.raises(LaunchError) as error:
        report.require()
    assert str(error.value) == "preflight: a, b failed: x on a, b: bad; do | x on b: worse"
    out = io.StringIO()
    show(report, Console(file=out, width=120))
    assert "a, b" in out.getvalue()
    assert "1.50" in out.getvalue()
    dataclasses.replace(report, rows=()).require()
