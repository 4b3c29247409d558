"""What a run is made of: data, encoder, optimiser, loss and memory; new, or as the newest checkpoint left them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from marc_dist import comm
from marc_dist.config import Config, ConfigError, DataError, LaunchError, MarcError
from marc_dist.data.dataset import open_dataset
from marc_dist.data.loader import TrainLoader
from marc_dist.data.stream import StreamLoader
from marc_dist.objective import LabelStatistics, choose_implementation
from marc_dist.training.checkpoint import load_checkpoint, newest_checkpoint
from marc_dist.training.device import resolve_arithmetic, resolve_device
from marc_dist.training.memory import Memory
from marc_dist.training.model import Encoder, Learner, build_encoder
from marc_dist.training.norm import batch_norms
from marc_dist.training.runfolder import checkpoints, refuse_changes
from marc_dist.training.schedule import build_optimiser
from marc_dist.training.step import Stepper, loss_settings

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

    Attributes:
        notes: lines for people on how the checkpoint was found.
        payload: of the checkpoint, or None.
        implementation: which of the loss's runs, in words.

    Raises:
        ConfigError: settings that do not fit the machine, the data, or the run so far.
        DataError: shards that cannot be read, or that are not those of the run so far.
    """

    def __init__(self, config: Config, resume: bool, at: Callable[[int, str], None]) -> None:
        self.config = config
        self.run_dir = Path(config.train.run_dir)
        self.dataset = open_dataset(config.data.dir, shards=config.data.reader == "indexed")
        self._refuse_several_labels()
        self.device = resolve_device(config.train.device)
        self.arithmetic = resolve_arithmetic(config.train, self.device)
        self.loader = self._loader(at)
        self.notes: list[str] = []
        self.payload = self._begin(resume)
        self.learner, self.optimiser = self._build()
        self.memory = self._memory()
        self.implementation = self._implementation()
        self.stepper = Stepper(
            config, self.learner, self.optimiser, self.arithmetic, self._statistics(), self.memory, at
        )

    def _loader(self, at: Callable[[int, str], None]) -> TrainLoader | StreamLoader:
        place = self.dataset, self.config, comm.rank(), comm.world()
        if self.config.data.reader == "streamed":
            return StreamLoader(*place, self.device)
        return TrainLoader(*place, lambda: at(1, "starting"), self.device)

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
        refuse_changes(payload["settings"], self.config, str(self.run_dir))

    def _build(self) -> tuple[Learner, torch.optim.Optimizer]:
        model, seed = self.config.model, self.config.train.seed
        if self.payload is not None:  # every weight comes from the checkpoint
            model = model.model_copy(update={"weights": None, "pretrained": False})
        encoder = build_encoder(model, seed, self.config.data.image_size)
        self._refuse_batch_norm_of_chunks(encoder)
        num_prototypes = len(self.dataset.classes) if self.config.loss.name == "msc" else 0
        learner = Learner(encoder, num_prototypes, model.head_dim, seed)
        learner.to(self.device, self.arithmetic.weights)
        if self.device.type == "cuda":
            learner.to(memory_format=torch.channels_last)
        if model.batch_norm == "plain" and comm.world() > 1 and batch_norms(encoder) and comm.rank() == 0:
            warnings.warn(
                "model.batch_norm=plain with several ranks: statistics are those of each rank alone, so the result "
                "depends on the number of ranks (promise 1 is void); use sync or frozen",
                stacklevel=2,
            )
        optimiser = build_optimiser(self.config.optim, learner)
        if self.payload is not None:
            encoder.load_state_dict(self.payload["model"])
            if learner.prototypes is not None:
                with torch.no_grad():
                    learner.prototypes.copy_(self.payload["prototypes"])
            optimiser.load_state_dict(self.payload["optimiser"])
        return learner, optimiser

    def _refuse_batch_norm_of_chunks(self, encoder: Encoder) -> None:
        if self.config.train.chunk is not None and self.config.model.batch_norm != "frozen" and batch_norms(encoder):
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
        several = rows[self.dataset.labels[rows].sum(axis=1) > 1]
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
            chosen, reason = choose_implementation(loss_settings(self.config.loss), self.device)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return f"loss {self.config.loss.name}, {chosen}" + (f" (not triton: {reason})" if reason else "")
