"""What an addition may do to a shard folder, decided before anything is written: rules, classes, places, splits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from marc_dist.config import DataError
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.geography.acquisition import Acquisition
from marc_dist.packing import sources
from marc_dist.packing.adding.shard_rewriting import file_sums
from marc_dist.packing.layout import Pairs
from marc_dist.packing.reading.names import normal_name
from marc_dist.packing.reading.recipes import Recipe
from marc_dist.packing.reading.samples import LabelledPicture, Source, hold_samples
from marc_dist.packing.reading.splits import draw_alone
from marc_dist.packing.sources import PackedPicture
from marc_dist.packing.worker_pool import PoolTask, work

FILES = 64  # that a process hashes at a time


@dataclass
class Changes:
    """What an appending does to a folder.

    Attributes:
        new: split -> new pictures.
        changed: places of pictures whose content is another.
        relabelled: places of pictures with other labels, or of another scene, place or date; their content is the
            same.
        removed: places of pictures taken out.
        same: how many stay as they are, those that the source lacks included.
        gone: keys of pictures that the source lacks and that stay all the same.
        returning: keys of removed pictures that the source still has.
        classes: names of classes that the folder did not have.
        shards: ``kept``, ``rewritten``, ``dropped`` and ``new`` -> number of shards.
    """

    new: Counter[str] = field(default_factory=Counter)
    changed: set[str] = field(default_factory=set)
    relabelled: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    same: int = 0
    gone: list[str] = field(default_factory=list)
    returning: list[str] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    shards: Counter[str] = field(default_factory=Counter)

    def __bool__(self) -> bool:
        """Whether the folder becomes another one."""
        return bool(self.new or self.changed or self.relabelled or self.removed or self.classes)


def check_folder(out: Path, rules: Mapping[str, object]) -> Dataset:
    """The shard folder that is to be added to.

    Args:
        out: where it lies.
        rules: of the recipe and the words, see ``Source.asked``; those that are named here must be those of the folder.

    Raises:
        DataError: no shard folder, or one that was packed by other rules or with ``--drop-leaks``.
    """
    dataset = open_dataset(out)
    packed_with = dataset.meta.get("packed_with")
    if not isinstance(packed_with, dict) or "sources_sha256" not in dataset.meta:
        raise DataError(f"{out}: packed by a marc-dist without --append; pack it again once, with --force")
    if packed_with.get("drop_leaks"):
        raise DataError(
            f"{out}: packed with --drop-leaks, and adding would take pictures back that were left out; pack all of it "
            "again with --force --drop-leaks"
        )
    for rule, value in rules.items():
        if packed_with.get(rule) != value and not _told_elsewhere(rule, rules, packed_with):
            had, has = json.dumps(packed_with.get(rule)), json.dumps(value)
            raise DataError(
                f"{out}: packed with {rule} {had}, this call has {has}; add with the recipe and the words that it was "
                "packed with, or pack all of it again with --force"
            )
    return dataset


def _told_elsewhere(rule: str, rules: Mapping[str, object], packed_with: Mapping[str, object]) -> bool:
    """Whether another rule decides: where labels were found counts, and not whether somebody asked for that."""
    known = "labels_found" in packed_with  # a folder of an earlier version does not say it
    return rule == "labels" and known and "labels_found" in rules if rule != "labels_found" else not known


def without_download(out: Path, recipe: Recipe) -> tuple[Source, bool]:
    """A source that brings nothing, to take pictures out of a folder whose download is gone; and its ``to_png``.

    Args:
        out: the folder.
        recipe: that it was packed with.

    Raises:
        DataError: see ``check_folder``.
    """
    dataset = check_folder(out, recipe.rules())
    asked = dict(dataset.meta["packed_with"])
    to_png, drawn = bool(asked.pop("to_png", False)), bool(asked.pop("drawn", False))
    own = recipe.model_copy(update={"name": dataset.name, "title": dataset.title})
    return Source(own, dataset.classes, asked=asked, drawn=drawn), to_png


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def take_classes(source: Source, dataset: Dataset, add: bool) -> tuple[str, ...]:
    """Give the source the folder's class list and its numbers; the names that the folder did not have.

    Args:
        source: of the download.
        dataset: the folder.
        add: let new classes come after those of the folder.

    Raises:
        DataError: new classes without ``add``.
    """
    numbers = {normal_name(name): number for number, name in enumerate(dataset.classes)}
    numbers |= {name: number for number, name in enumerate(dataset.classes)}
    new = tuple(name for name in source.classes if name not in numbers and normal_name(name) not in numbers)
    if new and not add:
        raise DataError(
            f"{dataset.root}: its {len(dataset.classes)} classes do not have {some(new)}; an encoder trained on them "
            "does not know more; to put new classes behind them: --add-classes"
        )
    numbers |= {name: number for number, name in enumerate(new, len(dataset.classes))}
    to = [numbers.get(name, numbers.get(normal_name(name), 0)) for name in source.classes]
    labels = (tuple(sorted({to[label] for label in sample.labels})) for sample in source.samples)
    source.samples = hold_samples(map(lambda one, own: replace(one, labels=own), source.samples, labels))
    source.classes = (*dataset.classes, *new)
    return new


def take_out(
    source: Source,
    dataset: Dataset,
    there: Mapping[str, PackedPicture],
    changes: Changes,
    keys: Collection[str],
    missing: bool,
    workers: int,
) -> None:
    """Decide what goes; of the source's samples, too.

    Args:
        source: of the download.
        dataset: the folder.
        there: place -> picture of the folder.
        changes: gets what goes, what is lost, and what comes back.
        keys: of pictures to take out.
        missing: take out what the download lacks; nothing where there is no download.
        workers: processes.

    Raises:
        DataError: an unknown key, a place that occurs twice, or pictures that only changed their places.
    """
    place = {packed.row.key: origin for origin, packed in there.items()}
    unknown = [key for key in dict.fromkeys(keys) if key not in place]
    if unknown:
        raise DataError(f"--remove: {len(unknown)} keys are not in {dataset.root}: {some(unknown)}")
    listed = {place[key] for key in keys}
    found = {sample.origin for sample in source.samples}
    if len(found) < len(source.samples):
        raise DataError(f"{source.recipe.title}: two pictures of one place; pass each download once")
    lost = [origin for origin in there if origin not in found and origin not in listed]
    _refuse_moved(source, dataset, there, lost, workers)
    changes.removed = listed | set(lost if missing and found else ())
    changes.gone = [] if missing or not found else [there[origin].row.key for origin in lost]
    changes.returning = [there[origin].row.key for origin in there if origin in listed and origin in found]
    source.samples = hold_samples(sample for sample in source.samples if sample.origin not in listed)


def _refuse_moved(
    source: Source, dataset: Dataset, there: Mapping[str, PackedPicture], lost: Sequence[str], workers: int
) -> None:
    """Refuse pictures that the download has at other places, as below another wrapping folder: all would be new.

    Raises:
        DataError: a new file has the content of a picture whose place the download lacks.
    """
    known = {there[origin].row.source: origin for origin in lost}
    new = {(sample.file,): sample.origin for sample in source.samples if sample.origin not in there} if known else {}
    files, moved = list(new), list[str]()

    def finished(job: PoolTask, result: Any) -> list[PoolTask]:
        pairs = zip(job[1][0], result, strict=True)
        moved.extend(f"{known[sum_]} (now {new[file]})" for file, sum_ in pairs if sum_ in known)
        return []

    work([(file_sums, (files[at : at + FILES],)) for at in range(0, len(files), FILES)], finished, workers)
    if moved:
        raise DataError(
            f"{dataset.root}: the download has {len(moved)} of its pictures at other places: {some(sorted(moved))}; "
            "pass the folder as it was packed, or take out the old places with --remove"
        )


def take_splits(
    source: Source, dataset: Dataset, there: Mapping[str, PackedPicture], staying: Mapping[str, PackedPicture]
) -> None:
    """Every picture of the folder keeps its split; a drawn one does not depend on the other pictures.

    Where splits are drawn, a list beside the shards keeps those of pictures that were taken out: one that comes back
    must not be tested on after it was trained on.

    Args:
        source: of the download.
        dataset: the folder.
        there: place -> picture of the folder.
        staying: place -> picture of the folder that stays.

    Raises:
        DataError: splits are drawn in one of the two only, or a picture would change its split.
    """
    drawn = dataset.meta["packed_with"].get("drawn", source.drawn)  # a folder of an earlier state does not say it
    if drawn != source.drawn:
        had, has = ("drawn splits", "brings its own") if drawn else ("the splits of its download", "has none")
        raise DataError(
            f"{dataset.root}: packed with {had}, this download {has}; pass it as it was packed, or pack all of it "
            "again with --force"
        )
    splits = source.recipe.splits.model_copy(update={"source": dataset.meta["split_source"]})
    source.recipe = source.recipe.model_copy(update={"splits": splits})
    other = [
        f"{sample.origin} ({staying[sample.origin].split} there, {sample.split} in the download)"
        for sample in source.samples
        if not source.drawn and sample.origin in staying and sample.split != staying[sample.origin].split
    ]
    if other:
        raise DataError(
            f"{dataset.root}: {len(other)} pictures would change their split: {some(other)}; take them out with "
            "--remove and add them again, or pack all of it again with --force"
        )
    if source.drawn:
        rule = source.recipe.splits
        past = {**sources.removed_splits(dataset), **{origin: packed.split for origin, packed in there.items()}}
        of_group = {packed.taken.group: packed.split for packed in there.values() if packed.taken.group}

        def split_of(sample: LabelledPicture) -> str:
            if sample.origin in past:
                return past[sample.origin]
            group = sample.taken.group
            return of_group.get(group) or draw_alone(group or sample.origin, rule.shares, rule.seed)

        source.samples = hold_samples(
            replace(sample, split=split_of(sample), taken=_kept(sample, staying)) for sample in source.samples
        )
        here = {*staying, *(sample.origin for sample in source.samples)}
        gone = {origin: split for origin, split in past.items() if origin not in here}
        if gone:
            source.beside[sources.REMOVED] = sources.removed_csv(gone)


def _kept(sample: LabelledPicture, staying: Mapping[str, PackedPicture]) -> Acquisition:
    """A picture of the folder keeps the group that it was drawn with, so that no group comes into two splits."""
    there = staying.get(sample.origin)
    return sample.taken if there is None else sample.taken._replace(group=there.taken.group)


def one_kind(out: Path, staying: Mapping[str, PackedPicture], new: Mapping[str, Pairs]) -> None:
    """Refuse new pictures of another file format than those of the folder.

    Args:
        out: the folder.
        staying: place -> picture that stays there.
        new: split -> new pictures.

    Raises:
        DataError: of another format.
    """
    there = {packed.ext for packed in staying.values()}
    coming = {entry.ext for pairs in new.values() for _, entry in pairs}
    if there and coming - there:
        raise DataError(
            f"{out}: holds {', '.join(sorted(there))} pictures, the new ones are {', '.join(sorted(coming - there))}; "
            "pack all of it again with --force --to-png"
        )
