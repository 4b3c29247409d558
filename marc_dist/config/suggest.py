"""Nearest-name suggestions for misspelt keys and presets."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggestion(word: str, known: Iterable[str]) -> str:
    """``'; did you mean X?'`` for the nearest known name, or an empty string when nothing is near."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if not near:  # 'tua' for 'loss.tau': compare the last part alone
        tails = {name.rsplit(".", 1)[-1]: name for name in names}
        hits = difflib.get_close_matches(word.rsplit(".", 1)[-1], list(tails), n=1, cutoff=0.6)
        near = [tails[hit] for hit in hits]
    return f"; did you mean {near[0]}?" if near else ""
