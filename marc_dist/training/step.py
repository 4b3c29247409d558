"""One global step: encode, gather, loss over the global batch, backward, agree, update.

The loss of a rank is ``world * local_sum / global_count``; data-parallel averaging divides by ``world`` again, so the
gradient is that of one process holding the whole batch, however the rows are spread (DESIGN section 6).
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marc_dist import comm
from marc_dist.config import Config
from marc_dist.data.loader import Batch
from marc_dist.objective import LabelStatistics, LossParts, ObjectiveSettings, objective
from marc_dist.training.device import Arithmetic
from marc_dist.training.schedule import set_learning_rate


class StepResult(NamedTuple):
    """What one global step did, equal on every rank."""

    applied: bool
    stop: bool
    loss: float
    grad_norm: float
    figures: dict[str, float]


def step_seed(seed: int, step: int, ids: Tensor) -> int:
    """Seed of what the network itself draws (dropout) in one step: nothing to save, nothing to restore.

    Ranks draw differently because they hold different samples, not because of their numbers.
    """
    digest = hashlib.sha256(f"{seed}/{step}/{ids.tolist()}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class Stepper:
    """Takes global steps with one encoder and optimiser.

    Args:
        config: the run's settings.
        encoder: on its device, in its final type.
        optimiser: over the encoder's parameters.
        arithmetic: types of the run.
        statistics: label counts of the training split, or None for those of each global batch.
    """

    def __init__(
        self,
        config: Config,
        encoder: nn.Module,
        optimiser: torch.optim.Optimizer,
        arithmetic: Arithmetic,
        statistics: LabelStatistics | None,
    ) -> None:
        self.config = config
        self.arithmetic = arithmetic
        self.settings = ObjectiveSettings(**config.loss.model_dump(exclude={"counts"}))
        self.statistics = statistics
        self._encoder = encoder
        self._module = comm.data_parallel(encoder)
        self._optimiser = optimiser
        self._parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        self._device = self._parameters[0].device

    def take(self, batch: Batch, step: int, lr: float, stop: bool) -> StepResult:
        """Take global step ``step`` (from 0); on a non-finite loss or gradient anywhere, no rank changes anything.

        Args:
            batch: this rank's rows, possibly none.
            step: number of the step in the run.
            lr: learning rate of this step.
            stop: whether this rank was asked to stop; the answer says whether any was.
        """
        torch.manual_seed(step_seed(self.config.train.seed, step, batch.ids))
        buffers = [buffer.clone() for buffer in self._encoder.buffers()]
        self._optimiser.zero_grad(set_to_none=True)
        projection = self._encode(batch)
        parts, gathered = self._loss(projection, batch)
        names, totals = self._totals(parts)
        count = totals[1].clamp(min=1)
        loss = comm.world() * parts.sum / count.to(parts.sum.dtype)
        torch.autograd.backward(loss + gathered[:0].sum())  # a rank without anchors, too, meets the others in it
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        flags = torch.stack([torch.isfinite(loss.detach()) & torch.isfinite(norm), norm.new_tensor(not stop).bool()])
        finite, go_on = (bool(flag) for flag in comm.min_(flags.to(torch.int32)).tolist())
        if finite:
            self._apply(norm, lr)
        else:
            self._undo(buffers)
        values = totals.tolist()
        figures = dict(zip(names, values[2:], strict=True))
        return StepResult(finite, not go_on, values[0] / max(values[1], 1.0), float(norm), figures)

    def _encode(self, batch: Batch) -> Tensor:
        images = batch.images.to(self._device, self.arithmetic.weights, non_blocking=True)
        images = images.contiguous(memory_format=torch.channels_last)
        bf16 = self.arithmetic.autocast
        with torch.autocast(self._device.type, dtype=bf16 or torch.bfloat16, enabled=bf16 is not None):
            projection: Tensor = self._module(images)[1]
        return projection

    def _loss(self, projection: Tensor, batch: Batch) -> tuple[LossParts, Tensor]:
        """This rank's part of the loss against the candidates of all ranks, in the loss's own type."""
        views = self.config.data.num_views
        labels = batch.labels.to(self._device).repeat(views, 1)
        ids = batch.ids.to(self._device).repeat(views)
        with torch.autocast(self._device.type, enabled=False):
            anchors = F.normalize(projection.to(self.arithmetic.loss), dim=1)
            counts = comm.row_counts(anchors)
            candidates, first = comm.gather_rows(anchors, counts)
            parts = objective(
                anchors,
                candidates,
                labels,
                comm.gather_rows_plain(labels, counts),
                first=first,
                settings=self.settings,
                statistics=self.statistics,
                anchor_ids=ids,
                candidate_ids=comm.gather_rows_plain(ids, counts),
            )
        return parts, candidates

    def _totals(self, parts: LossParts) -> tuple[list[str], Tensor]:
        """Names of the loss's figures, and over all ranks: sum, count, figures; one reduction in float64."""
        names = sorted(parts.stats)
        values = [parts.sum, parts.count, *(parts.stats[name] for name in names)]
        return names, comm.sum_(
            torch.stack([value.detach().to(self._device, torch.float64).reshape(()) for value in values])
        )

    def _apply(self, norm: Tensor, lr: float) -> None:
        if self.config.optim.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.config.optim.clip_norm, norm)
        set_learning_rate(self._optimiser, lr)
        self._optimiser.step()

    def _undo(self, buffers: list[Tensor]) -> None:
        """Forget the step: gradients, and the running statistics that the forward pass has moved."""
        self._optimiser.zero_grad(set_to_none=True)
        for buffer, before in zip(self._encoder.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def suspects(self, batch: Batch) -> list[dict[str, Any]]:
        """Per rank: the sample ids of a skipped step, and those whose images are not finite. Collective."""
        views = torch.isfinite(batch.images).flatten(1).all(dim=1)
        bad = ~views.reshape(self.config.data.num_views, len(batch.ids)).all(dim=0)
        own = {"rank": comm.rank(), "ids": batch.ids.tolist(), "nonfinite_images": batch.ids[bad].tolist()}
        return comm.gather_object(own)
