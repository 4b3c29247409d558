"""Every collective of the package; only this room names ``torch.distributed``.

Without a process group each function is the identity, so one process needs no special case anywhere. A default group
that somebody else initialised (a script of one's own, Lightning, Accelerate) is taken as it is, and left to its owner.

Environment: torchrun's (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) or that of an srun step, see
``marc_dist.place``. ``marc-launch local`` adds MARC_MASTER_FD, a listening socket on loopback that rank 0 inherits: no
port can be taken between choosing and using it.
"""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from marc_dist.config import LaunchError, first_line
from marc_dist.place import Meeting, World, interface_of, meet, place_from_env

TIMEOUT_S = 600.0
HOST_BLOCK = 1 << 24
"""Bytes of a rank's rows that ``gather_to_host`` exchanges at a time."""
# torch 2.14 renamed both and warns about the old names; 2.11 to 2.13 know no others
_gather_equal: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_equal: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

world_from_env = place_from_env
"""Where this process stands, before it joins anything: see ``marc_dist.place``."""
_TOKEN, _REACHED = "marc/token", "marc/reached"
_OURS: list[Any] = []  # the default group, if it was made here


def join(device: str, *, timeout_s: float = TIMEOUT_S, folder: Path | None = None) -> World:
    """Join the process group of the environment: gloo for ``cpu``, NCCL for ``cuda``. One process joins nothing.

    Where a default group exists already, it is adopted: backend, device and end of life stay with whoever made it.

    Args:
        device: ``cpu`` or ``cuda``; with ``cuda`` the process is bound to GPU local_rank (or the only visible one).
        timeout_s: seconds after which ranks that do not meet, and a collective that a rank does not reach, fail.
        folder: directory that all ranks see, where they meet under srun when MASTER_ADDR is not set.

    Raises:
        LaunchError: see ``place_from_env`` and ``meet``; also when the processes of a node outnumber its GPUs.
    """
    if _active():
        return World(rank(), world(), int(os.environ.get("LOCAL_RANK", rank())))
    here = place_from_env(os.environ)
    if device == "cuda":
        torch.cuda.set_device(choose_gpu(here.local_rank, torch.cuda.device_count()))
    if here.world == 1:
        return here
    meeting = meet(here, os.environ, folder, timeout_s)
    os.environ.pop("MARC_MASTER_FD", None)
    timeout = timedelta(seconds=timeout_s)
    try:
        store = _open_store(here, meeting, timeout)
        if device == "cpu" and meeting.file is not None:
            _name_interface(store, here, meeting)
    except (RuntimeError, OSError, ValueError) as error:
        where = f"{meeting.address}:{meeting.port}"
        raise LaunchError(f"rank {here.rank}: cannot meet the other ranks at {where} ({first_line(error)})") from None
    _start(device, here, timeout, store=store)
    if here.rank == 0 and meeting.file is not None:  # everyone is here, so everyone has read it
        meeting.file.unlink(missing_ok=True)
    return here


def choose_gpu(local_rank: int, visible: int) -> int:
    """The GPU of a process: its own number among those visible, or the only one (``--gpus-per-task=1``).

    Raises:
        LaunchError: more processes than GPUs: NCCL refuses two ranks on one.
    """
    if visible == 1:
        return 0
    if local_rank < visible:
        return local_rank
    raise LaunchError(
        f"GPUs: local rank {local_rank} needs {local_rank + 1} visible GPUs, got {visible}; "
        "start one process per GPU, or give each process its own (--gpus-per-task=1)"
    )


def _open_store(here: World, meeting: Meeting, timeout: timedelta) -> Any:
    """Rank 0's store. Its client makes sure that a store answers; the token makes sure that it is ours."""
    if meeting.listen_fd is not None:
        os.set_inheritable(meeting.listen_fd, False)  # a loader worker must not keep the socket open
    # torchrun's agent may serve a store at this address already
    served = meeting.file is None and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(  # type: ignore[attr-defined]
        meeting.address,
        meeting.port,
        here.world,
        here.rank == 0 and (meeting.listen_fd is not None or not served),
        timeout,
        wait_for_workers=False,
        master_listen_fd=meeting.listen_fd,
    )
    if meeting.token is not None:
        if here.rank == 0:
            store.set(_TOKEN, meeting.token)
        if store.get(_TOKEN).decode() != meeting.token:
            raise OSError("another job answers there")
    return store


def _name_interface(store: Any, here: World, meeting: Meeting) -> None:
    """Tell gloo, when nobody did, which interface leads to the other nodes.

    By itself it takes what the host name resolves to, else loopback: wrong where a host name means 127.0.1.1 or
    nothing. A node cannot know by which of its addresses it is reached, so another node tells the node of rank 0.
    NCCL needs no help: it looks at the interfaces themselves and avoids loopback.
    """
    if meeting.own is not None and here.rank > 0:
        store.set(_REACHED, meeting.address)
    if not os.environ.get("GLOO_SOCKET_IFNAME"):
        name = interface_of(meeting.own or store.get(_REACHED).decode())
        if name is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = name


def join_file(rank: int, world: int, path: Path | str, *, timeout_s: float = 60.0) -> World:
    """Join a gloo group that meets in a file: for tests, which must not depend on ports.

    Args:
        rank: of this process, from 0; also its number on the machine.
        world: number of processes.
        path: a file that all of them can write, new for every group.
        timeout_s: seconds after which ranks that do not meet, and a collective that a rank does not reach, fail.
    """
    here = World(rank, world, rank)
    _start("cpu", here, timedelta(seconds=timeout_s), init_method=f"file://{path}")
    return here


def _start(device: str, here: World, timeout: timedelta, **meeting: Any) -> None:
    if device == "cuda":
        meeting["device_id"] = torch.device("cuda", torch.cuda.current_device())
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo", rank=here.rank, world_size=here.world, timeout=timeout, **meeting
    )
    _OURS.append(dist.group.WORLD)


def leave() -> None:
    """Leave the process group, if there is one and we made it."""
    if _active() and dist.group.WORLD in _OURS:
        _OURS.clear()
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
    """Padded all-gather whose backward hands each rank the summed gradient of its own rows.

    ``shared`` gets the mean over ranks of its gradient in the same node, so the ranks meet in one order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, shared: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
        ctx.counts = counts
        return _gather(x, counts), shared.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, shared = _scatter_sum(grads[0], ctx.counts), grads[1]
        if len(shared):
            shared = sum_(shared.clone(memory_format=torch.contiguous_format)) / world()
        return rows, shared, None


def gather_rows(x: Tensor, counts: list[int] | None = None) -> tuple[Tensor, int]:
    """All ranks' rows in rank order, with gradient; ranks may hold unequal or zero rows.

    Args:
        x: (rows of this rank, ...); equal trailing shape and dtype on all ranks.
        counts: ``row_counts``, when the caller has them already: one exchange less.

    Returns:
        (all rows, ...) and the position of this rank's first row among them. The gradient of a row is the sum of what
        all ranks send back to it, as if one process held everything.
    """
    return gather_with_shared(x, x.new_zeros(0), counts)[:2]


def gather_with_shared(x: Tensor, shared: Tensor, counts: list[int] | None = None) -> tuple[Tensor, int, Tensor]:
    """``gather_rows``, and a tensor of parameters that all ranks hold, whose gradient becomes the mean over ranks.

    Averaging that gradient again, as data-parallel wrappers do, changes nothing.

    Args:
        x: (rows of this rank, ...); equal trailing shape and dtype on all ranks.
        shared: of any shape, the same on all ranks.
        counts: ``row_counts``, when the caller has them already: one exchange less.

    Returns:
        All rows and the position of this rank's first one, as ``gather_rows``; and ``shared``.
    """
    if not _active():
        return x, 0, shared
    counts = row_counts(x) if counts is None else counts
    rows, same = _GatherRows.apply(x, shared, counts)
    return rows, sum(counts[: rank()]), same


def gather_rows_plain(x: Tensor, counts: list[int] | None = None) -> Tensor:
    """All ranks' rows in rank order, without gradient; any dtype; ``counts`` as in ``gather_rows``."""
    if not _active():
        return x
    with torch.no_grad():
        return _gather(x, row_counts(x) if counts is None else counts)


def gather_to_host(x: Tensor, device: torch.device, tick: Callable[[], None] = lambda: None) -> Tensor:
    """All ranks' rows in rank order, in host memory: ``device`` never holds more than a block of every rank's rows.

    Args:
        x: (rows of this rank, ...) on the CPU; equal trailing shape and dtype on all ranks.
        device: where collectives want their tensors.
        tick: called after every block.
    """
    if not _active():
        return x
    counts = row_counts(torch.empty((len(x), 0), device=device))
    starts = [sum(counts[:number]) for number in range(len(counts))]
    out = x.new_empty((sum(counts), *x.shape[1:]))
    rows = max(1, HOST_BLOCK // max(1, math.prod(x.shape[1:]) * x.element_size()))
    for at in range(0, max(counts), rows):
        here = [min(rows, max(0, count - at)) for count in counts]
        parts = torch.split(gather_rows_plain(x[at : at + rows].to(device), here).cpu(), here)
        for start, part in zip(starts, parts, strict=True):
            out[start + at : start + at + len(part)] = part
        tick()
    return out


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


def meeting_store() -> Any:
    """The key-value store in which the ranks met, None without a group; it needs no network between GPUs."""
    return dist.distributed_c10d._get_default_store() if _active() else None
