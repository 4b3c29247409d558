"""How a rank tells its launcher when and why it failed: of many dead ranks, the first one has the cause."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FAILURE_FILE = "MARC_FAILURE_FILE"
ROOM = 8192  # bytes


def tell_failure(error: str) -> None:
    """Note why this rank ends, in the launcher's file, when there is a launcher; never fails itself.

    The launcher made the file with ``ROOM`` blanks, which are overwritten: the reason may be a full disk.
    """
    path = os.environ.get(FAILURE_FILE)
    if path:
        told = json.dumps({"time": time.time(), "error": error[:1000]}).encode().ljust(ROOM)
        with suppress(OSError), Path(path).open("r+b" if Path(path).exists() else "wb") as file:
            file.write(told)


@contextmanager
def failure_told() -> Iterator[None]:
    """Tell of an error that leaves the block, and let it pass."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        name = "" if type(error).__module__.startswith("marc_dist.") else f"{type(error).__name__}: "
        tell_failure(name + text)
        raise
