"""Triplet loss over the global batch: a few positives and negatives of each anchor.

They are chosen by relevance, hardness or diversity.

    P(i) = {p: J_ip >= threshold},   N(i) = all other candidates,   d = Euclidean distance of unit vectors
    L_i  = mean over chosen (p, n) of max(0, d_ip - d_in + margin)       loss = mean over anchors that have both

    relevant   positives of the largest J_ip, negatives of the smallest; the harder of two that are equal
    hard       the farthest positives, the nearest negatives
    diverse    of the ``SHORTLIST`` times as many hardest: the hardest, then again and again the one that is farthest
               from its nearest among those already chosen

Sources: the average-margin triplet of ``RImbriaco/OML`` (positives by label Jaccard, margin 1.2; there against the mean
positive and negative of vectors that are not normalised), and the selection by relevancy, hardness and diversity of
Sumbul, Ravanbakhsh, Demir 2022 (arXiv 2105.03647). Departures: their joint ranking formula was not read, so the three
criteria are three settings here, each built on the one before; every row is an anchor, theirs are a diverse few.

Choosing keeps a running top-k over tiles of candidates and has no gradient; the loss then looks at the chosen alone,
and recomputes their distances in backward. Memory: anchors x chosen, no pair matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from marc_dist.config.loss import LossConfig
from marc_dist.objective.parts import LossParts

SHORTLIST = 4
ENTRIES = 1 << 22  # of the vectors that are gathered at once: 16 MiB of float32
TIE = 2e-7  # two Jaccard indices of up to 512 labels differ by more than 20 of it, so hardness only splits ties
BOUNDS = ("temperature_max", "weight_max", "temperature_min", "weight_min")


class _Best:
    """A running top-k: the highest keys of each row, and the candidates that they belong to."""

    def __init__(self, num_rows: int, num: int, device: torch.device) -> None:
        self.keys = torch.full((num_rows, num), -torch.inf, dtype=torch.float64, device=device)
        self.places = torch.zeros(num_rows, num, dtype=torch.int64, device=device)

    def add(self, keys: Tensor, start: int) -> None:
        """Take in a tile of keys, -inf where a candidate is out of the question; column 0 is candidate ``start``."""
        num = self.keys.shape[1]
        top, places = keys.topk(min(num, keys.shape[1]), dim=1)
        every = torch.cat([self.keys, top.double()], dim=1)
        self.keys, order = every.topk(num, dim=1)
        self.places = torch.cat([self.places, places + start], dim=1).gather(1, order)

    @property
    def found(self) -> Tensor:
        """(rows, k) whether there was a candidate for the place."""
        return self.keys > -torch.inf


def triplet_parts(
    anchors: Tensor, candidates: Tensor, labels: Tensor, *, first: int, settings: LossConfig, tile: int
) -> LossParts:
    """This rank's share of the triplet loss; ``LossParts.count`` is the number of anchors with both kinds.

    Args:
        anchors: (A, D) unit vectors.
        candidates: (C, D) unit vectors.
        labels: (C, L) multi-hot of the candidates.
        first: position of anchor 0 among the candidates.
        settings: threshold, margin, selection, num_selected.
        tile: rows and columns looked at at once.
    """
    hot = labels.to(anchors.dtype)
    total = anchors[:0].sum() + candidates[:0].sum()  # zero, with a gradient
    count, pairs, alone = (torch.zeros((), dtype=torch.float64, device=anchors.device) for _ in range(3))
    rows = max(1, min(tile, ENTRIES // (2 * SHORTLIST * settings.num_selected * anchors.shape[1])))
    for start in range(0, len(anchors), rows):
        part = anchors[start : start + rows]
        with torch.no_grad():
            chosen, num_positives = _choose(part, candidates, hot, first + start, settings, tile)
            both = chosen[0][1].any(dim=1) & chosen[1][1].any(dim=1)
            pairs += num_positives.sum()
            alone += (num_positives == 0).sum()
            count += both.sum()
        places, found = (torch.cat(two, dim=1)[both] for two in zip(*chosen, strict=True))
        term = checkpoint(
            _margins, part[both], candidates, places, found, settings.margin, use_reentrant=False,
            preserve_rng_state=False,
        )  # fmt: skip
        total = total + term
    zero, none = torch.zeros_like(count), torch.full_like(count, -torch.inf)
    stats = {
        "anchors": zero + len(anchors),
        "positives": pairs,
        "anchors_without_partner": alone,
        "temperature_sum": zero,
        "weight_sum": zero,
    }
    return LossParts(total, count, stats, dict.fromkeys(BOUNDS, none), "streamed")


Chosen = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def _choose(
    anchors: Tensor, candidates: Tensor, hot: Tensor, first: int, settings: LossConfig, tile: int
) -> tuple[Chosen, Tensor]:
    """For positives and negatives: (A, k) candidates and whether each exists; and (A,) number of positives."""
    diverse = settings.selection == "diverse"
    num = settings.num_selected * (SHORTLIST if diverse else 1)
    positives, negatives = (_Best(len(anchors), num, anchors.device) for _ in range(2))
    num_positives = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
    mine = hot[first : first + len(anchors)]
    own = torch.arange(first, first + len(anchors), device=anchors.device)
    for start in range(0, len(candidates), tile):
        columns = slice(start, min(start + tile, len(candidates)))
        similarity = anchors @ candidates[columns].T
        shared = mine @ hot[columns].T
        union = mine.sum(dim=1)[:, None] + hot[columns].sum(dim=1) - shared
        overlap = (shared / union.clamp(min=1)).double() if settings.selection == "relevant" else None
        positive = shared / union.clamp(min=1) >= settings.threshold
        other = own[:, None] != torch.arange(columns.start, columns.stop, device=own.device)
        num_positives += (positive & other).sum(dim=1)
        for best, rows, sign in ((positives, positive, -1), (negatives, ~positive, 1)):
            keys = sign * similarity if overlap is None else TIE * sign * similarity - sign * overlap
            best.add(keys.masked_fill(~(rows & other), -torch.inf), start)
    pick = _spread if diverse else lambda best, *_: (best.places, best.found)
    k = settings.num_selected
    return (pick(positives, candidates, k), pick(negatives, candidates, k)), num_positives


def _spread(best: _Best, candidates: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """``num`` of a shortlist, whose first is the hardest, far from each other: (A, k) candidates, (A, k) existing."""
    vectors = candidates[best.places]
    near = vectors @ vectors.transpose(1, 2)  # (A, m, m), of each anchor's own shortlist
    rows = torch.arange(len(near), device=near.device)
    free = best.found.clone()
    at = torch.zeros(len(near), dtype=torch.int64, device=near.device)
    nearest = torch.full_like(near[:, 0], -torch.inf)  # similarity to the nearest chosen one
    places, found = [], []
    for _ in range(min(num, near.shape[1])):
        places.append(best.places[rows, at])
        found.append(free[rows, at])
        free[rows, at] = False
        nearest = torch.maximum(nearest, near[rows, at])
        at = nearest.masked_fill(~free, torch.inf).argmin(dim=1)
    return torch.stack(places, dim=1), torch.stack(found, dim=1)


def _margins(anchors: Tensor, candidates: Tensor, places: Tensor, found: Tensor, margin: float) -> Tensor:
    """Sum over anchors of the mean over their chosen pairs; the first half of ``places`` holds positives."""
    distance = torch.linalg.vector_norm(anchors[:, None] - candidates[places], dim=2)
    near, far = distance.chunk(2, dim=1)
    exists = found.chunk(2, dim=1)
    pairs = exists[0][:, :, None] & exists[1][:, None, :]
    excess = (near[:, :, None] - far[:, None, :] + margin).clamp(min=0)
    return (torch.where(pairs, excess, 0.0).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2))).sum()
