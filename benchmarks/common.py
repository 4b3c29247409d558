"""What the benchmark scripts share: batches, timing side by side, and the JSON that they leave."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OUT = Path(__file__).parent / "out"


def labels(num: int, num_labels: int, seed: int = 0) -> Tensor:
    """(num, L) multi-hot rows of two views, long-tailed and correlated like an archive of aerial pictures.

    Sixty kinds of scenes with about three labels each, common labels first; 2 % of the bits are turned.
    """
    generator = torch.Generator().manual_seed(seed)
    scenes = torch.rand(60, num_labels, generator=generator) < torch.logspace(-0.25, -1.7, num_labels)
    half = -(-num // 2)
    kind = torch.randint(0, len(scenes), (half,), generator=generator)
    rows = scenes[kind] ^ (torch.rand(half, num_labels, generator=generator) < 0.02)
    return rows.repeat(2, 1)[:num]


def vectors(num: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """(num, D) random unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(num, dim, generator=generator, dtype=dtype), dim=1)


def floor(z: Tensor, tile: int) -> Tensor:
    """What a softmax over all pairs costs at least without holding them: its gradient in z, and nothing else.

    Forward one product and one exp a tile, backward the product again, exp, and the two products of the gradients. No
    maximum (the inputs are unit vectors), no labels, no temperatures, no weights, no self pairs.
    """
    grad, columns = torch.zeros_like(z), torch.zeros_like(z)
    buffer = z.new_empty(tile * tile)

    def tiles(rows: Tensor) -> Iterator[tuple[Tensor, slice]]:
        for start in range(0, len(z), tile):
            c = slice(start, min(start + tile, len(z)))
            product = buffer[: len(rows) * (c.stop - start)].view(len(rows), -1)
            yield torch.mm(rows, z[c].T, out=product), c

    for start in range(0, len(z), tile):
        scaled = z[start : start + tile] * 10
        total = z.new_zeros(len(scaled))
        for product, _ in tiles(scaled):
            total += product.exp_().sum(dim=1)
        shift = total.log()[:, None]
        for product, c in tiles(scaled):
            product.sub_(shift).exp_()
            grad[start : start + tile].addmm_(product, z[c])
            columns[c].addmm_(product.T, scaled)
    return grad.mul_(10).add_(columns)


def side_by_side(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, run in turn within one process after one unmeasured round: machines are noisy."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def write(name: str, figures: dict[str, Any], folder: Path = OUT) -> None:
    """Leave the figures, and what they were taken on, in ``benchmarks/out/NAME.json``."""
    folder.mkdir(exist_ok=True)
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": machine, **figures}, indent=2) + "\n")
    print(f"figures in {path}")


def verdict(what: str, figure: float, bound: float, unit: str, *, at_least: bool = False) -> bool:
    """Print one claim with its figure; whether it holds."""
    holds = figure >= bound if at_least else figure <= bound
    word = "at least" if at_least else "at most"
    print(f"{'ok  ' if holds else 'MISS'}  {what}: {figure:.2f}{unit} (claimed: {word} {bound:g}{unit})")
    return holds
