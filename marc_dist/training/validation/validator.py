"""When a run scores its validation samples, what it keeps of the scores, and when it stops waiting for better ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marc_dist import comm
from marc_dist.config import Config
from marc_dist.data.dataset import Dataset
from marc_dist.data.plan import Ids
from marc_dist.encoder.model import Encoder
from marc_dist.run.folder import VALIDATION, read_lines
from marc_dist.training.feature_loader import FeatureLoader
from marc_dist.training.log import RunLog
from marc_dist.training.setup import Setup, agree
from marc_dist.training.validation.best import Best, from_payload, give_up, rule_of, take_in

Kept = Callable[[Ids], NDArray[np.float32]]
Scores = Callable[[Encoder, Dataset, Config, Callable[[], None], Kept | None], dict[str, float]]
"""Scores of the validation samples, a collective that gives the same on every rank: (encoder on its device, data,
settings, what to call now and then, features of a frozen backbone by id) -> figures by name."""


class Validator:
    """The validation of one run, on one rank.

    Args:
        setup: what is trained.
        log: of the run.
        last_step: of the run; its samples are scored then, too.
        scores: scores them; None never does.
        tick: told the step now and then while they are scored.

    Attributes:
        best: the best encoder so far, by ``train.keep_best``.
        seconds: what the newest validation took.
    """

    def __init__(
        self, setup: Setup, log: RunLog, last_step: int, scores: Scores | None, tick: Callable[[int], None]
    ) -> None:
        self.config, self._setup, self._log, self._last_step, self._tick = setup.config, setup, log, last_step, tick
        self._scores = scores if self.config.data.validation_share else None
        self.best: Best | None = from_payload(setup.payload, self.config)
        self.seconds = 0.0

    def due(self, step: int) -> bool:
        """Whether the validation samples are scored after this step."""
        epochs, rest = divmod(step, self._setup.loader.steps_per_epoch)
        whole = rest == 0 and epochs % self.config.train.validate_every == 0
        return self._scores is not None and (whole or step == self._last_step)

    def catch_up(self, step: int) -> None:
        """What is missing of a step whose checkpoint is the newest: its scores, or only their place among the best.

        A checkpoint is saved before its step is scored. Figures that were written are read, not made again. A
        collective.
        """
        if not step or not self.due(step):
            return
        lines = read_lines(self._setup.run_dir / VALIDATION) if comm.rank() == 0 else []
        line = agree(next((line for line in reversed(lines) if line.get("step") == step), None), None)
        if line is None:
            self.score(step)
        elif self._compares(step) and (self.best is None or self.best.seen < step):
            if line.get("rule") == "/".join(rule_of(self.config.eval)) and isinstance(line.get(self._metric), float):
                self._keep(self._setup.result, line, step)
            else:  # of other settings
                self.score(step, written=True)

    def score(self, step: int, written: bool = False) -> None:
        """Score the validation samples with the encoder as it is. A collective.

        Args:
            step: global steps done.
            written: the figures are in the run's file already.
        """
        assert self._scores is not None
        began = time.monotonic()
        encoder, loader = self._setup.result, self._setup.loader
        modes = [(module, module.training) for module in encoder.modules()]
        self._tick(step)
        kept = loader.features if isinstance(loader, FeatureLoader) else None
        figures = self._scores(encoder.eval(), self._setup.dataset, self.config, lambda: self._tick(step), kept)
        for module, mode in modes:
            module.training = mode
        self._keep(encoder, figures, step)
        self.seconds = time.monotonic() - began
        if not written:
            self._write(figures, step)

    def _compares(self, step: int) -> bool:
        """Whether the score of this step counts for the best: not that of a stop within an epoch."""
        epoch, every = self._epoch(step), self.config.train.validate_every
        whole = isinstance(epoch, int) and (epoch % every == 0 or epoch == self.config.train.epochs)
        return whole and self.config.train.keep_best is not None

    @property
    def _metric(self) -> str:
        return self.config.train.keep_best or ""

    def _keep(self, encoder: Encoder, figures: dict[str, Any], step: int) -> None:
        if self._compares(step):
            weights = self._setup.trained_of(encoder).state_dict() if comm.rank() == 0 else {}
            rule, epoch = rule_of(self.config.eval), self._epoch(step)
            self.best = take_in(self.best, self._metric, rule, figures, step, epoch, weights)

    def _write(self, figures: dict[str, float], step: int) -> None:
        record = {"step": step, "epoch": self._epoch(step), **figures, "rule": "/".join(rule_of(self.config.eval))}
        record |= {"seconds": self.seconds, "time": time.time()}
        self._log.validation(record)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in list(figures.items())[:3])
        self._log.say(f"epoch {record['epoch']:g}: validation  {shown}  ({self.seconds:.1f} s)")

    def _epoch(self, step: int) -> float:
        epoch = step / self._setup.loader.steps_per_epoch
        return int(epoch) if epoch.is_integer() else epoch

    def ends_early(self, step: int) -> bool:
        """Whether ``train.patience`` is over after this step; says so."""
        over = give_up(self.best, self.config.train)
        if over and self.best is not None and step < self._last_step:
            self._log.say(
                f"no better {self.best.metric} in {self.best.waited} validations: the run ends after step {step}; the "
                f"best was {self.best.score:.4f} at epoch {self.best.epoch:g}"
            )
        return over
