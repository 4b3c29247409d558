"""From labels (or sample ids) to what every pair contributes, in the two forms that the implementations need.

Letters: A anchors (this rank), C candidates (all ranks), D width, L labels; U kinds of candidates (distinct label
sets, or samples for NT-Xent; MSC's prototypes are L kinds more), M kinds among the anchors, R softmax rows.

    sum = - sum_i sum_p q_ip log sigma_ip = sum_i ( W_i lse_i - sum_p q_ip s_ip / T_ip ),      W_i = sum_p q_ip

q and T depend on the two kinds only. So the second part needs no pair at all: with S_v the sum of the candidates of
kind v,

    sum_p q_ip s_ip / T_ip = z_i . sum_v (q_uv / T_uv) S_v - (q_uu / T_uu) z_i . z_i          u the kind of anchor i

which is the class-sum identity of MulSupCon (``tests/objective/naive.py`` holds the unfolded loops), between label
sets. What is left is one log-sum-exp a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from marc_dist.config.loss import LossConfig
from marc_dist.objective.sets import find_sets
from marc_dist.objective.statistics import LabelStatistics
from marc_dist.objective.targets import Msc, Targets, choose

TABLE_ENTRIES = 1 << 22  # 16 MiB of float32: 2,048 label sets, more than the published benchmarks have


@dataclass(frozen=True)
class Softmaxes:
    """The rows of log-sum-exp: one an anchor, or one a distinct temperature of an anchor (``per_positive_row``).

    Attributes:
        anchor: (R,) its anchor.
        weight: (R,) W, not zero.
        inverse: (R,) 1 / T of the whole row; None when T differs within a row.
    """

    anchor: Tensor
    weight: Tensor
    inverse: Tensor | None


@dataclass(frozen=True)
class Pull:
    """The second part of the sum, between kinds.

    Attributes:
        to_anchor: (M, D) sum_v (q / T) S_v for each kind among the anchors.
        to_candidate: (K, D) the same the other way round, for each kind of candidates.
        self: (M,) q_uu / T_uu.
    """

    to_anchor: Tensor
    to_candidate: Tensor
    own: Tensor


class Pairs:
    """The contributions of all pairs; nothing here but ``dense`` is anchors x candidates.

    Args:
        columns: (C,) kind of each candidate, 0 to num_kinds - 1.
        num_anchors: A.
        first: position of anchor 0 among the candidates; the others follow it.
        num_kinds: K.
        dtype: of the similarities.

    Attributes:
        rows: (A,) place of each anchor's kind in ``mine``.
        mine: (M,) kinds among the anchors.
        columns: (C,) kind of each candidate.
        num_kinds: K.
        first: position of anchor 0 among the candidates.
        count: scalar, number of terms of these anchors.
        stats, highest: see ``LossParts``.
        bias: (C,) added to the logits of a candidate, or None.
        dtype: of the similarities.
    """

    def __init__(self, columns: Tensor, num_anchors: int, first: int, num_kinds: int, dtype: torch.dtype) -> None:
        self.columns, self.first, self.num_kinds, self.dtype = columns, first, num_kinds, dtype
        self.mine, self.rows = torch.unique(columns[first : first + num_anchors], return_inverse=True)
        self.count: Tensor
        self.stats: dict[str, Tensor]
        self.highest: dict[str, Tensor]
        self.bias: Tensor | None = None

    def dense(self) -> tuple[Tensor, Tensor]:
        """(A, C) q, zero for self pairs, and (A, C) 1 / T, pair by pair."""
        raise NotImplementedError

    def softmaxes(self) -> Softmaxes:
        """The rows of log-sum-exp."""
        raise NotImplementedError

    def pull(self, anchor_sums: Tensor, candidate_sums: Tensor) -> Pull:
        """The second part from (M, D) sums of the anchors and (K, D) sums of the candidates of each kind."""
        raise NotImplementedError

    def own(self) -> Tensor:
        """(A,) position of each anchor among the candidates."""
        return torch.arange(self.first, self.first + len(self.rows), device=self.rows.device)

    def own_slice(self) -> slice:
        """The same as a slice."""
        return slice(self.first, self.first + len(self.rows))

    def _without_self(self, q: Tensor) -> Tensor:
        q[torch.arange(len(self.rows), device=q.device), self.own()] = 0.0
        return q


class LabelPairs(Pairs):
    """Positives defined by labels; see ``targets.py``.

    Args:
        labels: (C, L) multi-hot of the candidates.
        num_anchors: A.
        first: position of anchor 0.
        settings: which loss.
        statistics: counts that weigh rarity, or None for those of the candidates.
        dtype: of the similarities.
    """

    def __init__(
        self,
        labels: Tensor,
        num_anchors: int,
        first: int,
        settings: LossConfig,
        statistics: LabelStatistics | None,
        dtype: torch.dtype,
    ) -> None:
        self.sets, numbers = find_sets(labels, statistics)
        num_kinds = len(self.sets)
        super().__init__(numbers, num_anchors, first, num_kinds, dtype)
        self.settings = settings
        self.targets: Targets = choose(settings)(self.sets, self.mine, settings)
        self.narrow = self.sets.to(dtype)
        self.table: Tensor | None = None  # 1 / T between kinds, while that is small
        if self.targets.constant is None and len(self.mine) * len(self.sets) <= TABLE_ENTRIES:
            everything = torch.arange(len(self.sets), device=labels.device)
            shared = self.narrow.shared(self.mine, everything)
            self.table = self.targets.inverse(self.narrow, self.mine, everything, shared)
        self.anchors_of = torch.bincount(self.rows, minlength=len(self.mine)).to(self.sets.sizes)
        self.count = self.anchors_of @ self.targets.terms[self.mine]
        if isinstance(self.targets, Msc):
            prototypes = torch.arange(num_kinds, num_kinds + labels.shape[1], device=labels.device)
            self.columns = torch.cat([numbers, prototypes])
            self.num_kinds += labels.shape[1]
            self.bias = torch.zeros(len(self.columns), dtype=dtype, device=labels.device)
            self.bias[: len(labels)] = torch.tensor(settings.msc_beta, dtype=torch.float64).log()
        self._walk()

    def _walk(self) -> None:
        """One pass over (kinds among the anchors) x (all kinds): masses, temperatures of rows, figures."""
        targets, everything = self.targets, torch.arange(len(self.sets), device=self.mine.device)
        self.mass = torch.zeros(len(self.mine), dtype=torch.float64, device=self.mine.device)
        grouped: list[tuple[Tensor, Tensor, Tensor]] = []
        zero = self.mass.new_zeros(())
        low = self.mass.new_full((), -torch.inf)
        self.stats = dict.fromkeys(("positives", "temperature_sum", "weight_sum", "anchors_without_partner"), zero)
        self.highest = dict.fromkeys(("temperature_max", "weight_max", "temperature_min", "weight_min"), low)
        start = 0
        for rows in targets.parts():
            places = torch.arange(start, start + len(rows), device=rows.device)
            start += len(rows)
            shared = self.sets.shared(rows, everything)
            others = targets.others(rows)
            q = targets.q(self.sets, rows, everything, shared) * others
            self.mass[places] = q.sum(dim=1)
            if self.settings.temperature_scope == "per_positive_row" and targets.constant is None:
                grouped.append(_by_temperature(q, targets.inverse(self.sets, rows, everything, shared), places))
            self._figures(rows, everything, shared, others, self.anchors_of[places])
        if isinstance(targets, Msc):
            self.mass += targets.prototypes(self.mine).sum(dim=1)
        self.grouped = tuple(torch.cat(part) for part in zip(*grouped, strict=True)) if grouped else None
        self.stats["anchors"] = self.anchors_of.sum()

    def _figures(self, rows: Tensor, columns: Tensor, shared: Tensor, others: Tensor, anchors: Tensor) -> None:
        positive = self.targets.positive(self.sets, rows, columns, shared) & (others > 0)
        pairs = positive * others * anchors[:, None]
        there = positive & (anchors > 0)[:, None]
        alone = (~positive).all(dim=1)
        found = {"positives": pairs.sum(), "anchors_without_partner": (anchors * alone).sum()}
        for name in ("temperature", "weight"):
            values = getattr(self.targets, name)(self.sets, rows, columns, shared)
            found[f"{name}_sum"] = (pairs * values).sum()
            for bound, sign in (("max", 1), ("min", -1)):
                largest = torch.where(there, sign * values, -torch.inf).max()
                self.highest[f"{name}_{bound}"] = torch.maximum(self.highest[f"{name}_{bound}"], largest)
        for name, value in found.items():
            self.stats[name] = self.stats[name] + value

    def dense(self) -> tuple[Tensor, Tensor]:
        rows, num = self.mine[self.rows], len(self.columns)
        inverse = torch.full((len(rows), num), self.targets.constant or 0.0, device=rows.device, dtype=torch.float64)
        columns = self.columns[self.columns < len(self.sets)]
        shared = self.sets.shared(rows, columns)
        q = self.targets.q(self.sets, rows, columns, shared)
        if self.targets.constant is None:
            inverse = self.targets.inverse(self.sets, rows, columns, shared)
        if isinstance(self.targets, Msc):
            q = torch.cat([q, self.targets.prototypes(rows)], dim=1)
        return self._without_self(q).to(self.dtype), inverse.to(self.dtype)

    def softmaxes(self) -> Softmaxes:
        if self.grouped is None:
            order = torch.argsort(self.rows, stable=True)  # anchors of one kind side by side: 1 / T is made once a kind
            order = order[self.mass[self.rows[order]] > 0]
            constant = self.targets.constant
            weight = self.mass[self.rows[order]].to(self.dtype)
            return Softmaxes(order, weight, None if constant is None else torch.full_like(weight, constant))
        place, inverse, weight = self.grouped
        found = torch.bincount(place, minlength=len(self.mine))  # temperatures of each kind; ``place`` ascends
        begin = found.cumsum(0) - found
        num = found[self.rows]
        anchor = torch.repeat_interleave(torch.arange(len(self.rows), device=num.device), num)
        within = torch.arange(len(anchor), device=num.device) - (num.cumsum(0) - num)[anchor]
        source = begin[self.rows[anchor]] + within
        return Softmaxes(anchor, weight[source].to(self.dtype), inverse[source].to(self.dtype))

    def pull(self, anchor_sums: Tensor, candidate_sums: Tensor) -> Pull:
        targets, sets = self.targets, self.sets
        everything = torch.arange(len(sets), device=self.mine.device)
        to_anchor, to_candidate = torch.zeros_like(anchor_sums), torch.zeros_like(candidate_sums)
        own = anchor_sums.new_zeros(len(self.mine))
        start = 0
        for rows in targets.parts():
            places = slice(start, start + len(rows))
            start += len(rows)
            shared = sets.shared(rows, everything)
            inverse: Tensor | float | None = targets.constant
            if inverse is None:
                inverse = targets.inverse(sets, rows, everything, shared)
            # a set's target with itself counts where somebody else carries it; else it would only cancel, inexactly
            kernel = targets.q(sets, rows, everything, shared) * inverse * (targets.others(rows) > 0)
            own[places] = kernel[torch.arange(len(rows), device=rows.device), rows].to(own)
            if isinstance(targets, Msc):
                kernel = torch.cat([kernel, targets.prototypes(rows) * inverse], dim=1)
            kernel = kernel.to(anchor_sums.dtype)
            to_anchor[places] = kernel @ candidate_sums
            to_candidate.addmm_(kernel.T, anchor_sums[places])
        return Pull(to_anchor, to_candidate, own)

    def inverse(self, mine: Tensor, columns: Tensor) -> Tensor:
        """1 / T between kinds among the anchors and candidates' kinds, in the type of the similarities."""
        if self.table is not None:
            return self.table[mine].index_select(1, columns)
        rows = self.mine[mine]
        return self.targets.inverse(self.narrow, rows, columns, self.narrow.shared(rows, columns))


def _by_temperature(q: Tensor, inverse: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Targets of each row added up by temperature: (G,) row, (G,) 1 / T, (G,) sum of q; rows ascend."""
    row, column = (q > 0).nonzero(as_tuple=True)
    values, number = torch.unique(
        torch.stack([places[row].to(inverse), inverse[row, column]], dim=1), dim=0, return_inverse=True
    )
    weight = q.new_zeros(len(values)).index_add_(0, number, q[row, column])
    return values[:, 0].long(), values[:, 1], weight


class IdPairs(Pairs):
    """NT-Xent (SimCLR): positives are the other views of the same sample, whatever the labels.

    -1/|P(i)| sum over P(i) of log sigma_ip at T = tau, mean over anchors with another view. Source: the unlabelled
    form of ``HobbitLong/SupContrast``; departures as ``targets.SupConAny``.

    Args:
        ids: (C,) sample id of each candidate; views of a sample have the same.
        num_anchors: A.
        first: position of anchor 0 among the candidates; the others follow it.
        tau: the temperature, above 0.
        dtype: of the similarities.
    """

    def __init__(self, ids: Tensor, num_anchors: int, first: int, tau: float, dtype: torch.dtype) -> None:
        _, columns, multiplicity = torch.unique(ids, return_inverse=True, return_counts=True)
        super().__init__(columns, num_anchors, first, len(multiplicity), dtype)
        partners = (multiplicity - 1)[self.mine].to(torch.float64)
        self.share = torch.where(partners > 0, 1 / partners, 0.0)
        self.tau = tau
        anchors_of = torch.bincount(self.rows, minlength=len(self.mine)).to(partners)
        self.count = anchors_of @ (partners > 0).to(partners)
        positives = anchors_of @ partners
        self.stats = {
            "anchors": anchors_of.sum(),
            "positives": positives,
            "temperature_sum": positives * tau,
            "weight_sum": positives,
            "anchors_without_partner": anchors_of.sum() - self.count,
        }
        some = torch.where(positives > 0, 0.0, -torch.inf)
        values = {"temperature_max": tau, "weight_max": 1.0, "temperature_min": -tau, "weight_min": -1.0}
        self.highest = {name: some + value for name, value in values.items()}

    def dense(self) -> tuple[Tensor, Tensor]:
        q = (self.mine[self.rows][:, None] == self.columns) * self.share[self.rows][:, None]
        return self._without_self(q).to(self.dtype), torch.full_like(q, 1 / self.tau, dtype=self.dtype)

    def softmaxes(self) -> Softmaxes:
        anchor = (self.share[self.rows] > 0).nonzero()[:, 0]
        weight = torch.ones(len(anchor), dtype=self.dtype, device=anchor.device)
        return Softmaxes(anchor, weight, torch.full_like(weight, 1 / self.tau))

    def pull(self, anchor_sums: Tensor, candidate_sums: Tensor) -> Pull:
        kernel = (self.share / self.tau).to(anchor_sums)
        to_candidate = torch.zeros_like(candidate_sums)
        to_candidate[self.mine] = kernel[:, None] * anchor_sums
        return Pull(kernel[:, None] * candidate_sums[self.mine], to_candidate, kernel)
