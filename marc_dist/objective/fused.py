"""The ``triton`` implementation: ``streamed`` with a tile's elementwise work in one kernel instead of a dozen passes.

The matrix products stay with cuBLAS, which takes any width, and float32 or TF32 at full speed. A single flash-style
kernel would have to hold D-wide sums in registers (D = 512 does not fit) or repeat the products once a slice of D; a
pass over the tile through memory is cheaper than either from D = 128 on.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from marc_dist.objective.pairs import LabelPairs, Pairs, Softmaxes
from marc_dist.objective.streamed import Tile

LABEL_BLOCK = 32
# A program of reduce_tile owns its rows for the whole tile: 16 make 256 programs of a 4,096-row tile, more than a GPU
# has multiprocessors, and half the registers of 32, which spilled (ptxas, sm_90).
REDUCE_ROWS, SLOPE_ROWS, BLOCK_COLUMNS = 16, 32, 128


def why_not(device: torch.device, *, interpreted: bool) -> str | None:
    """Why the kernels cannot run on a device, or None.

    Args:
        device: of the vectors.
        interpreted: whether Triton's interpreter will do, which runs on a CPU, slowly, where TRITON_INTERPRET=1: for
            tests.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cuda":
        return None if torch.version.hip is None else "tried on NVIDIA GPUs only"
    if interpreted:
        from marc_dist.objective import kernels

        if kernels.INTERPRETED:
            return None
    return f"it needs an NVIDIA GPU, the vectors are on {device.type}"


class TritonKernel:
    """``streamed.Kernel`` in Triton; see ``kernels.py``."""

    def __init__(self, pairs: Pairs, softmaxes: Softmaxes) -> None:
        from marc_dist.objective import kernels

        self._kernels = kernels
        device, dtype = pairs.columns.device, pairs.dtype
        self._columns = pairs.columns.to(torch.int32)
        self._rows = pairs.mine[pairs.rows[softmaxes.anchor]].to(torch.int32)
        self._bias = pairs.bias
        nothing = torch.zeros(1, dtype=dtype, device=device)
        self._tensors = {name: nothing for name in ("table_ptr", "sizes_ptr", "rho_ptr", "constants_ptr")}
        self._switches: dict[str, Any] = dict(LABELS=False, WIDTH=1, BLOCK_L=LABEL_BLOCK, OVERLAP=0, FORM=0, DYNAMIC=0)
        if softmaxes.inverse is None:
            assert isinstance(pairs, LabelPairs)
            self._by_labels(pairs)

    def _by_labels(self, pairs: LabelPairs) -> None:
        s, sets = pairs.settings, pairs.narrow
        num_labels = sets.labels.shape[1]
        width = -(-num_labels // LABEL_BLOCK) * LABEL_BLOCK
        table = torch.zeros(len(sets), width, dtype=torch.float16, device=sets.labels.device)
        table[:, :num_labels] = sets.labels
        constants = torch.tensor([s.tau, s.alpha, s.beta, s.t_min, num_labels], dtype=torch.float64)
        rho = getattr(pairs.targets, "rho")  # noqa: B009 - only rules with temperatures of their own come here
        self._tensors = {
            "table_ptr": table,
            "sizes_ptr": sets.sizes,
            "rho_ptr": rho.to(sets.sizes),
            "constants_ptr": constants.to(sets.sizes),
        }
        own = "every"
        if s.temperature_scope == "positives_only":
            own = "all" if s.positives == "all" else "any"
        self._switches |= {
            "LABELS": True,
            "WIDTH": width,
            "OVERLAP": self._kernels.OVERLAPS[s.overlap],
            "FORM": self._kernels.FORMS[s.temperature_form],
            "DYNAMIC": self._kernels.POSITIVES[own],
        }

    def _launch(
        self, kernel: Any, grid: tuple[int, ...], rows: int, similarities: Tensor, tile: Tile, one: Tensor, two: Tensor
    ) -> None:
        columns = self._columns[tile.columns]
        kernel[grid](
            similarities,
            one,
            two,
            *similarities.shape,
            tile.own,
            self._rows[tile.rows],
            columns,
            columns if self._bias is None else self._bias[tile.columns],
            tile.columns.start,
            **self._tensors,
            **self._switches,
            BIAS=self._bias is not None,
            BLOCK_R=rows,
            BLOCK_C=BLOCK_COLUMNS,
        )

    def reduce(self, similarities: Tensor, tile: Tile, top: Tensor, total: Tensor) -> None:
        """See ``streamed.Kernel``."""
        grid = (-(-similarities.shape[0] // REDUCE_ROWS),)
        self._launch(self._kernels.reduce_tile, grid, REDUCE_ROWS, similarities, tile, top, total)

    def slope(self, similarities: Tensor, tile: Tile, lse: Tensor, weight: Tensor) -> Tensor:
        """See ``streamed.Kernel``."""
        rows, columns = similarities.shape
        grid = (-(-rows // SLOPE_ROWS), -(-columns // BLOCK_COLUMNS))
        self._launch(self._kernels.slope_tile, grid, SLOPE_ROWS, similarities, tile, lse, weight)
        return similarities
