"""What ``cluster.sbatch`` may hold: options of sbatch that no key of a preset gives.

An option that shapes the job would go past our count of ranks: Slurm would start one of them on four paid GPUs, or the
script would ask for two sizes at once. So it is refused with the key that says the same, and with its value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

SHORT = {
    "A": "account", "C": "constraint", "D": "chdir", "G": "gpus", "J": "job-name", "N": "nodes", "S": "core-spec",
    "a": "array", "c": "cpus-per-task", "d": "dependency", "e": "error", "i": "input", "n": "ntasks", "o": "output",
    "p": "partition", "q": "qos", "t": "time", "w": "nodelist", "x": "exclude", "M": "clusters", "L": "licenses",
}  # fmt: skip
SAME = {
    "account": "account", "comment": "comment", "constraint": "constraint", "cpus-per-task": "cpus_per_proc",
    "dependency": "dependency", "exclude": "exclude", "exclusive": "exclusive", "gpus-per-node": "gpus_per_node",
    "job-name": "job_name", "mail-type": "mail_type", "mail-user": "mail_user", "mem": "mem", "nodelist": "nodelist",
    "nodes": "nodes", "ntasks-per-node": "procs_per_node", "partition": "partition", "qos": "qos",
}  # fmt: skip
"""Options that a key of the preset gives, with the same value."""
EITHER = frozenset({"comment", "dependency", "mail-type", "mail-user"})
"""Of them, those that change nothing about ranks: they may also stand in ``cluster.sbatch``."""
OTHER = {
    "array": "the keys cluster.array.seeds or cluster.array.overrides",
    "chdir": "nothing: a job runs in the folder that it is submitted from",
    "error": "nothing: logs lie in slurm/ and logs/ of the run folder",
    "gpus-per-socket": "cluster.gpus_per_node, the GPUs of a node",
    "gpus-per-task": "cluster.gpus_per_node, the GPUs of a node; each has a process then",
    "gpus": "cluster.gpus_per_node, the GPUs of a node; --nodes says how many nodes",
    "het-group": "nothing: one job has one kind of node here",
    "input": "nothing: ranks read no standard input",
    "no-requeue": "cluster.max_restarts=0",
    "ntasks-per-core": "cluster.procs_per_node",
    "ntasks-per-gpu": "cluster.procs_per_node; without it each GPU has a process",
    "ntasks-per-socket": "cluster.procs_per_node",
    "ntasks": "cluster.procs_per_node, the processes of a node; --nodes says how many nodes",
    "output": "nothing: logs lie in slurm/ and logs/ of the run folder",
    "parsable": "nothing: marc-launch reads the job's id",
    "requeue": "nothing: a job starts again by itself, at most cluster.max_restarts times",
    "signal": "cluster.signal_delay_s",
    "test-only": "marc-launch --dry-run",
    "wait": "marc-launch --wait",
    "wrap": "cluster.setup",
}
TRES = frozenset({"gres", "tres-per-job", "tres-per-node", "tres-per-socket", "tres-per-task"})


def long_name(key: str) -> str:
    """An option as sbatch spells it: ``ntasks_per_node`` and ``n`` are names of options, too."""
    key = key.strip().removeprefix("--")
    return SHORT.get(key.removeprefix("-"), key.replace("_", "-"))


def gpu_request(text: str) -> str:
    """GPUs of a node as a preset writes them: ``gpu:a100:4`` is ``a100:4``, ``gpu:4`` is ``4``."""
    return text.strip().removeprefix("gres/").removeprefix("gpu:")


def minutes(text: str) -> int | None:
    """A time limit of Slurm's in minutes, rounded up: ``90``, ``1:30:00``, ``2-00``; None when it is none."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if match is None:
        return None
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if any(number > 59 for number in numbers[1:]):
        return None
    if days is not None or len(numbers) == 3:  # D-HH[:MM[:SS]], HH:MM:SS
        hours, mins, secs = [*numbers, 0, 0][:3]
    else:  # MM[:SS]
        hours, (mins, secs) = 0, [*numbers, 0][:2]
    return int(days or 0) * 1440 + hours * 60 + mins + math.ceil(secs / 60)


def check_options(options: Mapping[str, object], given: Iterable[str]) -> None:
    """Refuse what a key of the preset says.

    Args:
        options: ``cluster.sbatch``.
        given: keys that the preset sets itself.

    Raises:
        ValueError: an option of that kind, or one twice; names what to use.
    """
    seen: dict[str, str] = {}
    for key, value in options.items():
        name = long_name(key)
        if name in seen:
            raise ValueError(f"expected each option once, got {seen[name]} and {key}")
        seen[name] = key
        if value is not False:
            _check_option(key, name, str(value), given)


def _check_option(key: str, name: str, value: str, given: Iterable[str]) -> None:
    if name in EITHER and SAME[name] not in given:
        return
    use = OTHER.get(name)
    if name in SAME:
        shown = {"gpus-per-node": gpu_request(value), "exclusive": "true"}.get(name, value)
        use = f"cluster.{SAME[name]}={shown}"
    elif name == "time":
        limit = minutes(value)
        use = "cluster.time_min, in minutes" if limit is None else f"cluster.time_min={limit}"
    elif name in TRES:
        mine = [part for part in value.split(",") if re.match(r"(gres/)?gpu\b", part.strip())]
        rest = ",".join(part for part in value.split(",") if part not in mine)
        if mine:
            asked = gpu_request(mine[0]).replace("gpu", "1")
            use = f"cluster.gpus_per_node={asked}" + (f" and leave {name}: {rest} here" if rest else "")
    if use is not None:
        raise ValueError(f"{key} is an option that the preset gives; use {use}")
