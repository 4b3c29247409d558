"""The schemas of launcher presets, ``launchers/*.yaml``; a ``cluster.KEY=value`` word overrides a key."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from marc_dist.cluster.sbatch_options import check_options, gpu_request, long_name, minutes
from marc_dist.config import ConfigError, build, find_preset, load_yaml, parse_words
from marc_dist.config.section import Section
from marc_dist.config.suggest import suggestion

PREFIX = "cluster."

EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
OneLine = Annotated[str, Field(pattern=r"^[^\n\r\x00]*$")]
NAME = r"^[^\s\x00]+$"
RUNTIME_ENV = (
    "working_dir", "py_modules", "excludes", "env_vars", "pip", "uv", "conda", "py_executable", "container",
    "image_uri", "nsight", "mpi", "config", "worker_process_setup_hook",
)  # fmt: skip
"""Keys of a Ray runtime environment; Ray itself only warns of others."""


class Preset(Section):
    """What every launcher knows."""

    procs_per_node: int | None = Field(None, ge=1, le=1024, description="processes; null = one per GPU, or one")
    env: dict[EnvName, OneLine] = Field(default_factory=dict, description="more environment variables, as text")

    @field_validator("env", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        """YAML reads 1 and true as values; a variable is text."""
        if isinstance(value, dict):
            return {
                k: str(v) if isinstance(v, int | float) and not isinstance(v, bool) else v for k, v in value.items()
            }
        return value


class LocalPreset(Preset):
    """Where and how the processes of a job run: all on this machine."""

    kind: Literal["local"] = Field("local", description="what starts the processes")
    threads_per_proc: int | None = Field(None, ge=1, le=1024, description="CPU threads each; null = cores / processes")
    peer_grace_s: float = Field(10.0, ge=0.0, le=25.0, description="time to end for the others when one fails, seconds")
    stop_grace_s: float = Field(120.0, ge=0.0, le=3600.0, description="time to save after Ctrl-C or SIGTERM, seconds")


class ContainerPreset(Section):
    """The image that ranks run in; the batch script itself stays outside, where Slurm's commands are."""

    runtime: Literal["none", "pyxis", "apptainer"] = Field("none", description="what starts containers here")
    image: OneLine | None = Field(None, description="pyxis: registry reference or .sqsh file; apptainer: .sif file")
    mounts: list[OneLine] = Field(default_factory=list, description="HOST:CONTAINER[:ro], beside the run folder")
    python: OneLine = Field("python3", description="the interpreter inside, which must have marc-dist")

    @model_validator(mode="after")
    def _complete(self) -> ContainerPreset:
        if self.runtime != "none" and not self.image:
            raise ValueError(f"container.image: expected an image for container.runtime={self.runtime}, got none")
        return self


class ArrayPreset(Section):
    """Several runs as one Slurm array, each with its own folder, restarts and logs."""

    seeds: list[int] = Field(default_factory=list, description="train.seed of each run")
    overrides: list[list[OneLine]] = Field(default_factory=list, description="key=value words of each run")
    parallel: int | None = Field(None, ge=1, description="runs at once; null = all that fit")


class RestartPreset(Preset):
    """What launchers share whose jobs start again by themselves."""

    nodes: int = Field(1, ge=1, le=65536, description="machines; --nodes is stronger")
    cpus_per_proc: int | None = Field(None, ge=1, le=4096, description="CPUs of a process; null = the default")
    gpus_per_node: int | str | None = Field(None, description="number, or TYPE:NUMBER as Slurm writes it; null = none")
    interface: OneLine | None = Field(None, pattern=NAME, description="network interface between nodes, e.g. ib0")
    preflight: bool = Field(True, description="look for sick nodes before training starts")
    min_gbps: float | None = Field(None, gt=0, description="slowest allowed node pair, GB/s; null = only shown")
    snapshot: bool = Field(False, description="copy marc-dist's code into the run folder; every start runs the copy")
    max_restarts: int = Field(100, ge=0, le=100_000, description="starts after the first, for whatever reason")
    max_stalls: int = Field(2, ge=0, le=1000, description="starts in a row that may bring no newer checkpoint")
    peer_grace_s: float = Field(10.0, ge=0.0, le=25.0, description="time to end for the others when one fails, seconds")

    @field_validator("gpus_per_node")
    @classmethod
    def _gpus(cls, value: int | str | None) -> int | str | None:
        """Also as ``--gres`` has it: ``gpu:4``, ``gpu:h100:4``."""
        told = f"expected a number or TYPE:NUMBER such as h100:4, got {value!r}"
        if isinstance(value, str):
            kind, _, number = gpu_request(value).rpartition(":")
            if not re.fullmatch(r"[^\s,:()]*", kind) or not number.isdigit() or len(number) > 4:
                raise ValueError(told)
            value = f"{kind}:{int(number)}" if kind else int(number)
            if kind and not int(number):
                raise ValueError(told)
        if isinstance(value, int) and not 0 <= value <= 1024:
            raise ValueError(f"expected 0 to 1024, got {value}")
        return value

    @property
    def gpu_type(self) -> str:
        """The kind of GPU that is asked for; empty for any."""
        return str(self.gpus_per_node).rpartition(":")[0] if isinstance(self.gpus_per_node, str) else ""

    @property
    def num_gpus(self) -> int:
        """GPUs of a node."""
        value = self.gpus_per_node
        return int(value.rpartition(":")[2]) if isinstance(value, str) else value or 0

    @property
    def num_procs(self) -> int:
        """Ranks of a node: as asked, else one per GPU, else one."""
        return self.procs_per_node or max(1, self.num_gpus)

    def rank_variables(self) -> dict[str, str]:
        """What ranks are told through their environment, whoever starts them; ``env`` is stronger."""
        told = {"PYTHONUNBUFFERED": "1"}
        if self.interface:
            told |= {"NCCL_SOCKET_IFNAME": self.interface, "GLOO_SOCKET_IFNAME": self.interface}
        if self.preflight:
            told["MARC_PREFLIGHT"] = "1"
            if self.min_gbps is not None:
                told["MARC_PREFLIGHT_MIN_GBPS"] = str(self.min_gbps)
        return told


class SlurmPreset(RestartPreset):
    """A Slurm cluster: what a job asks for, and what happens when it is interrupted."""

    kind: Literal["slurm"] = Field("slurm", description="what starts the processes")
    partition: OneLine | None = Field(None, pattern=NAME, description="null = the cluster's default")
    account: OneLine | None = Field(None, pattern=NAME, description="who pays")
    qos: OneLine | None = Field(None, pattern=NAME, description="quality of service")
    constraint: OneLine | None = Field(None, description="features that nodes must have")
    exclude: OneLine | None = Field(None, pattern=NAME, description="nodes to keep away from, e.g. n[3,7]")
    nodelist: OneLine | None = Field(None, pattern=NAME, description="nodes to use")
    job_name: OneLine | None = Field(None, pattern=NAME, description="null = marc- and the name of the run folder")
    time_min: int = Field(60, ge=1, le=525_600, description="time limit of one start, minutes")
    mem: OneLine | None = Field(None, pattern=r"^[0-9]+[KMGT]?B?$", description="memory a node, e.g. 64G")
    exclusive: bool = Field(False, description="whole nodes")
    signal_delay_s: int = Field(120, ge=1, le=65_535, description="told to save so long before the limit, seconds")
    dependency: OneLine | None = Field(None, pattern=NAME, description="e.g. afterok:123: starts when job 123 is done")
    mail_type: OneLine | None = Field(None, pattern=NAME, description="when Slurm writes a mail, e.g. END,FAIL")
    mail_user: OneLine | None = Field(None, pattern=NAME, description="to whom; null = the submitting user")
    comment: OneLine | None = Field(None, description="Slurm keeps it with the job; some sites bill by it")
    stop_grace_s: float = Field(120.0, ge=0.0, le=3600.0, description="time to save after a cancel, seconds")
    setup: list[OneLine] = Field(default_factory=list, description="shell lines before the run, e.g. module load cuda")
    sbatch: dict[OneLine, OneLine | int | bool] = Field(default_factory=dict, description="more sbatch options")
    srun_args: list[OneLine] = Field(default_factory=list, description="more options of srun")
    container: ContainerPreset = ContainerPreset()
    array: ArrayPreset = ArrayPreset()

    @field_validator("time_min", mode="before")
    @classmethod
    def _minutes(cls, value: object) -> object:
        """Also times as ``sbatch --time`` takes them: ``2:00:00``, ``1-12``, ``1-12:30``; none with two meanings."""
        if not isinstance(value, str) or not re.search("[:-]", value.strip()[1:]):
            return value
        found = minutes(value)
        if found is None or re.fullmatch(r"\d+:\d+", value.strip()):  # MM:SS to Slurm, HH:MM to people
            raise ValueError(f"expected minutes, H:MM:SS or D-HH:MM, got {value!r}")
        return found

    @field_validator("sbatch")
    @classmethod
    def _options(cls, value: dict[str, str | int | bool], info: ValidationInfo) -> dict[str, str | int | bool]:
        """Stands below the keys that it may repeat: those are checked before it."""
        check_options(value, [key for key, given in info.data.items() if given is not None])
        return {long_name(key): one for key, one in value.items()}


class RayPreset(RestartPreset):
    """An existing Ray cluster: rank actors in one placement group."""

    kind: Literal["ray"] = Field("ray", description="what starts the processes")
    address: OneLine = Field("auto", description="HOST:PORT of its head; auto = RAY_ADDRESS, or this machine's cluster")
    autoscale: bool = Field(False, description="the cluster adds nodes when they are asked for: do not refuse, wait")
    runtime_env: dict[OneLine, Any] = Field(
        default_factory=dict, description="Ray's own, for all ranks: working_dir, env_vars, pip, ..."
    )
    connect_timeout_s: float = Field(30.0, gt=0, le=3600, description="longest wait for the cluster, seconds")
    place_timeout_s: float = Field(300.0, gt=0, le=604_800, description="longest wait for free nodes, seconds")
    stop_grace_s: float = Field(120.0, ge=0.0, le=3600.0, description="time to save after a cancel, seconds")

    @field_validator("runtime_env")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            if key not in RUNTIME_ENV:
                raise ValueError(f"{key}: not a key of Ray's{suggestion(key, RUNTIME_ENV)}")
        return value


KINDS: dict[str, type[LocalPreset] | type[SlurmPreset] | type[RayPreset]] = {
    "local": LocalPreset,
    "slurm": SlurmPreset,
    "ray": RayPreset,
}


def load_preset(
    name: str, words: Iterable[str] = (), *, nodes: int | None = None, procs_per_node: int | None = None
) -> LocalPreset | SlurmPreset | RayPreset:
    """The preset ``name`` (a bare name or a file), with ``cluster.key=value`` words and the command's own options.

    Args:
        name: ``slurm``, or a file.
        words: ``cluster.key=value``.
        nodes: of ``--nodes``, stronger than all.
        procs_per_node: of ``--procs-per-node``, stronger than all.

    Raises:
        ConfigError: no such preset, an unknown key, a value outside its range.
    """
    path = find_preset("launchers", name)
    values = load_yaml(Path(path))
    kind = values.get("kind", "local")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(
            f"{path}: kind: expected {', '.join(KINDS)}, got {kind!r}{suggestion(str(kind), list(KINDS))}"
        )
    model = KINDS[kind]
    build(model, values, place=f"{path}: ")
    stronger: dict[str, Any] = {} if procs_per_node is None else {"procs_per_node": procs_per_node}
    if nodes is not None and "nodes" in model.model_fields:
        stronger["nodes"] = nodes
    given = {key.removeprefix(PREFIX): value for key, value in parse_words(words).items()}
    return build(model, values, given, stronger, place=PREFIX)
