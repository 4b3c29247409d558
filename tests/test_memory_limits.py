"""Limits of control groups, of /dev/shm and of ulimit; one line where there is no more memory."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from marc_dist.memory_limits import Room, free_memory, group_room, memory_refused, shm_room
from marc_dist.preflight.rules import FAIL, GIB, MIB, OK, WARN, judge_memory


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def machine(tmp_path: Path, cgroup: str, groups: dict[str, str]) -> tuple[Path, Path]:
    write(tmp_path, {"proc/self/cgroup": cgroup, "proc/meminfo": "MemTotal: 99 kB\nMemAvailable:   4000 kB\n"})
    write(tmp_path / "groups", groups)
    return tmp_path / "proc", tmp_path / "groups"


def v2(limit: str, used: int, files: int = 0) -> dict[str, str]:
    return {
        "memory.max": f"{limit}\n",
        "memory.current": f"{used}\n",
        "memory.stat": f"anon 5\ninactive_file {files}\n",
    }


@pytest.mark.parametrize(
    ("cgroup", "groups", "expected"),
    [
        ("0::/job/step", {"job/step": v2("max", 5), "job": v2("1000000", 400000, 100000)}, Room(1000000, 700000)),
        ("0::/job/step", {"job/step": v2("500", 100), "job": v2("1000", 950)}, Room(1000, 50)),
        ("0::/", {".": v2("2000", 500)}, Room(2000, 1500)),  # a container sees its own group as the root
        ("0::/not/seen/from/here", {".": v2("2000", 2500)}, Room(2000, 0)),
        ("0::/job", {"unified/job": v2("300", 100)}, Room(300, 200)),
        ("0::/job", {"job": v2("max", 100)}, None),
    ],
    ids=["parent", "tighter parent", "container", "over the limit", "hybrid", "no limit"],
)
def test_limits_of_version_2(tmp_path: Path, cgroup: str, groups: dict[str, dict[str, str]], expected: Room) -> None:
    files = {f"{folder}/{name}": text for folder, one in groups.items() for name, text in one.items()}
    assert group_room(*machine(tmp_path, cgroup + "\n", files)) == expected


def test_limits_of_version_1(tmp_path: Path) -> None:
    stat = "total_inactive_file 30\n"
    files = {"memory/job/memory.limit_in_bytes": "1000", "memory/job/memory.usage_in_bytes": "600"}
    files |= {"memory/job/memory.stat": stat, "memory/memory.limit_in_bytes": "9223372036854771712"}
    files |= {"memory/memory.usage_in_bytes": "1", "memory/memory.stat": stat}
    here = machine(tmp_path, "5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n", files)
    assert group_room(*here) == Room(1000, 430)
    assert free_memory(*here) == 430
    (tmp_path / "groups/memory/job/memory.limit_in_bytes").write_text("9223372036854771712")
    assert group_room(*here) is None
    assert free_memory(*here) == 4000 * 1024
    assert free_memory(tmp_path / "nowhere", tmp_path) is None


def test_what_means_no_more_memory() -> None:
    for error in (
        MemoryError(),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError(
            "[enforce fail at x.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
        ),
        RuntimeError("can't start new thread"),
        RuntimeError("std::bad_alloc"),
    ):
        told = memory_refused(error)
        assert told is not None and told.startswith("no more memory") and "or lower train.global_batch" in told
    told = memory_refused(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"))
    assert told is not None and told.startswith("the GPU has no more memory (CUDA out") and "train.chunk" in told
    for other in (RuntimeError("a bug"), ImportError("No module named x"), OSError(errno.ENOSPC, "No space left")):
        assert memory_refused(other) is None


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v is Linux's")
def test_a_command_under_ulimit_is_one_line() -> None:
    """torch cannot even be loaded in so little."""
    most = 1_500_000_000
    done = subprocess.run(
        [sys.executable, "-m", "marc_dist.cli.train", "data.dir=nowhere"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("marc-train: error: no more memory, ulimit -v allows 1.5 GB")
    assert done.stderr.count("\n") == 1


def test_what_preflight_says_of_memory() -> None:
    nodes = ["a", "a", "b"]
    plenty = {"shm": 64 * MIB, "batch": 2 * MIB, "ahead": 10 * MIB, "free": 9 * GIB, "limit": None}
    assert [row.state for row in judge_memory(nodes, {0: plenty, 2: plenty})] == [OK]
    (row,) = judge_memory(nodes, {0: plenty | {"shm": 15 * MIB}, 2: plenty | {"shm": 15 * MIB}})
    assert (row.node, row.state) == ("a", WARN)  # two ranks share it
    assert row.found == "/dev/shm: 15 MiB free, batches of 2 ranks take 20 MiB" and "--shm-size" in row.remedy
    (row,) = judge_memory(nodes, {0: plenty, 2: plenty | {"shm": MIB}})
    assert (row.node, row.state) == ("b", FAIL)
    (row,) = judge_memory(nodes, {0: plenty | {"free": GIB, "limit": 4 * GIB}, 2: plenty | {"shm": None}})
    assert row.found == "1.0 GiB of memory left for 2 ranks, the limit of its container or job is 4.0 GiB"
    assert row.state == WARN


def test_there_is_room_in_shm_here() -> None:
    room = shm_room()
    assert room is None or 0 <= room.free <= room.limit
    assert shm_room(Path("/nowhere")) is None
