"""The one entry: this rank's anchors and everybody's candidates -> (sum, count, statistics).

The formulas of each loss, what is exact and what is our reconstruction: ``docs/objective.md``.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from marc_dist.config.loss import LossConfig
from marc_dist.objective.checks import (
    check_columns,
    check_device,
    check_ids,
    check_kind,
    check_lengths,
    check_shapes,
    check_single,
)
from marc_dist.objective.dense import dense_sum
from marc_dist.objective.fused import TritonKernel, why_not
from marc_dist.objective.pairs import IdPairs, LabelPairs, Pairs
from marc_dist.objective.parts import LossParts
from marc_dist.objective.statistics import LabelStatistics, check_statistics
from marc_dist.objective.streamed import TorchKernel, precision, streamed_sum
from marc_dist.objective.triplet import triplet_parts

TILES = {"cuda": 4096}  # 64 MiB of float32: enough work to keep a GPU busy between two launches
TILE = 1024  # 4 MiB: a core's share of the third-level cache; 512 to 2048 take 1.0 to 1.15 of its time


def objective(
    anchors: Tensor,
    candidates: Tensor,
    anchor_labels: Tensor,
    candidate_labels: Tensor,
    *,
    first: int,
    settings: LossConfig,
    statistics: LabelStatistics | None = None,
    candidate_ids: Tensor | None = None,
    prototypes: Tensor | None = None,
) -> LossParts:
    """A contrastive loss over the global batch, as this rank's share of it.

    The loss is (sum of ``sum`` over ranks) / (sum of ``count`` over ranks); for its gradient a data-parallel trainer
    backpropagates ``world * sum / global count``. Half-precision vectors are raised to float32.

    Args:
        anchors: (A, D) unit vectors of this rank; A may be 0.
        candidates: (C, D) unit vectors of all ranks, then of a cross-batch memory if there is one; anchor i is
            candidate ``first + i`` and never its own candidate.
        anchor_labels: (A, L) multi-hot: bool, or numbers that are 0 or 1 (floats, too: other losses ask for them).
        candidate_labels: (C, L) multi-hot of the same type; a row without labels is a negative of everybody and no
            anchor.
        first: position of anchor 0 among the candidates.
        settings: which loss, and its constants: ``build(LossConfig, {...})``, see ``LossConfig``. ``counts`` and
            ``memory`` say what the caller passes as ``statistics`` and among the candidates; they are not read here.
        statistics: label counts that weigh rarity; those of the candidates (every view counts) when None.
        candidate_ids: (C,) sample ids, views of one sample share theirs; needed by ``ntxent``.
        prototypes: (L, D) unit vectors; needed by ``msc``.

    Raises:
        ValueError: shapes or labels that contradict each other, labels that are not 0 or 1, vectors whose length is not
            1 (zero, infinite and NaN ones pass: normalising makes them, and guards behind the loss count them).
    """
    if not isinstance(settings, LossConfig):
        raise ValueError(f"settings: expected build(LossConfig, {{...}}), got {type(settings).__name__}")
    check_shapes(anchors, candidates, anchor_labels, candidate_labels, first)
    if settings.name != "ntxent":
        check_columns("candidate_labels", candidate_labels)
    if settings.name == "supcon_single":
        check_single("candidate_labels", candidate_labels)
    if prototypes is not None:
        check_kind("prototypes", prototypes)
        check_device("prototypes", prototypes, "candidates", candidates)
    if candidate_ids is not None:
        check_ids("candidate_ids", candidate_ids)
        check_device("candidate_ids", candidate_ids, "candidates", candidates)
    check_lengths(anchors, candidates, prototypes)
    check_statistics(statistics, candidate_labels.shape[1])
    with torch.autocast(anchors.device.type, enabled=False), precision(anchors.device, settings.tf32):
        dtype = anchors.dtype if anchors.dtype == torch.float64 else torch.float32
        a, c = anchors.to(dtype), candidates.to(dtype)
        if settings.name == "triplet":
            tile = _tile(settings, a.device)
            parts = triplet_parts(a, c, candidate_labels, first=first, settings=settings, tile=tile)
        else:
            pairs = _pairs(candidate_labels, len(anchors), first, settings, statistics, candidate_ids, dtype)
            if settings.name == "msc":
                c = torch.cat([c, _prototypes(prototypes, candidate_labels, candidates).to(dtype)])
            total, chosen = _sum(a, c, pairs, settings)
            parts = LossParts(total, pairs.count, pairs.stats, pairs.highest, chosen)
    carried = candidate_labels.to(torch.bool).any(dim=0).to(torch.float64)
    coverage = carried.mean() if len(carried) else carried.sum()
    return LossParts(parts.sum, parts.count, parts.stats, {**parts.highest, "label_coverage": coverage}, parts.chosen)


def _pairs(
    labels: Tensor,
    num_anchors: int,
    first: int,
    settings: LossConfig,
    statistics: LabelStatistics | None,
    ids: Tensor | None,
    dtype: torch.dtype,
) -> Pairs:
    if settings.name != "ntxent":
        return LabelPairs(labels, num_anchors, first, settings, statistics, dtype)
    if ids is None or len(ids) != len(labels):
        got = "None" if ids is None else f"{len(ids)} ids"
        raise ValueError(
            f"ntxent: expected candidate_ids, the sample id of each of {len(labels)} candidates, got {got}"
        )
    return IdPairs(ids, num_anchors, first, settings.tau, dtype)


def _prototypes(prototypes: Tensor | None, labels: Tensor, candidates: Tensor) -> Tensor:
    expected = (labels.shape[1], candidates.shape[1])
    if prototypes is None or prototypes.shape != expected:
        got = "None" if prototypes is None else tuple(prototypes.shape)
        raise ValueError(f"msc: expected prototypes of shape {expected}, a unit vector a label, got {got}")
    return prototypes


def choose_implementation(settings: LossConfig, device: torch.device) -> tuple[str, str | None]:
    """The implementation that ``settings.implementation`` means on a device, and why ``auto`` took no better one.

    Raises:
        ValueError: ``triton`` where it cannot run.
    """
    if settings.name == "triplet":
        return "streamed", None
    if settings.implementation in ("dense", "streamed"):
        return settings.implementation, None
    reason = why_not(device, interpreted=settings.implementation == "triton")
    if reason is None and settings.implementation == "auto":
        reason = _trial(device.type)
    if reason is None:
        return "triton", None
    if settings.implementation == "triton":
        raise ValueError(f"loss.implementation=triton: {reason}; use auto or streamed")
    return "streamed", reason


@functools.cache
def _trial(device_type: str) -> str | None:
    """Why Triton, which should run here, does not: its first call compiles, with a C compiler that may be absent."""
    settings = LossConfig(implementation="triton")
    try:
        labels = torch.eye(2, dtype=torch.bool, device=device_type).repeat(8, 1)
        leaf = torch.nn.functional.normalize(labels.float() + 0.1, dim=1).requires_grad_()
        torch.autograd.grad(objective(leaf, leaf, labels, labels, first=0, settings=settings).sum, leaf)
    except Exception as error:  # whatever the compiler or the driver raises
        return f"it was tried and failed: {(str(error).splitlines() or [type(error).__name__])[0]}"
    return None


def _tile(settings: LossConfig, device: torch.device) -> int:
    return settings.tile or TILES.get(device.type, TILE)


def _sum(anchors: Tensor, candidates: Tensor, pairs: Pairs, settings: LossConfig) -> tuple[Tensor, str]:
    chosen, _ = choose_implementation(settings, anchors.device)
    if chosen == "dense":
        row_of_positive = settings.name == "macl" and settings.temperature_scope == "per_positive_row"
        return dense_sum(anchors, candidates, pairs, row_of_positive=row_of_positive), chosen
    kernel = TritonKernel if chosen == "triton" else TorchKernel
    return streamed_sum(anchors, candidates, pairs, _tile(settings, anchors.device), kernel, tf32=settings.tf32), chosen
