"""From labels to what every pair contributes: a target weight q_ip and an inverse temperature 1 / T_ip.

Letters: A anchors (this rank), C candidates (all ranks), L labels, U distinct label sets among the candidates.

Every loss here has one shape. With s_ip the cosine similarity and sigma_ip the softmax over a != i of s_ia / T_ia,

    sum = - sum_i sum_p q_ip log sigma_ip          (q_ii = 0)

and MACL's per-label terms are folded into q_ip = w_ip * sum_{l in S_ip} 1 / |P_l(i)|, since neither w nor T
depends on l (``tests/objective/naive.py`` holds the unfolded loops). Weights and temperatures depend on the two label
sets only, so they are computed between distinct label sets and looked up; beyond ``TABLE_ENTRIES`` tile by tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from marc_dist.objective.settings import ObjectiveSettings
from marc_dist.objective.statistics import LabelStatistics, label_statistics

TABLE_ENTRIES = 1 << 22  # 16 MiB of float32 a table: 2,048 distinct label sets, more than the published benchmarks have
CHUNK_ENTRIES = 1 << 21


@dataclass(frozen=True)
class Pairs:
    """The contributions of all pairs, made block by block; nothing here is anchors x candidates.

    Attributes:
        terms: the maker of blocks between rows and columns of label sets (or of ids).
        rows: (A,) place of each anchor in ``terms``.
        columns: (C,) place of each candidate in ``terms``.
        first: position of anchor 0 among the candidates.
        count: scalar, number of terms of these anchors.
        stats: see ``LossParts``.
    """

    terms: LabelTerms | IdTerms
    rows: Tensor
    columns: Tensor
    first: int
    count: Tensor
    stats: dict[str, Tensor]

    def block(self, a: slice, c: slice) -> tuple[Tensor, Tensor | float, Tensor | None]:
        """Anchors ``a`` x candidates ``c``: q (self pairs zero), 1 / T, and where the self pairs are."""
        rows, columns = self.rows[a], self.columns[c]
        q, inverse = self.terms.block(rows, columns)
        start = self.first + a.start - c.start  # column, in this block, of the block's first anchor
        if start >= len(columns) or start + len(rows) <= 0:
            return q, inverse, None
        own = torch.zeros(q.shape, dtype=torch.bool, device=q.device)
        i = torch.arange(max(0, -start), min(len(rows), len(columns) - start), device=q.device)
        own[i, i + start] = True
        return q.masked_fill(own, 0.0), inverse, own


def quadratic(rows: Tensor, columns: Tensor, matrix: Tensor) -> Tensor:
    """sum_{k, l in S_ip} matrix_kl for every pair of label sets.

    Args:
        rows: (R, L) multi-hot.
        columns: (K, L) multi-hot.
        matrix: (L, L).

    Returns:
        (R, K), zero for pairs that share nothing.
    """
    total = rows.new_zeros(len(rows), len(columns))
    for k in range(matrix.shape[0]):
        carriers = rows[:, k, None] * matrix[k] * rows
        total += (carriers @ columns.T) * columns[:, k]
    return total


class LabelTerms:
    """q and 1 / T between label sets, for the losses whose positives are defined by labels.

    Args:
        sets: (U, L) multi-hot, distinct.
        multiplicity: (U,) candidates that carry each set.
        settings: which loss, and its constants.
        statistics: n_l and c_kl; those of the candidates when None.
        dtype: of the similarities.
    """

    def __init__(
        self,
        sets: Tensor,
        multiplicity: Tensor,
        settings: ObjectiveSettings,
        statistics: LabelStatistics | None,
        dtype: torch.dtype,
    ) -> None:
        self.settings = settings
        self.dynamic = settings.name == "macl"
        self.sets = sets.to(torch.float64)
        self.sizes = self.sets.sum(dim=1)
        self.multiplicity = multiplicity.to(torch.float64)
        own = label_statistics(self.sets, self.multiplicity)
        source = statistics if statistics is not None else own
        counts = source.counts.to(self.sets)
        # max(c, 1): a pair absent from the given statistics counts like one seen once, not like infinity
        self.pair_weights = source.cooccurrence.to(self.sets).clamp(min=1).pow(-settings.gamma)
        relative = counts / counts.max().clamp(min=1) if len(counts) else counts
        self.rarity = self.sets @ (1 - relative) / self.sizes.clamp(min=1)
        self.coefficients, self.num_terms = self._coefficients(own.counts)
        self.mean_raw = self._mean_raw() if self.dynamic and settings.strength > 0 else None
        self.dtype = dtype
        self.tables: tuple[Tensor, Tensor] | None = None
        if len(self.sets) ** 2 <= TABLE_ENTRIES:
            everything = torch.arange(len(self.sets), device=sets.device)
            q, inverse = self._between(everything, everything)
            self.tables = q.to(dtype), inverse.to(dtype)

    def _coefficients(self, carriers: Tensor) -> tuple[Tensor, Tensor]:
        """(U, L) what a shared label adds to q, and (U,) how many terms an anchor with that set has."""
        if self.settings.name in ("supcon_any", "supcon_all"):
            partners = self._partners()
            has = (partners > 0).to(self.sets)
            return (has / partners.clamp(min=1))[:, None].expand_as(self.sets), has
        valid = self.sets * (carriers > 1)  # an anchor is one of the carriers of its labels
        share = valid / (carriers - 1).clamp(min=1)
        num_valid = valid.sum(dim=1)
        if self.settings.aggregate == "pair_mean":
            return share, num_valid
        return share / num_valid.clamp(min=1)[:, None], (num_valid > 0).to(share)

    def _positive(self, rows: Tensor, overlap: Tensor, columns: Tensor) -> Tensor:
        """Whether two label sets are positives of each other."""
        if self.settings.name != "supcon_all":
            return overlap > 0
        return (overlap > 0) & (overlap == self.sizes[rows][:, None]) & (overlap == self.sizes[columns])

    def _partners(self) -> Tensor:
        """(U,) positives of an anchor with each set, itself left out."""
        total = torch.zeros_like(self.sizes)
        for rows, columns in self._chunks():
            overlap = self.sets[rows] @ self.sets[columns].T
            total[rows] = self._positive(rows, overlap, columns).to(total) @ self.multiplicity
        return (total - (self.sizes > 0).to(total)).clamp(min=0)

    def _raw(self, rows: Tensor, columns: Tensor, overlap: Tensor) -> Tensor:
        """raw_ip = mean over k, l in S_ip of c_kl^-gamma; zero where nothing is shared."""
        return quadratic(self.sets[rows], self.sets[columns], self.pair_weights) / overlap.clamp(min=1).square()

    def _mean_raw(self) -> Tensor:
        """Mean of raw_ip over all ordered positive pairs of the global batch, a candidate with itself left out."""
        total = pairs = self.sizes.new_zeros(())
        for rows, columns in self._chunks():
            overlap = self.sets[rows] @ self.sets[columns].T
            weight = self.multiplicity[rows][:, None] * self.multiplicity * (overlap > 0)
            total = total + (weight * self._raw(rows, columns, overlap)).sum()
            pairs = pairs + weight.sum()
        own = self.multiplicity * (self.sizes > 0)
        self_raw = torch.einsum("uk,kl,ul->u", self.sets, self.pair_weights, self.sets) / self.sizes.clamp(min=1) ** 2
        total, pairs = total - (own * self_raw).sum(), pairs - own.sum()
        return torch.where(pairs > 0, total / pairs.clamp(min=1), torch.ones_like(total))

    def _chunks(self) -> list[tuple[Tensor, Tensor]]:
        """Blocks of label-set rows against all label sets, small enough to hold."""
        num = len(self.sets)
        everything = torch.arange(num, device=self.sets.device)
        return (
            [(rows, everything) for rows in torch.split(everything, max(1, CHUNK_ENTRIES // max(num, 1)))]
            if num
            else []
        )

    def temperature(self, rows: Tensor, columns: Tensor, overlap: Tensor) -> Tensor:
        """T_ip = max(t_min, tau / (1 + alpha jaccard(Y_i, Y_p) + beta rarity(Y_i))); two empty sets overlap by 0."""
        s = self.settings
        if not self.dynamic:
            return torch.full_like(overlap, s.tau)
        union = self.sizes[rows][:, None] + self.sizes[columns] - overlap
        jaccard = overlap / union.clamp(min=1)
        return (s.tau / (1 + s.alpha * jaccard + s.beta * self.rarity[rows][:, None])).clamp(min=s.t_min)

    def weight(self, rows: Tensor, columns: Tensor, overlap: Tensor) -> Tensor:
        """w_ip = 1 + strength (clip(raw_ip / mean raw, clip_min, clip_max) - 1); only read where labels are shared."""
        s = self.settings
        if self.mean_raw is None:
            return torch.ones_like(overlap)
        relative = self._raw(rows, columns, overlap) / self.mean_raw
        return 1 + s.strength * (relative.clamp(s.clip_min, s.clip_max) - 1)

    def _between(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        overlap = self.sets[rows] @ self.sets[columns].T
        inverse = 1 / self.temperature(rows, columns, overlap)
        if self.settings.name in ("supcon_any", "supcon_all"):
            positive = self._positive(rows, overlap, columns).to(overlap)
            return positive * self.coefficients[rows][:, :1], inverse
        shared = (self.sets[rows] * self.coefficients[rows]) @ self.sets[columns].T
        return shared * self.weight(rows, columns, overlap), inverse

    def block(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor | float]:
        """Targets q and 1 / T between label sets ``rows`` and ``columns``, the self pair not yet taken out."""
        if self.tables is not None:
            q, inverse = (table[rows][:, columns] for table in self.tables)
        else:
            q, inverse = (part.to(self.dtype) for part in self._between(rows, columns))
        return (q, inverse) if self.dynamic else (q, 1 / self.settings.tau)

    def stats(self, rows: Tensor) -> dict[str, Tensor]:
        """Additive figures of the anchors whose label sets are ``rows``; see ``LossParts``."""
        anchors = torch.bincount(rows, minlength=len(self.sets)).to(self.sizes)
        zero = self.sizes.new_zeros(())
        totals = {"positives": zero, "temperature_sum": zero, "weight_sum": zero, "anchors_without_partner": zero}
        for chunk, columns in self._chunks():
            overlap = self.sets[chunk] @ self.sets[columns].T
            positive = self._positive(chunk, overlap, columns)
            pairs = positive * self.multiplicity
            own = torch.zeros_like(pairs)
            own[torch.arange(len(chunk), device=own.device), chunk] = (self.sizes[chunk] > 0).to(own)
            pairs = (pairs - own) * anchors[chunk][:, None]
            alone = pairs.sum(dim=1) == 0
            found = {
                "positives": pairs.sum(),
                "temperature_sum": (pairs * self.temperature(chunk, columns, overlap)).sum(),
                "weight_sum": (pairs * self.weight(chunk, columns, overlap)).sum(),
                "anchors_without_partner": (anchors[chunk] * alone).sum(),
            }
            totals = {name: totals[name] + found[name] for name in totals}
        return {"anchors": anchors.sum(), **totals}


class IdTerms:
    """q for NT-Xent: positives are the other views of the same sample, whatever the labels."""

    def __init__(self, partners: Tensor, tau: float, dtype: torch.dtype) -> None:
        self.share = torch.where(partners > 0, 1 / partners.clamp(min=1).to(dtype), 0.0)
        self.inverse = 1 / tau

    def block(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor | float]:
        """Targets q between sample places ``rows`` and ``columns``, the self pair not yet taken out; 1 / tau."""
        return (rows[:, None] == columns) * self.share[rows][:, None], self.inverse


def make_pairs(
    candidate_labels: Tensor,
    num_anchors: int,
    *,
    first: int,
    settings: ObjectiveSettings,
    statistics: LabelStatistics | None,
    candidate_ids: Tensor | None,
    dtype: torch.dtype,
) -> Pairs:
    """The contributions of the anchors ``first`` to ``first + num_anchors`` of the candidates.

    Raises:
        ValueError: NT-Xent without ids.
    """
    own = slice(first, first + num_anchors)
    if settings.name == "ntxent":
        if candidate_ids is None:
            raise ValueError("ntxent: expected candidate_ids, the sample id of every row, got None")
        _, columns, multiplicity = torch.unique(candidate_ids, return_inverse=True, return_counts=True)
        partners = multiplicity - 1
        mine = partners[columns[own]].to(torch.float64)
        count = (mine > 0).sum()
        stats = {
            "anchors": mine.new_tensor(float(num_anchors)),
            "positives": mine.sum(),
            "temperature_sum": mine.sum() * settings.tau,
            "weight_sum": mine.sum(),
            "anchors_without_partner": num_anchors - count.to(mine),
        }
        return Pairs(IdTerms(partners, settings.tau, dtype), columns[own], columns, first, count.to(mine), stats)
    sets, columns, multiplicity = torch.unique(candidate_labels, dim=0, return_inverse=True, return_counts=True)
    terms = LabelTerms(sets, multiplicity, settings, statistics, dtype)
    rows = columns[own]
    return Pairs(terms, rows, columns, first, terms.num_terms[rows].sum(), terms.stats(rows))
