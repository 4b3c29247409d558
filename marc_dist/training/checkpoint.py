"""Checkpoints that survive a kill at any moment: atomic, checksummed, the newest few kept."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from marc_dist.config import DataError, LaunchError, first_line, is_passing
from marc_dist.files import write_atomic
from marc_dist.run.folder import checkpoint_dir, checkpoints

FORMAT = 1


def _sum_path(path: Path) -> Path:
    return path.with_suffix(".pt.sha256")


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """The file of one step."""
    return checkpoint_dir(run_dir) / f"step-{step:08d}.pt"


def save_checkpoint(run_dir: Path, step: int, payload: dict[str, Any], keep: int) -> Path:
    """Write one checkpoint and drop those older than the newest ``keep``.

    The checksum goes first: a checkpoint that exists under its name always has one, and a torn pair is told as damage.

    Args:
        run_dir: the run folder.
        step: global steps done.
        payload: tensors, numbers and texts only; read back with ``weights_only=True``.
        keep: checkpoints kept, this one included.

    Raises:
        LaunchError: the disk is full or read-only; what was there before stays.
    """
    path = checkpoint_path(run_dir, step)
    if _damage(path) is None:
        return path  # stopped where it was resumed: the file is there and whole
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "step": step, **payload}, buffer)
    data = buffer.getvalue()
    write_atomic(_sum_path(path), f"{hashlib.sha256(data).hexdigest()}  {path.name}\n".encode())
    write_atomic(path, data)
    for old in checkpoints(run_dir)[:-keep]:
        old.unlink(missing_ok=True)
        _sum_path(old).unlink(missing_ok=True)
    for left in checkpoint_dir(run_dir).glob(".*.tmp"):  # of a process that was killed while writing
        left.unlink(missing_ok=True)
    return path


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None.

    Raises:
        LaunchError: the storage does not answer, which says nothing about the file.
    """
    try:
        recorded = _sum_path(path).read_text().split()[0]
        data = path.read_bytes()
    except (OSError, UnicodeDecodeError, IndexError) as error:
        if is_passing(error):
            raise LaunchError(f"{path}: cannot be read ({error}); start again when its storage answers") from None
        return f"cannot be read ({type(error).__name__})"
    return None if hashlib.sha256(data).hexdigest() == recorded else "checksum differs"


def newest_checkpoint(run_dir: Path, say: Callable[[str], None]) -> Path | None:
    """The newest undamaged checkpoint, or None in a fresh folder; damaged ones are named and passed over.

    Raises:
        DataError: there are checkpoints, and all are damaged.
    """
    found = checkpoints(run_dir)
    for path in reversed(found):
        damage = _damage(path)
        if damage is None:
            return path
        say(f"{path}: {damage}; trying the one before")
    if found:
        raise DataError(
            f"{checkpoint_dir(run_dir)}: all {len(found)} checkpoints are damaged; "
            "restore one from a backup, or delete the folder to start over"
        )
    return None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What ``save_checkpoint`` was given, on the CPU.

    Raises:
        DataError: another format, or not a checkpoint.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on kinds of files that we do not write
            payload: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever comes up: UnpicklingError, AttributeError, struct.error, ...
        raise DataError(f"{path}: not a checkpoint ({first_line(error)})") from None
    found = payload.get("format") if isinstance(payload, dict) else type(payload).__name__
    if not isinstance(found, int) or found != FORMAT:
        raise DataError(f"{path}: expected checkpoint format {FORMAT}, got {found!r}; use the marc-dist that wrote it")
    step = payload.get("step")
    if not isinstance(step, int) or not re.fullmatch(rf"step-0*{step}\.pt", path.name):
        raise DataError(f"{path}: holds step {step!r}; the file was renamed")
    return dict(payload)
