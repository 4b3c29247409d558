"""Which rank, of how many, and where rank 0 is: environments recorded from Slurm 22.05, and real meetings."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from marc_dist.config import LaunchError
from marc_dist.place import World, candidates, interface_of, meet, place_from_env

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}


def recorded(**values: object) -> dict[str, str]:
    return {f"SLURM_{name}": str(value) for name, value in values.items()}


# srun -N4 --ntasks-per-node=2
SRUN = recorded(
    JOB_ID=23406, STEPID=0, STEP_ID=0, PROCID=5, LOCALID=1, NODEID=2, NTASKS=8, NPROCS=8, STEP_NUM_TASKS=8,
    NNODES=4, STEP_NUM_NODES=4, GTIDS="4,5", STEP_TASKS_PER_NODE="2(x4)",
)  # fmt: skip
# sbatch -N2 --ntasks-per-node=2: the script itself
BATCH = recorded(JOB_ID=23407, PROCID=0, LOCALID=0, NODEID=0, NTASKS=4, NPROCS=4, NNODES=2, NTASKS_PER_NODE=2)
# srun --nodes=2 --ntasks=2 in that script
SMALLER = recorded(
    JOB_ID=23407, STEP_ID=1, PROCID=1, LOCALID=0, NODEID=1, NTASKS=2, STEP_NUM_TASKS=2, NNODES=2, STEP_NUM_NODES=2,
    NTASKS_PER_NODE=2,
)  # fmt: skip
# srun --gpus-per-task=1 in that script
GPU_EACH = SMALLER | recorded(STEP_ID=2, PROCID=3, LOCALID=1, NTASKS=4, STEP_NUM_TASKS=4, STEP_GPUS=1)
GPU_EACH |= {"CUDA_VISIBLE_DEVICES": "1"}
# salloc -N2 -n4: the shell; srun in it
SALLOC = recorded(JOB_ID=23408, NTASKS=4, NPROCS=4, NNODES=2)
IN_SALLOC = SALLOC | recorded(STEP_ID=0, PROCID=2, LOCALID=2, STEP_NUM_TASKS=4, STEP_NUM_NODES=2)
# srun --pty, and an interactive step (srun --interactive, salloc with use_interactive_step) of a job of four tasks
PTY = recorded(JOB_ID=23409, STEP_ID=0, PROCID=0, LOCALID=0, NTASKS=1, STEP_NUM_TASKS=1, NNODES=1, STEP_NUM_NODES=1)
INTERACTIVE = PTY | recorded(STEP_ID=4294967290, NTASKS=4)
# sbatch called in a task: the batch script inherits the step of its caller
FROM_TASK = recorded(JOB_ID=23415, STEP_ID=0, PROCID=0, LOCALID=0, NTASKS=2, STEP_NUM_TASKS=4, STEP_NUM_NODES=2)
FROM_PTY = FROM_TASK | recorded(STEP_NUM_TASKS=1, STEP_NUM_NODES=1)
# srun -n1 : -n2, a heterogeneous step: everything counts the whole
HET = recorded(JOB_ID=23418, HET_SIZE=2, STEP_ID=0, PROCID=2, LOCALID=1, NTASKS=3, STEP_NUM_TASKS=3, STEP_NUM_NODES=2)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, (0, 1, 0)),
        (SRUN, (5, 8, 1)),
        (BATCH, (0, 1, 0)),
        (SMALLER, (1, 2, 0)),
        (GPU_EACH, (3, 4, 1)),
        (SALLOC, (0, 1, 0)),
        (IN_SALLOC, (2, 4, 2)),
        (PTY, (0, 1, 0)),
        (INTERACTIVE, (0, 1, 0)),
        (FROM_PTY, (0, 1, 0)),
        (HET, (2, 3, 1)),
        (TORCHRUN, (5, 8, 1)),
        (SRUN | recorded(PROCID=0) | TORCHRUN, (5, 8, 1)),
        (BATCH | TORCHRUN, (5, 8, 1)),
        (SRUN | {"RANK": "0", "WORLD_SIZE": "1"}, (0, 1, 0)),
        ({name: value for name, value in SRUN.items() if name != "SLURM_STEP_NUM_TASKS"}, (5, 8, 1)),
        (SRUN | recorded(STEP_ID=0xFFFFFFF0), (0, 1, 0)),
        (SRUN | recorded(STEP_ID=0xFFFFFFEF), (5, 8, 1)),
        (SRUN | recorded(STEP_ID="batch"), (0, 1, 0)),
    ],
)
def test_place_of_recorded_environments(env: dict[str, str], expected: World) -> None:
    assert place_from_env(env) == expected


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (FROM_TASK, "STEP_NUM_TASKS is 4 but SLURM_NTASKS is 2.*unset SLURM_STEP_ID"),
        (SALLOC | recorded(STEP_ID=0), "SLURM_PROCID and SLURM_LOCALID not; start with srun"),
        (recorded(STEP_ID=0, PROCID=0, LOCALID=0), "SLURM_NTASKS not"),
        (SRUN | recorded(PROCID=8), "got 1, 8, 8; start with srun"),
        (SRUN | recorded(LOCALID=6), "got 6, 5, 8"),
        (SRUN | recorded(LOCALID=-1), "got -1, 5, 8"),
        (PTY | recorded(PROCID=1), "got 0, 1, 1"),
        (SRUN | recorded(PROCID="x"), "SLURM_PROCID: expected an integer"),
        (SRUN | {"RANK": "1"}, "RANK is set but WORLD_SIZE is not; .* under srun"),
    ],
)
def test_broken_environments_are_one_line(env: dict[str, str], words: str) -> None:
    with pytest.raises(LaunchError, match=words):
        place_from_env(env)


def task(rank: int, world: int = 3, *, node: str, **values: object) -> dict[str, str]:
    """The variables of a task, each on a node of its own."""
    step = {"JOB_ID": 7, "STEP_ID": 0, "PROCID": rank, "LOCALID": 0, "STEP_NUM_TASKS": world, "STEP_NUM_NODES": world}
    return recorded(**(step | values)) | {"SLURMD_NODENAME": node}


MEET = """
import json, os, sys
from pathlib import Path
from marc_dist.place import meet, place_from_env
meeting = meet(place_from_env(os.environ), os.environ, Path(sys.argv[1]), 30.0)
print(json.dumps(meeting, default=str), flush=True)
sys.stdin.read()
"""


@contextmanager
def processes(
    commands: Sequence[Sequence[str]], envs: Sequence[dict[str, str]]
) -> Iterator[list[subprocess.Popen[str]]]:
    with ExitStack() as stack:
        started = []
        for command, env in zip(commands, envs, strict=True):
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            process = stack.enter_context(
                subprocess.Popen(command, env=os.environ | env, text=True, **pipes)  # type: ignore[call-overload]
            )
            stack.callback(process.kill)
            started.append(process)
        yield started


def meet_all(folder: Path, envs: Sequence[dict[str, str]]) -> list[dict[str, object]]:
    """What every rank found; the last one is started last, and rank 0 listens until all have spoken."""
    with processes([[sys.executable, "-c", MEET, str(folder)]] * len(envs), envs) as ranks:
        lines = [rank.stdout.readline() for rank in ranks if rank.stdout]
        if not all(lines):
            pytest.fail("".join(rank.communicate(timeout=60)[1] for rank in ranks))
        for rank in ranks:
            rank.communicate(timeout=60)
    names = ("address", "port", "listen_fd", "token", "own", "file")
    return [dict(zip(names, json.loads(line), strict=True)) for line in lines]


def dead_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_ranks_of_one_node_meet_on_loopback_alone(tmp_path: Path) -> None:
    found = meet_all(tmp_path / "logs", [task(rank, node="n1", STEP_NUM_NODES=1, LOCALID=rank) for rank in range(3)])
    assert {(one["address"], one["own"]) for one in found} == {("127.0.0.1", "127.0.0.1")}
    assert len({(one["port"], one["token"]) for one in found}) == 1
    assert [one["listen_fd"] is not None for one in found] == [True, False, False]
    told = json.loads((tmp_path / "logs" / ".meet-7.0-0.json").read_text())
    assert told["addresses"] == ["127.0.0.1"]
    assert [path.name for path in (tmp_path / "logs").iterdir()] == [".meet-7.0-0.json"]


def test_only_a_world_of_several_nodes_listens_beyond_loopback(tmp_path: Path) -> None:
    hosts = []
    for nodes in (1, 2):
        meeting = meet(World(0, 2, 0), task(0, 2, node="n1", STEP_NUM_NODES=nodes), tmp_path, 1.0)
        with socket.socket(fileno=meeting.listen_fd) as listener:
            hosts.append(listener.getsockname()[0])
    assert hosts[0] == "127.0.0.1"
    assert hosts[1] in ("::", "0.0.0.0")


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "name", ["127.0.1.1", pytest.param("::1", marks=pytest.mark.skipif(not _has_ipv6(), reason="no IPv6 here"))]
)
def test_ranks_of_several_nodes_meet_under_the_first_ones_name(tmp_path: Path, name: str) -> None:
    nodes = [name, "n2", name]
    # the others first: they find a left-over of this very attempt, which leads nowhere
    stale = {"addresses": ["127.0.0.1"], "port": dead_port(), "token": "old", "node": name}
    (tmp_path / ".meet-7.0-1.json").write_text(json.dumps(stale))
    # and beside it the file of the attempt before, which leads to somebody else
    with socket.create_server(("127.0.0.1", 0)) as other:
        stale["port"] = other.getsockname()[1]
        (tmp_path / ".meet-7.0-0.json").write_text(json.dumps(stale))
        envs = [task(rank, node=nodes[rank], RESTART_COUNT=1) for rank in (2, 1, 0)]
        beside, away, first = meet_all(tmp_path, envs)
    assert first["port"] == beside["port"] == away["port"] != stale["port"]
    assert beside["token"] == away["token"] == first["token"] != "old"
    assert away["address"] == beside["address"] == name
    assert interface_of(str(away["own"])) == "lo"
    assert beside["own"] is None  # it must be told, like rank 0
    assert first["own"] is None
    assert first["file"] == str(tmp_path / ".meet-7.0-1.json")


def test_ways_that_lead_nowhere_are_passed_over(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as rank0:
        port = rank0.getsockname()[1]
        # a name that is none, one that nobody knows, an address where nobody listens
        ways = ["n" * 64 + ".example", "no-such-host.invalid", "127.0.0.2", "127.0.0.1"]
        told = {"addresses": ways, "port": port, "token": "t", "node": "n1"}
        (tmp_path / ".meet-7.0-0.json").write_text(json.dumps(told))
        found = meet(World(1, 2, 0), task(1, 2, node="n2"), tmp_path, 30.0)
    assert found == ("127.0.0.1", port, None, "t", "127.0.0.1", tmp_path / ".meet-7.0-0.json")


def give_up(folder: Path) -> str:
    began = time.monotonic()
    with pytest.raises(LaunchError) as caught:
        meet(World(1, 2, 0), task(1, 2, node="n2"), folder, 0.5)
    assert 0.4 < time.monotonic() - began < 3
    return str(caught.value)


def test_a_rank_that_finds_nobody_says_so_in_time(tmp_path: Path) -> None:
    file = tmp_path / ".meet-7.0-0.json"
    missing = give_up(tmp_path)
    assert missing.startswith("rank 1 on n2: rank 0 not met within 0.5 s")
    assert f"did not write {file}; is that folder shared by all nodes?" in missing
    assert "is that folder shared" in give_up(tmp_path / "nowhere")
    file.write_text('{"addresses": ["127.0.0.1"]')
    assert f"{file} cannot be read (JSONDecodeError" in give_up(tmp_path)
    port = dead_port()
    file.write_text(json.dumps({"addresses": ["127.0.0.1"], "port": port, "token": "t", "node": "n1"}))
    assert f"port {port} does not answer (127.0.0.1: Connection refused); let nodes" in give_up(tmp_path)


def test_rank_zero_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(LaunchError, match=r"rank 0 on n1: cannot write .*logs/\.meet-7\.0-0\.json \(File exists\)"):
        meet(World(0, 2, 0), task(0, 2, node="n1"), tmp_path / "logs", 1.0)


def test_a_named_address_is_followed(tmp_path: Path) -> None:
    env = task(1, 2, node="n2") | {"MASTER_ADDR": "fd00::1", "MASTER_PORT": "29500", "MARC_MASTER_FD": "9"}
    assert meet(World(1, 2, 0), env, tmp_path, 1.0) == ("fd00::1", 29500, None, None, None, None)
    assert meet(World(0, 2, 0), env, tmp_path, 1.0) == ("fd00::1", 29500, 9, None, None, None)
    with pytest.raises(LaunchError, match="MASTER_PORT is set, the other is not"):
        meet(World(1, 2, 0), {"MASTER_PORT": "1"}, tmp_path, 1.0)
    with pytest.raises(LaunchError, match="MASTER_PORT: expected an integer"):
        meet(World(1, 2, 0), {"MASTER_ADDR": "a", "MASTER_PORT": "x"}, tmp_path, 1.0)
    with pytest.raises(LaunchError, match="no folder to meet"):
        meet(World(1, 2, 0), task(1, 2, node="n2"), None, 1.0)
    assert list(tmp_path.iterdir()) == []


def test_candidates_are_the_asked_network_then_names_then_numbers() -> None:
    plain = candidates({"SLURMD_NODENAME": "n1"})
    assert plain[:2] == ["n1", socket.gethostname()]
    assert not {"127.0.0.1", "::1"} & set(plain)
    for asked in ({"GLOO_SOCKET_IFNAME": "lo"}, {"NCCL_SOCKET_IFNAME": "l"}, {"NCCL_SOCKET_IFNAME": "x,=y,lo"}):
        assert candidates({"SLURMD_NODENAME": "n1"} | asked)[0] == "127.0.0.1"
    for asked in ({"GLOO_SOCKET_IFNAME": "l"}, {"NCCL_SOCKET_IFNAME": "=l"}, {"NCCL_SOCKET_IFNAME": "^lo"}):
        assert "127.0.0.1" not in candidates({"SLURMD_NODENAME": "n1"} | asked)
    numbers = [one for one in plain[2:] if one not in (socket.gethostname(), "n1")]
    assert candidates({"SLURMD_NODENAME": "n1", "NCCL_SOCKET_IFNAME": "^lo"}) == [*numbers, *plain[:2]]


def test_interfaces_are_found_by_address() -> None:
    assert [interface_of(address) for address in ("127.0.0.1", "127.0.1.4", "::1")] == ["lo", "lo", "lo"]
    assert interface_of("203.0.113.77") is None
    names = {name for _, name in socket.if_nameindex()} - {"lo"}
    for address in candidates({"SLURMD_NODENAME": "n1"})[2:]:
        assert interface_of(address) in names


JOIN = """
import os, sys, torch
from pathlib import Path
from marc_dist import comm
here = comm.join("cpu", timeout_s=60.0, folder=Path(sys.argv[1]))
print(*here, comm.sum_(torch.tensor([10.0**here.rank])).item(), os.environ["GLOO_SOCKET_IFNAME"])
comm.leave()
"""


def join_all(commands: Sequence[Sequence[str]], envs: Sequence[dict[str, str]]) -> list[str]:
    with processes(commands, [env | {"OMP_NUM_THREADS": "1"} for env in envs]) as ranks:
        outs = [rank.communicate(timeout=600) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * len(ranks), outs
    return [out.strip() for out, _ in outs]


def test_gloo_reduces_under_the_variables_of_srun(tmp_path: Path) -> None:
    envs = [task(rank, node=f"127.0.1.{max(1, rank)}", LOCALID=rank % 2) for rank in range(3)]  # two nodes
    lines = join_all([[sys.executable, "-W", "error", "-c", JOIN, str(tmp_path)]] * 3, envs)
    assert lines == [f"{rank} 3 {rank % 2} 111.0 lo" for rank in range(3)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", [4, 6])
def test_nodes_whose_own_name_means_loopback_reduce_over_the_network(tmp_path: Path, family: int) -> None:
    """Two nodes without DNS that know themselves as 127.0.1.1 and each other not, with an equal, useless address."""
    apart = ["unshare", "--net", "--uts", "--mount"]
    if not shutil.which("ip") or subprocess.run([*apart, "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("needs iproute2 and the right to make namespaces (root)")
    with processes([[*apart, "sh", "-c", "echo; exec sleep 600"]] * 2, [{}, {}]) as nodes:
        assert [node.stdout.readline() for node in nodes if node.stdout] == ["\n", "\n"]
        inside = [["nsenter", "-t", str(node.pid), "-n", "-u", "-m"] for node in nodes]
        subprocess.run(
            [*inside[0], "ip", "link", "add", "way0", "type", "veth", "peer", "way1", "netns", str(nodes[1].pid)],
            check=True,
        )
        for number in range(2):
            hosts = tmp_path / f"hosts{number}"
            hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 marc-n{number}\n")
            address = f"10.77.9.{number + 1}/24" if family == 4 else f"fd77::{number + 1}/64"
            lines = f"""
                hostname marc-n{number}; mount --bind {hosts} /etc/hosts; ip link set lo up
                ip addr add {address} dev way{number} {"nodad" if family == 6 else ""}; ip link set way{number} up
                ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up
            """
            subprocess.run([*inside[number], "sh", "-ec", lines], check=True)
        command = [sys.executable, "-c", JOIN, str(tmp_path / "logs")]
        envs = [task(rank, 2, node=f"marc-n{rank}") for rank in range(2)]
        found = join_all([[*one, *command] for one in inside], envs)
    assert found == ["0 2 0 11.0 way0", "1 2 0 11.0 way1"]
