"""Paths as people write them, and the settings that are paths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marc_dist.config.errors import ConfigError

PATHS = (
    "data.dir", "data.urls", "data.cache_dir", "data.features_dir", "model.weights", "train.run_dir",
    "eval.queries_dir", "eval.archive_dir", "eval.label_map",
)  # fmt: skip
"""Settings that are paths, or a list of them."""


def user_path(text: str | Path) -> Path:
    """A path with ``~`` and ``~name`` replaced by the home folder.

    Raises:
        ConfigError: no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{text}: no such user; write ./{text} for a name that begins with ~") from None


def is_relative(value: str) -> bool:
    """Whether a path means something else in another folder; addresses (``s3://``) and commands (``pipe:``) do not."""
    return not ("://" in value or value.startswith(("pipe:", "~")) or Path(value).is_absolute())


def absolute_paths(flat: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Those of ``PATHS`` in ``flat`` that are relative or begin with ``~``, made absolute.

    Args:
        flat: values by dotted key.
        base: the folder that relative paths start from, absolute.

    Raises:
        ConfigError: ``~name`` of no such user.
    """

    def placed(value: str) -> str:
        if value.startswith("~"):
            return str(user_path(value))
        return str(base / value) if value and is_relative(value) else value

    found: dict[str, Any] = {}
    for key in PATHS:
        value = flat.get(key)
        if isinstance(value, str):
            found[key] = placed(value)
        elif isinstance(value, list | tuple):
            found[key] = [placed(one) if isinstance(one, str) else one for one in value]
    return {key: value for key, value in found.items() if value != flat[key] and value != list(flat[key])}
