"""Is the gradient of several ranks that of one process? The loss modules against those of other libraries.

    python benchmarks/loss_peers.py [--quick]

48 rows in float64 through a small network in DistributedDataParallel over gloo, the rows in order of their labels, so
that ranks differ. Every path is compared with itself: the same loss in one process on all rows. A figure is the length
of the difference of all gradients relative to the gradient; in brackets the ratio of the lengths.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from marc_dist import comm, losses
from marc_dist.objective import objective

ROWS, FEATURES, WIDTH, LABELS, TAU = 48, 16, 8, 7, 0.1
LIMIT_S = 60.0
Loss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""(network, rows, multi-hot labels, numbers of the rows) -> loss of this rank."""


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(FEATURES, 32), nn.Tanh(), nn.Linear(32, WIDTH)).double()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Rows that look like their labels, the multi-hot labels in order, and the numbers of the rows."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(ROWS, LABELS, generator=generator) < torch.linspace(0.6, 0.1, LABELS)
    labels[:, 0] |= ~labels.any(dim=1)
    labels = labels[torch.argsort(labels.sum(dim=1), stable=True)]
    looks = torch.randn(LABELS, FEATURES, dtype=torch.float64, generator=generator)
    rows = labels.double() @ looks + torch.randn(ROWS, FEATURES, dtype=torch.float64, generator=generator)
    return rows, labels, torch.arange(ROWS)


def first_label(labels: Tensor) -> Tensor:
    """One class a row, for losses that know no more: (rows,)."""
    return labels.to(torch.uint8).argmax(dim=1)


def ours(loss: nn.Module, targets: str) -> Loss:
    def evaluate(net: nn.Module, rows: Tensor, labels: Tensor, numbers: Tensor) -> Tensor:
        if targets == "ids":
            return loss(net(rows), numbers // 2)
        single = nn.functional.one_hot(first_label(labels), LABELS)
        return loss(net(rows), single if targets == "single" else labels)

    return evaluate


def mulsupcon(gather: bool) -> Loss:
    """MulSupCon as the published code writes it: a mean over this rank's terms, with or without others' rows."""

    def evaluate(net: nn.Module, rows: Tensor, labels: Tensor, numbers: Tensor) -> Tensor:
        z = nn.functional.normalize(net(rows), dim=1)
        every, first = comm.gather_rows(z) if gather else (z, 0)
        candidates = comm.gather_rows_plain(labels) if gather else labels
        parts = objective(z, every, labels, candidates, first=first, settings=losses.MulSupConLoss(tau=TAU).settings)
        return parts.sum / parts.count

    return evaluate


def open_clip(**options: bool) -> Loss:
    """ClipLoss between two noisy views of every row."""

    def evaluate(net: nn.Module, rows: Tensor, labels: Tensor, numbers: Tensor) -> Tensor:
        from open_clip.loss import ClipLoss

        loss = ClipLoss(rank=comm.rank(), world_size=comm.world(), **options)
        views = torch.cat([rows, rows + 0.5 * rows.sin()])
        one, two = nn.functional.normalize(net(views), dim=1).chunk(2)
        return loss(one, two, torch.tensor(1 / TAU, dtype=torch.float64))

    return evaluate


def pml(efficient: bool) -> Loss:
    def evaluate(net: nn.Module, rows: Tensor, labels: Tensor, numbers: Tensor) -> Tensor:
        from pytorch_metric_learning.losses import SupConLoss
        from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

        loss = SupConLoss(temperature=TAU)
        wrapped = DistributedLossWrapper(loss, efficient=efficient) if comm.world() > 1 else loss
        return wrapped(net(rows), first_label(labels))

    return evaluate


OURS: dict[str, Loss] = {
    "MaclLoss": ours(losses.MaclLoss(tau=TAU), "multi"),
    "MulSupConLoss": ours(losses.MulSupConLoss(tau=TAU), "multi"),
    "SupConSingleLoss": ours(losses.SupConSingleLoss(tau=TAU), "single"),
    "NTXentLoss": ours(losses.NTXentLoss(tau=TAU), "ids"),
    "TripletLoss": ours(losses.TripletLoss(), "multi"),
}
OPEN_CLIP: dict[str, Loss] = {
    "open_clip ClipLoss, defaults": open_clip(),
    "open_clip ClipLoss, local_loss": open_clip(local_loss=True),
    "open_clip ClipLoss, local_loss, gather_with_grad": open_clip(local_loss=True, gather_with_grad=True),
}
PML: dict[str, Loss] = {
    "PML SupConLoss, efficient=True": pml(True),
    "PML SupConLoss, efficient=False": pml(False),
}
PLAIN: dict[str, Loss] = {
    "MulSupCon, every rank its own rows": mulsupcon(gather=False),
    "MulSupCon, gathered with gradient, mean of the rank": mulsupcon(gather=True),
}
PATHS = {**OURS, **PLAIN, **OPEN_CLIP, **PML}


def gradient(name: str, rows: slice) -> Tensor:
    """All gradients of a path in a row, averaged over the ranks that there are."""
    net = network()
    called = DistributedDataParallel(net) if comm.world() > 1 else net
    PATHS[name](called, *(part[rows] for part in batch())).backward()
    return torch.cat([parameter.grad.flatten() for parameter in net.parameters() if parameter.grad is not None])


def one_rank(rank: int, layout: list[int], store: str, names: list[str], pipe: Any) -> None:
    """A process of a world: sends what each path gives, or why it gives nothing."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if len(layout) > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(layout))
    rows = slice(sum(layout[:rank]), sum(layout[: rank + 1]))
    for name in names:
        try:
            pipe.send(gradient(name, rows).tolist())  # a tensor would need this process to stay
        except Exception as error:  # whatever a peer raises is the result
            pipe.send(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:100])
            return
    if len(layout) > 1:
        dist.barrier()
        dist.destroy_process_group()


def world(context: Any, layout: list[int], names: list[str]) -> list[list[float] | str]:
    """What rank 0 gets from each path; text where a rank raised, died or waited in vain, which ends a world."""
    with tempfile.TemporaryDirectory(prefix="marc-peers-") as folder:
        ranks = []
        for rank in range(len(layout)):
            ours_end, theirs = context.Pipe(duplex=False)
            call = (rank, layout, str(Path(folder) / "store"), names, theirs)
            process = context.Process(target=one_rank, args=call)
            process.start()
            theirs.close()
            ranks.append((process, ours_end))
        found, fault = _collect({pipe: process for process, pipe in ranks})
        for process, _ in ranks:
            process.join(0 if fault else 10)
            if process.is_alive():
                process.kill()
                process.join()
    if fault is None:
        return found
    return [*found, fault, *(world(context, layout, rest) if (rest := names[len(found) + 1 :]) else [])]


def _collect(ranks: dict[Any, Any]) -> tuple[list[list[float] | str], str | None]:
    """What rank 0 got from the paths that all ranks went, and what happened in the next one."""
    got: dict[Any, list[list[float] | str]] = {pipe: [] for pipe in ranks}
    waiting, fault = set(ranks), None
    while waiting and fault is None:
        ready = connection.wait(list(waiting), LIMIT_S)
        if not ready:
            fault = f"no answer within {LIMIT_S:g} s"
        for pipe in ready:
            try:
                told = pipe.recv()  # type: ignore[union-attr]
            except EOFError:
                waiting.discard(pipe)
                ranks[pipe].join(5)
                fault = f"a process died, exit code {code}" if (code := ranks[pipe].exitcode) else fault
                continue
            if isinstance(told, str):
                fault = told
            else:
                got[pipe].append(told)
    whole = min(map(len, got.values())) if fault else None
    return next(iter(got.values()))[:whole], fault


def available() -> list[str]:
    """The paths whose library is installed; says which are not."""
    names = [*OURS, *PLAIN]
    for library, paths in (("open_clip", OPEN_CLIP), ("pytorch_metric_learning", PML)):
        try:
            __import__(library)
            names += paths
        except ImportError as error:
            print(f"left out: {', '.join(paths)} ({error})")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two ranks and uneven ones only")
    args = parser.parse_args()
    context = multiprocessing.get_context("forkserver")
    # torch._dynamo: torch.distributed.nn loads it in its first call, which may take longer than the limit
    loaded = [
        "marc_dist.losses",
        "torch._dynamo",
        "torch.distributed.nn",
        "pytorch_metric_learning.losses",
        "open_clip",
    ]
    context.set_forkserver_preload(loaded)
    names = available()
    warnings.simplefilter("ignore")
    alone = {name: gradient(name, slice(None)) for name in names}
    layouts = [[24, 24]] if args.quick else [[24, 24], [16, 16, 16]]
    uneven = [[29, 19]] if args.quick else [[29, 19], [20, 0, 28]]
    table: dict[str, dict[str, Any]] = {name: {} for name in names}
    for layout in layouts + uneven:
        for name, got in zip(names, world(context, layout, names), strict=True):
            table[name][str(layout)] = compare(got, alone[name])
    tell(table)
    write("loss_peers", {"rows": ROWS, "table": table})
    worst = max(value["error"] if isinstance(value, dict) else 1.0 for name in OURS for value in table[name].values())
    held = [verdict("worst error of our modules, all layouts", worst / 1e-12, 1.0, "e-12")]
    claims = {"open_clip ClipLoss, defaults": 0.45, "PML SupConLoss, efficient=True": 0.4}
    for name, least in claims.items():
        if name in table:
            off = min(table[name][str(layout)]["error"] for layout in layouts)
            held.append(verdict(f"error of {name}", off, least, "", at_least=True))
    return 0 if all(held) else 1


def tell(table: dict[str, dict[str, Any]]) -> None:
    """Print a row a path, a column a layout of rows over ranks, and why a path failed."""
    width = max(map(len, table))
    print(f"{'':{width}}  " + "  ".join(f"{key:>16}" for key in next(iter(table.values()))))
    for name, row in table.items():
        print(f"{name:{width}}  " + "  ".join(f"{shown(value):>16}" for value in row.values()))
    for name, row in table.items():
        for key, value in row.items():
            if isinstance(value, str):
                print(f"{name}, {key}: {value}")


def compare(found: list[float] | str, want: Tensor) -> Any:
    """Error and ratio of lengths, or the text."""
    if isinstance(found, str):
        return found
    got = torch.tensor(found, dtype=want.dtype)
    return {"error": float((got - want).norm() / want.norm()), "ratio": float(got.norm() / want.norm())}


def shown(value: Any) -> str:
    if isinstance(value, str):
        return "fails"
    error = value["error"]
    return f"{error:.0e}" if error < 1e-3 else f"{error:.2f} ({value['ratio']:.2f})"


if __name__ == "__main__":
    from common import verdict, write

    sys.exit(main())
