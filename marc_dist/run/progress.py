"""How far a run is, from the files in its folder alone: metrics, logs, heartbeats, how ranks ended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from marc_dist.config import Config, MarcError, load_config
from marc_dist.files import folder_time, json_records
from marc_dist.run.attempt_id import AttemptId
from marc_dist.run.attempts import ATTEMPTS, newest_step
from marc_dist.run.folder import METRICS, log_path
from marc_dist.run.heartbeats import Beat, late_ranks
from marc_dist.run.rank_ends import RankEnd, first_failed, read_end

NEWEST_BYTES = 1 << 18
"""The end of a file that is looked at: these files grow for weeks, and a list looks at many."""
SIGNS = (METRICS, ATTEMPTS, "logs/rank-0.log", "logs/.beat-0.json")
"""Files of a run folder that change while it lives."""
_OF_STEPS = re.compile(rb"^step \d+/(\d+)  ", re.MULTILINE)


class Progress(NamedTuple):
    """How far a training is.

    Attributes:
        step: global steps done.
        total_steps: when it ends; None when nothing says so yet.
        loss: of the last step that was logged; None when it was not finite.
        lr: learning rate of that step.
        images_per_s: views a second, all ranks together.
        loader_wait: share of the time that training waits for pictures, 0 to 1.
        eta_s: seconds left at the speed of the last steps; None before two steps of this attempt were logged.
        time: when that step was logged, seconds since 1970.
    """

    step: int
    total_steps: int | None
    loss: float | None = None
    lr: float | None = None
    images_per_s: float | None = None
    loader_wait: float | None = None
    eta_s: float | None = None
    time: float | None = None

    def __str__(self) -> str:
        total = "" if self.total_steps is None else f"/{self.total_steps}"
        words = [f"step {self.step}{total}"]
        words += [] if self.loss is None else [f"loss {self.loss:.4f}"]
        words += [] if self.images_per_s is None else [f"{self.images_per_s:.0f} images/s"]
        words += [] if self.eta_s is None else [f"left {clock(self.eta_s)}"]
        return "  ".join(words)


def clock(seconds: float) -> str:
    """``1:02:03``."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _end_of(path: Path, size: int = NEWEST_BYTES) -> bytes:
    """The last bytes of a file, from the beginning of a line on; nothing when there is none."""
    with suppress(OSError), path.open("rb") as file:
        start = max(0, file.seek(0, 2) - size)
        file.seek(start)
        data = file.read(size)
        return data.partition(b"\n")[2] if start else data
    return b""


def _records(data: bytes) -> list[dict[str, Any]]:
    return [record for _, record in json_records(data.splitlines()) if isinstance(record.get("step"), int)]


def _number(record: dict[str, Any], key: str) -> float | None:
    value = record.get(key)
    return float(value) if isinstance(value, int | float) else None


def read_progress(run_dir: Path, after_step: int = 0) -> Progress:
    """How far a training is.

    Args:
        run_dir: the run folder.
        after_step: what the running attempt started from; the speed of earlier ones says nothing.
    """
    total = _told_total(run_dir)
    records = _records(_end_of(run_dir / METRICS))
    if not records:
        return Progress(newest_step(run_dir), total)
    last = records[-1]
    left = None if total is None else _left(records, total, after_step)
    loss, lr, speed, wait = (_number(last, key) for key in ("loss", "lr", "images_per_s", "loader_wait"))
    return Progress(int(last["step"]), total, loss, lr, speed, wait, left, _number(last, "time"))


def _left(records: Sequence[dict[str, Any]], total: int, after_step: int) -> float | None:
    """Seconds left; all times are of rank 0's clock. Pure."""
    timed = [(record["step"], _number(record, "time") or 0.0) for record in records[-20:]]
    timed = [(step, at) for step, at in timed if step > after_step]
    if len(timed) < 2 or timed[-1][0] <= timed[0][0]:
        return None
    speed = (timed[-1][1] - timed[0][1]) / (timed[-1][0] - timed[0][0])
    return float(max(0.0, speed) * max(total - timed[-1][0], 0))


def _told_total(run_dir: Path) -> int | None:
    """What the run itself says in its log."""
    found = _OF_STEPS.findall(_end_of(log_path(run_dir, 0)))
    return int(found[-1]) if found else None


def planned_steps(run_dir: Path) -> int | None:
    """Steps of the whole run from its settings and data, as the trainer counts them; None when they do not say."""
    try:
        config = load_config(run_dir / "config.yaml")
        if config.data.reader != "indexed" or config.data.sampler != "uniform":  # counted in the rank
            return config.train.max_steps
        from marc_dist.data.dataset import open_dataset
        from marc_dist.data.plan import num_steps

        rows = open_dataset(config.data.dir, shards=False).train_rows(config.data)
    except (MarcError, OSError):
        return None
    whole = config.train.epochs * num_steps(len(rows), config.train.global_batch)
    return min(whole, config.train.max_steps or whole)


def life_age_s(run_dir: Path, names: Sequence[str] = SIGNS) -> float | None:
    """Seconds since the run's files last changed, by the clock of their file system; None when it has written none.

    Args:
        run_dir: the run folder.
        names: of the files that count, below the folder.
    """
    times = []
    for name in names:
        with suppress(OSError):
            times.append((run_dir / name).stat().st_mtime)
    return max(0.0, folder_time(run_dir) - max(times)) if times else None


def who_is_late(run_dir: Path, beats: Sequence[Beat | None], quiet_s: float) -> str | None:
    """Which ranks keep the others waiting, in words; None when nothing looks wrong.

    Args:
        run_dir: the run folder, whose settings say how long a silence may be.
        beats: see ``heartbeats.read_beats``.
        quiet_s: seconds since a step was logged, or since the attempt began.
    """
    return late_now(beats, quiet_s, _timeout_s(run_dir))


def late_now(beats: Sequence[Beat | None], quiet_s: float, timeout_s: float) -> str | None:
    """Which ranks keep the others waiting; see ``who_is_late``. Pure.

    Args:
        beats: of every rank of the attempt.
        quiet_s: seconds since a step was logged, or since the attempt began.
        timeout_s: of the run.
    """
    if not any(beats):  # one rank beats for nobody
        return None
    patience = max(timeout_s / 4, 3.0)
    if quiet_s > patience or any(beat is not None and beat.age_s > patience for beat in beats):
        return late_ranks(beats, timeout_s)
    return None


def _timeout_s(run_dir: Path) -> float:
    try:
        return load_config(run_dir / "config.yaml").train.timeout_s
    except (MarcError, OSError):
        return Config().train.timeout_s


def first_failure(run_dir: Path, world: int, mine: AttemptId) -> RankEnd | None:
    """The rank that failed first in an attempt, when the ranks' own notes say so.

    Args:
        run_dir: the run folder.
        world: number of ranks.
        mine: the attempt.
    """
    ends = [read_end(run_dir / "logs", rank, mine) for rank in range(world)]
    return first_failed(ends)
