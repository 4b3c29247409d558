"""What a run is made of: data, encoder, optimiser, loss and memory; new, or as the newest checkpoint left them."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch.nn import Module

from marc_dist import comm
from marc_dist.augment.views import IMAGENET
from marc_dist.config import Config, ConfigError, DataError, LaunchError, MarcError
from marc_dist.data.batches import Loader
from marc_dist.data.dataset import open_dataset
from marc_dist.data.loader import TrainLoader
from marc_dist.data.plan import rank_part
from marc_dist.data.stream import StreamLoader
from marc_dist.encoder.compiled import check_compile, compile_backbone
from marc_dist.encoder.device import resolve_arithmetic, resolve_device
from marc_dist.encoder.model import Encoder, Learner, build_encoder
from marc_dist.encoder.norm import batch_norms
from marc_dist.encoder.published import resolve_scale
from marc_dist.encoder.weights import rank_0_first
from marc_dist.objective import LabelStatistics, choose_implementation
from marc_dist.retrieval.vectors.store import backbone_fingerprint
from marc_dist.run.folder import checkpoints, refuse_changes
from marc_dist.training.checkpoint import load_checkpoint, newest_checkpoint
from marc_dist.training.feature_loader import FeatureLoader
from marc_dist.training.memory import Memory
from marc_dist.training.schedule import build_optimiser
from marc_dist.training.step import Stepper
from marc_dist.training.validation.scores import check_groups

T = TypeVar("T")


def agree(value: T, error: MarcError | None) -> T:
    """Rank 0's value everywhere, or rank 0's error everywhere: nobody waits for a rank that has given up."""
    agreed: tuple[T, MarcError | None] = comm.broadcast_object((value, error))
    if agreed[1] is not None:
        raise agreed[1]
    return agreed[0]


class Setup:
    """The parts of a run, on their device.

    Args:
        config: the run's settings.
        resume: go on from the newest checkpoint of ``train.run_dir``; False refuses a folder that has some.
        at: told (step from 1, phase) on the way; see ``watchdog.PHASES``.
        say: takes one line for people at once, of work that takes long.

    Attributes:
        notes: lines for people on how the checkpoint was found.
        payload: of the checkpoint, or None.
        implementation: which of the loss's runs, in words.

    Raises:
        ConfigError: settings that do not fit the machine, the data, or the run so far.
        DataError: shards that cannot be read, or that are not those of the run so far.
    """

    def __init__(
        self,
        config: Config,
        resume: bool,
        at: Callable[[int, str], None],
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.config, self._at, self._say = config, at, say
        self.run_dir = Path(config.train.run_dir)
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        self.dataset = open_dataset(config.data.dir, shards=config.data.reader == "indexed")
        self._refuse_several_labels()
        self.device = resolve_device(config.train.device)
        self.arithmetic = resolve_arithmetic(config.train, self.device)
        self.scale = rank_0_first(lambda: resolve_scale(config, self.dataset))
        self.notes: list[str] = []
        self._refuse_unknown_best()
        self.payload = self._begin(resume)
        self.learner, self.optimiser = self._build()
        self.loader = self._loader()
        if config.train.compile and not config.model.head_only:
            check_compile(self.learner.encoder, self.device)
        self._compile()
        self.ema = self._averaged()
        self.memory = self._memory()
        self.implementation = self._implementation()
        self.stepper = self._stepper()

    @property
    def result(self) -> Encoder:
        """The encoder that is validated and exported: the averaged one when there is one."""
        return self.learner.encoder if self.ema is None else cast(Encoder, self.ema.module)

    @property
    def thaw_step(self) -> int | None:
        """The step, from 0, from which everything learns; None when nothing is thawed."""
        model = self.config.model
        if model.freeze == "none" or model.thaw_after is None:
            return None
        return model.thaw_after * self.loader.steps_per_epoch

    @property
    def averages_from(self) -> int:
        """The step, from 0, from which ``train.ema`` averages."""
        at = self.thaw_step if self.config.model.freeze == "backbone" else None
        return at or 0

    def thaws_at(self, step: int) -> bool:
        """Whether frozen parts are to learn from this step on, and do not yet."""
        at = self.thaw_step
        return at is not None and step >= at and bool(self.learner.encoder.to_thaw)

    def trained_of(self, encoder: Encoder) -> Module:
        """The part of an encoder that changes: all of it, or its head."""
        return encoder.head if self.learner.head_only else encoder

    def thaw(self) -> None:
        """Let what is frozen learn from now on, and give it pictures. A collective."""
        features = self.learner.on_features
        self.learner.thaw()
        del self.stepper
        gc.collect()  # its hooks on the parameters go with it
        if features:
            self.loader.close()
            self.loader = self._loader()
            self._compile()
            self.ema = self._averaged()
        self.stepper = self._stepper()

    def _compile(self) -> None:
        if self.config.train.compile and not self.learner.on_features:
            compile_backbone(self.learner.encoder, self._rows_of_a_pass())

    def _stepper(self) -> Stepper:
        return Stepper(
            self.config, self.learner, self.optimiser, self.arithmetic, self._statistics(), self.memory, self._at
        )

    def _loader(self) -> Loader:
        if self.learner.on_features:
            loader = FeatureLoader(
                self.learner.encoder, self.dataset, self.config, self.scale, self._say, lambda: self._at(1, "starting")
            )
            if self.payload is None:
                self.learner.encoder.head.standardise(*loader.moments())
            return loader
        place = self.dataset, self.config, comm.rank(), comm.world(), self.scale
        if self.config.data.reader == "streamed":
            return StreamLoader(*place, self.device, self._at)
        return TrainLoader(*place, lambda: self._at(1, "starting"), self.device)

    def _averaged(self) -> ModelEmaV3 | None:
        """The moving average of the weights and of batch norm's statistics (timm's), as the checkpoint left it.

        It begins when the backbone learns. Its decay grows to ``train.ema``: 1 - step^(-3/4) at most, so that short
        runs have an average, too.
        """
        if self.config.train.ema is None or self.learner.on_features:
            return None
        ema = ModelEmaV3(self.learner.encoder, self.config.train.ema, use_warmup=True, warmup_power=0.75)
        if self.payload is not None and self.payload["ema"] is not None:
            ema.module.load_state_dict(self.payload["ema"])
        return ema

    def _refuse_unknown_best(self) -> None:
        """``train.keep_best`` of a third of the labels that no validation sample has."""
        if self.config.train.keep_best is not None:
            check_groups(self.dataset, self.config.data, [self.config.train.keep_best], "train.keep_best=")

    def _begin(self, resume: bool) -> dict[str, Any] | None:
        """The checkpoint to go on from, chosen and checked by rank 0."""
        path: Path | None = None
        payload: dict[str, Any] | None = None
        error: MarcError | None = None
        if comm.rank() == 0:
            try:
                if not resume and checkpoints(self.run_dir):
                    raise LaunchError(f"{self.run_dir}: has checkpoints; choose another train.run_dir")
                path = newest_checkpoint(self.run_dir, self.notes.append)
                if path is not None:
                    payload = load_checkpoint(path)
                    self._check(payload)
            except MarcError as caught:
                error = caught
        chosen = agree(path, error)
        return load_checkpoint(chosen) if chosen is not None and payload is None else payload

    def _check(self, payload: dict[str, Any]) -> None:
        """Refuse other data and other settings than those of the run so far."""
        if payload["fingerprint"] != self.dataset.fingerprint or payload["classes"] != list(self.dataset.classes):
            raise DataError(
                f"{self.run_dir}: was trained on {payload['dataset']} (fingerprint {payload['fingerprint'][:12]}), but "
                f"{self.config.data.dir} holds {self.dataset.name} ({self.dataset.fingerprint[:12]}); "
                "give the same shards as data.dir, or another train.run_dir"
            )
        before = payload.get("pixels", IMAGENET.facts())  # what runs had before they had settings of their own
        if before != self.scale.facts():
            raise ConfigError(
                f"{self.run_dir}: the run has begun with other pixels: {before}, now {self.scale.facts()}; give "
                "data.mean, data.std and data.interpolation as they were, or start a new run with another train.run_dir"
            )
        refuse_changes(payload["settings"], self.config, str(self.run_dir))
        epochs, now = payload["settings"]["train.epochs"], self.config.train.epochs
        if now > epochs:
            self.notes.append(
                f"train.epochs was {epochs}, now {now}: from step {payload['step'] + 1} on, the learning rate follows "
                f"the schedule of {now} epochs"
            )

    def _build(self) -> tuple[Learner, torch.optim.Optimizer]:
        model, seed = self.config.model, self.config.train.seed
        head_only = model.head_only
        if self.payload is not None and not head_only:  # every weight comes from the checkpoint
            model = model.model_copy(update={"weights": None, "pretrained": False, "batch_norm": model.norm})
        encoder = build_encoder(
            model, seed, self.config.data.image_size, lambda: self._at(1, "starting"), len(self.scale.mean)
        )
        self._refuse_batch_norm_of_chunks(encoder)
        if self.payload is None:
            self.notes.append(f"first weights: {encoder.origin}")
        num_prototypes = len(self.dataset.classes) if self.config.loss.name == "msc" else 0
        frozen = model.freeze == "backbone"
        learner = Learner(encoder, num_prototypes, model.head_dim, seed, on_features=frozen, head_only=head_only)
        learner.to(self.device, self.arithmetic.weights)
        if self.device.type == "cuda":
            learner.to(memory_format=torch.channels_last)
        if model.norm == "plain" and not head_only and comm.world() > 1 and batch_norms(encoder) and comm.rank() == 0:
            warnings.warn(
                "model.batch_norm=plain with several ranks: statistics are those of each rank alone, so the result "
                "depends on the number of ranks; use sync or frozen",
                stacklevel=2,
            )
        optimiser = build_optimiser(self.config.optim, learner)
        if self.payload is not None:
            if self._was_thawed(self.payload):
                learner.thaw()
            self._same_backbone(encoder)
            learner.trained.load_state_dict(self.payload["model"])
            encoder.origin = self.payload.get("origin", encoder.origin)  # of the run's first weights
            if learner.prototypes is not None:
                with torch.no_grad():
                    learner.prototypes.copy_(self.payload["prototypes"])
            optimiser.load_state_dict(self.payload["optimiser"])
        return learner, optimiser

    def _was_thawed(self, payload: dict[str, Any]) -> bool:
        """Whether the run had taken a step with everything learning."""
        after = self.config.model.thaw_after
        begun: tuple[int, int] = payload["epoch"], payload["step_in_epoch"]
        return after is not None and self.config.model.freeze != "none" and begun > (after, 0)

    def _rows_of_a_pass(self) -> int:
        """Views that this rank encodes at a time, but for what is left of an epoch, or of a batch in chunks."""
        samples = min(self.config.train.global_batch, len(self.dataset.train_rows(self.config.data)))
        rows = self.config.data.num_views * len(rank_part(np.arange(samples), comm.rank(), comm.world()))
        return min(rows, self.config.train.chunk or rows)

    def _same_backbone(self, encoder: Encoder) -> None:
        """A checkpoint of a frozen backbone holds the head alone: the backbone must be the one that it began with."""
        assert self.payload is not None
        before = self.payload.get("backbone")
        if before is not None and before != backbone_fingerprint(encoder):
            raise ConfigError(
                f"{self.run_dir}: the frozen backbone has other weights than when the run began; give the same "
                "model.weights or model.pretrained, or start a new run with another train.run_dir"
            )

    def _refuse_batch_norm_of_chunks(self, encoder: Encoder) -> None:
        live = self.config.model.norm != "frozen" and not self.config.model.head_only
        if self.config.train.chunk is not None and live and batch_norms(encoder):
            raise ConfigError(
                f"train.chunk: {self.config.model.backbone} has batch norm, and a chunk's statistics are not "
                "those of the batch; set model.batch_norm=frozen (best pretrained), or take a backbone without it"
            )

    def _memory(self) -> Memory:
        dim, num_labels = self.config.model.head_dim, len(self.dataset.classes)
        memory = Memory(self.config.loss.memory, dim, num_labels, self.arithmetic.loss, self.device)
        if self.payload is not None and memory.size:
            memory.load(self.payload["memory"])
        return memory

    def _statistics(self) -> LabelStatistics | None:
        if self.config.loss.counts == "batch":
            return None
        rows = self.dataset.train_rows(self.config.data)
        counts = torch.from_numpy(self.dataset.label_counts(rows)).to(self.device)
        return LabelStatistics(counts, torch.from_numpy(self.dataset.cooccurrence(rows)).to(self.device))

    def _refuse_several_labels(self) -> None:
        """``supcon_single`` wants one label a sample: say so before anything is trained."""
        rows = self.dataset.rows(self.config.data.train_split)
        several = rows[self.dataset.label_rows(rows).sum(axis=1) > 1]
        if self.config.loss.name == "supcon_single" and len(several):
            raise ConfigError(
                f"loss.name=supcon_single: expected one label a sample, but {len(several)} of {len(rows)} have more, "
                f"the first {self.dataset.place(int(several[0]))}; use supcon_any, supcon_all, mulsupcon or macl"
            )

    def _implementation(self) -> str:
        """Which implementation of the loss runs, and why no faster one.

        Raises:
            ConfigError: the one asked for cannot.
        """
        try:
            chosen, reason = choose_implementation(self.config.loss, self.device)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return f"loss {self.config.loss.name}, {chosen}" + (f" (not triton: {reason})" if reason else "")
