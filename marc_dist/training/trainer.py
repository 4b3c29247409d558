"""A whole run: data, encoder and optimiser; go on from the newest checkpoint; step, log, save; export the encoder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marc_dist import comm
from marc_dist.config import Config, DataError, LaunchError, MarcError
from marc_dist.data.batches import Batch, Loader
from marc_dist.encoder.device import resolve_device
from marc_dist.encoder.export import save_encoder
from marc_dist.preflight.checks import PREFLIGHT, preflight_of_run
from marc_dist.retrieval.vectors.store import backbone_fingerprint
from marc_dist.run.folder import BAD, SKIPPED, plain_settings, write_config
from marc_dist.run.settings import placed
from marc_dist.training.checkpoint import save_checkpoint
from marc_dist.training.config_hints import hints
from marc_dist.training.digest import Common, Comparison
from marc_dist.training.log import RunLog, console
from marc_dist.training.schedule import learning_rate
from marc_dist.training.setup import Setup, agree
from marc_dist.training.signals import StopFlag
from marc_dist.training.step import Stepper, StepResult
from marc_dist.training.step_stats import Window, describe
from marc_dist.training.trackers.mirrors import Mirrors, require_trackers
from marc_dist.training.validation.best import to_payload
from marc_dist.training.validation.scores import validate as score_validation
from marc_dist.training.validation.validator import Scores, Validator
from marc_dist.training.watchdog import Watchdog


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
    validate: Scores | None = score_validation,
) -> TrainResult:
    """One rank of a run: join the world that the environment describes, train, leave.

    Args:
        config: the run's settings.
        resume: see ``train``.
        stop: see ``train``.
        give_up: must end the process; called from another thread, with the reason, when ``train.timeout_s`` have
            passed without progress, in a world of one, too. Nobody looks on when None.
        validate: see ``train``.
    """
    require_trackers(config)
    here, device, timeout_s = (
        comm.world_from_env(os.environ),
        resolve_device(config.train.device),
        config.train.timeout_s,
    )
    watchdog = None
    if give_up is not None:  # before the ranks meet: one may be late for that, too
        watchdog = Watchdog(Path(config.train.run_dir), here.rank, here.world, timeout_s, give_up)
        watchdog.start()
    try:
        # the process group's own limit is longer: it knows no names, so the watchdog speaks first
        comm.join(device.type, timeout_s=2 * timeout_s + 30, folder=Path(config.train.run_dir) / "logs")
        if os.environ.get(PREFLIGHT) == "1":
            preflight_of_run(config, here, device, None if watchdog is None else watchdog.at)
        result = train(config, resume=resume, stop=stop, watchdog=watchdog, validate=validate)
    except BaseException:
        if watchdog is not None and here.world == 1:  # of several ranks, it sees to it that a failed one ends
            watchdog.stop()
        raise
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
    validate: Scores | None = score_validation,
) -> TrainResult:
    """Train in the present process group, from the newest checkpoint of ``train.run_dir`` when there is one.

    Args:
        config: the run's settings.
        resume: go on from a checkpoint; False refuses a folder that has some.
        stop: looked at once a step; when set on any rank, all ranks save the same step and return.
        watchdog: told where the run is.
        validate: scores the samples of ``data.validation_share`` every ``train.validate_every`` epochs and at the end,
            each time after the checkpoint of that step; the figures go into ``validation.jsonl``.

    Raises:
        ConfigError: settings that do not fit the machine, or the run so far.
        DataError: shards that cannot be read, or that are not those of the run so far.
        LaunchError: a full disk; too many non-finite steps in a row.
    """
    return _Run(config, resume, StopFlag() if stop is None else stop, watchdog, validate).go()


class _Run:
    def __init__(
        self, config: Config, resume: bool, stop: StopFlag, watchdog: Watchdog | None, validate: Scores | None
    ) -> None:
        self.config = config
        self.at: Callable[[int, str], None] = (lambda step, phase: None) if watchdog is None else watchdog.at
        self.run_dir = Path(config.train.run_dir)
        self.stop = stop
        self.main = comm.rank() == 0
        setup = self.setup = Setup(config, resume, self.at, console(self.main).print)
        self.dataset = setup.dataset
        self.total_steps = config.train.epochs * self.loader.steps_per_epoch
        self.last_step = min(self.total_steps, config.train.max_steps or self.total_steps)
        payload = setup.payload
        self.first_step = int(payload["step"]) if payload else 0
        self.nonfinite = int(payload["nonfinite"]) if payload else 0
        self.skipped = int(payload["skipped"]) if payload else 0
        self.bad: set[int] = set(payload["bad"]) if payload else set()
        self._describe()
        mirrors = Mirrors(self.config, console(self.main).print) if self.main else None
        self.log = RunLog(self.run_dir, self.first_step, self.last_step, self.main, mirrors)
        self.validator = Validator(setup, self.log, self.last_step, validate, lambda step: self.at(step, "validating"))
        self.comparison, self.equal_after = Comparison(self._common, setup.device), -1
        self.window = Window(time.monotonic())
        self.loss: float | None = None

    @property
    def loader(self) -> Loader:
        """It changes when frozen parts begin to learn, as the stepper does."""
        return self.setup.loader

    @property
    def stepper(self) -> Stepper:
        return self.setup.stepper

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
            self.validator.catch_up(self.first_step)
            step, interrupted = self._steps()
            if not interrupted:
                self._export(step)
            comm.barrier()  # nobody leaves while rank 0 still writes
            self.log.close(done=not interrupted)
        finally:
            self.log.close()
            self.loader.close()
        return TrainResult(self.run_dir, step, self.total_steps, self.first_step, interrupted, self.skipped, self.loss)

    def _greet(self) -> None:
        for note in (*self.setup.notes, *self.loader.notes, self.setup.implementation):
            self.log.say(note)
        for remark in hints(self.config, len(self.dataset.classes)):
            self.log.say(remark)
        rows = len(self.dataset.train_rows(self.config.data))
        self.log.say(
            f"{self.run_dir}: {self.dataset.name}, {rows} samples, {self.total_steps} steps, {comm.world()} rank(s) on "
            f"{self.setup.device.type}" + (f", going on after step {self.first_step}" if self.first_step else "")
        )

    def _thaw(self) -> None:
        self.log.say(f"after {self.config.model.thaw_after} epochs: everything learns from now on")
        self.setup.thaw()
        for note in self.loader.notes:
            self.log.say(note)

    def _steps(self) -> tuple[int, bool]:
        step = self.first_step
        interrupted = False
        ended = self.validator.ends_early(step)
        while step < self.last_step and not interrupted and not ended:
            if self.setup.thaws_at(step):
                self._thaw()
            epoch, start = divmod(step, self.loader.steps_per_epoch)
            self.window.wait_from = time.monotonic()
            self.at(step + 1, "loading")
            for batch in self.loader.epoch(epoch, start):
                self.window.waited += time.monotonic() - self.window.wait_from
                lr = learning_rate(self.config.optim, step, self.total_steps, self.setup.thaw_step)
                result = self._compared(batch, step, lr)
                step += 1
                self._account(result, batch, step, epoch)
                self._report(result, batch, step, epoch, lr)
                interrupted = result.stop and step < self.last_step
                due = self.validator.due(step)
                if due or interrupted or step == self.last_step or step % self.config.train.checkpoint_every == 0:
                    self._save(step)  # first: scores may take long, and ``catch_up`` makes those that are missing
                if due and not interrupted:
                    self.validator.score(step)
                    self.window.started += self.validator.seconds  # not part of the speed of training
                    ended = self.validator.ends_early(step)
                if interrupted or ended or step == self.last_step:
                    break
                self.window.wait_from = time.monotonic()
                self.at(step + 1, "loading")
        if interrupted:
            self.log.say(
                f"asked to stop ({self.stop.name or 'another rank'}): saved after step {step}; start again to go on"
            )
        return step, interrupted

    def _take(self, batch: Batch, step: int, lr: float) -> StepResult:
        result = self.stepper.take(batch, step, lr, bool(self.stop))
        if self.setup.ema is not None and result.applied:
            self.setup.ema.update(self.setup.learner.encoder, step + 1 - self.setup.averages_from)
        return result

    def _compared(self, batch: Batch, step: int, lr: float) -> StepResult:
        """A step; one that is compared, and ends differently on some rank, is repeated once. See ``digest``."""
        every = self.config.train.digest_every
        if comm.world() == 1 or not every or (step + 1) % every:
            return self._take(batch, step, lr)
        self._refuse_difference(step)
        self.comparison.keep()
        result = self._take(batch, step, lr)
        told = self.comparison.difference()
        if told is not None:
            self.log.say(f"step {step + 1}: {told}; repeated, from the state before it")
            self.comparison.go_back()
            result = self._take(batch, step, lr)
            self._refuse_difference(step + 1, "; the step was repeated")
        self.comparison.drop()
        self.equal_after = step + 1
        return result

    def _refuse_difference(self, step: int, more: str = "") -> None:
        """Stop where the ranks hold different numbers after ``step``, unless they were equal there already."""
        if comm.world() == 1 or not self.config.train.digest_every or self.equal_after == step:
            return
        told = self.comparison.difference()
        if told is not None:
            raise LaunchError(
                f"{self.run_dir}: after step {step} {told}{more}: a fault of memory, processor, GPU or network there; "
                "nothing of it is saved; start again without that node, to go on from the newest checkpoint"
            )
        self.equal_after = step

    def _common(self) -> Common:
        setup, buffers = self.setup, self.config.model.norm != "plain"
        averaged = None if setup.ema is None else setup.ema.module
        return Common(setup.learner, setup.optimiser, averaged, setup.memory, buffers)

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
        self._refuse_difference(step)
        self.at(step, "saving")
        if not self.main:
            return
        self.log.sync()
        learner = self.setup.learner
        payload = {
            "epoch": step // self.loader.steps_per_epoch,
            "step_in_epoch": step % self.loader.steps_per_epoch,
            "nonfinite": self.nonfinite,
            "skipped": self.skipped,
            "bad": sorted(self.bad),
            "model": learner.trained.state_dict(),
            "origin": learner.encoder.origin,
            "pixels": self.setup.scale.facts(),
            "backbone": backbone_fingerprint(learner.encoder) if learner.head_only else None,
            "prototypes": None if learner.prototypes is None else learner.prototypes.detach(),
            "memory": self.setup.memory.state(),
            "optimiser": self.setup.optimiser.state_dict(),
            "ema": None if self.setup.ema is None else self.setup.ema.module.state_dict(),
            "best": to_payload(self.validator.best),
            "settings": plain_settings(placed(self.config)),
            "dataset": self.dataset.name,
            "fingerprint": self.dataset.fingerprint,
            "classes": list(self.dataset.classes),
        }
        save_checkpoint(self.run_dir, step, payload, self.config.train.keep_checkpoints)

    def _export(self, step: int) -> None:
        if not self.main:
            return
        facts: dict[str, Any] = {
            "dataset": self.dataset.name,
            "fingerprint": self.dataset.fingerprint,
            "classes": list(self.dataset.classes),
            "step": step,
            "total_steps": self.total_steps,
        }
        which, best, encoder = "", self.validator.best, self.setup.result
        if best is not None:
            self.setup.trained_of(encoder).load_state_dict(best.weights)  # training is over
            facts |= {"step": best.step, "best": {best.metric: best.score, "epoch": best.epoch}}
            which = f" of epoch {best.epoch:g}, the best by {best.metric} ({best.score:.4f}),"
        path = save_encoder(encoder, self.config, facts, self.setup.scale)
        self.log.say(f"step {step} of {self.total_steps} done; encoder{which} in {path}")
