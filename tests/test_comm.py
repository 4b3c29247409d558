"""Collectives against one process: unequal and empty ranks, gradients, and the environment's mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from marc_dist import comm
from marc_dist.config import LaunchError
from tests.worlds import WorldError, run_in_world

SIZES = ([3, 0, 2], [0, 0, 0], [2, 2, 2], [0, 5, 1])


def _gather_all() -> list[dict[str, object]]:
    out = []
    rank = comm.rank()
    for case, sizes in enumerate(SIZES):
        start = sum(sizes[:rank])
        base = torch.arange(20, dtype=torch.float64).reshape(10, 2).sin()
        x = base[start : start + sizes[rank]].clone().requires_grad_()
        rows, first = comm.gather_rows(x)
        # every rank weighs the rows in its own way, through a non-contiguous gradient
        weight = torch.linspace(1, 2, 2 * rows.shape[0], dtype=torch.float64).reshape(2, rows.shape[0]).t()
        (rows * weight * (rank + 1 + case)).sum().backward()
        plain = comm.gather_rows_plain(torch.arange(start, start + sizes[rank]).reshape(-1, 1) % 2 == 0)
        out.append({"rows": rows.detach(), "first": first, "grad": x.grad, "plain": plain, "case": case})
    return out


def _reduce_all() -> dict[str, object]:
    rank = comm.rank()
    comm.barrier()
    return {
        "sum": comm.sum_(torch.tensor([1.0, rank])).tolist(),
        "min": comm.min_(torch.tensor([rank, -rank])).tolist(),
        "broadcast": comm.broadcast_object({"from": rank}),
        "gather": comm.gather_object(f"r{rank}"),
        "where": (comm.rank(), comm.world()),
    }


def _both() -> tuple[list[dict[str, object]], dict[str, object]]:
    return _gather_all(), _reduce_all()


def test_world_of_three_gathers_and_reduces_like_one_process() -> None:
    results = run_in_world(_both, 3)
    for rank, (gathered, reduced) in enumerate(results):
        for sizes, got in zip(SIZES, gathered, strict=True):
            total, start, count = sum(sizes), sum(sizes[:rank]), sizes[rank]
            base = torch.arange(20, dtype=torch.float64).reshape(10, 2).sin()
            assert torch.equal(got["rows"], base[:total])
            assert got["first"] == start
            weight = torch.linspace(1, 2, 2 * total, dtype=torch.float64).reshape(2, total).t()
            expected = weight[start : start + count] * sum(r + 1 + got["case"] for r in range(3))
            torch.testing.assert_close(got["grad"], expected, rtol=1e-14, atol=0)
            assert got["plain"].dtype == torch.bool
            assert got["plain"].flatten().tolist() == [place % 2 == 0 for place in range(total)]
        assert reduced["sum"] == [3.0, 3.0]
        assert reduced["min"] == [0, -2]
        assert reduced["broadcast"] == {"from": 0}
        assert reduced["gather"] == ["r0", "r1", "r2"]
        assert reduced["where"] == (rank, 3)


def _fallback() -> torch.Tensor:
    def refuse(*_: object) -> None:
        raise RuntimeError("ProcessGroupGloo does not support reduce_scatter")

    comm._reduce_scatter_equal = refuse
    x = torch.ones(2 + comm.rank(), 2, requires_grad=True)
    rows, _ = comm.gather_rows(x)
    (rows * torch.arange(5.0)[:, None]).sum().backward()
    assert x.grad is not None
    return x.grad


def test_backward_without_reduce_scatter_is_the_same() -> None:
    grads = torch.cat(run_in_world(_fallback, 2))
    assert torch.equal(grads, 2 * torch.arange(5.0)[:, None].expand(5, 2))


def test_one_process_is_the_identity() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    rows, first = comm.gather_rows(x)
    assert rows is x
    assert first == 0
    assert comm.gather_rows_plain(x) is x
    assert comm.sum_(x) is x
    assert comm.broadcast_object(5) == 5
    assert comm.gather_object(5) == [5]
    assert (comm.rank(), comm.world()) == (0, 1)
    assert comm.join("cpu") == (0, 1, 0)
    module = torch.nn.Linear(2, 2)
    assert comm.data_parallel(module) is module
    comm.barrier()
    comm.leave()


def test_environment_is_read() -> None:
    full = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert comm.world_from_env(full) == (5, 8, 1)
    assert comm.world_from_env({}) == (0, 1, 0)
    assert comm.world_from_env({"RANK": "0", "WORLD_SIZE": "1"}) == (0, 1, 0)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not"),
        ({"WORLD_SIZE": "2"}, "RANK is not"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "at least 1"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "0 to 1"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "0 to 1"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "integer"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "MASTER_PORT not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "-1"}, "LOCAL_RANK"),
    ],
)
def test_half_set_environment_is_one_line(env: dict[str, str], words: str) -> None:
    with pytest.raises(LaunchError, match=words):
        comm.world_from_env(env)


def test_a_process_takes_a_gpu_of_its_own() -> None:
    assert [comm.choose_gpu(local, 4) for local in range(4)] == [0, 1, 2, 3]
    assert [comm.choose_gpu(local, 1) for local in range(4)] == [0, 0, 0, 0]  # --gpus-per-task=1
    with pytest.raises(LaunchError, match="local rank 2 needs 3 visible GPUs, got 2; start one process per GPU"):
        comm.choose_gpu(2, 2)
    with pytest.raises(LaunchError, match="local rank 0 needs 1 visible GPUs, got 0"):
        comm.choose_gpu(0, 0)


def test_a_stranger_on_rank_zeros_port_is_told_from_rank_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = dist.TCPStore("127.0.0.1", 0, 2, True, wait_for_workers=False)
    other.set("marc/token", "of another job")
    told = {"addresses": ["127.0.0.1"], "port": other.port, "token": "ours", "node": "n1"}
    (tmp_path / ".meet-7.0-0.json").write_text(json.dumps(told))
    step = {"JOB_ID": 7, "STEP_ID": 0, "PROCID": 1, "LOCALID": 0, "STEP_NUM_TASKS": 2, "STEP_NUM_NODES": 2}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    with pytest.raises(LaunchError, match=rf"rank 1: .*127\.0\.0\.1:{other.port} \(another job answers there\)"):
        comm.join("cpu", timeout_s=20, folder=tmp_path)
    assert not dist.is_initialized()


def test_ranks_of_torchrun_meet_at_its_agents_store(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(
        # one file a rank: ranks that share a pipe may write into each other's line
        "import sys, torch\nfrom marc_dist import comm\nhere = comm.join('cpu', timeout_s=60)\n"
        "with open(f'{sys.argv[1]}/{here.rank}.txt', 'w') as out:\n"
        "    print(*here, comm.sum_(torch.tensor([10.0**here.rank])).item(), file=out)\ncomm.leave()\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    # inside a batch script, whose own variables must not count
    env = os.environ | {"OMP_NUM_THREADS": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}
    command = [*torchrun, str(script), str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["0 2 0 11.0\n", "1 2 1 11.0\n"]
    assert "failed to bind" not in done.stderr


def _fail_on_one() -> None:
    if comm.rank() == 1:
        raise ValueError("rank one broke")
    comm.barrier()


def test_a_world_tells_which_rank_broke() -> None:
    with pytest.raises(WorldError, match=r"rank 1 of 2(.|\n)*rank one broke"):
        run_in_world(_fail_on_one, 2)


def _late() -> None:
    if comm.rank() == 1:
        import time

        time.sleep(60)


def test_a_world_ends_at_its_limit() -> None:
    with pytest.raises(WorldError, match=r"\[1\] of 2 still ran"):
        run_in_world(_late, 2, limit_s=2)
