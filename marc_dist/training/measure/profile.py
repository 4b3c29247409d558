"""Where a step's time goes: the run's real parts, timed for some steps, then traced for a few."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from marc_dist import comm
from marc_dist.config import Config
from marc_dist.data.batches import Batch
from marc_dist.training.measure.fresh_run import endless_batches, fresh_run
from marc_dist.training.schedule import learning_rate
from marc_dist.training.setup import Setup

WARM_STEPS = 2
TRACED_STEPS = 3
STEP = {
    "loading": "wait for the loader",
    "encoding": "forward",
    "gathering": "gather",
    "contrasting": "loss",
    "backpropagating": "backward",
    "agreeing": "agree",
    "updating": "step",
}
"""What the training process does one after the other, by phase (``watchdog.PHASES``)."""
LOADER = ("read", "decode", "augment")
"""What the loader does beside it, in processes of its own; on a GPU, see the trace."""


class _Clock:
    """Seconds by phase. On a GPU every change of phase waits for what was started: figures are true, steps slower."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.device: torch.device | None = None
        self._phase, self._since = "starting", time.perf_counter()
        self._region: Any = None

    def at(self, step: int, phase: str) -> None:
        """The run says where it is; shown in the trace, too."""
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now
        if self._region is not None:
            self._region.__exit__(None, None, None)
        self._region = record_function(STEP.get(phase, phase))
        self._region.__enter__()


@dataclass(frozen=True)
class Profile:
    """Milliseconds a step.

    Attributes:
        num_steps: that were measured.
        step: of each part of a step, the mean over ranks; they add up to the step.
        loader: of each part of a batch's making, summed over the loader's processes of a rank, the mean over ranks.
        slowest: of each part of ``step``, the rank that took longest and its milliseconds.
        images_per_s: views through the encoder, all ranks.
        trace: where this rank's trace lies; open it with chrome://tracing or Perfetto.
        notes: where pictures come from, which loss runs.
    """

    num_steps: int
    step: dict[str, float]
    loader: dict[str, float]
    slowest: dict[str, tuple[int, float]]
    images_per_s: float
    trace: Path
    notes: list[str]


def profile_rank(config: Config, num_steps: int) -> Profile:
    """One rank of a measured run from fresh weights; nothing in ``train.run_dir`` but its folder ``profile`` changes.

    Args:
        config: the run's settings.
        num_steps: steps to measure, after 2 to warm up; 3 more are traced.

    Raises:
        ConfigError, DataError, LaunchError: as ``trainer.train``.
    """
    clock = _Clock()
    with fresh_run(config, "profile", clock.at) as (setup, out):
        clock.device = setup.device
        batches = endless_batches(setup)
        step = _take(setup, clock, islice(batches, WARM_STEPS), 0)[0]
        clock.seconds.clear()
        step, images, loader = _take(setup, clock, islice(batches, num_steps), step)
        seconds = dict(clock.seconds)
        trace = out / f"trace-rank{comm.rank()}.json.gz"
        kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (setup.device.type == "cuda")]
        with profile(activities=kinds) as traced:
            _take(setup, clock, islice(batches, TRACED_STEPS), step)
            clock.at(0, "done")
        batches.close()
        traced.export_chrome_trace(str(trace))
        found = _summary(num_steps, seconds, loader, images, trace, [*setup.loader.notes, setup.implementation])
        if comm.rank() == 0:
            told = {**found.__dict__, "trace": trace.name}
            (out / "profile.json").write_text(json.dumps(told, indent=2) + "\n")
    return found


def _take(setup: Setup, clock: _Clock, batches: Iterator[Batch], step: int) -> tuple[int, int, dict[str, float]]:
    """Steps with these batches: the next step's number, how many views they had, and what the loader says."""
    config, images, loader = setup.config, 0, dict.fromkeys(LOADER, 0.0)
    total = config.train.epochs * setup.loader.steps_per_epoch
    clock.at(step + 1, "loading")
    for batch in batches:
        setup.stepper.take(batch, step, learning_rate(config.optim, min(step, total - 1), total), stop=False)
        step += 1
        images += batch.global_size * config.data.num_views
        for name, value in batch.seconds.items():
            loader[name] += value
        clock.at(step + 1, "loading")
    return step, images, loader


def _summary(
    num_steps: int, seconds: dict[str, float], loader: dict[str, float], images: int, trace: Path, notes: list[str]
) -> Profile:
    mine = {label: 1000 * seconds.get(phase, 0.0) / num_steps for phase, label in STEP.items()}
    every = comm.gather_object((mine, {name: 1000 * value / num_steps for name, value in loader.items()}))
    mean = {label: sum(rank[0][label] for rank in every) / len(every) for label in mine}
    slowest = {label: max((ranks[0][label], rank) for rank, ranks in enumerate(every)) for label in mine}
    return Profile(
        num_steps=num_steps,
        step=mean,
        loader={name: sum(rank[1][name] for rank in every) / len(every) for name in loader},
        slowest={label: (rank, value) for label, (value, rank) in slowest.items()},
        images_per_s=1000 * images / num_steps / sum(mean.values()),
        trace=trace,
        notes=notes,
    )
