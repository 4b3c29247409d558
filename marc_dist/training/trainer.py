"""A whole run: data, encoder and optimiser; go on from the newest checkpoint; step, log, save; export the encoder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from marc_dist import comm
from marc_dist.config import Config, DataError, LaunchError, MarcError
from marc_dist.data.batches import Batch
from marc_dist.data.dataset import Dataset
from marc_dist.training.checkpoint import save_checkpoint
from marc_dist.training.device import resolve_device
from marc_dist.training.export import save_encoder
from marc_dist.training.figures import Window, describe
from marc_dist.training.log import BAD, SKIPPED, VALIDATION, RunLog
from marc_dist.training.model import Encoder
from marc_dist.training.preflight import PREFLIGHT, preflight_of_run
from marc_dist.training.remarks import remarks
from marc_dist.training.runfolder import plain_settings, read_lines, write_config
from marc_dist.training.schedule import learning_rate
from marc_dist.training.setup import Setup, agree
from marc_dist.training.signals import StopFlag
from marc_dist.training.step import StepResult
from marc_dist.training.watchdog import Watchdog

T = TypeVar("T")
Validate = Callable[[Encoder, Dataset, Config, Callable[[], None]], dict[str, float]]
"""Scores of the validation samples, a collective that gives the same on every rank: (encoder on its device, data,
settings, what to call now and then) -> figures by name. Retrieval stands above training, so it is handed in."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        run_dir: the run folder.
        step: global steps done.
        total_steps: global steps of the whole schedule.
        resumed_from: step at which this process took over, 0 for a fresh run.
        interrupted: a signal asked for the end; everything is saved.
        skipped: steps of the run skipped because something was not finite.
        loss: of the last step.
    """

    run_dir: Path
    step: int
    total_steps: int
    resumed_from: int
    interrupted: bool
    skipped: int
    loss: float | None


def run_rank(
    config: Config,
    *,
    resume: bool = True,
    stop: StopFlag | None = None,
    give_up: Callable[[str], None] | None = None,
    validate: Validate | None = None,
) -> TrainResult:
    """One rank of a run: join the world that the environment describes, train, leave.

    Args:
        config: the run's settings.
        resume: see ``train``.
        stop: see ``train``.
        give_up: must end the process; called from another thread, with the reason, when ``train.timeout_s`` have
            passed without progress. Nobody looks on when None.
        validate: see ``train``.
    """
    here, device, timeout_s = (
        comm.world_from_env(os.environ),
        resolve_device(config.train.device),
        config.train.timeout_s,
    )
    watchdog = None
    if give_up is not None and here.world > 1:  # before the ranks meet: one may be late for that, too
        watchdog = Watchdog(Path(config.train.run_dir), here.rank, here.world, timeout_s, give_up)
        watchdog.start()
    # the process group's own limit is longer: it knows no names, so the watchdog speaks first
    comm.join(device.type, timeout_s=2 * timeout_s + 30, folder=Path(config.train.run_dir) / "logs")
    if os.environ.get(PREFLIGHT) == "1":
        preflight_of_run(config, here, device, None if watchdog is None else watchdog.at)
    result = train(config, resume=resume, stop=stop, watchdog=watchdog, validate=validate)
    if watchdog is not None:
        watchdog.stop()
    comm.leave()  # not after an error: a rank that fails must not wait for others
    return result


def train(
    config: Config,
    *,
    resume: bool = True,
    stop: StopFlag | None = None,
    watchdog: Watchdog | None = None,
    validate: Validate | None = None,
) -> TrainResult:
    """Train in the present process group, from the newest checkpoint of ``train.run_dir`` when there is one.

    Args:
        config: the run's settings.
        resume: go on from a checkpoint; False refuses a folder that has some.
        stop: looked at once a step; when set on any rank, all ranks save the same step and return.
        watchdog: told where the run is.
        validate: scores the samples of ``data.validation_share`` every ``train.validate_every`` epochs and at the end,
            each time before the checkpoint of that step; the figures go into ``validation.jsonl``.

    Raises:
        ConfigError: settings that do not fit the machine, or the run so far.
        DataError: shards that cannot be read, or that are not those of the run so far.
        LaunchError: a full disk; too many non-finite steps in a row.
    """
    return _Run(config, resume, StopFlag() if stop is None else stop, watchdog, validate).go()


class _Run:
    def __init__(
        self, config: Config, resume: bool, stop: StopFlag, watchdog: Watchdog | None, validate: Validate | None
    ) -> None:
        self.config = config
        self.validate = validate if config.data.validation_share else None
        self.at: Callable[[int, str], None] = (lambda step, phase: None) if watchdog is None else watchdog.at
        self.run_dir = Path(config.train.run_dir)
        self.stop = stop
        self.main = comm.rank() == 0
        setup = self.setup = Setup(config, resume, self.at)
        self.dataset, self.loader, self.stepper = setup.dataset, setup.loader, setup.stepper
        self.total_steps = config.train.epochs * self.loader.steps_per_epoch
        self.last_step = min(self.total_steps, config.train.max_steps or self.total_steps)
        payload = setup.payload
        self.first_step = int(payload["step"]) if payload else 0
        self.nonfinite = int(payload["nonfinite"]) if payload else 0
        self.skipped = int(payload["skipped"]) if payload else 0
        self.bad: set[int] = set(payload["bad"]) if payload else set()
        self._describe()
        self.log = RunLog(self.run_dir, self.first_step, self.last_step, self.main)
        self.window = Window(time.monotonic())
        self.loss: float | None = None

    def _describe(self) -> None:
        """Make the run folder and write its settings, once nothing about them can be wrong any more."""
        error: MarcError | None = None
        if self.main:
            try:
                write_config(self.config)
            except MarcError as caught:
                error = caught
        agree(None, error)

    def go(self) -> TrainResult:
        """Steps until the end, ``train.max_steps`` or a signal; then the encoder."""
        try:
            self._greet()
            if self.first_step and self._due(self.first_step) and not self._validated(self.first_step):
                self._validate(self.first_step)  # the run was stopped between this step's checkpoint and its scores
            step, interrupted = self._steps()
            if not interrupted:
                self._export(step)
            comm.barrier()  # nobody leaves while rank 0 still writes
        finally:
            self.log.close()
            self.loader.close()
        return TrainResult(self.run_dir, step, self.total_steps, self.first_step, interrupted, self.skipped, self.loss)

    def _greet(self) -> None:
        for note in (*self.setup.notes, *self.loader.notes, self.setup.implementation):
            self.log.say(note)
        for remark in remarks(self.config, len(self.dataset.classes)):
            self.log.say(remark)
        rows = len(self.dataset.train_rows(self.config.data))
        self.log.say(
            f"{self.run_dir}: {self.dataset.name}, {rows} samples, {self.total_steps} steps, {comm.world()} rank(s) on "
            f"{self.setup.device.type}" + (f", going on after step {self.first_step}" if self.first_step else "")
        )

    def _steps(self) -> tuple[int, bool]:
        step = self.first_step
        interrupted = False
        while step < self.last_step and not interrupted:
            epoch, start = divmod(step, self.loader.steps_per_epoch)
            self.window.wait_from = time.monotonic()
            self.at(step + 1, "loading")
            for batch in self.loader.epoch(epoch, start):
                self.window.waited += time.monotonic() - self.window.wait_from
                lr = learning_rate(self.config.optim, step, self.total_steps)
                result = self.stepper.take(batch, step, lr, bool(self.stop))
                step += 1
                self._account(result, batch, step, epoch)
                self._report(result, batch, step, epoch, lr)
                interrupted = result.stop and step < self.last_step
                due = self._due(step)
                if due and not interrupted:
                    self._validate(step)
                if due or interrupted or step == self.last_step or step % self.config.train.checkpoint_every == 0:
                    self._save(step)
                if interrupted or step == self.last_step:
                    break
                self.window.wait_from = time.monotonic()
                self.at(step + 1, "loading")
        if interrupted:
            self.log.say(
                f"asked to stop ({self.stop.name or 'another rank'}): saved after step {step}; start again to go on"
            )
        return step, interrupted

    def _due(self, step: int) -> bool:
        """Whether the validation samples are scored after this step."""
        epochs, rest = divmod(step, self.loader.steps_per_epoch)
        whole = rest == 0 and epochs % self.config.train.validate_every == 0
        return self.validate is not None and (whole or step == self.last_step)

    def _validated(self, step: int) -> bool:
        """Whether the run's files have these scores; rank 0 says so to all."""
        lines = read_lines(self.run_dir / VALIDATION) if self.main else []
        return agree(any(line.get("step") == step for line in lines), None)

    def _validate(self, step: int) -> None:
        """Score the validation samples with the encoder as it is, and write the figures down."""
        assert self.validate is not None
        began = time.monotonic()
        encoder = self.setup.learner.encoder
        modes = [(module, module.training) for module in encoder.modules()]
        self.at(step, "validating")
        figures = self.validate(encoder.eval(), self.dataset, self.config, lambda: self.at(step, "validating"))
        for module, mode in modes:
            module.training = mode
        epoch = step / self.loader.steps_per_epoch
        record = {"step": step, "epoch": int(epoch) if epoch.is_integer() else epoch, **figures}
        seconds = time.monotonic() - began
        self.log.append(VALIDATION, {**record, "seconds": seconds, "time": time.time()})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in list(figures.items())[:3])
        self.log.say(f"epoch {record['epoch']:g}: validation  {shown}  ({seconds:.1f} s)")
        self.window.started += seconds  # not part of the speed of training

    def _account(self, result: StepResult, batch: Batch, step: int, epoch: int) -> None:
        """Write down bad samples and a skipped step; give up after too many."""
        self.loss = result.loss
        if result.num_bad:
            self._account_bad(batch, step, epoch)
        if result.applied:
            self.nonfinite = 0
            return
        self.nonfinite += 1
        self.skipped += 1
        self.log.append(SKIPPED, {"step": step, "epoch": epoch, "ranks": self.stepper.suspects(batch)})
        self.log.say(
            f"step {step}: loss or gradients not finite; skipped on all ranks, ids in {self.run_dir / SKIPPED}"
        )
        if self.nonfinite >= self.config.train.max_nonfinite:
            raise LaunchError(
                f"{self.run_dir}: step {step}: loss or gradients not finite {self.nonfinite} times in a row; "
                f"the ids are in {SKIPPED}; lower optim.lr, raise loss.tau, or look at these samples"
            )

    def _account_bad(self, batch: Batch, step: int, epoch: int) -> None:
        found = self.stepper.bad_samples(batch)
        for sample, error in found:
            self.log.append(BAD, {"step": step, "epoch": epoch, "id": sample, "error": error})
            self.log.say(f"step {step}: left out: {error}")
        self.bad |= {sample for sample, _ in found}
        if len(self.bad) > self.config.data.max_bad:
            raise DataError(
                f"{self.run_dir}: step {step}: {len(self.bad)} samples cannot be read, more than "
                f"data.max_bad={self.config.data.max_bad}; the list is in {BAD}; check with "
                f"marc-shard --verify {self.config.data.dir}"
            )

    def _report(self, result: StepResult, batch: Batch, step: int, epoch: int, lr: float) -> None:
        self.window.images += batch.global_size * self.config.data.num_views
        if step % self.config.train.log_every and step not in (1, self.last_step):
            self.log.advance(step)
            return
        now = time.monotonic()
        seconds = max(now - self.window.started, 1e-9)
        self.log.metrics(
            {
                "step": step,
                "epoch": epoch,
                "loss": result.loss,
                "lr": lr,
                "grad_norm": result.grad_norm,
                "skipped": self.skipped,
                "bad_samples": len(self.bad),
                **describe(result.figures),
                "images_per_s": self.window.images / seconds,
                "loader_wait": min(self.window.waited / seconds, 1.0),
                "time": time.time(),
            }
        )
        self.window = Window(now)

    def _save(self, step: int) -> None:
        self.at(step, "saving")
        if not self.main:
            return
        learner = self.setup.learner
        payload = {
            "epoch": step // self.loader.steps_per_epoch,
            "step_in_epoch": step % self.loader.steps_per_epoch,
            "nonfinite": self.nonfinite,
            "skipped": self.skipped,
            "bad": sorted(self.bad),
            "model": learner.encoder.state_dict(),
            "prototypes": None if learner.prototypes is None else learner.prototypes.detach(),
            "memory": self.setup.memory.state(),
            "optimiser": self.setup.optimiser.state_dict(),
            "settings": plain_settings(self.config),
            "dataset": self.dataset.name,
            "fingerprint": self.dataset.fingerprint,
            "classes": list(self.dataset.classes),
        }
        save_checkpoint(self.run_dir, step, payload, self.config.train.keep_checkpoints)

    def _export(self, step: int) -> None:
        if not self.main:
            return
        facts = {
            "dataset": self.dataset.name,
            "fingerprint": self.dataset.fingerprint,
            "classes": list(self.dataset.classes),
            "step": step,
            "total_steps": self.total_steps,
        }
        path = save_encoder(self.setup.learner.encoder, self.config, facts)
        self.log.say(f"step {step} of {self.total_steps} done; encoder in {path}")
