"""Presets: small YAML files that people copy and edit. A bare name is a preset, a path is a file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Literal

from marc_dist.config.errors import ConfigError
from marc_dist.config.paths import user_path
from marc_dist.config.suggest import suggestion

Kind = Literal["launchers", "recipes", "shards", "studies", "tune_spaces"]


def preset_dir(kind: Kind) -> Path:
    """The folder of one kind of preset: inside an installed wheel, else at the top of an editable checkout."""
    package = Path(str(resources.files("marc_dist")))
    for folder in (package / "presets" / kind, package.parent / kind):
        if folder.is_dir():
            return folder
    raise ConfigError(f"{kind}: no preset folder beside {package}; reinstall marc-dist")


def list_presets(kind: Kind) -> list[str]:
    """Names of the shipped presets of one kind, sorted."""
    return sorted(path.stem for path in preset_dir(kind).glob("*.yaml"))


def find_preset(kind: Kind, name: str) -> Path:
    """The YAML file that ``name`` means.

    Args:
        kind: folder of the preset.
        name: a bare name (``slurm``), or a path: anything with a slash or ending in ``.yaml``.

    Raises:
        ConfigError: no such preset or file; names the nearest preset.
    """
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = user_path(name)
        if not path.is_file():
            raise ConfigError(f"{name}: no such file")
        return path
    path = preset_dir(kind) / f"{name}.yaml"
    if not path.is_file():
        names = list_presets(kind)
        raise ConfigError(f"{kind}: no preset named {name!r}{suggestion(name, names)}; there are {', '.join(names)}")
    return path
