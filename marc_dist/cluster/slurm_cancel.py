"""The end of a Slurm job that a person asks for: what waits is taken back, what runs saves first."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from pathlib import Path

from marc_dist.cluster.slurm import WORDS, job_name, preset_of, see_forgotten, spans
from marc_dist.cluster.slurm_commands import ask, reason
from marc_dist.config import LaunchError
from marc_dist.run.job import Job, Word, note_cancel

POLL_S = 0.5
AGAIN_S = 5.0
"""A job that is told to save is told again so often."""
GONE = re.compile(r"Invalid job id|already complet|not running|pending execution", re.I)
"""What scancel says of a job that has nobody to signal."""


def cancel(job: Job, job_dir: Path) -> str:
    """End a job for good: what waits is taken back; what runs is told to save and go.

    A bare scancel would leave ranks Slurm's KillWait to save, which is often a few seconds. So they get the signal
    that they also get ahead of the time limit. The batch script reads in ``job.json`` that nothing starts again.
    ``end_cancelled`` ends ranks that do not listen.

    Returns:
        What becomes of it now, in words; of an array, of how many elements.

    Raises:
        LaunchError: Slurm does not answer, or refuses.
    """
    if job.id is None:
        name = job_name(preset_of(job, job_dir), job_dir)
        raise LaunchError(
            f"{job_dir}: its launch was broken off before its id was written down, or Slurm refused it; see with "
            f"squeue --me --name {name} whether it waits, then scancel its id; once it runs, its id is known here"
        )
    now = _elements(job.id)
    waiting = [int(name.rpartition("_")[2]) for name, word in now.items() if job.run_dirs and word == "pending"]
    if waiting:  # by number: with --state=PENDING scancel takes the whole array for one that waits
        _scancel(f"{job.id}_[{spans(sorted(waiting))}]")
    saves = preset_of(job, job_dir).stop_grace_s > 0 and "running" in now.values()
    if saves:
        _scancel(job.id, "--signal=USR2")
    note_cancel(job, job_dir)
    if not saves:
        _scancel(job.id)
    return _what_becomes(list(now.values()), bool(job.run_dirs), saves)


def _what_becomes(words: Sequence[Word], array: bool, saves: bool) -> str:
    """What a cancel does to a job, or to the elements of an array, that stand so."""
    ran = "asked to save and stop" if saves else "ended without time to save (cluster.stop_grace_s=0)"
    runs, waits = words.count("running"), words.count("pending")
    back = "taken back before it starts" if waits == 1 else "taken back before they start"
    told = [f"{n} {'is' if n == 1 else 'are'} {how}" for n, how in ((runs, ran), (waits, back)) if n]
    if array:
        return f"of its elements, {', '.join(told)}" if told else "has no element that waits or runs"
    return told[0].removeprefix("1 ") if told else "is about to end"


def end_cancelled(job: Job, job_dir: Path, limit_s: float = math.inf) -> None:
    """Wait until a job that was cancelled has saved, the preset's ``stop_grace_s`` at most; then it is no more.

    Args:
        job: that was cancelled.
        job_dir: its folder.
        limit_s: longest wait, in seconds; a job that may still save is left alone then.

    Raises:
        LaunchError: Slurm does not answer, or refuses.
    """
    assert job.id is not None
    grace_s = preset_of(job, job_dir).stop_grace_s
    begun = asked = time.monotonic()
    while (now := time.monotonic()) < begun + grace_s and _runs(job.id):
        if now > begun + limit_s:
            return
        if now - asked > AGAIN_S:  # ranks that were starting, elements of an array that have begun since
            asked = now
            _scancel(job.id, "--signal=USR2")
        time.sleep(POLL_S)
    _scancel(job.id)


def _runs(job_id: str) -> bool:
    """Whether any part of a job runs; it may while Slurm does not answer."""
    try:
        return "running" in _elements(job_id).values()
    except LaunchError:
        return True


def _scancel(job_id: str, *options: str) -> None:
    done = ask("scancel", *options, job_id)
    if done.returncode and not GONE.search(done.stderr):
        raise LaunchError(f"scancel {job_id}: {reason(done.stderr)}")


def _elements(job_id: str) -> dict[str, Word]:
    """How a job stands, or each element of an array, by Slurm's name for it; what is on its way out is not running."""
    done = ask("squeue", "-h", "-r", "-t", "all", "-j", job_id, "-o", "%i|%T")
    if done.returncode:
        see_forgotten("squeue", done.stderr)
        return {}
    lines = [line.strip().split("|") for line in done.stdout.splitlines() if line.count("|") == 1]
    return {name: WORDS.get(word, "failed") for name, word in lines if word != "COMPLETING"}
