"""The readable reference: every pair at once, gradients by autograd. Memory: anchors x candidates."""

from __future__ import annotations

from torch import Tensor

from marc_dist.objective.pairs import Pairs


def dense_sum(anchors: Tensor, candidates: Tensor, pairs: Pairs) -> Tensor:
    """- sum_i sum_p q_ip log sigma_ip.

    Args:
        anchors: (A, D) unit vectors.
        candidates: (C, D) unit vectors.
        pairs: the contributions.
    """
    q, inverse, own = pairs.block(slice(0, len(anchors)), slice(0, len(candidates)))
    logits = anchors @ candidates.T * inverse
    if own is not None:
        logits = logits.masked_fill(own, float("-inf"))
    log_sigma = logits.log_softmax(dim=1)
    if own is not None:
        log_sigma = log_sigma.masked_fill(own, 0.0)  # q is zero there, and 0 * -inf is not
    return -(q * log_sigma).sum()
