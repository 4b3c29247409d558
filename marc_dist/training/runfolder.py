"""The run folder: what lies where, atomic files, settings that may change when it goes on. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from marc_dist.config import Config, ConfigError, LaunchError, dump_yaml, flatten, load_config

HARMLESS = frozenset(
    {
        "data.dir",  # the fingerprint says whether it is the same data
        "data.num_workers",
        "data.verify_crc",
        "data.urls",
        "data.augment_on",
        "data.cache",
        "data.cache_dir",
        "data.retries",
        "data.on_error",
        "data.max_bad",
        "loss.implementation",
        "loss.tile",
        "train.run_dir",
        "train.chunk",
        "train.max_steps",
        "train.device",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.log_every",
        "train.max_nonfinite",
        "train.timeout_s",
        "train.validate_every",
    }
)
"""Settings that do not change what a run computes; all of ``eval`` belongs to them."""


def checkpoint_dir(run_dir: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run_dir / "checkpoints"


def checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(checkpoint_dir(run_dir).glob("step-*.pt"))


def log_path(run_dir: Path, rank: int) -> Path:
    """Where the launcher collects what a rank prints."""
    return run_dir / "logs" / f"rank-{rank}.log"


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file completely or not at all: temporary file, fsync, rename, fsync of the folder.

    Raises:
        LaunchError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, ValueError) as error:  # ValueError: a name that cannot be one, such as one with a NUL
        with suppress(OSError, ValueError):
            temporary.unlink()
        reason = getattr(error, "strerror", None) or error
        raise LaunchError(f"{path}: cannot be written ({reason}); free space or choose another folder") from None


def plain_settings(config: Config) -> dict[str, Any]:
    """Dotted key -> JSON value, the form in which a checkpoint remembers its settings."""
    return dict(json.loads(json.dumps(flatten(config))))


def refuse_changes(before: Mapping[str, Any], config: Config, place: str) -> None:
    """Refuse settings that would make the rest of a run another run.

    Args:
        before: ``plain_settings`` of the run so far.
        config: what is asked for now.
        place: the run's name in the message.

    Raises:
        ConfigError: names each changed key with both values.
    """
    now = plain_settings(config)
    changed = [
        f"{key} was {before[key]!r}, now {value!r}"
        for key, value in now.items()
        if key in before and before[key] != value and key not in HARMLESS and not key.startswith("eval.")
    ]
    if changed:
        raise ConfigError(
            f"{place}: the run has begun with other settings: {'; '.join(changed)}; "
            "keep them, or start a new run with another train.run_dir"
        )


def write_config(config: Config) -> Path:
    """Write the resolved settings into the run folder; the file is itself a valid run file."""
    path = Path(config.train.run_dir) / "config.yaml"
    write_atomic(path, dump_yaml(config, comments=True).encode())
    return path


def prepare(config: Config) -> Path:
    """Make a run folder ready before any rank starts: refuse changed settings early, then write ``config.yaml``.

    Raises:
        ConfigError: see ``refuse_changes``.
        LaunchError: the folder cannot be written.
    """
    run_dir = Path(config.train.run_dir)
    path = run_dir / "config.yaml"
    if checkpoints(run_dir) and path.is_file():
        refuse_changes(plain_settings(load_config(path)), config, str(run_dir))
    write_config(config)
    return run_dir


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a ``.jsonl`` file, without a torn last line or anything else that is not one; none if missing."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError:
        return []
    found: list[dict[str, Any]] = []
    for line in lines:
        with suppress(ValueError):
            record = json.loads(line)
            if line.endswith(b"\n") and isinstance(record, dict):
                found.append(record)
    return found


def truncate_lines(path: Path, step: int) -> None:
    """Drop the lines of a ``.jsonl`` file after ``step``, and a torn last line, so that a resumed run repeats none."""
    if not path.is_file():
        return
    kept: list[bytes] = []
    lines = path.read_bytes().splitlines(keepends=True)
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if line.endswith(b"\n") and isinstance(record, dict) and record.get("step", 0) <= step:
            kept.append(line)
    if kept != lines:
        write_atomic(path, b"".join(kept))
