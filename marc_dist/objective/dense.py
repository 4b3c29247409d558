"""The readable reference: every pair at once, gradients by autograd. Memory: anchors x candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from marc_dist.objective.pairs import Pairs


def dense_sum(anchors: Tensor, candidates: Tensor, pairs: Pairs, *, row_of_positive: bool) -> Tensor:
    """- sum_i sum_p q_ip log sigma_ip.

    Args:
        anchors: (A, D) unit vectors.
        candidates: (C, D) unit vectors.
        pairs: the contributions.
        row_of_positive: whether each positive has a softmax of its own, all of it at T_ip (``per_positive_row``).
    """
    q, inverse = pairs.dense()
    similarities = anchors @ candidates.T
    own = torch.zeros(q.shape, dtype=torch.bool, device=q.device)
    own[torch.arange(len(q), device=q.device), pairs.own()] = True
    if not row_of_positive:
        return _sum(q, similarities * inverse, own, pairs.bias)
    total = similarities[:0].sum()  # zero, with a gradient
    for value in torch.unique(inverse[q > 0]):
        total = total + _sum(q * (inverse == value), similarities * value, own, pairs.bias)
    return total


def _sum(q: Tensor, logits: Tensor, own: Tensor, bias: Tensor | None) -> Tensor:
    everything = logits if bias is None else logits + bias
    lse = everything.masked_fill(own, float("-inf")).logsumexp(dim=1, keepdim=True)
    return -torch.where(q > 0, q * (logits - lse), 0.0).sum()
