"""Mistakes that one could make in the protocols, planted on purpose: stories must find every one of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from marc_dist.cluster import (
    backends,
    rank_process,
    ray_ranks,
    ray_supervisor,
    sbatch_hooks,
    slurm,
    slurm_cancel,
    srun_task,
)
from marc_dist.config import LaunchError
from marc_dist.run import heartbeats, job, rank_ends, run_lock
from marc_dist.run.lock_file import read_holder
from marc_dist.training import checkpoint, watchdog

Plant = Callable[[], AbstractContextManager[Any]]


def _by_clock() -> AbstractContextManager[Any]:
    """A submission's attempts are those that began later, by the clocks of whoever wrote them."""
    return mock.patch.object(
        job, "attempts_of", lambda found, token, since: [one for one in found if one.started_at >= since]
    )


def _count_forgotten() -> AbstractContextManager[Any]:
    """The batch script looks at its last attempt only."""
    real = sbatch_hooks.attempts_of_job
    return mock.patch.object(sbatch_hooks, "attempts_of_job", lambda *words: real(*words)[-1:])


def _no_run_lock() -> AbstractContextManager[Any]:
    """Nobody looks whether somebody trains in the folder."""
    return mock.patch.object(run_lock, "live_holder", lambda *words, **rest: None)


@contextmanager
def _lock_for_ever() -> Iterator[None]:
    """A lock file counts whether its holder lives or not."""

    def held(run_dir: Path, mine: Any, say: Any, **rest: Any) -> Any:
        found = read_holder(run_dir)
        return None if found is None or found.attempt == mine else found

    with mock.patch.object(run_lock, "live_holder", held), mock.patch.object(backends, "live_holder", held):
        yield


@contextmanager
def _no_launch_lock() -> Iterator[None]:
    """Two launches look and submit at the same time."""

    @contextmanager
    def nothing(folder: Path) -> Iterator[None]:
        folder.mkdir(parents=True, exist_ok=True)
        yield

    with mock.patch.object(backends, "launch_lock", nothing), mock.patch.object(run_lock, "launch_lock", nothing):
        yield


def _old_first() -> AbstractContextManager[Any]:
    """Old checkpoints go before the new one is there."""
    real = checkpoint.save_checkpoint

    def save(run_dir: Path, step: int, payload: dict[str, Any], keep: int) -> Path:
        for old in checkpoint.checkpoints(run_dir)[: max(0, len(checkpoint.checkpoints(run_dir)) - keep + 1)]:
            old.unlink(missing_ok=True)
        return real(run_dir, step, payload, keep)

    return mock.patch("tests.simulation.job_life_ranks.save_checkpoint", save)


def _in_place() -> AbstractContextManager[Any]:
    """Files are written over, not replaced."""

    def write(path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            raise LaunchError(f"{path}: {error}") from None

    return mock.patch.multiple(job, write_atomic=write)


@contextmanager
def _unchecked() -> Iterator[None]:
    """Checkpoints are written in their place, and the newest is taken whether it is whole or not."""

    def write(path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def newest(run_dir: Path, say: Any) -> Path | None:
        return max(checkpoint.checkpoints(run_dir), default=None)

    with (
        mock.patch.object(checkpoint, "write_atomic", write),
        mock.patch("tests.simulation.job_life_ranks.newest_checkpoint", newest),
    ):
        yield


def _cancel_untold() -> AbstractContextManager[Any]:
    """A cancel is not written down."""
    return mock.patch.object(slurm_cancel, "note_cancel", lambda *words: None)


@contextmanager
def _any_end() -> Iterator[None]:
    """Ends of earlier attempts are neither cleared nor told apart."""
    with (
        mock.patch.object(sbatch_hooks, "clear_ends", lambda *words: None),
        mock.patch.object(rank_ends, "end_in", _end_of_anybody(rank_ends.end_in)),
        mock.patch("marc_dist.cluster.rank_process.make_room", lambda *words: None),
    ):
        yield


def _end_of_anybody(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda told, rank, mine: real(told, rank, None)


def _lowest_rank() -> AbstractContextManager[Any]:
    """Of many failed ranks the lowest is named."""

    def first(ends: Any) -> Any:
        return next((end for end in ends if end is not None and rank_ends.failed(end)), None)

    return mock.patch.object(rank_ends, "first_failed", first)


def _end_by_clock() -> AbstractContextManager[Any]:
    """Which rank was first is told by the clocks of their machines."""
    return mock.patch.object(rank_ends, "file_time", lambda path: time.time())


def _end_as_seen() -> AbstractContextManager[Any]:
    """A killed rank failed when it was seen dead, not when it was last seen alive."""
    real = rank_process.note_end
    return mock.patch.object(
        rank_process,
        "note_end",
        lambda path, code, ended, mine, asked: real(path, code, time.time(), mine, asked=asked),
    )


def _hasty_tasks() -> AbstractContextManager[Any]:
    """The task of a failed rank ends at once, and srun with it all others."""
    return mock.patch.object(srun_task, "SETTLE_S", 0.0)


def _told_too_early() -> AbstractContextManager[Any]:
    """A rank that is told to end while it is being started is not noted as told."""

    def tell(self: Any, number: int) -> None:
        if self.process is not None and self.process.ended is None:
            self.process.send(number)

    return mock.patch.object(srun_task._RankTask, "_tell", tell)


@contextmanager
def _silence_is_freedom() -> Iterator[None]:
    """A job of which Slurm says nothing just now is taken for over."""
    real = slurm.state
    with mock.patch.object(slurm, "state", lambda *words: real(*words)._replace(silent=False)):
        yield


def _stop_is_failure() -> AbstractContextManager[Any]:
    """A stop that saved is no reason to start again."""
    real = sbatch_hooks.rule
    return mock.patch.object(
        sbatch_hooks, "rule", lambda code, *words: (False, "it ended") if code == 85 else real(code, *words)
    )


def _stalls_uncounted() -> AbstractContextManager[Any]:
    """Starts without progress are not counted."""
    real = sbatch_hooks.rule
    return mock.patch.object(
        sbatch_hooks, "rule", lambda code, lost, first, step, most, stalls: real(code, lost, first, step, most, 10**6)
    )


def _age_by_clock() -> AbstractContextManager[Any]:
    """The age of a heartbeat is told by the clock of whoever looks."""
    return mock.patch.object(heartbeats, "folder_time", lambda folder: time.time())


def _first_element() -> AbstractContextManager[Any]:
    """An array stands as its first element does."""
    return mock.patch.object(backends, "array_state", lambda parts: parts[0])


@contextmanager
def _one_folder() -> Iterator[None]:
    """All elements of an array train in the folder of the first."""

    def element(job_dir: Path, env: Any) -> Path:
        run_dirs = job.read_job(job_dir).run_dirs
        return Path(run_dirs[0]) if run_dirs else job_dir

    with mock.patch.object(sbatch_hooks, "element_dir", element), mock.patch.object(srun_task, "element_dir", element):
        yield


def _left_are_late() -> AbstractContextManager[Any]:
    """Ranks that have done their work and left are taken for ranks that never started."""
    real = heartbeats.late_ranks
    return mock.patch.object(watchdog, "late_ranks", lambda beats, timeout_s, **rest: real(beats, timeout_s))


def _forgetful_supervisor() -> AbstractContextManager[Any]:
    """Ray's supervisor knows its last start only."""
    real = ray_supervisor.attempts_of_job
    return mock.patch.object(ray_supervisor, "attempts_of_job", lambda *words: real(*words)[-1:])


def _end_before_its_note() -> AbstractContextManager[Any]:
    """A rank's actor tells of its end before that is noted, with the time of its own clock."""

    def poll(self: Any) -> Any:
        if self.process is None or self.process.ended is None or self.process.code is None:
            return self.trouble
        return self.process.end()._replace(code=self.process.code, asked=self.process.asked)

    return mock.patch.object(ray_ranks.Rank, "poll", poll)


def _silence_is_late() -> AbstractContextManager[Any]:
    """A rank that was lost with its node failed when that was noticed."""

    def lose(self: Any, why: str) -> None:
        self.end = rank_ends.RankEnd(self.rank, time.time(), None, why, self.host, self.asked is not None)

    return mock.patch.object(ray_ranks._Seen, "lose", lose)


def _nodes_kept() -> AbstractContextManager[Any]:
    """The nodes of a start are not given back."""
    return mock.patch.object(ray_supervisor, "_remove_group", lambda name: None)


def _lost_supervisor_is_no_end() -> AbstractContextManager[Any]:
    """A supervisor that finds the start of a lost one writes it off as a mistake."""
    real = ray_supervisor.start_again
    return mock.patch.object(
        ray_supervisor, "start_again", lambda code, lost, *words: real(code, lost and code != 1, *words)
    )


BUGS: dict[str, tuple[str | None, Plant]] = {
    "attempts matched by clocks": ("kills", _by_clock),
    "restart count forgotten": ("kills", _count_forgotten),
    "stalls not counted": ("kills", _stalls_uncounted),
    "no run lock": ("launches", _no_run_lock),
    "run lock that outlives its holder": ("kills", _lock_for_ever),
    "no launch lock": ("launches", _no_launch_lock),
    "old checkpoints removed first": ("crashes", _old_first),
    "checkpoints written in place, not checked": ("crashes", _unchecked),
    "job.json written in place": ("crashes", _in_place),
    "cancel not written down": ("cancels", _cancel_untold),
    "ends of earlier attempts count": ("kills", _any_end),
    "lowest rank named": ("kills", _lowest_rank),
    "first rank told by clocks": ("kills", _end_by_clock),
    "killed ranks noted when seen dead": ("kills", _end_as_seen),
    "tasks of failed ranks do not wait": ("kills", _hasty_tasks),
    "signals during a start not noted": ("launches", _told_too_early),
    "a silent Slurm has no jobs": ("silence", _silence_is_freedom),
    "stopped and saved is not started again": ("stops", _stop_is_failure),
    "age of a heartbeat by the own clock": ("holds", _age_by_clock),
    "an array's word is that of its first element": ("arrays", _first_element),
    "elements of an array share a folder": ("arrays", _one_folder),
    "ranks that have left are late": ("ends", _left_are_late),
    "Ray's supervisor forgets its starts": ("ray", _forgetful_supervisor),
    "Ray: an end is told before it is noted": ("ray", _end_before_its_note),
    "Ray: a lost rank failed when it was noticed": ("ray", _silence_is_late),
    "Ray: nodes are not given back": ("ray", _nodes_kept),
    "Ray: a lost supervisor is a mistake": ("ray", _lost_supervisor_is_no_end),
}
"""Name -> the theme of the stories that look for it, and the patch."""
