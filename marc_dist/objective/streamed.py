"""The same sum in tiles: an online log-sum-exp forward, everything recomputed in backward. Memory: linear.

    lse_i = log sum_{a != i} exp(s_ia / T_ia)              running maximum and running sum over tiles
    sum   = sum_i ( lse_i sum_p q_ip - sum_p q_ip s_ip / T_ip )
    d sum / d s_ik = ( sigma_ik sum_p q_ip - q_ik ) / T_ik

Kept for backward: anchors, candidates, lse_i and sum_p q_ip.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from marc_dist.objective.pairs import Pairs


def _tiles(length: int, tile: int) -> Iterator[slice]:
    for start in range(0, length, tile):
        yield slice(start, min(start + tile, length))


def _logits(
    anchors: Tensor, candidates: Tensor, pairs: Pairs, a: slice, c: slice
) -> tuple[Tensor, Tensor, Tensor | float]:
    """One tile: logits with -inf on self pairs, targets q, 1 / T."""
    q, inverse, own = pairs.block(a, c)
    logits = (anchors[a] @ candidates[c].T).mul_(inverse)
    if own is not None:
        logits.masked_fill_(own, float("-inf"))
    return logits, q, inverse


class _StreamedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchors: Tensor, candidates: Tensor, pairs: Pairs, tile: int) -> Tensor:
        lse = anchors.new_empty(len(anchors))
        weight = anchors.new_zeros(len(anchors))
        pulled = anchors.new_zeros(len(anchors))
        for a in _tiles(len(anchors), tile):
            top = anchors.new_full((a.stop - a.start,), float("-inf"))
            total = torch.zeros_like(top)
            for c in _tiles(len(candidates), tile):
                logits, q, _ = _logits(anchors, candidates, pairs, a, c)
                new_top = torch.maximum(top, logits.amax(dim=1))
                anchor = new_top.masked_fill(new_top == float("-inf"), 0.0)  # a tile that holds the anchor alone
                total = total * (top - anchor).exp() + (logits - anchor[:, None]).exp().sum(dim=1)
                top = new_top
                weight[a] += q.sum(dim=1)
                pulled[a] += (q * logits.masked_fill(q == 0, 0.0)).sum(dim=1)
            lse[a] = top + total.log()
        ctx.save_for_backward(anchors, candidates, lse, weight)
        ctx.pairs, ctx.tile = pairs, tile
        return torch.where(weight > 0, weight * lse - pulled, 0.0).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        anchors, candidates, lse, weight = ctx.saved_tensors
        pairs: Pairs = ctx.pairs
        to_anchors, to_candidates = torch.zeros_like(anchors), torch.zeros_like(candidates)
        for a in _tiles(len(anchors), ctx.tile):
            finite = lse[a].masked_fill(lse[a] == float("-inf"), 0.0)  # no candidate but the anchor itself
            for c in _tiles(len(candidates), ctx.tile):
                logits, q, inverse = _logits(anchors, candidates, pairs, a, c)
                pull = (logits - finite[:, None]).exp_().mul_(weight[a][:, None]).sub_(q).mul_(inverse)
                to_anchors[a] += pull @ candidates[c]
                to_candidates[c] += pull.T @ anchors[a]
        return to_anchors.mul_(grads[0]), to_candidates.mul_(grads[0]), None, None


def streamed_sum(anchors: Tensor, candidates: Tensor, pairs: Pairs, tile: int) -> Tensor:
    """- sum_i sum_p q_ip log sigma_ip, like ``dense_sum``, holding only tiles of ``tile`` x ``tile`` pairs.

    Args:
        anchors: (A, D) unit vectors.
        candidates: (C, D) unit vectors.
        pairs: the contributions.
        tile: rows and columns held at once; changes speed and rounding only.
    """
    return cast(Tensor, _StreamedSum.apply(anchors, candidates, pairs, tile))
