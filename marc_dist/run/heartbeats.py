"""Heartbeats: where each rank is in its step, as it writes it into the run folder; who keeps the others waiting.

Files, because the process group's store lives in rank 0, which may be the one that hangs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from marc_dist.files import folder_time, read_json
from marc_dist.run.attempt_id import AttemptId

PHASES = (
    "starting",
    "checking",
    "loading",
    "encoding",
    "gathering",
    "contrasting",
    "backpropagating",
    "agreeing",
    "updating",
    "saving",
    "validating",
    "done",
)
"""What a rank does in a step, in order. A rank that is behind in (step, phase) keeps the others waiting."""

SHARES = 20  # beats in a time-out


class Beat(NamedTuple):
    """Where a rank was when it last wrote, ``age_s`` seconds ago by the clock of the file system."""

    rank: int
    step: int
    phase: int
    host: str
    pid: int
    age_s: float


def beat_path(run_dir: Path, rank: int) -> Path:
    """The file of one rank."""
    return run_dir / "logs" / f".beat-{rank}.json"


def read_beats(run_dir: Path, world: int, mine: AttemptId | None = None) -> list[Beat | None]:
    """The last heartbeat of every rank; None where none was ever written.

    Args:
        run_dir: the run folder.
        world: number of ranks.
        mine: the attempt that is asked for: heartbeats of others do not count. None takes any.
    """
    now = folder_time(run_dir / "logs")
    beats: list[Beat | None] = []
    for rank in range(world):
        path = beat_path(run_dir, rank)
        try:
            beats.append(beat_in(read_json(path), rank, now - path.stat().st_mtime, mine))
        except (OSError, ValueError):
            beats.append(None)
    return beats


def beat_in(told: Mapping[str, Any], rank: int, age_s: float, mine: AttemptId | None) -> Beat | None:
    """A heartbeat from the fields of its file; None when it is of another attempt, or damaged. Pure.

    Args:
        told: the fields.
        rank: whose it is.
        age_s: seconds since it was written.
        mine: see ``read_beats``.
    """
    if mine is not None and not mine.wrote(told):
        return None
    try:
        beat = Beat(rank, int(told["step"]), int(told["phase"]), str(told["host"]), int(told["pid"]), max(age_s, 0.0))
    except (ValueError, KeyError, TypeError):
        return None
    return beat if 0 <= beat.phase < len(PHASES) else None


def late_ranks(beats: Sequence[Beat | None], timeout_s: float, *, met: bool = False) -> str:
    """Who keeps a world waiting, in words. Pure.

    Args:
        beats: of every rank; None where there is none: never written, or taken away by a rank that has done its work.
        timeout_s: of the run; a beat is written ``SHARES`` times as often.
        met: all ranks have started, so one without a beat has done its work and left.
    """
    silent = [
        f"rank {rank} never started" if beat is None else
        f"rank {rank} ({beat.host}, process {beat.pid}) stopped answering {beat.age_s:.0f} s ago, {_where(beat)}"
        for rank, beat in enumerate(beats)
        if (not met if beat is None else beat.age_s > max(timeout_s / 4, 3.0))
    ]  # fmt: skip
    if silent:
        return "; ".join(silent)
    known = [beat for beat in beats if beat is not None]
    last = min((beat.step, beat.phase) for beat in known)
    behind = [beat for beat in known if (beat.step, beat.phase) == last]
    if len(behind) == len(beats):
        return f"all ranks are {_where(known[0])}; the network between them, or their storage, does not answer"
    late = [f"rank {beat.rank} ({beat.host}, process {beat.pid}) is still {_where(beat)}" for beat in behind]
    return "; ".join(late + (["the others have left"] if len(known) < len(beats) else []))


def _where(beat: Beat) -> str:
    return f"{PHASES[beat.phase]} in step {beat.step}"
