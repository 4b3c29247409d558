"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

from marc_dist.config.errors import ConfigError


def user_path(text: str | Path) -> Path:
    """A path with ``~`` and ``~name`` replaced by the home folder.

    Raises:
        ConfigError: no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{text}: no such user; write ./{text} for a name that begins with ~") from None
