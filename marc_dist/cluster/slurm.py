"""Jobs of a Slurm cluster: what is asked for, the batch script, submission, state, end.

submitit renders and submits the script; its pickled functions are not used: what runs is ``marc-train RUN_DIR``, and a
submitit process between srun and the rank would take the signals and requeue by itself, from rank 0 only
(``docs/design.md``). So the job is a script of strings, which a person can read and submit.

submitit's public API submits pickled functions only, so two private names of it are used, pinned below 1.6: recorded
scripts (``tests/cluster/scripts``) show every change of what it renders. Its state is not read; Slurm is asked.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from marc_dist.cluster.code_snapshot import copy_code, import_path
from marc_dist.cluster.preset import SlurmPreset
from marc_dist.cluster.sbatch_hooks import LAUNCH_FAILURE
from marc_dist.cluster.slurm_commands import ask, check_size, note_left_out, reason, submit_environment
from marc_dist.config import LaunchError, build
from marc_dist.run.attempt_id import NUMBER, TOKEN
from marc_dist.run.job import ORDER, Job, State, Word, array_state, attempts_of_job, ended, read_job

PLAIN = (
    "partition", "account", "qos", "constraint", "exclude", "nodelist", "dependency", "mail_type", "mail_user",
    "comment",
)  # fmt: skip
"""Keys of the preset that sbatch knows by the same name."""
WORDS: dict[str, Word] = {
    "PENDING": "pending", "CONFIGURING": "pending", "REQUEUED": "pending", "REQUEUE_FED": "pending",
    "REQUEUE_HOLD": "pending", "RESV_DEL_HOLD": "pending", "SPECIAL_EXIT": "pending",
    "RUNNING": "running", "COMPLETING": "running", "SIGNALING": "running", "STAGE_OUT": "running",
    "RESIZING": "running", "SUSPENDED": "running", "STOPPED": "running",
    "COMPLETED": "done", "CANCELLED": "cancelled",
    "FAILED": "failed", "TIMEOUT": "failed", "NODE_FAIL": "failed", "PREEMPTED": "failed", "BOOT_FAIL": "failed",
    "DEADLINE": "failed", "OUT_OF_MEMORY": "failed", "REVOKED": "failed",
}  # fmt: skip


def _module(preset: SlurmPreset, module: str, *words: str) -> list[str]:
    """A command of ours as ranks start it: inside the container, if there is one."""
    python = sys.executable if preset.container.runtime == "none" else preset.container.python
    return [python, "-u", "-m", module, *words]


def _container(job_dir: Path, job: Job, preset: SlurmPreset) -> tuple[list[str], list[str]]:
    """Options of srun, and words before the command, that bring ranks into the image."""
    box = preset.container
    seen = dict.fromkeys([str(job_dir), job.cwd])
    mounts = [*(f"{folder}:{folder}" for folder in seen), *box.mounts]
    if box.runtime == "pyxis":
        options = [f"--container-image={box.image}", f"--container-mounts={','.join(mounts)}"]
        return [*options, f"--container-workdir={job.cwd}", "--no-container-mount-home"], []
    if box.runtime == "apptainer":
        binds = [word for mount in mounts for word in ("--bind", mount)]
        gpu = ["--nv"] if preset.num_gpus else []
        return [], ["apptainer", "exec", *gpu, *binds, "--pwd", job.cwd, str(box.image)]
    return [], []


def preset_of(job: Job, job_dir: Path) -> SlurmPreset:
    """The launcher preset that a job was submitted with."""
    return build(SlurmPreset, job.preset, place=f"{job_dir}/job.json: preset: ")


def job_name(preset: SlurmPreset, job_dir: Path) -> str:
    """What squeue shows of a job of a folder."""
    return preset.job_name or re.sub(r"[^A-Za-z0-9._-]", "-", f"marc-{job_dir.name}")


def script_parts(job: Job, preset: SlurmPreset, job_dir: Path) -> tuple[str, dict[str, Any]]:
    """What the batch script is made of: the command after srun, and submitit's parameters.

    Args:
        job: size, working folder, and the elements of an array.
        preset: partition, limits, setup lines and container.
        job_dir: the run folder, which the script names to the hooks and to every rank.
    """
    srun, before = _container(job_dir, job, preset)
    srun = ["--kill-on-bad-exit=1", "--wait=60", *srun, *preset.srun_args]
    if preset.cpus_per_proc is not None:  # srun takes no --cpus-per-task from sbatch since 22.05
        srun.append(f"--cpus-per-task={preset.cpus_per_proc}")
    batch = shlex.join([sys.executable, "-u", "-m", "marc_dist.cluster.sbatch_hooks"])
    folder = shlex.quote(str(job_dir))
    setup = ["set -eo pipefail", *preset.setup, "set +eo pipefail"] if preset.setup else []
    params: dict[str, Any] = {
        "job_name": job_name(preset, job_dir),
        "nodes": job.nodes,
        "ntasks_per_node": job.procs_per_node,
        "time": preset.time_min,
        "signal_delay_s": preset.signal_delay_s,
        "stderr_to_stdout": True,
        "wckey": None,
        "srun_args": srun,
        "setup": [
            *setup,
            *_exports(preset),
            *_identity(job),
            *_snapshot(job, preset, job_dir),
            f"{batch} begin {folder} || exit $?",
        ],
        "teardown": ["code=$?", f"{batch} end {folder} $code", "exit $?"],
        "additional_parameters": {
            "chdir": job.cwd,
            "requeue": True,
            **({"array": f"{spans(job.numbers)}%{_parallel(job, preset)}"} if job.run_dirs else {}),
            **{key: value for key, value in preset.sbatch.items() if value is not False},
        },
    }
    optional = {
        **{key: getattr(preset, key) for key in PLAIN},
        **{"mem": preset.mem, "cpus_per_task": preset.cpus_per_proc, "exclusive": preset.exclusive or None},
        "gpus_per_node": preset.gpus_per_node or None,
    }
    params |= {key: value for key, value in optional.items() if value is not None}
    return shlex.join([*before, *_module(preset, "marc_dist.cluster.srun_task", str(job_dir))]), params


def _exports(preset: SlurmPreset) -> list[str]:
    """The preset's own variables; ranks get them, too, and people can see them in the script."""
    return [f"export {name}={shlex.quote(value)}" for name, value in preset.env.items()]


def _identity(job: Job) -> list[str]:
    """Which attempt of which submission the hooks and ranks belong to."""
    return [f"export {TOKEN}={job.token} {NUMBER}=${{SLURM_RESTART_COUNT:-0}}"] if job.token else []


def _snapshot(job: Job, preset: SlurmPreset, job_dir: Path) -> list[str]:
    """Lines that have hooks and ranks import the copy of the code."""
    if not preset.snapshot:
        return []
    path = shlex.quote(import_path(job_dir, job.cwd))
    return [f"export PYTHONSAFEPATH=1 PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}"]


def render(job: Job, preset: SlurmPreset, job_dir: Path) -> str:
    """The batch script, as submitit would write it; needs no Slurm.

    Args:
        job: see ``script_parts``.
        preset: see ``script_parts``.
        job_dir: the run folder; Slurm's logs go to ``slurm`` in it.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    command, params = script_parts(job, preset, job_dir)
    return str(_make_sbatch_string(command=command, folder=job_dir / "slurm", **params, **_logs(job)))


def _logs(job: Job) -> dict[str, int]:
    """What makes submitit name logs after the elements of an array; which ones there are is ours to say."""
    return {"map_count": len(job.numbers)} if job.run_dirs else {}


def _parallel(job: Job, preset: SlurmPreset) -> int:
    return min(preset.array.parallel or len(job.numbers), len(job.numbers))


def spans(numbers: Sequence[int]) -> str:
    """Ascending numbers as Slurm writes them: ``1,4-7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


@contextmanager
def _submitting(env: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def submit(job: Job, preset: SlurmPreset, job_dir: Path) -> Job:
    """Queue a job whose ``job.json`` is written.

    Args:
        job: not queued yet.
        preset: partition, limits, setup lines and container.
        job_dir: the run folder; the batch script and Slurm's logs go to ``slurm`` in it.

    Returns:
        The job with Slurm's id.

    Raises:
        LaunchError: no Slurm here, or it refuses the job; says what Slurm says.
    """
    import submitit

    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            ask(program)
    env, left = submit_environment(os.environ, preset)
    note_left_out(left, os.environ)
    check_size(job, preset, preset.partition or env.get("SBATCH_PARTITION"))
    command, params = script_parts(job, preset, job_dir)
    try:
        (job_dir / "slurm").mkdir(parents=True, exist_ok=True)
        if preset.snapshot:
            copy_code(job_dir)
        with _submitting(env):
            executor = submitit.SlurmExecutor(folder=job_dir / "slurm")
            executor.update_parameters(**params)
            executor.parameters |= _logs(job)
            with redirect_stderr(StringIO()):  # submitit passes sbatch's complaint on; ours is one line
                submitted = executor._submit_command(command)
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        raise LaunchError(f"sbatch: {reason(str(error))}; see launchers/ and cluster.KEY=value words") from None
    except OSError as error:
        raise LaunchError(f"{job_dir}: cannot be written ({error.strerror}); choose another train.run_dir") from None
    return job.model_copy(update={"id": str(submitted.job_id)})


def state(job: Job, job_dir: Path) -> State:
    """How the job stands: squeue, then sacct, then scontrol, then what the run folder says."""
    assert job.id is not None
    missing, silent = "", False
    for look in (_from_squeue, _from_sacct, _from_scontrol):
        try:
            found = look(job.id)
        except LaunchError as error:
            missing, silent = missing or str(error), shutil.which("squeue") is not None
            continue
        if found is not None:
            word, detail = found
            return _state(word, detail, job, job_dir)
    told = _from_folder(job, job_dir, missing or "Slurm has forgotten the job")
    return told._replace(silent=silent) if told.word == "unknown" else told


def _state(slurms: str, detail: str, job: Job, job_dir: Path) -> State:
    first = slurms.split()[0].rstrip("+") if slurms else ""
    word = WORDS.get(first)
    if word is None:
        return State("unknown", f"Slurm says {slurms}")
    told = f"{first}{f' ({detail})' if detail and detail not in ('None', '(null)') else ''}"
    mine = ended(job, job_dir) if word in ("failed", "cancelled") and not job.run_dirs else None
    if mine is not None and mine.word == "cancelled":
        return State("cancelled", f"CANCELLED {mine.detail}")
    if word == "failed" and LAUNCH_FAILURE in detail and not job.run_dirs:
        told += f": the batch script was killed or could not be started; marc-jobs resume {job_dir} goes on"
    if word == "pending" and "held" in detail.lower():
        told += f": it waits until somebody types scontrol release {job.id}"
    tries = attempts_of_job(job, job_dir)
    if word == "failed" and tries and tries[-1].error:
        told += f": {tries[-1].error}"
    return State(word, told)


def _together(found: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    """Of Slurm's words and reasons, those that stand for all elements of an array."""
    return min(found, key=lambda one: ORDER.index(WORDS.get(one[0].split()[0].rstrip("+"), "failed")), default=None)


def see_forgotten(program: str, said: str) -> None:
    """Nothing, when Slurm says that it knows no such job.

    Raises:
        LaunchError: it says something else than that it knows no such job.
    """
    if "Invalid job id" not in said:
        raise LaunchError(f"Slurm does not answer: {program}: {reason(said)}")


def _from_squeue(job_id: str) -> tuple[str, str] | None:
    done = ask("squeue", "-h", "-r", "-t", "all", "-j", job_id, "-o", "%T|%r|%N")
    lines = [line.split("|", 2) for line in done.stdout.splitlines() if line.count("|") >= 2]
    if done.returncode:
        see_forgotten("squeue", done.stderr)
        return None
    return _together(
        (word, f"on {nodes}" if WORDS.get(word) == "running" and nodes else reason) for word, reason, nodes in lines
    )


def _from_sacct(job_id: str) -> tuple[str, str] | None:
    if shutil.which("sacct") is None:
        return None
    done = ask("sacct", "-n", "-X", "-P", "-j", job_id, "-o", "State,Reason")
    lines = [line.partition("|") for line in done.stdout.splitlines()]
    return None if done.returncode else _together((word, reason) for word, _, reason in lines if word.strip())


def _from_scontrol(job_id: str) -> tuple[str, str] | None:
    done = ask("scontrol", "-o", "show", "job", job_id)
    if done.returncode:
        see_forgotten("scontrol", done.stderr)
        return None
    found = [(re.search(r"\bJobState=(\S+)", line), line) for line in done.stdout.splitlines()]
    reasons = [(word[1], re.search(r"\bReason=(\S+)", line)) for word, line in found if word is not None]
    return _together((word, reason[1] if reason else "") for word, reason in reasons)


def _from_folder(job: Job, job_dir: Path, missing: str) -> State:
    """What the run folder says; of an array, its elements together, finished ones of earlier jobs among them."""
    if not job.run_dirs:
        return ended(job, job_dir) or State("unknown", missing)
    parts: list[State] = []
    for folder in map(Path, job.run_dirs):
        try:
            parts.append(ended(read_job(folder), folder) or State("unknown", missing))
        except LaunchError as error:
            parts.append(State("unknown", str(error)))
    return array_state(parts)
