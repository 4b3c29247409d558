"""The settings of a run folder: paths in them mean the same wherever they are read.

What is typed starts from the folder where it is typed; ``RUN/config.yaml`` holds absolute paths. Runs of earlier
versions hold relative ones. Where those start from is in ``job.json``, or follows from where the run folder
lies; otherwise nobody knows, and paths of data must be given. A folder that has trained nothing is a mere run file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import marc_dist.config as settings
from marc_dist.config import ConfigError
from marc_dist.config.paths import absolute_paths, is_relative
from marc_dist.files import read_json

if TYPE_CHECKING:
    from marc_dist.config import Config

NEEDED = ("data.dir", "eval.queries_dir", "eval.archive_dir")
"""Paths that hold data: another folder of that name would be read without a word."""


def placed(config: Config) -> Config:
    """``config`` with absolute paths; relative ones start from the current folder."""
    flat = settings.flatten(config)
    moved = absolute_paths(flat, Path.cwd())
    return settings.build(settings.Config, flat, moved) if moved else config


def load_run(
    run_dir: Path, words: Iterable[str] = (), *, needed: Sequence[str] = NEEDED, **layers: Mapping[str, Any]
) -> Config:
    """The settings of a run folder, words and further layers on top.

    Args:
        run_dir: the run folder, with its ``config.yaml``.
        words: ``key=value``; their relative paths start from the current folder.
        needed: paths that must mean something.
        layers: mappings of dotted keys, the last one strongest; their relative paths likewise.

    Raises:
        ConfigError: a fault in the settings, or data whose place nobody knows.
    """
    file = run_dir / "config.yaml"
    kept = settings.flatten(settings.load_config(file))
    given = [settings.parse_words(words), *layers.values()]
    base = _base(run_dir, str(kept["train.run_dir"]))
    if base is None and not _has_trained(run_dir):
        return settings.build(settings.Config, kept, *given)
    if base is None:
        stronger = set().union(*map(_keys, given))
        lost = [key for key in needed if kept[key] and is_relative(kept[key]) and key not in stronger]
        if lost:
            raise ConfigError(
                f"{file}: {lost[0]}: {kept[lost[0]]} is relative to a folder that nobody wrote down; give {lost[0]}=DIR"
            )
    old = absolute_paths(kept, base or run_dir.absolute())
    return settings.build(settings.Config, kept, old, *given)


def _base(run_dir: Path, written: str) -> Path | None:
    """The folder that relative paths of a run's settings start from; None when nobody knows."""
    with suppress(OSError, ValueError):
        cwd = read_json(run_dir / "job.json").get("cwd")
        if isinstance(cwd, str) and Path(cwd).is_absolute():
            return Path(cwd)
    here, parts = Path(os.path.normpath(run_dir.absolute())), Path(written).parts
    if is_relative(written) and ".." not in parts and here.parts[-len(parts) :] == parts:
        return here.parents[len(parts) - 1]
    return None


def _has_trained(run_dir: Path) -> bool:
    return (run_dir / "encoder.json").exists() or (run_dir / "checkpoints").exists()


def _keys(values: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Dotted keys of nested or dotted values."""
    found: set[str] = set()
    for key, value in values.items():
        found |= _keys(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}"}
    return found
