"""What ``marc-shard`` says and draws of a data set, read or packed: tables, pictures that look alike, a sheet."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape

from marc_dist.config import DataError
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.files import write_atomic
from marc_dist.packing.layout import split_order
from marc_dist.packing.leaks import (
    LEAKS,
    as_csv,
    drop_leaks,
    find_leaks,
    notes,
    pictures_of_dataset,
    pictures_of_source,
)
from marc_dist.packing.manifest import statistics
from marc_dist.packing.reading.samples import Source
from marc_dist.progress_bar import progress
from marc_dist.report.class_sheet import class_sheet
from marc_dist.report.label_tables import print_label_tables

SHEET = "sheet.png"


def summary(source: Source) -> None:
    """Print the tables of labels, and a note for everything odd."""
    console = Console()
    num = Counter(sample.split for sample in source.samples)
    splits = sorted(num, key=split_order)
    both = {split: np.array(_together(source, split), dtype=np.int64) for split in splits}
    console.print(f"[bold]{escape(source.recipe.title)}[/]: pictures per class", soft_wrap=True, highlight=False)
    print_label_tables(source.classes, {split: num[split] for split in splits}, both, console)
    for warning in source.warnings:
        note(warning)


def _together(source: Source, split: str) -> list[list[int]]:
    found = statistics((one.labels for one in source.samples if one.split == split), len(source.classes))
    together: list[list[int]] = found["cooccurrence"]
    return together


def note(text: str) -> None:
    """A line for a person about something odd."""
    Console().print(f"[yellow]note[/] {escape(text)}", soft_wrap=True, highlight=False)


def leave_leaks_out(source: Source, workers: int) -> None:
    """``--drop-leaks``: compare the pictures of a download, and leave those out that give an answer away.

    Raises:
        DataError: nothing of a split would be left.
    """
    pictures = pictures_of_source(source)
    if pictures.names:
        with progress("comparing", len(pictures.names)) as tell:
            leaks = find_leaks(pictures, workers, tell)
        drop_leaks(source, leaks)


def list_leaks(path: Path, workers: int, *, always: bool) -> None:
    """List the pictures of a shard folder that look alike, in a file beside the shards and in a few lines.

    Args:
        path: the folder.
        workers: processes.
        always: write the list and say so even if there are none.

    Raises:
        DataError: no such shard folder.
    """
    dataset = _opened(path)
    pictures = pictures_of_dataset(dataset)
    with progress("comparing", len(dataset)) as tell:
        leaks = find_leaks(pictures, workers, tell)
    if leaks.pairs or always:
        write_atomic(dataset.root / LEAKS, as_csv(leaks, leaks.pairs).encode())
    for line in notes(leaks, str(dataset.root / LEAKS)):
        note(line)
    if not leaks.pairs:
        print(f"{dataset.root}: no two of {len(dataset):,} pictures look alike")


def draw_sheet(path: Path, file: Path | None) -> None:
    """Draw some pictures of each class of a shard folder.

    Args:
        path: the folder.
        file: where the PNG goes; None for ``SHEET`` in the folder.

    Raises:
        DataError: no such shard folder, or a picture that cannot be read.
    """
    target = path / SHEET if file is None else file
    write_atomic(target, class_sheet(_opened(path)))
    Console().print(f"drew {target}", markup=False, highlight=False, soft_wrap=True)


def _opened(path: Path) -> Dataset:
    dataset = open_dataset(path)
    if not len(dataset):
        raise DataError(f"{path}: a shard folder without pictures; pack again with marc-shard --force")
    return dataset
