"""The schema of a launcher preset, ``launchers/*.yaml``; a ``cluster.KEY=value`` word overrides a key."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from marc_dist.config import ConfigError, build, find_preset, load_yaml, parse_words
from marc_dist.config.schema import Section

PREFIX = "cluster."

EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class LocalPreset(Section):
    """Where and how the processes of a job run: all on this machine."""

    kind: Literal["local"] = Field("local", description="what starts the processes")
    procs_per_node: int | None = Field(None, ge=1, le=1024, description="processes; null = one per GPU, or one")
    threads_per_proc: int | None = Field(None, ge=1, le=1024, description="CPU threads each; null = cores / processes")
    env: dict[EnvName, str] = Field(default_factory=dict, description="more environment variables, as text")
    peer_grace_s: float = Field(10.0, ge=0.0, le=25.0, description="time to end for the others when one fails, seconds")
    stop_grace_s: float = Field(120.0, ge=0.0, le=3600.0, description="time to save after Ctrl-C or SIGTERM, seconds")

    @field_validator("env", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        """YAML reads 1 and true as values; a variable is text."""
        if isinstance(value, dict):
            return {
                k: str(v) if isinstance(v, int | float) and not isinstance(v, bool) else v for k, v in value.items()
            }
        return value


def load_preset(name: str, words: Iterable[str] = (), procs_per_node: int | None = None) -> LocalPreset:
    """The preset ``name`` (a bare name or a file), with ``cluster.key=value`` words and the command's own options.

    Raises:
        ConfigError: no such preset, an unknown key, a value outside its range.
    """
    path = find_preset("launchers", name)
    values = load_yaml(Path(path))
    kind = values.get("kind", "local")
    if kind != "local":
        raise ConfigError(f"{path}: kind: expected 'local', the only one that this version knows, got {kind!r}")
    build(LocalPreset, values, place=f"{path}: ")
    stronger = {} if procs_per_node is None else {"procs_per_node": procs_per_node}
    given = {key.removeprefix(PREFIX): value for key, value in parse_words(words).items()}
    return build(LocalPreset, values, given, stronger, place=PREFIX)
