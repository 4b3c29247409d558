"""One way to hand a job over, ask for its state and end it, whatever runs it."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from marc_dist.cluster.preset import KINDS, LocalPreset, RayPreset, SlurmPreset
from marc_dist.config import LaunchError, build
from marc_dist.run import run_lock
from marc_dist.run.attempt_id import AttemptId
from marc_dist.run.attempts import begin_attempt, end_attempt
from marc_dist.run.exit_codes import EXIT_REQUEUE
from marc_dist.run.job import OVER, Job, State, array_state, attempts_of_job, ended, read_job, write_job
from marc_dist.run.lock_file import Holder, read_holder
from marc_dist.run.run_lock import announce, launch_lock, live_holder, withdraw

POLL_S = 1.0


class _Backend(NamedTuple):
    state: Callable[[Job, Path], State]
    cancel: Callable[[Job, Path], str]
    end_cancelled: Callable[[Job, Path, float], None] | None = None


def _backend(job: Job) -> _Backend:
    """Imported when needed: a login node without Ray or Slurm answers for the others."""
    if job.kind == "slurm":
        from marc_dist.cluster import slurm, slurm_cancel

        return _Backend(slurm.state, slurm_cancel.cancel, slurm_cancel.end_cancelled)
    if job.kind == "ray":
        from marc_dist.cluster import ray

        return _Backend(ray.state, ray.cancel)
    from marc_dist.cluster import local

    return _Backend(local.state, local.cancel)


def preset_of_job(job: Job, job_dir: Path) -> LocalPreset | SlurmPreset | RayPreset:
    """The launcher preset that a job was submitted with."""
    return build(KINDS[job.kind], job.preset, place=f"{job_dir}/job.json: preset: ")


def size_of(preset: LocalPreset | SlurmPreset | RayPreset, device: str) -> tuple[int, int]:
    """Machines, and processes on each, of a job on ``train.device``."""
    if isinstance(preset, LocalPreset):
        from marc_dist.cluster.local import process_count

        return 1, process_count(preset, device)
    return preset.nodes, preset.num_procs


def own_state(job: Job, job_dir: Path) -> State:
    """How a job itself stands now; of an array, whatever has become of its elements since."""
    job = _named(job, job_dir)
    if job.id is None:
        return State("unknown", "its launch was refused, or broken off before its id was written down")
    return _backend(job).state(job, job_dir)


def _named(job: Job, job_dir: Path) -> Job:
    """A job whose launch was broken off before its id was written down, with the id where that can be known: Ray's."""
    if job.id is None and job.kind == "ray":
        from marc_dist.cluster import ray

        return job.model_copy(update={"id": ray.actor_name(job_dir)})
    return job


def state(job: Job, job_dir: Path) -> State:
    """How a job's work stands now: an array that does not run any more stands as its elements do."""
    now = own_state(job, job_dir)
    if job.id is None or not job.run_dirs or now.word in ("pending", "running"):
        return now
    return array_state([_element_state(job, number, now) for number in range(len(job.run_dirs))])


def _element_state(job: Job, number: int, whole: State) -> State:
    """How one element stands: what its folder says, else the job that it was resumed as, else the array's word."""
    folder = Path(job.run_dirs[number])
    try:
        element = read_job(folder)
    except LaunchError as error:
        return State("unknown", str(error))
    over = ended(element, folder)
    if over is not None:
        return over
    mine = element.token == job.token and number in job.numbers
    # the batch system forgets elements one by one: "done" is only of those that it still knows
    return whole if mine and whole.word != "done" else state(element, folder)


def cancel(job: Job, job_dir: Path) -> str:
    """Tell a job to save and end for good; what it has saved stays. ``end_cancelled`` sees that it does.

    Returns:
        What becomes of it, in words that follow its name.

    Raises:
        LaunchError: whoever runs it cannot be reached, or refuses; or its id is not known.
    """
    return _backend(job).cancel(_named(job, job_dir), job_dir)


def end_cancelled(job: Job, job_dir: Path, limit_s: float = math.inf) -> None:
    """See that a job that was cancelled ends: what has not saved within its grace is ended.

    Args:
        job: that was cancelled.
        job_dir: its folder.
        limit_s: longest wait, in seconds.

    Raises:
        LaunchError: whoever runs it cannot be reached, or refuses.
    """
    end = _backend(job).end_cancelled
    if job.id is not None and end is not None:
        end(job, job_dir, limit_s)


def refusal(job_dir: Path, before: Job | None, now: State | None, other: Holder | None) -> str | None:
    """Why no job may start in a folder, in one line; None when one may. Pure.

    Args:
        job_dir: the folder, for the message.
        before: the job that ``job.json`` tells of.
        now: how it stands.
        other: who trains there now, launched or not.
    """
    if before is not None and now is not None and now.word in ("pending", "running"):
        return (
            f"{job_dir}: {before.kind} job {before.id} of this run is {now.word}; wait for it, end it with marc-jobs "
            f"cancel {job_dir}, or choose another train.run_dir"
        )
    if before is not None and now is not None and now.silent:
        return (
            f"{job_dir}: {before.kind} job {before.id} of this run may wait or run: {now.detail}; try again when Slurm "
            "answers, or choose another train.run_dir"
        )
    return None if other is None else run_lock.refusal(job_dir, other)


def refuse_second(job_dir: Path, mine: AttemptId) -> Holder | None:
    """Refuse to start a job in a folder where one is waiting or running: two would overwrite each other's files.

    Args:
        job_dir: the folder.
        mine: the attempt that would start there.

    Returns:
        Who held the folder last, and does not live.

    Raises:
        LaunchError: names the job, or the process.
    """
    before, now, seen = None, None, read_holder(job_dir)
    with suppress(LaunchError):
        before = read_job(job_dir)
    if before is not None:
        now = ended(before, job_dir)
        if now is None or now.word != "done":  # what is done stays so; a cancelled job may still be saving
            now = own_state(before, job_dir)
    why = refusal(job_dir, before, now, None)
    if why is None:
        over = before.token if before is not None and now is not None and now.word in OVER else ""
        why = refusal(job_dir, before, now, live_holder(job_dir, mine, _say, over=over))
    if why is not None:
        raise LaunchError(why)
    return seen


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _nothing() -> None:
    """The folder needs no preparation."""


@contextmanager
def _right_to(job: Job, job_dir: Path) -> Iterator[Holder | None]:
    """The right to start a job in its folder, and in those of an array's elements: inside the block nobody else starts.

    Yields:
        Who held the job's folder last, and does not live.

    Raises:
        LaunchError: a job is waiting or running in one of them; nothing was changed then.
    """
    folders = [job_dir, *(Path(job.run_dirs[number]) for number in job.numbers)]
    with ExitStack() as locks:
        for folder in sorted(set(folders)):  # in one order, so that two launches never wait for each other
            locks.enter_context(launch_lock(folder))
        yield [refuse_second(folder, job.attempt(0)) for folder in folders][0]


def submit(job: Job, job_dir: Path, prepare: Callable[[], None] = _nothing) -> Job:
    """Hand a job to Slurm or Ray and return at once; ``job.json`` says what was submitted, and under which id.

    Args:
        job: not submitted yet.
        job_dir: its folder.
        prepare: writes the settings into the folders, once they are this job's.

    Raises:
        LaunchError: it cannot be submitted; nothing is queued then.
    """
    preset = preset_of_job(job, job_dir)
    if isinstance(preset, LocalPreset):
        raise LaunchError(f"{job_dir}: a local job runs in the foreground; expected slurm or ray")
    with _right_to(job, job_dir):
        prepare()
        _write(job, job_dir)
        if isinstance(preset, SlurmPreset):
            from marc_dist.cluster import slurm

            job = slurm.submit(job, preset, job_dir)
        else:
            from marc_dist.cluster import ray

            job = ray.submit(job, preset, job_dir)
        _name(job, job_dir)
    return job


def _name(job: Job, job_dir: Path) -> None:
    """Write the id of a job that was handed in into ``job.json``.

    Raises:
        LaunchError: another launch has taken the folder meanwhile, where locks do not reach it; the job is ended.
    """
    before = read_job(job_dir)
    if before.token != job.token:
        cancel(job, job_dir)
        end_cancelled(job, job_dir)
        raise LaunchError(
            f"{job_dir}: {before.user} on {before.host} has started another job here at the same moment; this one, "
            f"{job.kind} {job.id}, was ended; wait for the other, or choose another train.run_dir"
        )
    _write(job, job_dir)


def _write(job: Job, job_dir: Path) -> None:
    write_job(job_dir, job)
    for number in job.numbers:
        write_job(Path(job.run_dirs[number]), _element(job, number))


def unfinished(job: Job) -> tuple[list[int], dict[Path, str]]:
    """What is left to do of an array that is over.

    Returns:
        Numbers of the elements that are not done and that nobody goes on with; and, by folder, how those stand that
        go on as a job of their own.
    """
    left: list[int] = []
    others: dict[Path, str] = {}
    for number, folder in enumerate(map(Path, job.run_dirs)):
        element = read_job(folder)
        now = ended(element, folder)
        if now is None and element.id != f"{job.id}_{number}":  # resumed by itself, or never submitted
            now = state(element, folder)
        if now is not None and now.word in ("pending", "running"):
            others[folder] = f"{now.word} as {element.kind} job {element.id}"
        elif now is None or now.word != "done":
            left.append(number)
    return left, others


def _element(job: Job, number: int) -> Job:
    """One element of an array as a job of its own; its last argument is its own run folder."""
    folder = job.run_dirs[number]
    return job.model_copy(
        update={
            "id": None if job.id is None else f"{job.id}_{number}",
            "run_dirs": [],
            "elements": [],
            "arguments": [*job.arguments[:-1], folder],
        }
    )


def run_local(job: Job, job_dir: Path, out: BinaryIO, prepare: Callable[[], None] = _nothing) -> int:
    """Run a local job in the foreground, and note the attempt in its folder.

    Args:
        job: of kind ``local``; it gets its id here.
        job_dir: the run folder.
        out: where rank 0's output is copied to while it runs.
        prepare: writes the settings into the folder, once it is this job's.

    Returns:
        The job's exit code.

    Raises:
        LaunchError: a job of this folder runs already, or see ``LocalJob``.
    """
    from marc_dist.cluster import local

    preset = preset_of_job(job, job_dir)
    assert isinstance(preset, LocalPreset)
    mine = job.attempt(0)
    with _right_to(job, job_dir) as before:
        announce(job_dir, mine, before)
        try:
            prepare()
            job = job.model_copy(update={"id": local.local_id()})
            write_job(job_dir, job)
            begin_attempt(job_dir, mine, [job.host])
        except BaseException:
            withdraw(job_dir, mine)
            raise
    code, error = 1, None
    try:
        running = local.LocalJob(local.command(job), job_dir / "logs", preset, job.world, out, mine)
        code = running.run()
        error = running.error
    except LaunchError as failure:
        code, error = 2, str(failure)
        raise
    finally:
        why = "stopped and saved; start it again to go on" if code == EXIT_REQUEUE else ""
        end_attempt(job_dir, mine, code, error, False, why)
        withdraw(job_dir, mine)
    return code


def wait(job: Job, job_dir: Path, poll_s: float = POLL_S) -> State:
    """Wait until a job is over. A batch system that does not answer is asked again.

    Args:
        job: with the id that it was submitted under.
        job_dir: the run folder.
        poll_s: seconds between two questions.

    Returns:
        The job's last state.
    """
    while True:
        if own_state(job, job_dir).word in OVER:
            return state(job, job_dir)
        time.sleep(poll_s)


def exit_code(found: State, job: Job, job_dir: Path) -> int:
    """The exit code of a job that is over: 0 when it is done, else that of its last failure, else 1.

    Args:
        found: how it ended.
        job: of an array, all its elements are looked at.
        job_dir: the run folder, which knows the failures.
    """
    if found.word == "done":
        return 0
    folders = [Path(folder) for folder in job.run_dirs] or [job_dir]
    tries = [attempt for folder in folders for attempt in attempts_of_job(job, folder)]
    codes = [attempt.code for attempt in tries if attempt.code and not attempt.again]
    return codes[-1] if codes else 1
