"""A copy of this package in the run folder: a job that starts again runs the code that it was submitted with.

Days may lie between two starts of a job, and somebody edits or updates marc-dist meanwhile. Data and other packages are
not copied.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from marc_dist.config import LaunchError

PACKAGE = Path(__file__).resolve().parents[1]
BESIDE = ("launchers", "recipes", "shards", "tune_spaces")
"""Presets of an editable checkout; an installed package has them inside."""


def code_dir(job_dir: Path) -> Path:
    """Where the copy lies: ``RUN/code``."""
    return job_dir / "code"


def copy_code(job_dir: Path) -> Path:
    """Copy the package that is imported now; an earlier job's copy is replaced at once, or not at all.

    Args:
        job_dir: the job's folder.

    Returns:
        The folder to import from.

    Raises:
        LaunchError: it cannot be written.
    """
    new, old, final = job_dir / ".code-new", job_dir / ".code-old", code_dir(job_dir)
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    try:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(PACKAGE, new / PACKAGE.name, ignore=ignored)
        for name in BESIDE:
            if (PACKAGE.parent / name).is_dir() and not (PACKAGE / "presets").is_dir():
                shutil.copytree(PACKAGE.parent / name, new / name, ignore=ignored)
        if final.exists():
            final.rename(old)
        new.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, shutil.Error) as error:
        raise LaunchError(f"{final}: the code cannot be copied ({error}); or leave cluster.snapshot away") from None
    return final


def import_path(job_dir: Path, cwd: str) -> str:
    """PYTHONPATH of a job with a copy: the copy, then the folder that it starts in, then what was there.

    With PYTHONSAFEPATH, or ``python -m`` would import from the folder that it starts in before anything else.
    """
    return os.pathsep.join([str(code_dir(job_dir)), cwd])
