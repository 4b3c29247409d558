"""``python -m marc_dist.cluster.sbatch_hooks begin|end JOB_DIR [CODE]``: the batch script's two words around srun.

Whether a job starts again is decided here, outside the ranks: a rank that waits in a collective for one that is gone
hears no signal, and a rank inside a container has no ``scontrol`` (``docs/design.md``).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from marc_dist.cluster.preset import SlurmPreset
from marc_dist.cluster.rank_process import tail
from marc_dist.config import EXIT_USER, LaunchError, MarcError, build, is_passing
from marc_dist.run.attempt_id import TOKEN, AttemptId
from marc_dist.run.attempts import begin_attempt, end_attempt, first_steps, newest_step
from marc_dist.run.exit_codes import EXIT_REQUEUE
from marc_dist.run.job import CANCELLED, Job, attempts_of_job, element_dir, read_job, write_job
from marc_dist.run.job import start_again as rule
from marc_dist.run.rank_ends import JobEnd, clear_ends, job_end, node_name, read_ends

EXIT_LIMIT = 1
LAUNCH_FAILURE = "JobLaunchFailure"
"""Slurm's reason when the batch script could not be started, or was killed."""
ASK_S = 10.0
PAUSES_S = (5.0, 15.0, 40.0)
"""Between looks at a run folder whose file system does not answer."""
WAIT_S = 120.0
"""After a requeue Slurm ends this script; longer than its longest usual delay."""


def slurm_id(env: Mapping[str, str]) -> str:
    """The job as ``scontrol`` wants it: an array's element by its own number, or the whole array would start again."""
    if env.get("SLURM_ARRAY_JOB_ID") and env.get("SLURM_ARRAY_TASK_ID"):
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env["SLURM_JOB_ID"]


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} marc-launch: {text}", flush=True)


def _hosts(env: Mapping[str, str]) -> list[str]:
    """Names of the job's nodes; as Slurm writes them, n[1-4], where scontrol is missing."""
    nodes = env.get("SLURM_JOB_NODELIST", "")
    with suppress(OSError):
        done = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False)
        return done.stdout.split() or [nodes]
    return [nodes]


def begin(job_dir: Path) -> int:
    """Before srun: note the attempt; refuse one too many, whoever asked for it."""
    job, preset = own_job(job_dir)
    job = _named(job_dir, job, slurm_id(os.environ))
    mine = _attempt(job, os.environ)
    clear_ends(job_dir / "logs")
    begin_attempt(job_dir, mine, _hosts(os.environ))
    if job.cancelled_at is not None:
        end_attempt(job_dir, mine, EXIT_REQUEUE, None, False, CANCELLED)
        _say(f"cancelled; marc-jobs resume {job_dir} starts it anew")
        return _until_cancelled(EXIT_LIMIT)
    begun = len(attempts_of_job(job, job_dir))
    if begun - 1 > preset.max_restarts:
        why = f"cluster.max_restarts={preset.max_restarts} used up"
        end_attempt(job_dir, mine, EXIT_LIMIT, why, False, why)
        _say(f"error: {why}; marc-jobs resume {job_dir} starts it anew")
        return EXIT_LIMIT
    _say(f"start {begun} of {job_dir}, after step {newest_step(job_dir)}, on {' '.join(_hosts(os.environ))}")
    return 0


def _named(job_dir: Path, job: Job, name: str) -> Job:
    """The job with its id; written down where whoever submitted it was ended before he could."""
    if job.id is not None:
        return job
    job = job.model_copy(update={"id": name})
    write_job(job_dir, job)
    return job


def end(job_dir: Path, code: int) -> int:
    """After srun: say how it ended, and start again or not.

    Args:
        job_dir: the run folder.
        code: srun's exit code.

    Returns:
        The job's exit code: never 0 for a job that failed.
    """
    job, preset = own_job(job_dir)
    mine, log_dir = _attempt(job, os.environ), job_dir / "logs"
    found = job_end(read_ends(log_dir, job.world, mine), code, log_dir)
    begun, step = first_steps(attempts_of_job(job, job_dir)), newest_step(job_dir)
    again, why = rule(found.code, found.lost, begun, step, preset.max_restarts, preset.max_stalls)
    if job.cancelled_at is not None and found.code != 0:
        again, why = False, CANCELLED
    end_attempt(job_dir, mine, found.code, found.error, again, why)
    if found.error is not None:
        if found.rank is not None and found.code != EXIT_USER:
            path = log_dir / f"rank-{found.rank}.log"
            print(f"--- last lines of {path}", *tail(path), sep="\n")
        _say(f"error: {found.error}")
    if not again:
        _say(f"ended after step {step} with code {found.code}: {why}")
        return _until_cancelled(found.code) if why == CANCELLED else found.code
    _say(f"starting again after step {step}: {why}")
    return _requeue(job_dir, mine, found)


def _requeue(job_dir: Path, mine: AttemptId, found: JobEnd) -> int:
    name, code = slurm_id(os.environ), found.code or 1
    error = _slurm("scontrol", "requeue", name)
    if error is None or _already_over(name):
        time.sleep(WAIT_S)  # Slurm ends us here: an exit now could be noted as the job's end
        return code
    why = f"it cannot be requeued (scontrol requeue {name}: {error}); marc-jobs resume {job_dir} starts it again"
    end_attempt(job_dir, mine, code, found.error, False, why)
    _say(f"error: {why}")
    return code


def _until_cancelled(code: int) -> int:
    """Have Slurm end this job as cancelled: whoever asked for it may be gone by now."""
    error = _slurm("scancel", slurm_id(os.environ))
    if error is not None:
        _say(f"scancel: {error}; Slurm may show the job as failed")
        return code or 1
    time.sleep(WAIT_S)
    return code or 1


def _slurm(*command: str) -> str | None:
    """None, or why one of Slurm's commands has failed; a compute node may lack it."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{command[0]}: {error.strerror} on {node_name()}"
    return (" ".join(done.stderr.split()) or f"exit code {done.returncode}") if done.returncode else None


def batch_script_gone() -> bool:
    """Whether Slurm ends this job because its batch script was killed; where squeue is missing, nobody knows."""
    return _squeue(slurm_id(os.environ), "%r") == LAUNCH_FAILURE


def _already_over(name: str) -> bool:
    """Whether Slurm itself is ending this start, which is what we asked for."""
    return _squeue(name, "%T") in ("COMPLETING", "REQUEUED", "PENDING", "PREEMPTED")


def _squeue(name: str, column: str) -> str:
    """One column of a job's line in squeue; empty where squeue is missing or does not answer."""
    words = ["squeue", "-h", "-j", name, "-o", column]
    with suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=ASK_S).stdout.strip()
    return ""


def _attempt(job: Job, env: Mapping[str, str]) -> AttemptId:
    """Slurm's count of restarts numbers the attempts."""
    return job.attempt(int(env.get("SLURM_RESTART_COUNT") or 0))


def own_job(job_dir: Path) -> tuple[Job, SlurmPreset]:
    """What ``job.json`` says, while it speaks of the job that this process belongs to.

    Raises:
        LaunchError: the folder has been given to another job since.
    """
    job = read_job(job_dir)
    if os.environ.get(TOKEN, job.token) != job.token:
        raise LaunchError(f"{job_dir}: belongs to a later job, {job.kind} {job.id}; this one does not go on")
    return job, build(SlurmPreset, job.preset, place=f"{job_dir}: ")


def _readable(folder: Path) -> Path:
    """The folder of this batch script's run, once its record can be read: a file server may be away for a while."""
    for pause_s in PAUSES_S:
        try:
            job_dir = element_dir(folder, os.environ)
            own_job(job_dir)
            return job_dir
        except (MarcError, OSError) as error:
            if not is_passing(error):
                raise
            _say(f"{' '.join(str(error).split())}; looking again in {pause_s:g} s")
        time.sleep(pause_s)
    return element_dir(folder, os.environ)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code for the batch script."""
    word, folder, *rest = sys.argv[1:] if argv is None else argv
    try:
        job_dir = _readable(Path(folder))
        if word == "begin" and job_dir != Path(folder):  # an element of an array; each may be the first to start
            _named(Path(folder), own_job(Path(folder))[0], os.environ["SLURM_ARRAY_JOB_ID"])
        return begin(job_dir) if word == "begin" else end(job_dir, int(rest[0]))
    except (MarcError, OSError) as error:
        _say(f"error: {' '.join(str(error).split())}")
        return EXIT_USER


if __name__ == "__main__":
    sys.exit(main())
