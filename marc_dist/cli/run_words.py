"""Words that name a run and its settings: ``[RUN_DIR | run.yaml | RECIPE] [key=value ...]``.

The schema is built on its first use (``marc_dist.config.load_config``), so that a command that imports this
still answers ``--help`` at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import marc_dist.config as settings
from marc_dist.config import ConfigError, user_path
from marc_dist.config.suggest import suggestion
from marc_dist.run.settings import load_run

if TYPE_CHECKING:
    from marc_dist.config import Config


def split_words(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Positional arguments -> (places, words): as ``split_files``, for places of runs.

    Run folders are named after settings (``lr=0.1,tau=0.5``). Where a place stands besides, or what lies there is no
    run, ``optim.lr=0.1`` is the setting nevertheless, and ``./optim.lr=0.1`` the folder.
    """
    places, words = split_files(arguments)
    doubtful = [place for place in places if "=" in place]
    if doubtful:
        known = settings.schema_keys(settings.Config)
        for place in doubtful:
            if place.partition("=")[0] in known and (len(places) > 1 or not _is_run(user_path(place))):
                places.remove(place)
    return places, [argument for argument in arguments if argument not in places]


def _is_run(path: Path) -> bool:
    return path.is_file() or (path / "config.yaml").is_file()


def split_files(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Positional arguments -> (files, words): whatever holds ``=`` is a ``key=value`` word, unless it exists."""
    files = [word for word in arguments if "=" not in word or os.path.lexists(word)]  # false if too long
    return files, [word for word in arguments if word not in files]


def run_config(arguments: Sequence[str]) -> Config:
    """The configuration of ``[RUN_DIR | run.yaml | RECIPE] [key=value ...]``.

    A run folder means its own ``config.yaml``, and the run stays in that folder even when the folder was moved. A bare
    name of neither a folder nor a file is a recipe.

    Raises:
        ConfigError: more than one place, no such file, or a fault in the settings.
    """
    places, words = split_words(arguments)
    if len(places) > 1:
        raise ConfigError(f"expected one run folder or file and key=value words, got {' '.join(places)}")
    if not places:
        return settings.load_config(None, words)
    path = user_path(places[0])
    if path.is_dir():
        if not (path / "config.yaml").is_file():
            raise ConfigError(f"{path}: no config.yaml; a run folder is made by marc-train train.run_dir={path}")
        if any(word.startswith("train.run_dir=") for word in words):
            raise ConfigError(f"train.run_dir: given twice on the command line, {path} is a run folder")
        return load_run(path, words, moved={"train.run_dir": str(path)})
    if not path.exists() and is_bare(places[0]):
        path = recipe_path(places[0])
    return settings.load_config(path, words)


def is_bare(place: str) -> bool:
    """Whether a place may be the name of a preset: no slash, no ``.yaml``."""
    return "/" not in place and not place.endswith((".yaml", ".yml"))


def recipe_path(name: str) -> Path:
    """The run file of a recipe.

    Raises:
        ConfigError: no such recipe; names the nearest one.
    """
    known = settings.list_presets("recipes")
    if name not in known:
        raise ConfigError(
            f"{name}: no such run folder, run file or recipe{suggestion(name, known)}; recipes: {', '.join(known)}"
        )
    return settings.find_preset("recipes", name)


def encoder_folder(places: Sequence[str]) -> Path:
    """The folder of the encoder that the command line names.

    Raises:
        ConfigError: none or several places, or one that is not there.
    """
    if len(places) != 1:
        raise ConfigError(f"expected one run folder or encoder.safetensors, got {' '.join(places) or 'none'}")
    path = user_path(places[0])
    if path.is_file() and path.name != "encoder.safetensors":
        raise ConfigError(f"{path}: expected a run folder or its encoder.safetensors")
    if not path.exists():
        raise ConfigError(f"{path}: no such run; make one with marc-train train.run_dir={path}")
    return path.parent if path.is_file() else path
