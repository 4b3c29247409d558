"""Slurm's commands: the environment they get, what they answer, and what the cluster has.

A shell's own words for sbatch count as with sbatch itself (``SBATCH_ACCOUNT`` in a profile), unless the preset says the
same. What an outer job has left never does: it would reshape the new job.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from marc_dist.cluster.preset import SlurmPreset
from marc_dist.cluster.rank_process import RANK_VARIABLES
from marc_dist.config import LaunchError
from marc_dist.config.suggest import suggestion
from marc_dist.run.job import Job

FOREIGN = re.compile(r"^(SLURM_|SBATCH_|SRUN_|SALLOC_|PMI)")
KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})
ASK_S = 30.0
SBATCH = "SBATCH_"
KEYS = {
    "ACCOUNT": "account", "PARTITION": "partition", "QOS": "qos", "CONSTRAINT": "constraint", "MEM_PER_NODE": "mem",
    "MEM_PER_CPU": "mem", "MEM_PER_GPU": "mem", "EXCLUSIVE": "exclusive", "RESERVATION": "sbatch.reservation",
    "CLUSTERS": "sbatch.clusters",
}  # fmt: skip
"""What a shell may say of a job (``SBATCH_...``), and the key of a preset that says the same and is stronger."""
DECIDED = {
    "ARRAY_INX": "array", "CPUS_PER_TASK": "cpus_per_proc", "GPUS": "gpus_per_node", "GPUS_PER_NODE": "gpus_per_node",
    "GPUS_PER_TASK": "gpus_per_node", "GRES": "gpus_per_node", "JOB_NAME": "job_name", "NO_REQUEUE": "max_restarts",
    "SIGNAL": "signal_delay_s", "TIMELIMIT": "time_min", "OVERCOMMIT": "procs_per_node",
}  # fmt: skip
"""What the preset always decides: size, time and restarts of a job."""
UNSAID = re.compile(r"^(CPU_BIND|MEM_BIND|EXPORT|GET_USER_ENV|OPEN_MODE|OUTPUT|ERROR|INPUT|REQUEUE|WAIT$|DEBUG)")
"""What is left out without a word: the outer job's own output, and what a batch script of ours needs."""
ALSO = ("ACCOUNT", "PARTITION", "QOS", "RESERVATION")
"""``SLURM_ACCOUNT``, which srun reads and people set, counts where ``SBATCH_ACCOUNT`` is not set."""
SINFO = re.compile(r"^([^|\s]+)\|([\d.]+[KMG]?)\|([\d.]+[KMG]?)(\+?)\|(.*)$")
GPUS = re.compile(r"\bgpu:(?:([^:,()]+):)?(\d+)")


def clean_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The environment to ask and submit from, without what an outer job left and what only sbatch reads."""
    kept = KEPT if "SLURM_JOB_ID" in env else KEPT | {"SLURM_CLUSTERS"}
    return {
        key: value
        for key, value in env.items()
        if (key in kept or not FOREIGN.match(key)) and key not in (*RANK_VARIABLES, "MASTER_ADDR", "MASTER_PORT")
    }


def submit_environment(env: Mapping[str, str], preset: SlurmPreset) -> tuple[dict[str, str], dict[str, str]]:
    """What sbatch is started with.

    Args:
        env: of the person's shell.
        preset: what it says is stronger than the shell, although sbatch itself would have it the other way round.

    Returns:
        The environment; and what was left out of it that somebody may miss: the variable, and the key of the preset
        that says the same.
    """
    clean = clean_environment(env)
    inside = "SLURM_JOB_ID" in env
    said = {} if inside else {f"{SBATCH}{name}": env[f"SLURM_{name}"] for name in ALSO if f"SLURM_{name}" in env}
    said |= {name: value for name, value in env.items() if name.startswith(SBATCH)}
    left: dict[str, str] = {}
    for variable, value in said.items():
        name = variable.removeprefix(SBATCH)
        if UNSAID.match(name) or _says(preset, name):
            continue
        if name in DECIDED:
            left[variable] = DECIDED[name]
        elif inside:
            left[variable] = KEYS.get(name, f"sbatch.{name.lower().replace('_', '-')}")
        else:
            clean[variable] = value
    if "clusters" in preset.sbatch:
        clean.pop("SLURM_CLUSTERS", None)
    return clean, left


def _says(preset: SlurmPreset, name: str) -> bool:
    """Whether the preset itself sets what a variable of the shell would."""
    key = KEYS.get(name, f"sbatch.{name.lower()}")
    if key.startswith("sbatch."):
        return key.removeprefix("sbatch.") in {one.replace("-", "_") for one in preset.sbatch}
    return bool(getattr(preset, key))


def note_left_out(left: Mapping[str, str], env: Mapping[str, str]) -> None:
    """One line for people: which words of their shell do not count, and what to write instead."""
    if left:
        inside = f"inside Slurm job {env['SLURM_JOB_ID']}, " if "SLURM_JOB_ID" in env else ""
        instead = ", ".join(f"{name} (use cluster.{key})" for name, key in sorted(left.items()))
        note(f"{inside}these words of your shell do not count: {instead}")


def note(text: str) -> None:
    """A line beside the answer of a command."""
    print(f"marc-launch: note: {text}", file=sys.stderr, flush=True)


def ask(*command: str, limit_s: float = ASK_S) -> subprocess.CompletedProcess[str]:
    """One of Slurm's commands, with the environment of a login node.

    Args:
        command: program and arguments.
        limit_s: longest wait, in seconds.

    Raises:
        LaunchError: it is missing, or does not answer in time.
    """
    if shutil.which(command[0]) is None:
        raise LaunchError(
            f"{command[0]}: not found on PATH; expected Slurm's commands, as on a login node; --dry-run shows the "
            "script without them, and the preset local runs here"
        )
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=limit_s, env=clean_environment(os.environ)
        )
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{command[0]}: no answer from Slurm within {limit_s:.0f} s; try again later") from None


def reason(text: str) -> str:
    """What a command of Slurm's complains of, without its prefixes."""
    lines = [line.strip() for line in text.splitlines() if "error:" in line]
    kept = [re.sub(r"^.*?error:\s*", "", line) for line in lines] or [" ".join(text.split()[-30:])]
    return "; ".join(dict.fromkeys(kept)) or "no reason given"


UNCONFIGURED = ("establish a configuration source", "slurm.conf: No such file")
"""What Slurm's commands say on a machine without a cluster."""


class Partition(NamedTuple):
    """What one line of sinfo says of a kind of nodes in a partition.

    Attributes:
        name: of the partition.
        default: whether jobs go there that name none.
        nodes: how many of the kind.
        cpus: of each.
        more: some have more CPUs than that.
        gpus: of each, by type; "" for those without one.
    """

    name: str
    default: bool
    nodes: int
    cpus: int
    more: bool
    gpus: dict[str, int]


def partitions() -> list[Partition]:
    """All partitions, hidden ones too, a line for each kind of node in it; the default partition first.

    Lines that are not sinfo's own, as of a site's wrapper, are passed over; when there is nothing else, the list is
    empty, and a line says so.

    Raises:
        LaunchError: Slurm does not answer.
    """
    done = ask("sinfo", "-a", "-e", "-h", "-o", "%P|%D|%c|%G")
    _refuse_unconfigured(done.stderr)
    if done.returncode:
        raise LaunchError(f"sinfo: {reason(done.stderr)}; expected a Slurm cluster that answers")
    lines = [line.strip() for line in done.stdout.splitlines()]
    matches = [match for match in map(SINFO.match, lines) if match is not None]
    if not matches:
        first = next((line for line in lines if line), "nothing")
        note(
            f"sinfo says {first[:80]!r}, expected lines of PARTITION|NODES|CPUS|GRES; whether the job fits is for "
            "sbatch to say"
        )
    found: list[Partition] = []
    for match in matches:
        gpus: dict[str, int] = {}
        for kind, number in GPUS.findall(match[5]):
            gpus[kind] = gpus.get(kind, 0) + int(number)
        name = match[1].rstrip("*")
        found.append(Partition(name, name != match[1], _number(match[2]), _number(match[3]), bool(match[4]), gpus))
    return sorted(found, key=lambda part: not part.default)


def require_slurm() -> None:
    """Refuse a machine on which no job can be submitted, before anything is written for one.

    Raises:
        LaunchError: Slurm's commands are missing, have no cluster, or do not answer.
    """
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            ask(program)
    _refuse_unconfigured(ask("sinfo", "-h", "-o", "%P").stderr)


def _refuse_unconfigured(complaint: str) -> None:
    if any(words in complaint for words in UNCONFIGURED):
        raise LaunchError(
            "Slurm is installed here but not configured: no slurm.conf, and SLURM_CONF names none; expected a login "
            "node of a cluster; --dry-run shows the batch script, marc-launch local runs here"
        )


def _number(text: str) -> int:
    """A count as sinfo writes it: ``64``, ``1K``."""
    scale = {"K": 1024, "M": 1024**2, "G": 1024**3}.get(text[-1], 1)
    try:
        return int(float(text.rstrip("KMG")) * scale)
    except ValueError:  # 1.2.3
        return 0


def check_size(job: Job, preset: SlurmPreset, partition: str | None) -> None:
    """Refuse what this cluster could never start, before it waits in the queue for ever.

    Args:
        job: its size.
        preset: CPUs and GPUs of a node.
        partition: one or several with commas, of the preset or of the shell; None for the cluster's default.

    Raises:
        LaunchError: no such partition, or more nodes, CPUs or GPUs than it has.
    """
    known = partitions()
    names = list(dict.fromkeys(part.name for part in known))
    if not names:
        return
    default = [part.name for part in known if part.default]
    wanted = partition.split(",") if partition else default[:1] or names  # without a default sbatch finds one, or not
    for one in wanted:
        if one not in names:
            hint = suggestion(one, names)
            raise LaunchError(f"cluster.partition: no partition {one!r} here, there are {', '.join(names)}{hint}")
    name = ",".join(wanted)
    mine = [part for part in known if part.name in wanted]
    if job.nodes > sum(part.nodes for part in mine):
        has = sum(part.nodes for part in mine)
        raise LaunchError(f"--nodes: partition {name} has {has} nodes, got {job.nodes}; ask for at most {has}")
    cpus = job.procs_per_node * (preset.cpus_per_proc or 1)
    most = max(part.cpus for part in mine)
    if cpus > most and not any(part.more for part in mine):
        raise LaunchError(
            f"cluster.cpus_per_proc: {job.procs_per_node} processes a node with {preset.cpus_per_proc or 1} CPUs each "
            f"need {cpus}, but a node of partition {name} has {most}; ask for less"
        )
    if preset.num_gpus:
        _check_gpus(preset, mine, name)


def _check_gpus(preset: SlurmPreset, mine: Sequence[Partition], name: str) -> None:
    kind = preset.gpu_type
    most = max(sum(part.gpus.values()) for part in mine)
    if preset.num_gpus > most:
        raise LaunchError(
            f"cluster.gpus_per_node: a node of partition {name} has {most} GPUs, got {preset.gpus_per_node}; "
            "ask for less, or another partition"
        )
    if not kind or any("" in part.gpus for part in mine):  # Slurm itself may know types that sinfo does not show
        return
    if any(part.gpus.get(kind, 0) >= preset.num_gpus for part in mine):
        return
    there = {f"{one}:{number}" for part in mine for one, number in part.gpus.items()}
    raise LaunchError(
        f"cluster.gpus_per_node: a node of partition {name} has {' or '.join(sorted(there))}, got "
        f"{preset.gpus_per_node}{suggestion(kind, [one.rpartition(':')[0] for one in there])}"
    )
