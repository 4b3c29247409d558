"""What marc-shard prints of the labels: how many pictures of each split carry them, and which ones go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from marc_dist.config import printable

COMPANIONS = 3
NAME = 20  # columns of a class name, where all of the line is needed
SHARES = 4  # splits up to which shares stand beside counts


def print_label_tables(
    classes: Sequence[str], num: Mapping[str, int], both: Mapping[str, NDArray[np.int64]], console: Console
) -> None:
    """A line a label: its pictures in each split with their share; then the labels that it most often stands with.

    Lines are as wide as the console at most; 80 columns are enough.

    Args:
        classes: L names.
        num: split -> pictures.
        both: split -> (L, L) pictures that carry both labels; the diagonal holds those of each label.
        console: where.
    """
    splits = list(num)
    names = [printable(name) for name in classes]
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("class", no_wrap=True, overflow="ellipsis")
    for split in splits:
        table.add_column(printable(split), justify="right", no_wrap=True, overflow="ellipsis")

    def cells(counts: Mapping[str, int]) -> list[str]:
        shown = {split: f"{counts[split]:,}" for split in splits}
        if len(splits) <= SHARES:
            shown = {split: f"{text} {_share(counts[split], num[split]):>4}" for split, text in shown.items()}
        return list(shown.values())

    for label, name in enumerate(names):
        table.add_row(Text(name), *cells({split: int(both[split][label, label]) for split in splits}))
    table.add_section()
    empty = " " * 5 if len(splits) <= SHARES else ""
    table.add_row("all pictures", *(f"{num[split]:,}{empty}" for split in splits))
    means = [both[split].diagonal().sum() / max(num[split], 1) for split in splits]
    table.add_row("labels a picture", *(f"{mean:.2f}{empty}" for mean in means))
    console.print(table)
    _print_companions(names, sum(both.values(), np.zeros((len(names), len(names)), dtype=np.int64)), console)


def _share(part: int, whole: int) -> str:
    share = part / max(whole, 1)
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _print_companions(names: Sequence[str], both: NDArray[np.int64], console: Console) -> None:
    """Each label's most frequent companions, with the share of its pictures that carry them; of all splits."""
    own = both.diagonal()
    others = both - np.diag(own)
    if not others.any():
        return
    first = min(max(map(len, names)), NAME)
    room = (min(console.width, 120) - first) // COMPANIONS - 2
    console.print("\nlabels that go together: of the pictures of a class, how many carry the other", soft_wrap=True)
    for label, name in enumerate(names):
        best = sorted(np.flatnonzero(others[label]).tolist(), key=lambda other: (-others[label, other], other))
        cells = [
            f"{_cut(names[other], room - 5)} {_share(int(others[label, other]), int(own[label]))}".ljust(room)
            for other in best[:COMPANIONS]
        ]
        text = "  ".join([_cut(name, first).ljust(first), *(cells or ["alone"])])
        console.print(text.rstrip(), markup=False, highlight=False, soft_wrap=True)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
