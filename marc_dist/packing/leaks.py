"""Pictures of one split that look like those of another: what a score on them is worth less for. Told, or left out.

``--drop-leaks`` takes from what is trained on, never from what is tested on: a picture of ``train`` goes if it looks
like one of any other split, a picture of ``val`` if it looks like one of a split other than ``train``. All other splits
stay as they are.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from io import StringIO
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from marc_dist.config import DataError
from marc_dist.data.columns import Texts
from marc_dist.data.dataset import Dataset
from marc_dist.packing.layout import split_order
from marc_dist.packing.look_alikes import EQUAL, Partners, Place, look_at_all, partners
from marc_dist.packing.reading.samples import Source, hold_samples

LEAKS, DROPPED = "leaks.csv", "dropped_leaks.csv"
COLUMNS = ("alike", "bits", "split", "picture", "labels", "other_split", "other_picture", "other_labels")
GIVES_WAY = {"train": 0, "val": 1}
"""Splits that lose pictures, the first one to all others."""


class Pictures(NamedTuple):
    """The pictures of a data set, packed or not.

    Attributes:
        names: key, or place in the download.
        split: of each, in order.
        labels: of one, by its number: names of classes, in order.
        places: where the bytes are.
    """

    names: Sequence[str] | Texts
    split: Sequence[str] | Texts
    labels: Callable[[int], list[str]]
    places: Sequence[Place]


class Pair(NamedTuple):
    """Two pictures that look alike; ``bits`` is ``EQUAL`` for equal files."""

    one: int
    two: int
    bits: int


class Leaks(NamedTuple):
    """What was found.

    Attributes:
        pictures: all of them.
        splits: names, in the order in which they are shown.
        of: (n,) number of each picture's split.
        partners: the most similar picture of each split.
        pairs: each picture with its partners, every two once, by split and name.
    """

    pictures: Pictures
    splits: list[str]
    of: NDArray[np.int64]
    partners: Partners
    pairs: list[Pair]


def pictures_of_source(source: Source) -> Pictures:
    """The pictures of a download that was read."""
    samples = source.samples
    return Pictures(
        [sample.origin for sample in samples],
        [sample.split for sample in samples],
        lambda row: [source.classes[label] for label in samples[row].labels],
        _Places(len(samples), lambda some: [Place(sample.file) for sample in samples[some]]),
    )


def pictures_of_dataset(dataset: Dataset) -> Pictures:
    """The pictures of a shard folder."""
    paths = [dataset.root / shard for shard in dataset.shards]

    def places(some: slice) -> list[Place]:
        columns = (column[some].tolist() for column in (dataset.shard, dataset.offset, dataset.size))
        return [Place(paths[shard], offset, size) for shard, offset, size in zip(*columns, strict=True)]

    return Pictures(
        dataset.keys if isinstance(dataset.keys, Texts) else dataset.keys.tolist(),
        dataset.split if isinstance(dataset.split, Texts) else dataset.split.tolist(),
        lambda row: [name for name, on in zip(dataset.classes, dataset.label_rows(row), strict=True) if on],
        _Places(len(dataset), places),
    )


class _Places(Sequence[Place]):
    """Places that are made when they are asked for: a million of them would take 200 MB.

    Args:
        num: of all.
        of: those of a run of numbers.
    """

    def __init__(self, num: int, of: Callable[[slice], list[Place]]) -> None:
        self._num, self._of = num, of

    def __len__(self) -> int:
        return self._num

    @overload
    def __getitem__(self, item: int) -> Place: ...
    @overload
    def __getitem__(self, item: slice) -> list[Place]: ...
    def __getitem__(self, item: int | slice) -> Place | list[Place]:
        if isinstance(item, slice):
            return self._of(item)
        return self._of(slice(range(self._num)[item], range(self._num)[item] + 1))[0]


def find_leaks(pictures: Pictures, workers: int, progress: Callable[[int, int], None]) -> Leaks:
    """Compare all pictures with each other.

    Args:
        pictures: at least one.
        workers: processes.
        progress: called with pictures and bytes looked at so far.

    Raises:
        DataError: a file that cannot be read.
    """
    splits = sorted(set(pictures.split), key=split_order)
    number = {name: at for at, name in enumerate(splits)}
    of = np.array([number[name] for name in pictures.split], dtype=np.int64)
    found = partners(look_at_all(pictures.places, workers, progress), of, len(splits), workers)
    rows, there = np.nonzero(found.sample >= 0)
    pairs = set()
    for row, split in zip(rows.tolist(), there.tolist(), strict=True):
        other = int(found.sample[row, split])
        one, two = sorted((row, other), key=lambda at: (of[at], pictures.names[at], at))
        pairs.add(Pair(one, two, int(found.bits[row, split])))
    names = pictures.names
    ordered = sorted(pairs, key=lambda pair: (of[pair.one], of[pair.two], names[pair.one], names[pair.two]))
    return Leaks(pictures, splits, of, found, ordered)


def leaking(leaks: Leaks) -> NDArray[np.int64]:
    """Numbers of the pictures that ``--drop-leaks`` leaves out, ascending; see above for the rule."""
    stands = np.array([GIVES_WAY.get(name, len(GIVES_WAY)) for name in leaks.splits])
    stronger = stands[None, :] > stands[leaks.of][:, None]
    return np.flatnonzero(((leaks.partners.sample >= 0) & stronger).any(axis=1))


def as_csv(leaks: Leaks, pairs: Sequence[Pair]) -> str:
    """A line a pair; labels with ``;`` between them."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for pair in pairs:
        equal = pair.bits == EQUAL
        sides = [
            cell
            for row in (pair.one, pair.two)
            for cell in (leaks.pictures.split[row], leaks.pictures.names[row], ";".join(leaks.pictures.labels(row)))
        ]
        writer.writerow(["equal" if equal else "near", "" if equal else pair.bits, *sides])
    return text.getvalue()


def notes(leaks: Leaks, listed: str) -> list[str]:
    """What a person should know, a line each: pairs across splits, pairs within one, labels that differ.

    Args:
        leaks: what was found.
        listed: where all pairs are listed.
    """
    across = [pair for pair in leaks.pairs if leaks.of[pair.one] != leaks.of[pair.two]]
    within = [pair for pair in leaks.pairs if leaks.of[pair.one] == leaks.of[pair.two]]
    differ = [pair for pair in leaks.pairs if leaks.pictures.labels(pair.one) != leaks.pictures.labels(pair.two)]
    lines = []
    if across:
        lines.append(f"leaks: {_counted(leaks, across)}; to leave them out, pack again with --force --drop-leaks")
    if within:
        lines.append(f"look-alikes in one split: {_counted(leaks, within)}")
    if differ:
        named = f"{_shown(leaks, differ[0].one, True)} and {_shown(leaks, differ[0].two, True)}"
        lines.append(f"look-alikes with different labels: {_pairs(len(differ))}, such as {named}")
    return lines + [f"look-alikes: all {_pairs(len(leaks.pairs))} in {listed}"] * bool(lines)


def _pairs(num: int) -> str:
    return "1 pair" if num == 1 else f"{num:,} pairs"


def _counted(leaks: Leaks, pairs: Sequence[Pair]) -> str:
    """``3 pairs of train and test (1 equal, 2 nearly), such as train/a = test/b``."""
    kinds: Counter[tuple[int, int]] = Counter((int(leaks.of[pair.one]), int(leaks.of[pair.two])) for pair in pairs)
    parts = []
    for (one, two), num in sorted(kinds.items()):
        names = leaks.splits[one] if one == two else f"{leaks.splits[one]} and {leaks.splits[two]}"
        parts.append(f"{_pairs(num)} of {names}")
    equal = sum(pair.bits == EQUAL for pair in pairs)
    first = f"{_shown(leaks, pairs[0].one)} {'=' if pairs[0].bits == EQUAL else '~'} {_shown(leaks, pairs[0].two)}"
    return f"{', '.join(parts)} ({equal:,} equal, {len(pairs) - equal:,} nearly), such as {first}"


def _shown(leaks: Leaks, row: int, labels: bool = False) -> str:
    named = f" ({', '.join(leaks.pictures.labels(row)) or 'none'})" if labels else ""
    return f"{leaks.pictures.split[row]}/{leaks.pictures.names[row]}{named}"


def drop_leaks(source: Source, leaks: Leaks) -> None:
    """Leave the leaking pictures out of a source; a line and a list beside the shards tell which.

    Args:
        source: whose pictures were compared.
        leaks: what was found.

    Raises:
        DataError: nothing of a split would be left.
    """
    source.asked = {**source.asked, "drop_leaks": True}
    gone = set(leaking(leaks).tolist())
    if not gone:
        source.warnings.append("leaks: none; no picture was left out (--drop-leaks)")
        return
    for name in leaks.splits:
        if all(row in gone for row, split in enumerate(leaks.pictures.split) if split == name):
            raise DataError(
                f"--drop-leaks: every picture of {name} has an equal or nearly equal one in a split that is kept, so "
                f"nothing of {name} would be left; pack without --drop-leaks, {LEAKS} then lists the pairs"
            )
    pairs = []
    for row in sorted(gone, key=lambda at: (leaks.of[at], leaks.pictures.names[at])):
        stands = GIVES_WAY[leaks.pictures.split[row]]
        others = [at for at, name in enumerate(leaks.splits) if GIVES_WAY.get(name, len(GIVES_WAY)) > stands]
        alike = [(int(leaks.partners.bits[row, at]), -at) for at in others if leaks.partners.sample[row, at] >= 0]
        bits, at = min(alike)
        pairs.append(Pair(row, int(leaks.partners.sample[row, -at]), bits))
    before = _carried(source)
    source.samples = hold_samples(sample for row, sample in enumerate(source.samples) if row not in gone)
    source.beside[DROPPED] = as_csv(leaks, pairs)
    counts = Counter(leaks.pictures.split[row] for row in gone)
    parts = [(counts[name], name) for name in leaks.splits if counts[name]]
    told = " and ".join(f"{num:,} picture{'s' * (num > 1)} of {name}" for num, name in parts)
    source.warnings.append(
        f"leaks: {told} left out (--drop-leaks), each equal or nearly equal to one of a split that is kept; "
        f"{DROPPED} lists them"
    )
    lost = [f"{source.classes[label]} ({split})" for label, split in sorted(before - _carried(source))]
    if lost:
        source.warnings.append(f"leaks: classes that have no picture left: {', '.join(lost)}")


def _carried(source: Source) -> set[tuple[int, str]]:
    """Which class occurs in which split."""
    return {(label, sample.split) for sample in source.samples for label in sample.labels}
