"""The same sum in linear memory: positives between label sets, log-sum-exp over tiles, recomputed in backward.

    lse_r = log sum_{a != i} exp(s_ia / T_ra)              running maximum and running sum over tiles of candidates
    sum   = sum_r W_r lse_r - sum_i (pull between kinds)    ``pairs.py``
    d lse_r / d s_ia = sigma_ra / T_ra

Kept for backward: anchors, candidates, one lse a row, and the pulls, D numbers a label set. No pair matrix of any kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from marc_dist.objective.pairs import LabelPairs, Pairs, Softmaxes

SMALLEST = torch.finfo(torch.float32).min


class Tile(NamedTuple):
    """Softmax rows ``rows`` x candidates ``columns``.

    Attributes:
        rows, columns: slices.
        own: (R,) position of each row's own anchor among the candidates.
    """

    rows: slice
    columns: slice
    own: Tensor


class Kernel(Protocol):
    """What happens to a tile of similarities between two matrix products."""

    def reduce(self, similarities: Tensor, tile: Tile, top: Tensor, total: Tensor) -> None:
        """Add a tile to the running maximum and the running sum of exp(logit - maximum).

        Args:
            similarities: (rows, columns) of the tile, times 1 / T where that is one number a row; may be overwritten.
            tile: which rows and columns.
            top: (rows,) the maximum of the logits so far, finite; updated in place.
            total: (rows,) the sum of exp(logit - top) so far; updated in place.
        """

    def slope(self, similarities: Tensor, tile: Tile, lse: Tensor, weight: Tensor) -> Tensor:
        """(rows, columns) weight * d lse / d similarity = W sigma / T.

        Where T is one number a row, ``similarities`` hold it already, and the result is W sigma.

        Args:
            similarities: as in ``reduce``; may be overwritten.
            tile: which rows and columns.
            lse: (rows,) log-sum-exp over all candidates.
            weight: (rows,) W, above 0.
        """


class TorchKernel:
    """Plain tensor operations: any device. Where T is one number a row, the anchors were scaled before."""

    def __init__(self, pairs: Pairs, softmaxes: Softmaxes) -> None:
        self.pairs = pairs
        self.mine = pairs.rows[softmaxes.anchor]
        self.scaled = softmaxes.inverse is not None

    def _logits(self, similarities: Tensor, tile: Tile) -> tuple[Tensor, Tensor | None]:
        """Logits with -inf on self pairs, and 1 / T."""
        inverse: Tensor | None = None
        if not self.scaled:
            assert isinstance(self.pairs, LabelPairs)
            kinds, local = torch.unique_consecutive(self.mine[tile.rows], return_inverse=True)
            inverse = self.pairs.inverse(kinds, self.pairs.columns[tile.columns]).index_select(0, local)
            similarities.mul_(inverse)
        if self.pairs.bias is not None:
            similarities.add_(self.pairs.bias[tile.columns])
        start, stop = tile.columns.start, tile.columns.stop
        inside = ((tile.own >= start) & (tile.own < stop)).nonzero()[:, 0]
        similarities[inside, tile.own[inside] - start] = float("-inf")
        return similarities, inverse

    def reduce(self, similarities: Tensor, tile: Tile, top: Tensor, total: Tensor) -> None:
        """See ``Kernel``."""
        logits, _ = self._logits(similarities, tile)
        higher = torch.maximum(top, logits.amax(dim=1))
        total.mul_((top - higher).exp_()).add_(logits.sub_(higher[:, None]).exp_().sum(dim=1))
        top.copy_(higher)

    def slope(self, similarities: Tensor, tile: Tile, lse: Tensor, weight: Tensor) -> Tensor:
        """See ``Kernel``."""
        logits, inverse = self._logits(similarities, tile)
        slope = logits.sub_((lse - weight.log())[:, None]).exp_()
        return slope if inverse is None else slope.mul_(inverse)


def _tiles(length: int, tile: int) -> Iterator[slice]:
    for start in range(0, length, tile):
        yield slice(start, min(start + tile, length))


def _sums(x: Tensor, kinds: Tensor, num: int) -> Tensor:
    """(num, D) sum of the rows of each kind, in the same order always (an index_add on a GPU has none)."""
    if not x.is_cuda or not len(x):  # of nothing, segment_reduce makes an error
        return x.new_zeros(num, x.shape[1]).index_add_(0, kinds, x)
    return _sorted_sums(x, kinds, num)


def _sorted_sums(x: Tensor, kinds: Tensor, num: int) -> Tensor:
    order = torch.argsort(kinds, stable=True)
    lengths = torch.bincount(kinds, minlength=num)
    return torch.segment_reduce(x[order], "sum", lengths=lengths, axis=0, initial=0.0)


@contextmanager
def precision(device: torch.device, tf32: bool) -> Iterator[None]:
    """The chosen arithmetic of matrix products on a GPU, whatever the process has set."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


class _Work:
    """One evaluation: which rows, which tiles, which kernel."""

    def __init__(self, pairs: Pairs, kernel: Callable[[Pairs, Softmaxes], Kernel], tile: int, tf32: bool) -> None:
        self.pairs, self.tile, self.tf32 = pairs, tile, tf32
        self.softmaxes = pairs.softmaxes()
        self.kernel: Kernel = kernel(pairs, self.softmaxes)
        self.own = pairs.first + self.softmaxes.anchor

    def _rows(self, anchors: Tensor, a: slice) -> Tensor:
        rows = anchors[self.softmaxes.anchor[a]]
        return rows if self.softmaxes.inverse is None else rows.mul_(self.softmaxes.inverse[a, None])

    def _products(self, rows: Tensor, candidates: Tensor, a: slice) -> Iterator[tuple[Tensor, Tile]]:
        """Tiles of similarities, each in the memory of the one before."""
        buffer = rows.new_empty(len(rows) * min(self.tile, len(candidates)))
        for c in _tiles(len(candidates), self.tile):
            product = buffer[: len(rows) * (c.stop - c.start)].view(len(rows), -1)
            yield torch.mm(rows, candidates[c].T, out=product), Tile(a, c, self.own[a])

    def lse(self, anchors: Tensor, candidates: Tensor) -> Tensor:
        """(R,) log-sum-exp of every row."""
        lse = anchors.new_empty(len(self.own))
        with precision(anchors.device, self.tf32):
            for a in _tiles(len(lse), self.tile):
                top = torch.full_like(lse[a], SMALLEST)  # finite: a tile that holds the anchor alone adds exp(-inf) = 0
                total = torch.zeros_like(top)
                for product, tile in self._products(self._rows(anchors, a), candidates, a):
                    self.kernel.reduce(product, tile, top, total)
                lse[a] = top + total.log()
        return lse

    def add_slopes(
        self, anchors: Tensor, candidates: Tensor, lse: Tensor, to_anchors: Tensor, to_candidates: Tensor
    ) -> None:
        """Add the gradient of sum_r W_r lse_r, in place."""
        soft = self.softmaxes
        with precision(anchors.device, self.tf32):
            for a in _tiles(len(lse), self.tile):
                rows = self._rows(anchors, a)
                moved = torch.zeros_like(rows)
                for product, tile in self._products(rows, candidates, a):
                    slope = self.kernel.slope(product, tile, lse[a], soft.weight[a])
                    moved.addmm_(slope, candidates[tile.columns])
                    to_candidates[tile.columns].addmm_(slope.T, rows)
                if soft.inverse is not None:
                    moved.mul_(soft.inverse[a, None])
                _add_rows(to_anchors, soft.anchor[a], moved)


class _StreamedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchors: Tensor, candidates: Tensor, work: _Work) -> Tensor:
        pairs = work.pairs
        sums = _sums(anchors, pairs.rows, len(pairs.mine)), _sums(candidates, pairs.columns, pairs.num_kinds)
        with precision(anchors.device, False):
            pull = pairs.pull(*sums)
        pulled = (anchors * pull.to_anchor[pairs.rows]).sum(dim=1)
        pulled -= pull.own[pairs.rows] * (anchors * candidates[pairs.own_slice()]).sum(dim=1)
        lse = work.lse(anchors, candidates)
        ctx.save_for_backward(anchors, candidates, lse, pull.to_anchor, pull.to_candidate, pull.own)
        ctx.work = work
        total = (work.softmaxes.weight * lse).sum(dtype=torch.float64) - pulled.sum(dtype=torch.float64)
        return total.to(anchors.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        anchors, candidates, lse, pull_anchor, pull_candidate, pull_own = ctx.saved_tensors
        pairs: Pairs = ctx.work.pairs
        own = pull_own[pairs.rows][:, None]
        to_anchors = (own * candidates[pairs.own_slice()]).sub_(pull_anchor[pairs.rows])
        to_candidates = pull_candidate[pairs.columns].neg_()
        to_candidates[pairs.own_slice()].addcmul_(own, anchors)
        ctx.work.add_slopes(anchors, candidates, lse, to_anchors, to_candidates)
        return to_anchors.mul_(grads[0]), to_candidates.mul_(grads[0]), None


def _add_rows(target: Tensor, places: Tensor, rows: Tensor) -> None:
    """target[places] += rows; ``places`` may repeat, then neighbours."""
    unique, num = torch.unique_consecutive(places, return_counts=True)
    if len(unique) == len(places):
        target[places] += rows
    else:
        target[unique] += _sums(
            rows, torch.repeat_interleave(torch.arange(len(unique), device=num.device), num), len(unique)
        )


def streamed_sum(
    anchors: Tensor,
    candidates: Tensor,
    pairs: Pairs,
    tile: int,
    kernel: Callable[[Pairs, Softmaxes], Kernel] = TorchKernel,
    *,
    tf32: bool = False,
) -> Tensor:
    """- sum_i sum_p q_ip log sigma_ip, like ``dense_sum``, holding only tiles of ``tile`` x ``tile`` pairs.

    Args:
        anchors: (A, D) unit vectors.
        candidates: (C, D) unit vectors.
        pairs: the contributions.
        tile: rows and columns held at once; changes speed and rounding only.
        kernel: what works on a tile.
        tf32: let an NVIDIA GPU round the factors of the matrix products to 10 bits of mantissa, sums stay float32: much
            faster, and a similarity is then good to about 1e-3, too coarse for temperatures near 0.01.
    """
    return cast(Tensor, _StreamedSum.apply(anchors, candidates, _Work(pairs, kernel, tile, tf32)))
