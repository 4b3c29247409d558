"""What of a long campaign is done: a line a case, so that one that was broken off goes on where it was."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NOT_OVER = 3
"""Exit code of a campaign that has used up its time and is not over."""


class CampaignJournal:
    """The cases that were tried, by name, and what came of each.

    Args:
        path: file of earlier pieces; None keeps nothing.
        limit_s: longest time of this piece, in seconds; 0 for no limit.
    """

    def __init__(self, path: Path | None, limit_s: float) -> None:
        self.path, self.limit_s, self._began = path, limit_s, time.monotonic()
        self.told: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                one = json.loads(line)
                self.told[one.pop("case")] = one

    def note(self, case: str, **what: Any) -> None:
        """A case is done."""
        self.told[case] = what
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps({"case": case, **what}) + "\n")

    @property
    def out_of_time(self) -> bool:
        """Whether this piece has to end."""
        return bool(self.limit_s) and time.monotonic() - self._began > self.limit_s


def add_words(words: argparse.ArgumentParser) -> None:
    """The words of a campaign that may be told in pieces."""
    words.add_argument("--journal", type=Path, help="note what is done here; a second start goes on after it")
    words.add_argument("--limit-s", type=float, default=0.0, help=f"end after so many seconds, with code {NOT_OVER}")


@contextmanager
def laboratory() -> Iterator[Path]:
    """A folder for what a campaign builds, in memory where the machine has ``/dev/shm``."""
    lab = Path(tempfile.mkdtemp(prefix="marc-crash-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        yield lab
    finally:
        shutil.rmtree(lab, ignore_errors=True)
