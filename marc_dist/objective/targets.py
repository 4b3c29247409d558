"""Which pairs a loss pulls together and how strongly: a target weight q_ip between two label sets (or sample ids).

Every loss here has one shape. With s_ip = z_i.z_p, sigma_ip the softmax over a != i of s_ia / T_ia, and q_ii = 0,

    sum = - sum_i sum_p q_ip log sigma_ip          loss = sum / count

S = S_ip shared labels, J = |S| / |Y_i u Y_p|, P_l(i) the other candidates that carry l. An anchor (or anchor and
label) without a positive is left out of sum and count in every loss: a term that no embedding can change would only
scale the gradient by how many partners a batch happens to lack. The published codes count it with loss 0 unless said
otherwise. A source names the code that the formula was read in: SupContrast at 66a8fe5, MulSupCon at 42b2302,
MultiSupContrast at b7e7845.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from marc_dist.config.loss import LossConfig
from marc_dist.objective.sets import LabelSets
from marc_dist.objective.temperatures import overlap, rarity, temperature
from marc_dist.objective.weights import PairWeights

Between = Callable[[LabelSets, Tensor, Tensor, Tensor], Tensor]


class Targets:
    """q and 1 / T between label sets, for one loss.

    Blocks are made between ``rows`` and ``columns``, numbers of label sets, in the type of the ``sets`` that they are
    given.

    Args:
        sets: of the candidates, float64.
        mine: (M,) numbers of the sets that anchors of this rank carry.
        settings: which loss, and its constants.

    Attributes:
        sets: of the candidates, float64.
        constant: 1 / T where it is the same for all pairs, else None.
        terms: (U,) how many terms of the loss an anchor of each set has; filled for the sets ``mine``.
    """

    def __init__(self, sets: LabelSets, mine: Tensor, settings: LossConfig) -> None:
        self.sets, self.mine, self.settings = sets, mine, settings
        self.constant: float | None = 1 / settings.tau
        self.terms = torch.zeros_like(sets.sizes)
        self.prepare()

    def prepare(self) -> None:
        """Work out what an anchor of each set is divided by."""
        raise NotImplementedError

    def q(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        """(R, K) targets; a candidate's pair with itself is not yet taken out.

        Args:
            sets: the candidates' label sets, in the type that the result gets.
            rows: (R,) numbers of the anchors' sets.
            columns: (K,) numbers of the candidates' sets.
            shared: (R, K) number of labels in common.
        """
        raise NotImplementedError

    def positive(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        """(R, K) whether two sets are positives of each other: they share a label, unless a loss says otherwise.

        Args:
            sets: as in ``q``.
            rows: (R,) anchors' sets.
            columns: (K,) candidates' sets.
            shared: (R, K) labels in common.
        """
        return shared > 0

    def temperature(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        """(R, K) T_ip of positives; of all pairs when the scope is ``all_pairs``.

        Args:
            sets: as in ``q``.
            rows: (R,) anchors' sets.
            columns: (K,) candidates' sets.
            shared: (R, K) labels in common.
        """
        return torch.full_like(shared, self.settings.tau)

    def inverse(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        """(R, K) 1 / T_ip as the softmax of all candidates sees it.

        Args:
            sets: as in ``q``.
            rows: (R,) anchors' sets.
            columns: (K,) candidates' sets.
            shared: (R, K) labels in common.
        """
        return 1 / self.temperature(sets, rows, columns, shared)

    def weight(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        """(R, K) w_ip of positives.

        Args:
            sets: as in ``q``.
            rows: (R,) anchors' sets.
            columns: (K,) candidates' sets.
            shared: (R, K) labels in common.
        """
        return torch.ones_like(shared)

    def others(self, rows: Tensor) -> Tensor:
        """(R, U) how many candidates of each set an anchor of each of ``rows`` has, itself not counted.

        Sums are taken over these, never over all minus the anchor: its own figure may be the largest by far.
        """
        others = self.sets.multiplicity.expand(len(rows), -1).clone()
        others[torch.arange(len(rows), device=rows.device), rows] -= 1
        return others

    def over_candidates(self, of: Between, rows: Tensor) -> Tensor:
        """(R, U) a figure between ``rows`` and all sets, times the number of an anchor's other candidates of each."""
        everything = torch.arange(len(self.sets), device=rows.device)
        return of(self.sets, rows, everything, self.sets.shared(rows, everything)) * self.others(rows)

    def parts(self) -> tuple[Tensor, ...]:
        """The anchors' sets in parts that keep blocks small."""
        longest = max((len(chunk) for chunk in self.sets.chunks()), default=1)
        return torch.split(self.mine, longest) if len(self.mine) else ()


class PerAnchor(Targets):
    """One term an anchor: q_ip = pull_ip / (sum of norm_ip over the anchor's other candidates)."""

    def pull(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        """(R, K) the weight of a pair before division; zero for pairs that are no positives.

        Args:
            sets: as in ``q``.
            rows: (R,) anchors' sets.
            columns: (K,) candidates' sets.
            shared: (R, K) labels in common.
        """
        return self.positive(sets, rows, columns, shared).to(shared)

    def norm(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        """(R, K) what a pair adds to the divisor: 1 for a positive, unless a loss says otherwise.

        Args:
            sets: as in ``q``.
            rows: (R,) anchors' sets.
            columns: (K,) candidates' sets.
            shared: (R, K) labels in common.
        """
        return self.positive(sets, rows, columns, shared).to(shared)

    def prepare(self) -> None:
        self.share = torch.zeros_like(self.sets.sizes)
        for rows in self.parts():
            total = self.over_candidates(self.norm, rows).sum(dim=1)
            self.share[rows] = torch.where(total > 0, 1 / total, 0.0)
            self.terms[rows] = (total > 0).to(total)

    def q(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        return self.pull(sets, rows, columns, shared) * self.share[rows].to(shared)[:, None]


class SupConAny(PerAnchor):
    """SupCon with "shares at least one label": -1/|P(i)| sum over P(i) of log sigma_ip, mean over anchors.

    Source: SupCon (``HobbitLong/SupContrast``), the ANY rule of MulSupCon (``williamzhangsjtu/MulSupCon``).
    Departures: no tau / tau_b factor (1 by default there).
    """


class SupConAll(PerAnchor):
    """SupCon with "carries the same, non-empty label set". Source and departures as ``SupConAny``, the ALL rule."""

    def positive(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        return (shared > 0) & (shared == sets.sizes[rows][:, None]) & (shared == sets.sizes[columns])


class SupConSingle(SupConAny):
    """SupCon as published (``HobbitLong/SupContrast``): one label a sample; see ``checks.check_single``."""


class JaccardSupCon(PerAnchor):
    """SupCon weighted by label overlap: - sum_p J_ip log sigma_ip / sum_p J_ip, mean over anchors.

    Source: ``audibert-alexandre-fra/Multi-label-contrastive-comprehensive``, loss_contrastive_base.py.
    """

    def pull(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        return overlap(sets, rows, columns, shared, "jaccard")

    norm = pull


class MultiSupCon(PerAnchor):
    """MultiSupCon: - 1/|N(i)| sum over N(i) of J_ip log sigma_ip, N(i) = {p: J_ip >= threshold}, mean over anchors.

    Source: ``WolodjaZ/MultiSupContrast`` (threshold 0.3) and pytorch-metric-learning's documentation (0.5): divided by
    the number of positives, not by the sum of J. Departure: theirs divides by zero where nobody reaches the threshold.
    """

    def positive(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        enough = overlap(sets, rows, columns, shared, "jaccard") >= self.settings.threshold
        return (shared > 0) & enough

    def pull(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        positive = self.positive(sets, rows, columns, shared)
        return positive * overlap(sets, rows, columns, shared, "jaccard")


class SimilarityDissimilarity(PerAnchor):
    """Similarity-Dissimilarity: - 1/|P(i)| sum_p K^s K^d log sigma_ip, mean over anchors; P(i): any shared label.

    K^s = |S| / |Y_i|, K^d = 1 / (1 + |Y_p minus Y_i|). Source: arXiv 2410.13439 through its reviews; its code
    (``guangminghuang/similarity-dissimilarity-loss``, named in version 4) was not read. Departures: |Y_i| under K^s is
    inferred; K stands outside the logarithm (inside it would be a constant).
    The re-implementation ``xup6YJ/ws-MulSupCon`` swaps the roles of anchor and positive; ours are the paper's.
    """

    def pull(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        return shared / sets.sizes[rows].clamp(min=1)[:, None] / (1 + sets.sizes[columns] - shared)


class MulSupCon(Targets):
    """MulSupCon: one term an (anchor, label), L_il = - 1/|P_l(i)| sum over P_l(i) of log sigma_ip.

    pair_mean       mean over all (i, l)                                  the published default
    anchor_mean     mean over anchors of the mean over their labels       the published weighting by 1/|Y|
                                                                          (``with_weight``)
    class_balanced  (i, l) weighted by 1 / n_l                            our own: every label counts equally

    Folded: q_ip = sum_{l in S} 1/|P_l(i)|. Source: ``williamzhangsjtu/MulSupCon`` (momentum queue), in the in-batch
    form of ``audibert-alexandre-fra/Multi-label-contrastive-comprehensive``. Departures: means are taken over those
    (i, l) that have a partner.
    """

    divided_by_weights = False

    def prepare(self) -> None:
        sets = self.sets
        carriers = sets.own.counts
        valid = sets.labels * (carriers > 1)  # an anchor is one of the carriers of its labels
        divisor = (carriers - 1).clamp(min=1).expand_as(valid)
        if self.divided_by_weights:
            divisor = self._weight_sums()
            valid = valid * (divisor > 0)
        share = torch.where(valid > 0, valid / divisor.clamp(min=torch.finfo(valid.dtype).tiny), 0.0)
        num_valid = valid.sum(dim=1)
        if self.settings.aggregate == "pair_mean":
            self.share, self.terms = share, num_valid
        elif self.settings.aggregate == "anchor_mean":
            self.share, self.terms = share / num_valid.clamp(min=1)[:, None], (num_valid > 0).to(share)
        else:
            balance = 1 / sets.statistics.counts.clamp(min=1)
            self.share, self.terms = share * balance, valid @ balance

    def _weight_sums(self) -> Tensor:
        """(U, L) sum of w_ip over P_l(i) for an anchor of each of ``mine``."""
        sums = torch.zeros_like(self.sets.labels)
        for rows in self.parts():
            sums[rows] = self.over_candidates(self.weight, rows) @ self.sets.labels
        return sums

    def q(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        return (sets.labels[rows] * self.share[rows].to(shared)) @ sets.labels[columns].T


class _Reweighted(Targets):
    """MACL's pair weights and temperatures, for any of its rules of positives."""

    def prepare(self) -> None:
        s = self.settings
        self.rho = rarity(self.sets, s)
        if s.temperature_scope != "all_pairs" or s.alpha > 0 or s.beta > 0 or s.tau < s.t_min:
            self.constant = None
        self.weights = PairWeights(self.sets, s)
        if self.weights.needs_scale:
            self.weights.normalise(*self._raw_total())
        self.divided_by_weights = s.weight_norm == "sum_to_one" and s.strength > 0
        super().prepare()

    def _raw_total(self) -> tuple[Tensor, Tensor]:
        """Sum of raw over the ordered positive pairs of the global batch, and their number."""

        def raw(sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
            return self.positive(sets, rows, columns, shared) * self.weights.raw(sets, rows, columns, shared)

        def one(sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
            return self.positive(sets, rows, columns, shared).to(shared)

        total = pairs = self.sets.sizes.new_zeros(())
        for rows in self.sets.chunks():
            total = total + self.sets.multiplicity[rows] @ self.over_candidates(raw, rows).sum(dim=1)
            pairs = pairs + self.sets.multiplicity[rows] @ self.over_candidates(one, rows).sum(dim=1)
        return total, pairs

    def weight(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        return self.weights.weight(sets, rows, columns, shared)

    def temperature(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        o = overlap(sets, rows, columns, shared, self.settings.overlap)
        return temperature(o, self.rho[rows].to(shared), self.settings)

    def inverse(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        inverse = 1 / self.temperature(sets, rows, columns, shared)
        if self.settings.temperature_scope == "all_pairs":
            return inverse
        others = 1 / max(self.settings.tau, self.settings.t_min)
        return torch.where(self.positive(sets, rows, columns, shared), inverse, others)


class Macl(_Reweighted, MulSupCon):
    """MACL: MulSupCon with pair weights and dynamic temperatures.

    A reconstruction: arXiv 2512.16294 came without code, and its text leaves the formulas open.

    L_il = - 1/|P_l(i)| sum over P_l(i) of w_ip log sigma_ip, or with ``weight_norm=sum_to_one`` divided by sum of w_ip
    over P_l(i). pair_mean is MACL, anchor_mean is Weighted MACL. alpha = beta = strength = 0 is MulSupCon exactly.
    """

    def q(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        return super().q(sets, rows, columns, shared) * self.weight(sets, rows, columns, shared)


class MaclAny(_Reweighted, SupConAny):
    """MACL with one term an anchor: its positives are all that share a label."""

    def pull(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        return super().pull(sets, rows, columns, shared) * self.weight(sets, rows, columns, shared)

    def norm(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        if self.divided_by_weights:
            return self.pull(sets, rows, columns, shared)
        return super().norm(sets, rows, columns, shared)


class MaclAll(MaclAny, SupConAll):
    """MACL with one term an anchor: its positives are all that carry the same label set."""


class Msc(Targets):
    """MSC with prototypes, one learnable unit vector c_l a label, which are candidates L in number behind all others.

    a_ipl = y_il y_pl / |Y_i u Y_p|,  D_il = 1 + sum_{p != i} a_ipl,  w_ip = sum_l a_ipl / D_il,  w_i,l = y_il / D_il
    loss = mean over anchors with labels of - 1/|Y_i| (sum_p w_ip log pi_ip + sum_l w_il log pi_il),
    pi_i. = exp(s_i. / tau) / (msc_beta sum_{a != i} exp(s_ia / tau) + sum_l exp(z_i.c_l / tau))

    Source: ``audibert-alexandre-fra/Multi-label-contrastive-comprehensive``, loss_contrastive_msc.py (its alpha is 1,
    beta 0.1). Set numbers U to U + L - 1 stand for the prototypes. Departures: rows without labels are no anchors.
    """

    def prepare(self) -> None:
        sets = self.sets
        self.share = torch.zeros_like(sets.labels)  # y_il / (D_il |Y_i|)
        carried = sets.labels * sets.multiplicity[:, None]
        everything = torch.arange(len(sets), device=self.mine.device)
        for rows in self.parts():
            inverse_union = 1 / sets.union(rows, everything, sets.shared(rows, everything))
            size = sets.sizes[rows].clamp(min=1)[:, None]
            divisor = 1 + (inverse_union @ carried - 1 / size).clamp(min=0)  # the anchor itself: union = |Y_i|
            self.share[rows] = sets.labels[rows] / divisor / size
            self.terms[rows] = (sets.sizes[rows] > 0).to(size)

    def q(self, sets: LabelSets, rows: Tensor, columns: Tensor, shared: Tensor) -> Tensor:
        pull = (sets.labels[rows] * self.share[rows].to(shared)) @ sets.labels[columns].T
        return pull / sets.union(rows, columns, shared)

    def prototypes(self, rows: Tensor) -> Tensor:
        """(R, L) targets between sets and prototypes."""
        return self.share[rows]


def choose(settings: LossConfig) -> type[Targets]:
    """The rule of a loss."""
    if settings.name == "macl":
        return {"per_label": Macl, "any": MaclAny, "all": MaclAll}[settings.positives]
    return {
        "mulsupcon": MulSupCon,
        "supcon_single": SupConSingle,
        "supcon_any": SupConAny,
        "supcon_all": SupConAll,
        "jaccard": JaccardSupCon,
        "multisupcon": MultiSupCon,
        "similarity_dissimilarity": SimilarityDissimilarity,
        "msc": Msc,
    }[settings.name]
