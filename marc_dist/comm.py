"""Every collective of the package, and the only file that names ``torch.distributed``.

Without a process group each function is the identity, so one process needs no special case anywhere.

Environment: torchrun's (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). ``marc-launch`` adds MARC_MASTER_FD, a
listening socket on loopback that rank 0 inherits: no port can be taken between choosing and using it.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from marc_dist.config import LaunchError

TIMEOUT_S = 600.0
# torch 2.14 renamed both and warns about the old names; 2.11 to 2.13 know no others
_gather_equal: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_equal: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class World(NamedTuple):
    """Where this process stands among the others."""

    rank: int
    world: int
    local_rank: int


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except ValueError:
        raise LaunchError(
            f"{name}: expected an integer, got {env[name]!r}; unset it or start with marc-launch"
        ) from None


def world_from_env(env: Mapping[str, str]) -> World:
    """Rank and world size of torchrun's variables; one process when there are none.

    Raises:
        LaunchError: half of the variables are set, or they contradict each other.
    """
    given = [name for name in ("RANK", "WORLD_SIZE") if name in env]
    if not given:
        return World(0, 1, 0)
    if len(given) == 1:
        missing = "WORLD_SIZE" if given == ["RANK"] else "RANK"
        raise LaunchError(f"environment: {given[0]} is set but {missing} is not; set both, or neither for one process")
    rank, world = _number(env, "RANK"), _number(env, "WORLD_SIZE")
    local = _number(env, "LOCAL_RANK") if "LOCAL_RANK" in env else rank
    if world < 1:
        raise LaunchError(f"WORLD_SIZE: expected at least 1 process, got {world}")
    if not 0 <= rank < world:
        raise LaunchError(f"RANK: expected 0 to {world - 1} (WORLD_SIZE is {world}), got {rank}")
    if local < 0:
        raise LaunchError(f"LOCAL_RANK: expected 0 or more, got {local}")
    absent = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    if world > 1 and absent:
        raise LaunchError(f"environment: WORLD_SIZE is {world} but {' and '.join(absent)} not set; use marc-launch")
    return World(rank, world, local)


def join(device: str, *, timeout_s: float = TIMEOUT_S) -> World:
    """Join the process group of the environment: gloo for ``cpu``, NCCL for ``cuda``. One process joins nothing.

    Args:
        device: ``cpu`` or ``cuda``; with ``cuda`` the process is bound to GPU local_rank (or the only visible one).
        timeout_s: seconds after which a collective that a rank does not reach fails.

    Raises:
        LaunchError: see ``world_from_env``; also when rank 0 cannot be reached.
    """
    here = world_from_env(os.environ)
    if device == "cuda":
        torch.cuda.set_device(here.local_rank % torch.cuda.device_count())
    if here.world == 1:
        return here
    timeout = timedelta(seconds=timeout_s)
    address, port = os.environ["MASTER_ADDR"], _number(os.environ, "MASTER_PORT")
    listen_fd = os.environ.pop("MARC_MASTER_FD", None) if here.rank == 0 else None
    try:
        if listen_fd is not None:
            os.set_inheritable(int(listen_fd), False)  # a loader worker must not keep the socket open
        store = dist.TCPStore(  # type: ignore[attr-defined]
            address,
            port,
            here.world,
            here.rank == 0,
            timeout,
            wait_for_workers=False,
            master_listen_fd=None if listen_fd is None else int(listen_fd),
        )
    except (RuntimeError, OSError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise LaunchError(f"rank {here.rank}: cannot meet the other ranks at {address}:{port} ({first})") from None
    _start(device, here, timeout, store=store)
    return here


def join_file(rank: int, world: int, path: Path | str, *, timeout_s: float = 60.0) -> World:
    """Join a gloo group that meets in a file: for tests, which must not depend on ports."""
    here = World(rank, world, rank)
    _start("cpu", here, timedelta(seconds=timeout_s), init_method=f"file://{path}")
    return here


def _start(device: str, here: World, timeout: timedelta, **meeting: Any) -> None:
    if device == "cuda":
        meeting["device_id"] = torch.device("cuda", torch.cuda.current_device())
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo", rank=here.rank, world_size=here.world, timeout=timeout, **meeting
    )


def leave() -> None:
    """Leave the process group, if there is one."""
    if _active():
        dist.destroy_process_group()


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, 0 without a group."""
    return dist.get_rank() if _active() else 0


def world() -> int:
    """The number of processes, 1 without a group."""
    return dist.get_world_size() if _active() else 1


def barrier() -> None:
    """Wait for every rank."""
    if _active():
        dist.barrier()


def _reduce(x: Tensor, op: Any) -> Tensor:
    if _active():
        dist.all_reduce(x, op=op)
    return x


def sum_(x: Tensor) -> Tensor:
    """Sum over ranks, in place."""
    return _reduce(x, dist.ReduceOp.SUM)


def min_(x: Tensor) -> Tensor:
    """Minimum over ranks, in place."""
    return _reduce(x, dist.ReduceOp.MIN)


def max_(x: Tensor) -> Tensor:
    """Maximum over ranks, in place."""
    return _reduce(x, dist.ReduceOp.MAX)


def broadcast_object(value: Any) -> Any:
    """Rank 0's object, on every rank."""
    if not _active():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_object(value: Any) -> list[Any]:
    """Every rank's object in rank order, on every rank."""
    if not _active():
        return [value]
    boxes: list[Any] = [None] * world()
    dist.all_gather_object(boxes, value)
    return boxes


def row_counts(x: Tensor) -> list[int]:
    """How many rows each rank holds, in rank order."""
    if not _active():
        return [x.shape[0]]
    counts = torch.empty(world(), dtype=torch.int64, device=x.device)
    _gather_equal(counts, torch.tensor([x.shape[0]], dtype=torch.int64, device=x.device))
    return [int(count) for count in counts.tolist()]


def _padded(x: Tensor, rows: int) -> Tensor:
    if x.shape[0] == rows:
        return x.contiguous()
    full = x.new_zeros((rows, *x.shape[1:]))
    full[: x.shape[0]] = x
    return full


def _gather(x: Tensor, counts: list[int]) -> Tensor:
    """All rows in rank order; collectives want equal shapes, so every rank pads to the largest part."""
    rows = max(counts)
    out = x.new_empty((len(counts) * rows, *x.shape[1:]))
    if rows:
        _gather_equal(out, _padded(x, rows))
    if min(counts) == rows:
        return out
    return torch.cat([out[place * rows : place * rows + count] for place, count in enumerate(counts)])


def _scatter_sum(grad: Tensor, counts: list[int]) -> Tensor:
    """The sum over ranks of this rank's rows of ``grad``, the inverse of ``_gather``."""
    rows, here = max(counts), rank()
    parts = [_padded(part, rows) for part in torch.split(grad, counts)]
    stacked = torch.cat(parts)
    mine = grad.new_empty((rows, *grad.shape[1:]))
    if not rows:
        return mine
    try:
        _reduce_scatter_equal(mine, stacked)
    except RuntimeError as error:  # gloo learnt reduce-scatter late; every rank fails alike, before sending anything
        if dist.get_backend() != "gloo" or "support" not in str(error):
            raise
        dist.all_reduce(stacked)
        mine = stacked[here * rows : (here + 1) * rows]
    return mine[: counts[here]]


class _GatherRows(torch.autograd.Function):
    """Padded all-gather whose backward hands each rank the summed gradient of its own rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        return _gather(x, counts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _scatter_sum(grads[0], ctx.counts), None


def gather_rows(x: Tensor, counts: list[int] | None = None) -> tuple[Tensor, int]:
    """All ranks' rows in rank order, with gradient; ranks may hold unequal or zero rows.

    Args:
        x: (rows of this rank, ...); equal trailing shape and dtype on all ranks.
        counts: ``row_counts``, when the caller has them already: one exchange less.

    Returns:
        (all rows, ...) and the position of this rank's first row among them. The gradient of a row is the sum of what
        all ranks send back to it, as if one process held everything.
    """
    if not _active():
        return x, 0
    counts = row_counts(x) if counts is None else counts
    return cast(Tensor, _GatherRows.apply(x, counts)), sum(counts[: rank()])


def gather_rows_plain(x: Tensor, counts: list[int] | None = None) -> Tensor:
    """All ranks' rows in rank order, without gradient; any dtype; ``counts`` as in ``gather_rows``."""
    if not _active():
        return x
    with torch.no_grad():
        return _gather(x, row_counts(x) if counts is None else counts)


def gather_vectors(x: Tensor) -> Tensor:
    """(world, n) every rank's vector of n numbers, in rank order."""
    return gather_rows_plain(x[None], [1] * world())


def without_sync(module: nn.Module) -> AbstractContextManager[Any]:
    """Inside, backward through a ``data_parallel`` module adds to this rank's gradients and averages nothing."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def data_parallel(module: nn.Module) -> nn.Module:
    """The module with gradients averaged over ranks in backward, or the module itself in a world of one.

    Buffers are not broadcast: synchronised batch norm keeps them equal, and anything else would hide what ranks hold.
    """
    if not _active():
        return module
    # 1 x 1 kernels have two equal layouts; autograd and the bucket name different ones, at no cost but a warning
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    return DistributedDataParallel(module, gradient_as_bucket_view=True, **options)
