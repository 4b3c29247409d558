"""A place in memory for folders that are built and opened by the thousand."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def lab() -> Iterator[Path]:
    """A folder, in memory where the machine has ``/dev/shm``."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="marc-crash-", dir=memory))
    yield folder
    shutil.rmtree(folder)
