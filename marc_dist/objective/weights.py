"""Pairwise label reweighting: how much a positive pair counts, from how rare the labels are that it shares.

    raw_ip = mean over label pairs (k, l) of c_kl^-gamma      c_ll = n_l; max(c, 1), so a pair of labels that the given
                                                              counts do not know counts like one seen once
        shared    k and l in S_ip                             our reading of the paper, which leaves the pairs open
        cross     k in Y_i, l in Y_p
        offdiag   k != l in S_ip; the diagonal where S_ip holds one label
        single    l in S_ip alone: n_l^-gamma
    relative_ip = raw_ip / mean of raw over the ordered positive pairs of the global batch    batch_mean, sum_to_one
                = raw_ip                                                                      none
    w_ip = 1 + strength (clip(relative_ip, clip_min, clip_max) - 1)

Outside the positive pairs raw = w = 0.

``sum_to_one`` then divides the terms of (i, l) by the sum of w_ip over P_l(i) instead of by |P_l(i)|; see
``targets.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from marc_dist.config.loss import LossConfig
from marc_dist.objective.sets import LabelSets

ENTRIES = 1 << 20  # sets x label pairs of one matrix product: 8 MiB of float64


def pair_sums(rows: Tensor, columns: Tensor, matrix: Tensor, known: Tensor) -> Tensor:
    """The sum over k, l in S_ip of matrix_kl for every pair of label sets, zero where nothing is shared.

    A set is the vector of the label pairs that it contains, so the sum is a matrix product over label pairs; only pairs
    that some set contains are looked at.

    Args:
        rows: (R, L) multi-hot.
        columns: (K, L) multi-hot.
        matrix: (L, L), symmetric.
        known: (P, 2) label pairs k <= l that occur in a set.
    """
    total = rows.new_zeros(len(rows), len(columns))
    for part in torch.split(known, max(1, ENTRIES // max(len(rows), len(columns), 1))):
        k, l = part.unbind(1)
        value = matrix[k, l] * torch.where(k == l, 1.0, 2.0).to(matrix)
        total.addmm_(rows[:, k] * rows[:, l] * value, (columns[:, k] * columns[:, l]).T)
    return total


class PairWeights:
    """w_ip between label sets.

    Args:
        sets: of the candidates.
        settings: strength, gamma, weight_pairs, weight_norm and the clip.
    """

    def __init__(self, sets: LabelSets, settings: LossConfig) -> None:
        self.settings = settings
        self.inverse = sets.statistics.cooccurrence.clamp(min=1).pow(-settings.gamma)
        # an anchor's own label may outweigh its pairs by far, so these are summed alone and not by difference
        self.known = torch.triu(sets.own.cooccurrence, diagonal=int(settings.weight_pairs == "offdiag")).nonzero()
        self.scale: Tensor | None = None

    def normalise(self, total: Tensor, pairs: Tensor) -> None:
        """Set the scale: sum of raw over, and number of, the ordered positive pairs of the global batch."""
        self.scale = torch.where(pairs > 0, total / pairs.clamp(min=1), torch.ones_like(total))

    @property
    def needs_scale(self) -> bool:
        """Whether w depends on the mean of raw."""
        return self.settings.strength > 0 and self.settings.weight_norm != "none"

    def raw(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        """(R, K) raw_ip; meaningful where ``shared`` is not zero.

        Args:
            sets: those of the constructor, in the type that the result gets.
            rows: (R,) numbers of the anchors' sets.
            columns: (K,) numbers of the candidates' sets.
            shared: (R, K) number of labels in common.
        """
        inverse = self.inverse.to(sets.labels)
        a, b = sets.labels[rows], sets.labels[columns]
        kind = self.settings.weight_pairs
        some = shared.clamp(min=1)
        if kind == "single":
            return (a * inverse.diagonal()) @ b.T / some
        if kind == "cross":
            return a @ inverse @ b.T / (sets.sizes[rows][:, None] * sets.sizes[columns]).clamp(min=1)
        both = pair_sums(a, b, inverse, self.known)
        if kind == "shared":
            return both / some.square()
        diagonal = (a * inverse.diagonal()) @ b.T
        return torch.where(shared > 1, both / (some * (some - 1)).clamp(min=1), diagonal / some)

    def weight(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        """(R, K) w_ip; meaningful where ``shared`` is not zero. Arguments as in ``raw``.

        Args:
            sets: those of the constructor, in the type that the result gets.
            rows: (R,) numbers of the anchors' sets.
            columns: (K,) numbers of the candidates' sets.
            shared: (R, K) number of labels in common.
        """
        s = self.settings
        if s.strength == 0:
            return torch.ones_like(shared)
        relative = self.raw(sets, rows, columns, shared)
        if self.scale is not None:
            relative = relative / self.scale.to(relative)
        return relative.clamp_(s.clip_min, s.clip_max).sub_(1).mul_(s.strength).add_(1)
