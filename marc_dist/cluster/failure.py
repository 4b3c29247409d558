"""How a rank tells its launcher when and why it failed: of many dead ranks, the first one has the cause."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FAILURE_FILE = "MARC_FAILURE_FILE"


def tell_failure(error: str) -> None:
    """Note why this rank ends, in the launcher's file, when there is a launcher."""
    path = os.environ.get(FAILURE_FILE)
    if path:
        Path(path).write_text(json.dumps({"time": time.time(), "error": error[:2000]}))


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
