"""A learning-rate range test (Smith 2015): the rate rises step by step until the loss does, too.

The suggestion is the rate at which the smoothed loss falls most steeply, per factor of ten. It is a hint: it looks at a
hundred steps from fresh weights, not at a whole run with its warm-up and decay.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from marc_dist import comm
from marc_dist.config import Config
from marc_dist.files import write_atomic
from marc_dist.training.measure.fresh_run import endless_batches, fresh_run

LOWEST, HIGHEST = 1e-6, 10.0
"""Learning rates of the first and the last step."""
WORSE = 4.0
"""The test ends when the smoothed loss is so many times its best."""


@dataclass(frozen=True)
class LrFind:
    """What a range test found.

    Attributes:
        num_steps: that were asked for.
        rates: of the steps that were taken.
        losses: of the same steps, before their update; the last one may not be finite.
        smoothed: mean over neighbouring steps, a tenth of all of them, None near both ends.
        suggestion: the rate of the steepest fall; None when the loss did not fall.
        ended: why there were no more steps.
        folder: where the figures lie.
    """

    num_steps: int
    rates: list[float]
    losses: list[float]
    smoothed: list[float | None]
    suggestion: float | None
    ended: str
    folder: Path

    @property
    def lowest(self) -> tuple[float, float] | None:
        """Rate and value of the lowest smoothed loss."""
        found = [(value, rate) for rate, value in zip(self.rates, self.smoothed, strict=True) if value is not None]
        return (min(found)[1], min(found)[0]) if found else None


def lr_find_rank(config: Config, num_steps: int) -> LrFind:
    """One rank of a range test from fresh weights; in ``train.run_dir``, only the folder ``lr_find`` changes.

    Args:
        config: the run's settings; ``optim.lr`` and the schedule are not read.
        num_steps: steps from ``LOWEST`` to ``HIGHEST``, equal factors apart.

    Raises:
        ConfigError, DataError, LaunchError: as ``trainer.train``.
    """
    width = max(1, num_steps // 10)
    rates, losses, best, ended = [], [], math.inf, "the highest rate"
    with fresh_run(config, "lr_find", lambda step, phase: None) as (setup, folder):
        batches = endless_batches(setup, equal=True)  # the loss grows with the batch
        for step, batch in enumerate(islice(batches, num_steps)):
            rates.append(LOWEST * (HIGHEST / LOWEST) ** (step / (num_steps - 1)))
            losses.append(setup.stepper.take(batch, step, rates[-1], stop=False).loss)
            if not math.isfinite(losses[-1]):
                ended = "a loss that is not finite"
                break
            newest = math.fsum(losses[-width:]) / width if len(losses) >= width else math.inf
            best = min(best, newest)
            if newest > WORSE * best:
                ended = f"a loss {WORSE:g} times its best"
                break
        batches.close()
        smoothed = smooth(losses, width)
        found = LrFind(num_steps, rates, losses, smoothed, steepest(rates, smoothed, width), ended, folder)
        if comm.rank() == 0:
            lines = zip(rates, losses, smoothed, strict=True)
            records = [
                {"step": step + 1, "lr": rate, "loss": loss if math.isfinite(loss) else None, "smoothed": mean}
                for step, (rate, loss, mean) in enumerate(lines)
            ]
            write_atomic(folder / "lr_find.jsonl", "".join(json.dumps(line) + "\n" for line in records).encode())
    return found


def smooth(losses: list[float], width: int) -> list[float | None]:
    """The mean of ``width`` steps at the middle one of them; None where there are not so many, or one is not finite."""
    out: list[float | None] = [None] * len(losses)
    for start in range(len(losses) - width + 1):
        mean = math.fsum(losses[start : start + width]) / width
        out[start + width // 2] = mean if math.isfinite(mean) else None
    return out


def steepest(rates: list[float], smoothed: list[float | None], width: int) -> float | None:
    """The rate at which the smoothed loss falls most per factor of ten, up to its lowest point; None without a fall.

    Args:
        rates: equal factors apart.
        smoothed: the loss there.
        width: steps over which a fall is taken.
    """
    known = [(rate, value) for rate, value in zip(rates, smoothed, strict=True) if value is not None]
    lowest = min(range(len(known)), key=lambda place: known[place][1], default=0)
    falls = [(known[end - width][1] - known[end][1], known[end - width // 2][0]) for end in range(width, lowest + 1)]
    return max(falls)[1] if falls and max(falls)[0] > 0 else None
