"""One global step: encode, gather, loss over the global batch, backward, agree, update.

The loss of a rank is ``world * local_sum / global_count``; data-parallel averaging divides by ``world`` again, so the
gradient is that of one process holding the whole batch, however the rows are spread (``docs/objective.md``).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marc_dist import comm
from marc_dist.config import Config
from marc_dist.data.batches import Batch
from marc_dist.encoder.device import Arithmetic
from marc_dist.encoder.draws import generator_state, row_keys
from marc_dist.encoder.model import Learner
from marc_dist.objective import LabelStatistics, LossParts, objective
from marc_dist.training.memory import Memory, canonical_order
from marc_dist.training.schedule import set_learning_rate

Outcome = tuple[Tensor, dict[str, float], tuple[Tensor, Tensor, Tensor]]
"""Loss of this rank times world, totals over ranks, and the rows that a memory takes in."""


class StepResult(NamedTuple):
    """What one global step did, equal on every rank."""

    applied: bool
    stop: bool
    loss: float
    grad_norm: float
    figures: dict[str, float]
    num_bad: int


def step_seed(seed: int, step: int, ids: Tensor, start: int = 0) -> int:
    """Seed of torch's generator in one pass, for layers that draw from it (``draws`` keys those that it knows).

    Nothing to save, nothing to restore. Ranks draw differently because they hold different samples, not because of
    their numbers.

    Args:
        seed: of the run.
        step: of the run.
        ids: samples of this rank.
        start: first row of the chunk that is encoded.
    """
    place = f"{step}+{start}" if start else str(step)
    digest = hashlib.sha256(f"{seed}/{place}/{ids.tolist()}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class Stepper:
    """Takes global steps with one encoder and optimiser.

    Args:
        config: the run's settings.
        learner: on its device, in its final type.
        optimiser: over the learner's parameters.
        arithmetic: types of the run.
        statistics: label counts of the training split, or None for those of each global batch.
        memory: rows of earlier steps, possibly none.
        at: told (step from 1, phase) on the way, for a watchdog; see ``watchdog.PHASES``.
    """

    def __init__(
        self,
        config: Config,
        learner: Learner,
        optimiser: torch.optim.Optimizer,
        arithmetic: Arithmetic,
        statistics: LabelStatistics | None,
        memory: Memory,
        at: Callable[[int, str], None] = lambda step, phase: None,
    ) -> None:
        self.config = config
        self._at = at
        self.arithmetic = arithmetic
        self.settings = config.loss
        self.statistics = statistics
        self.memory = memory
        self._learner = learner
        self._module = comm.data_parallel(learner)
        self._optimiser = optimiser
        self._parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        self._device = self._parameters[0].device
        self._looked = learner.on_features  # whether a pass drew from torch's generator is looked at once

    def take(self, batch: Batch, step: int, lr: float, stop: bool) -> StepResult:
        """Take global step ``step`` (from 0); on a non-finite loss or gradient anywhere, no rank changes anything.

        Args:
            batch: this rank's rows, possibly none.
            step: number of the step in the run.
            lr: learning rate of this step.
            stop: whether this rank was asked to stop; the answer says whether any was.
        """
        self._at(step + 1, "encoding")
        buffers = [buffer.clone() for buffer in self._learner.trained.buffers()]
        self._optimiser.zero_grad(set_to_none=True)
        whole = self.config.train.chunk is None
        loss, totals, rows = (self._at_once if whole else self._in_chunks)(batch, step)
        self._at(step + 1, "agreeing")
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        flags = torch.stack([torch.isfinite(loss) & torch.isfinite(norm), norm.new_tensor(not stop).bool()])
        finite, go_on = (bool(flag) for flag in comm.min_(flags.to(torch.int32)).tolist())
        self._at(step + 1, "updating")
        if finite:
            self._apply(norm, lr)
            self.memory.add(*rows)
        else:
            self._undo(buffers)
        value = totals.pop("sum") / (totals.pop("count") or 1.0)
        num_bad = int(totals.pop("bad"))
        return StepResult(finite, not go_on, value, float(norm), totals, num_bad)

    def _at_once(self, batch: Batch, step: int) -> Outcome:
        torch.manual_seed(step_seed(self.config.train.seed, step, batch.ids))
        projection, prototypes = self._encode(self._module, batch.images, self._keys(batch, step))
        self._at(step + 1, "gathering")
        return self._backward(projection, prototypes, batch, step)

    def _in_chunks(self, batch: Batch, step: int) -> Outcome:
        """The same gradient with the activations of one chunk at a time (GradCache, Gao et al. 2021).

        Every chunk is encoded without a graph, the loss of the whole batch gives the gradient of the projections, and
        every chunk is encoded again, with the same draws, to carry it on. Ranks average in the last backward only.
        """
        parts = torch.split(batch.images, self.config.train.chunk or 1) if len(batch.images) else (batch.images,)
        starts = [sum(len(part) for part in parts[:number]) for number in range(len(parts))]
        seeds = [step_seed(self.config.train.seed, step, batch.ids, start) for start in starts]
        keys = torch.split(self._keys(batch, step), [len(part) for part in parts])
        encoded = []
        with torch.no_grad():
            for part, own, seed in zip(parts, keys, seeds, strict=True):
                torch.manual_seed(seed)
                projection, prototypes = self._encode(self._learner, part, own)
                encoded.append(projection)
        leaf = torch.cat(encoded).requires_grad_()
        if prototypes is not None:
            prototypes.requires_grad_()
        self._at(step + 1, "gathering")
        outcome = self._backward(leaf, prototypes, batch, step)
        assert leaf.grad is not None, "the loss reaches every projection"
        slopes = torch.split(leaf.grad, [len(part) for part in parts])
        for number, (part, own, seed, slope) in enumerate(zip(parts, keys, seeds, slopes, strict=True)):
            last = number == len(parts) - 1
            with nullcontext() if last else comm.without_sync(self._module):
                torch.manual_seed(seed)
                projection, again = self._encode(self._module, part, own)
                if last and again is not None and prototypes is not None:
                    torch.autograd.backward([projection, again], [slope, prototypes.grad])
                else:
                    torch.autograd.backward(projection, slope)
        return outcome

    def _keys(self, batch: Batch, step: int) -> Tensor:
        keys = row_keys(self.config.train.seed, step, batch.ids.cpu(), self.config.data.num_views)
        return keys.to(self._device, non_blocking=True)

    def _encode(self, module: nn.Module, images: Tensor, keys: Tensor) -> tuple[Tensor, Tensor | None]:
        before = None if self._looked or not len(images) else generator_state(self._device)
        images = images.to(self._device, self.arithmetic.weights, non_blocking=True)
        if images.ndim == 4:  # not the features of a frozen backbone
            images = images.contiguous(memory_format=torch.channels_last)
        bf16 = self.arithmetic.autocast
        casting = torch.autocast(self._device.type, dtype=bf16 or torch.bfloat16, enabled=bf16 is not None)
        with casting, self._learner.encoder.draws.of(keys):
            found: tuple[Tensor, Tensor | None] = module(images)
        if before is not None:
            self._tell_of_draws(before)
        return found

    def _tell_of_draws(self, before: list[Tensor]) -> None:
        """Warn once of a network whose first pass drew from torch's generator."""
        self._looked = True
        same = all(map(torch.equal, before, generator_state(self._device)))
        if not same and comm.rank() == 0 and (comm.world() > 1 or self.config.train.chunk is not None):
            warnings.warn(
                f"model.backbone={self.config.model.backbone}: draws random numbers that cannot be keyed by sample, so "
                "the result depends on the number of ranks and on train.chunk; keep both, or take another backbone",
                stacklevel=2,
            )

    def _backward(self, projection: Tensor, prototypes: Tensor | None, batch: Batch, step: int) -> Outcome:
        """Loss of the global batch and its backward pass, down to ``projection`` and ``prototypes``."""
        views = self.config.data.num_views
        labels = batch.labels.to(self._device).repeat(views, 1)
        ids = batch.ids.to(self._device).repeat(views)
        with torch.autocast(self._device.type, enabled=False):
            anchors = F.normalize(projection.to(self.arithmetic.loss), dim=1)
            counts = comm.row_counts(anchors)
            gathered, first = comm.gather_rows(anchors, counts)
            all_labels = comm.gather_rows_plain(labels, counts)
            all_ids = comm.gather_rows_plain(ids, counts)
            self._at(step + 1, "contrasting")
            units = None if prototypes is None else F.normalize(prototypes.to(self.arithmetic.loss), dim=1)
            parts = objective(
                anchors,
                torch.cat([gathered, self.memory.embeddings]),
                labels,
                torch.cat([all_labels, self.memory.labels]),
                first=first,
                settings=self.settings,
                statistics=self.statistics,
                candidate_ids=torch.cat([all_ids, self.memory.ids]),
                prototypes=units,
            )
        totals = self._totals(parts, len(batch.bad))
        loss = comm.world() * parts.sum / (totals["count"] or 1.0)
        self._at(step + 1, "backpropagating")
        reached = gathered[:0].sum()  # a rank without anchors, too, meets the others in backward
        torch.autograd.backward(loss + reached + (0.0 if units is None else units[:0].sum()))
        order = canonical_order([num // views if self.memory.size else 0 for num in counts], views).to(self._device)
        return loss.detach(), totals, (gathered.detach()[order], all_labels[order], all_ids[order])

    def _totals(self, parts: LossParts, num_bad: int) -> dict[str, float]:
        """The loss's sum and count and its figures over all ranks; one exchange in float64, added up in rank order."""
        added = {"sum": parts.sum, "count": parts.count, "bad": parts.count.new_tensor(num_bad), **parts.stats}
        values = [*added.values(), *parts.highest.values()]
        mine = torch.stack([value.detach().to(self._device, torch.float64).reshape(()) for value in values])
        every = comm.gather_vectors(mine)
        found = [*every[:, : len(added)].sum(dim=0).tolist(), *every[:, len(added) :].amax(dim=0).tolist()]
        return dict(zip([*added, *parts.highest], found, strict=True))

    def _apply(self, norm: Tensor, lr: float) -> None:
        if self.config.optim.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.config.optim.clip_norm, norm)
        set_learning_rate(self._optimiser, lr)
        self._optimiser.step()

    def _undo(self, buffers: list[Tensor]) -> None:
        """Forget the step: gradients, and the running statistics that the forward pass has moved."""
        self._optimiser.zero_grad(set_to_none=True)
        for buffer, before in zip(self._learner.trained.buffers(), buffers, strict=True):
            buffer.copy_(before)

    @staticmethod
    def bad_samples(batch: Batch) -> list[tuple[int, str]]:
        """(id, what is wrong) of every sample that the ranks left out of a step. Collective."""
        return sum((list(found) for found in comm.gather_object(batch.bad)), [])

    def suspects(self, batch: Batch) -> list[dict[str, Any]]:
        """Per rank: the sample ids of a skipped step, and those whose images are not finite. Collective."""
        views = torch.isfinite(batch.images).flatten(1).all(dim=1).cpu()
        bad = ~views.reshape(self.config.data.num_views, len(batch.ids)).all(dim=0)
        own = {"rank": comm.rank(), "ids": batch.ids.tolist(), "nonfinite_images": batch.ids[bad].tolist()}
        return comm.gather_object(own)
