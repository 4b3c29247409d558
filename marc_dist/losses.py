"""The losses as PyTorch modules for a training loop of one's own: plain PyTorch, Lightning, Accelerate.

    loss = MaclLoss(tau=0.1)(embeddings, labels)

Alone, a module looks at the batch that it is given. Under a process group, whoever made it, it gathers the rows of all
ranks and looks at the global batch: every rank gets the same value, and once the gradients of the ranks are averaged,
as DistributedDataParallel does, they are those of one process that holds the whole batch. Ranks may hold unequal
numbers of rows, or none, but all of them must call the loss, and go backward, equally often.

Formulas: ``docs/objective.md``. Which loss reads which setting: ``config.loss.READS``.
"""

from __future__ import annotations

import inspect
import math
import operator
import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marc_dist import comm
from marc_dist.config import ConfigError, LossConfig, build
from marc_dist.config.loss import READ_BY_ALL, READS, LossName
from marc_dist.config.suggest import suggestion
from marc_dist.objective import LabelStatistics, choose_implementation, objective
from marc_dist.objective.checks import (
    check_columns,
    check_device,
    check_ids,
    check_kind,
    check_labels,
    check_single,
)
from marc_dist.objective.statistics import check_statistics

__all__ = [
    "JaccardLoss",
    "MaclLoss",
    "MscLoss",
    "MulSupConLoss",
    "MultiSupConLoss",
    "NTXentLoss",
    "SimilarityDissimilarityLoss",
    "SupConAllLoss",
    "SupConAnyLoss",
    "SupConSingleLoss",
    "TripletLoss",
]

ELSEWHERE = {
    "name": "the class says which loss it is",
    "counts": "pass statistics= for the counts of a training split",
    "memory": "only marc-train keeps rows of earlier steps",
}


class _SameValue(torch.autograd.Function):
    """The value over all ranks, bit for bit equal on each, with the gradient of this rank's share."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _directions(x: Tensor) -> Tensor:
    """Rows divided by their lengths, whatever these are; rows of zeros stay zeros.

    A power of two, which rounds nothing, first brings the largest number of a row near 1: squares of 1e20 overflow.
    """
    most = 1 - math.frexp(torch.finfo(x.dtype).tiny)[1]  # 2^most and 2^-most are both normal numbers
    exponent = torch.frexp(x.detach().abs().amax(dim=1, keepdim=True)).exponent.clamp(-most, most)
    return F.normalize(x * torch.ldexp(torch.ones_like(x[:, :1]), -exponent), dim=1)


def _device_of(*given: object) -> torch.device:
    """Where ranks tell each other about what they were given, which may be no tensors; NCCL wants a GPU."""
    held = [x.device for x in given if isinstance(x, Tensor) and x.device.type != "meta"]
    if not held and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.device("cuda", torch.cuda.current_device())
    return next((device for device in held if device.type != "cpu"), torch.device("cpu"))


def _whole(name: str, value: object, least: int) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if not least <= number < 1 << 63 or isinstance(value, bool):
        raise ConfigError(f"MscLoss: {name}: expected a whole number of {least} or more, got {value!r:.60}")
    return number


class GlobalLoss(nn.Module):
    """What the losses share: settings, the gather, and a value that is equal on all ranks.

    Args:
        statistics: for the losses that count labels: ``label_statistics`` of the training split; else every batch
            counts its own. Kept in the state dict.
        settings: those that ``reads()`` names; ranges and help as in ``LossConfig``.

    Attributes:
        settings: checked and frozen.

    Raises:
        ConfigError: a setting out of its range, or one that this loss does not read.
    """

    name: ClassVar[LossName]

    def __init__(self, *, statistics: LabelStatistics | None = None, **settings: Any) -> None:
        super().__init__()
        place, read = type(self).__name__, self.reads()
        for key in settings:
            if key not in LossConfig.model_fields:
                hint = suggestion(key, read) or f"; this loss reads {', '.join(read)}"
                raise ConfigError(f"{place}: {key}: unknown key{hint}")
            if key not in read:
                why = ELSEWHERE.get(key, f"not read by this loss; it reads {', '.join(read)}")
                raise ConfigError(f"{place}: {key}: {why}")
        if statistics is not None:
            if not self.counts_labels():
                raise ConfigError(f"{place}: statistics: not read by this loss; it counts no labels")
            try:
                check_statistics(statistics, None)
            except ValueError as error:
                raise ConfigError(f"{place}: {error}") from None
            settings["counts"] = "train"
        self.settings = build(LossConfig, {**settings, "name": self.name}, place=f"{place}: ")
        idle = self.settings.unread()
        if idle:
            verb = "has" if len(idle) == 1 else "have"
            warnings.warn(f"{place}: {', '.join(idle)} {verb} no effect with these settings", stacklevel=2)
        # whole numbers, which module.half() and the like leave alone
        whole = [None, None] if statistics is None else [part.to(torch.int64) for part in statistics]
        self.label_counts: Tensor | None
        self.label_pairs: Tensor | None
        self.register_buffer("label_counts", whole[0])
        self.register_buffer("label_pairs", whole[1])
        self.prototypes: nn.Parameter | None
        self.register_parameter("prototypes", None)

    def __init_subclass__(cls) -> None:
        """Show the settings in the signature; they have one definition, elsewhere."""
        own = [p for p in inspect.signature(cls.__init__).parameters.values() if p.kind is not p.VAR_KEYWORD][1:]
        fields, keyword = LossConfig.model_fields, inspect.Parameter.KEYWORD_ONLY
        own = [p for p in own if p.name != "statistics" or cls.counts_labels()]
        read = [inspect.Parameter(key, keyword, default=fields[key].default) for key in cls.reads()]
        cls.__signature__ = inspect.Signature([*own, *read])  # type: ignore[attr-defined]

    @classmethod
    def counts_labels(cls) -> bool:
        """Whether label counts of a training split may stand for those of the batch."""
        return "counts" in READS[cls.name]

    @classmethod
    def reads(cls) -> tuple[str, ...]:
        """The settings that this loss takes."""
        return tuple(key for key in (*READS[cls.name], *READ_BY_ALL) if key not in ELSEWHERE)

    def extra_repr(self) -> str:
        """The settings that this loss reads."""
        shown = {key: getattr(self.settings, key) for key in self.reads()}
        if self.counts_labels():
            shown["counts"] = self.settings.counts
        return ", ".join(f"{key}={value!r}" for key, value in shown.items())

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of the global batch.

        Args:
            embeddings: (rows, width) of this rank, floats of any length: the loss compares directions, so each row is
                divided by its length here. Two views of an image are two rows: ``torch.cat([view_a, view_b])`` with
                ``labels.repeat(2, 1)``.
            labels: (rows, labels) multi-hot: bool, or numbers that are 0 or 1. A row without labels is a negative of
                everybody.

        Returns:
            Scalar, equal on all ranks: float64 for float64 embeddings, else float32, also under autocast.

        Raises:
            ValueError: the rows of some rank do not fit; raised on every rank.
        """
        counts = self._agree(embeddings, labels)
        return self._evaluate(embeddings, labels.to(torch.bool), None, counts)

    def _statistics(self) -> LabelStatistics | None:
        if self.label_counts is None or self.label_pairs is None:
            return None
        return LabelStatistics(self.label_counts, self.label_pairs)

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        """Refuse this rank's rows."""
        check_kind("embeddings", embeddings, "labels", labels)
        check_columns("labels", labels)
        check_labels("labels", labels)
        check_statistics(self._statistics(), labels.shape[1])

    def _agree(self, embeddings: Tensor, labels: Tensor) -> list[int]:
        """Rows of every rank. When one has to raise all raise, so none waits for another that has gone.

        Raises:
            ValueError: rows of this rank that do not fit, or of another, or ranks that differ in kind.
        """
        fault: Exception | None = None
        facts = [0] * 6
        try:
            self._check(embeddings, labels)
            self._check_implementation(embeddings.device)
            if len(labels) != len(embeddings):
                raise ValueError(f"labels: expected {len(embeddings)} rows like the embeddings, got {len(labels)}")
            moves = embeddings.requires_grad and torch.is_grad_enabled()
            double = embeddings.dtype == torch.float64
            num_labels = labels.shape[1] if labels.ndim == 2 else 0
            facts = [1, len(embeddings), embeddings.shape[1], num_labels, int(double), int(moves)]
        except Exception as error:  # whatever it is: the other ranks are on their way to the gather
            fault = error
        every = comm.gather_vectors(torch.tensor(facts, device=_device_of(embeddings, labels))).tolist()
        if fault is not None:
            raise fault
        names = ("", "", "columns of embeddings", "columns of labels", "float64", "requires_grad")
        for other, told in enumerate(every):
            if not told[0]:
                raise ValueError(f"rank {other}: its rows do not fit, see its own error")
            for what, mine, theirs in list(zip(names, facts, told, strict=True))[2:]:
                if mine != theirs:
                    raise ValueError(f"{what}: expected one on all ranks, got {mine} here, {theirs} on rank {other}")
        return [told[1] for told in every]

    def _check_implementation(self, device: torch.device) -> None:
        try:
            choose_implementation(self.settings, device)
        except ValueError as error:
            raise ValueError(str(error).removeprefix("loss.")) from None

    def _evaluate(self, embeddings: Tensor, labels: Tensor, ids: Tensor | None, counts: list[int]) -> Tensor:
        prototypes = self.prototypes
        dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
        with torch.autocast(embeddings.device.type, enabled=False):
            mine = _directions(embeddings.to(dtype))
            units = mine.new_zeros(0) if prototypes is None else _directions(prototypes.to(dtype))
            every, first, units = comm.gather_with_shared(mine, units, counts)
            parts = objective(
                mine,
                every,
                labels,
                comm.gather_rows_plain(labels, counts) if labels.shape[1] else labels.new_zeros(len(every), 0),
                first=first,
                settings=self.settings,
                statistics=self._statistics(),
                candidate_ids=None if ids is None else comm.gather_rows_plain(ids, counts),
                prototypes=None if prototypes is None else units,
            )
            share = torch.stack([parts.sum.detach(), parts.count.to(parts.sum)]).to(torch.float64)
            total, count = comm.gather_vectors(share).sum(dim=0)
            count = torch.where(count > 0, count, 1.0)
            # averaging over ranks divides by their number again; the empty sums keep a rank without anchors in backward
            local = comm.world() * parts.sum / count.to(dtype) + every[:0].sum() + units[:0].sum()
            value: Tensor = _SameValue.apply(local, (total / count).to(dtype))
            return value


class MaclLoss(GlobalLoss):
    """MACL: a term an anchor and label, rare label pairs weigh more, label overlap and rarity set the temperature."""

    name = "macl"


class MulSupConLoss(GlobalLoss):
    """MulSupCon: a SupCon term for each anchor and label; MACL with alpha = beta = strength = 0."""

    name = "mulsupcon"


class SupConSingleLoss(GlobalLoss):
    """SupCon as published: one label an image; class numbers become rows by ``torch.nn.functional.one_hot``."""

    name = "supcon_single"

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        super()._check(embeddings, labels)
        check_single("labels", labels)


class SupConAnyLoss(GlobalLoss):
    """SupCon whose positives share at least one label."""

    name = "supcon_any"


class SupConAllLoss(GlobalLoss):
    """SupCon whose positives carry the same labels."""

    name = "supcon_all"


class JaccardLoss(GlobalLoss):
    """SupCon whose positives weigh as much as their labels overlap (Jaccard), weights summing to 1 an anchor."""

    name = "jaccard"


class MultiSupConLoss(GlobalLoss):
    """MultiSupCon: positives from a Jaccard threshold on, weighted by it."""

    name = "multisupcon"


class SimilarityDissimilarityLoss(GlobalLoss):
    """Similarity-Dissimilarity: positives weigh by the labels that they share and by those that they have beyond."""

    name = "similarity_dissimilarity"


class TripletLoss(GlobalLoss):
    """Triplets over the global batch: positives from a Jaccard threshold on, a few chosen for each anchor."""

    name = "triplet"


class NTXentLoss(GlobalLoss):
    """NT-Xent (SimCLR): the views of one image are positives; needs no labels."""

    name = "ntxent"

    def forward(self, embeddings: Tensor, ids: Tensor) -> Tensor:
        """The loss of the global batch; see ``GlobalLoss.forward``.

        Args:
            embeddings: (rows, width) of this rank, two or more views of each image.
            ids: (rows,) whole numbers: which image each row shows, unique over all ranks.
        """
        counts = self._agree(embeddings, ids)
        none = torch.zeros(len(ids), 0, dtype=torch.bool, device=ids.device)
        return self._evaluate(embeddings, none, ids.to(torch.int64), counts)

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        check_kind("embeddings", embeddings)
        check_ids("ids", labels)
        check_device("ids", labels, "embeddings", embeddings)


class MscLoss(GlobalLoss):
    """MSC: a learnable prototype for each label stands among the candidates.

    The prototypes are parameters of this module: give them to the optimiser, without weight decay, because they are
    normalised. All ranks start with the same ones. Their gradient is averaged over ranks here, so the module may stand
    inside DistributedDataParallel or outside.

    Args:
        num_labels: columns of the labels.
        width: columns of the embeddings.
        seed: of the first prototypes.
        settings: see ``GlobalLoss``.
    """

    name = "msc"
    prototypes: nn.Parameter

    def __init__(self, num_labels: int, width: int, *, seed: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        num_labels, width = _whole("num_labels", num_labels, 1), _whole("width", width, 1)
        seed = _whole("seed", seed, 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.prototypes = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_labels, width)))

    def extra_repr(self) -> str:
        """The shape of the prototypes, and the settings that this loss reads."""
        num_labels, width = self.prototypes.shape
        return f"num_labels={num_labels}, width={width}, {super().extra_repr()}"

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        super()._check(embeddings, labels)
        check_device("prototypes", self.prototypes, "embeddings", embeddings)
        found = (labels.shape[1], embeddings.shape[1])
        if found != tuple(self.prototypes.shape):
            expected = tuple(self.prototypes.shape)
            raise ValueError(f"labels, embeddings: expected {expected} columns like the prototypes, got {found}")
