"""What FAISS writes and raises, in lines for people."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def reason(error: Exception) -> str:
    """What FAISS says, without the C++ around it."""
    told = re.sub(r"^Error in .*?\.cpp:\d+: (Error: '.*?' failed: )?", "", str(error)).splitlines()
    return told[0] if told else type(error).__name__


@contextmanager
def warnings_once(say: Callable[[str], None]) -> Iterator[None]:
    """What FAISS writes to the process's standard error, hundreds of times, said once."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            for line in dict.fromkeys(file.read().decode(errors="replace").splitlines()):
                say(f"FAISS: {line}")
