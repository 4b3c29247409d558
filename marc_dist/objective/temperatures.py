"""Dynamic temperature: T_ip from how much two label sets overlap and how rare the anchor's labels are.

    o_ip    jaccard            |S| / |Y_i u Y_p|          two empty sets overlap by 0 in every reading
            anchor_recall      |S| / |Y_i|
            dice               2 |S| / (|Y_i| + |Y_p|)
            cosine             |S| / sqrt(|Y_i| |Y_p|)
            count_over_labels  |S| / L
    r_l     one_minus_relative 1 - n_l / max n
            inverse_minmax     (1/n_l - min 1/n) / (max 1/n - min 1/n) over the labels that occur; 0 when all are alike;
                               1 for a label that the given counts do not know
    rho_i   mean or max of r_l over Y_i, 0 without labels
    T_ip    sharpen            tau / (1 + alpha o + beta rho)
            soften             tau (1 + alpha o + beta rho)
            multiplicative     tau (1 - alpha o) (1 - beta rho)        alpha, beta <= 1
            soften_sharpen     tau (1 + alpha o) / (1 + beta rho)      our own: see "Why sharpening by overlap fails"
            never below t_min

    scope   all_pairs          T_ip divides every similarity of anchor i
            positives_only     T_ip divides those of its positives, max(tau, t_min) all others
            per_positive_row   each positive p has a softmax of its own, all of it at T_ip

The paper names overlap and rarity but gives no formula; these are the readings that its wording allows. The defaults
are those of ``LossConfig``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from marc_dist.config.loss import LossConfig
from marc_dist.objective.sets import LabelSets


def rarity(sets: LabelSets, settings: LossConfig) -> Tensor:
    """(U,) rho of each label set."""
    counts = sets.statistics.counts
    if settings.rarity_scale == "one_minus_relative":
        each = 1 - counts / counts.max().clamp(min=1) if len(counts) else counts
    else:
        inverse = 1 / counts.clamp(min=1)
        seen = counts > 0
        low = torch.where(seen, inverse, torch.inf).amin() if len(counts) else counts.new_zeros(())
        high = torch.where(seen, inverse, -torch.inf).amax() if len(counts) else low
        each = torch.where(high > low, (inverse - low) / (high - low), 0.0)
        each = torch.where(seen, each, 1.0)
    if settings.rarity == "mean" or not len(counts):
        return sets.labels @ each / sets.sizes.clamp(min=1)
    return (sets.labels * each).amax(dim=1)


def overlap(sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor, kind: str) -> Tensor:
    """(R, K) o_ip, 0 to 1.

    Args:
        sets: sizes of the label sets.
        rows: (R,) numbers of the anchors' sets.
        columns: (K,) numbers of the candidates' sets.
        shared: (R, K) number of labels in common.
        kind: which reading, see the top of this module.
    """
    a, b = sets.sizes[rows][:, None], sets.sizes[columns]
    if kind == "jaccard":
        return shared / sets.union(rows, columns, shared)
    if kind == "anchor_recall":
        return shared / a.clamp(min=1)
    if kind == "dice":
        return 2 * shared / (a + b).clamp(min=1)
    if kind == "cosine":
        return shared / (a * b).clamp(min=1).sqrt()
    return shared / max(sets.labels.shape[1], 1)


def temperature(o: Tensor, rho: Tensor, settings: LossConfig) -> Tensor:
    """T_ip.

    Args:
        o: (R, K) overlap.
        rho: (R,) rarity of the anchors' sets.
        settings: form, tau, alpha, beta, t_min.
    """
    s = settings
    if s.temperature_form == "multiplicative":
        t = (1 - s.alpha * o) * ((1 - s.beta * rho) * s.tau)[:, None]
    elif s.temperature_form == "soften_sharpen":
        t = (1 + s.alpha * o) * (s.tau / (1 + s.beta * rho))[:, None]
    else:
        change = (1 + s.beta * rho)[:, None] + s.alpha * o
        t = s.tau / change if s.temperature_form == "sharpen" else s.tau * change
    return t.clamp(min=s.t_min)
