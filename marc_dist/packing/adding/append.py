"""Adding to a shard folder: what the download holds now is compared with what lies in the folder, picture by picture.

A picture is known by its place inside the download, its content by the SHA-256 of its file. A shard none of whose
samples changed is kept: the same file, under a second name while two folders exist. A shard with a changed, relabelled
or removed picture is written anew under its name, the other pictures' bytes as they were. New pictures go to new
shards. The folder is published as ``pack`` does it: the old one or the new one, never a mixture.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from marc_dist.config import DataError
from marc_dist.data.dataset import Dataset
from marc_dist.files import sync_file
from marc_dist.packing import shard_records, sources
from marc_dist.packing.adding.rules import (
    FILES,
    Changes,
    check_folder,
    one_kind,
    some,
    take_classes,
    take_out,
    take_splits,
)
from marc_dist.packing.adding.shard_rewriting import check_shard, file_sums, glances, keep_shard, rewrite_shard
from marc_dist.packing.layout import Pair, Pairs, cut, plan_entries, sample_json, split_order
from marc_dist.packing.leaks import LEAKS
from marc_dist.packing.pack import Progress, conclude, demands_of, pack_more
from marc_dist.packing.publish import clear, publication
from marc_dist.packing.reading.samples import LabelledPicture, Source, hold_samples
from marc_dist.packing.sources import PackedPicture
from marc_dist.packing.tar import Entry, WrittenShard
from marc_dist.packing.worker_pool import PoolTask, work

SIDECARS = (
    "dataset.json", "index.parquet", "sizes.json", "README.md", "cooccurrence.csv", sources.NAME, sources.REMOVED,
    LEAKS, "sheet.png",
)  # fmt: skip
"""Files that this program writes beside the shards."""


def append(
    source: Source,
    out: Path,
    *,
    workers: int = 1,
    samples_per_shard: int = 1000,
    shard_mb: float | None = None,
    to_png: bool = False,
    remove: Collection[str] = (),
    remove_missing: bool = False,
    add_classes: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Changes:
    """Bring a shard folder up to what was found in the download.

    Unlike ``pack``, it holds every picture of the folder and of the download as objects, a few kB each.

    Args:
        source: what was found; becomes what the folder then holds.
        out: the shard folder; not a byte of it changes when there is nothing to do.
        workers: processes.
        samples_per_shard: samples of a full new shard.
        shard_mb: see ``pack``.
        to_png: see ``pack``; as the folder was packed.
        remove: keys of pictures to take out, whether the source has them or not.
        remove_missing: take out the pictures that the source lacks.
        add_classes: let new classes come after those of the folder.
        dry_run: compare, and change nothing.
        progress: called with samples of the source and bytes done so far.

    Raises:
        DataError: no such folder, one of other rules, a damaged shard, an unknown key, a new class without
            ``add_classes``, a picture that is in another split in the download, a picture that cannot be packed.
    """
    out = out.resolve()
    rules = {**source.asked, "to_png": to_png}
    if out.exists() or not out.with_name(f".{out.name}.old").exists():  # else a crash between two renames: mended below
        check_folder(out, rules)
    with publication(out, True, _keep_interrupted()) as folder:
        dataset = check_folder(out, rules)
        there = _with_glances(dataset, sources.read(dataset), workers)
        changes = Changes(classes=take_classes(source, dataset, add_classes))
        take_out(source, dataset, there, changes, remove, remove_missing, workers)
        staying = {origin: packed for origin, packed in there.items() if origin not in changes.removed}
        take_splits(source, dataset, there, staying)
        keys = {origin: packed.row.key for origin, packed in staying.items()}
        plan = {split: list(pairs) for split, pairs in plan_entries(source, to_png=to_png, known=keys).items()}
        new = {split: [pair for pair in pairs if pair[0].origin not in staying] for split, pairs in plan.items()}
        new = {split: pairs for split, pairs in new.items() if pairs}
        one_kind(out, staying, new)
        done = _Done(progress)
        _compare(dataset, plan, staying, changes, workers, done)
        _add_staying(source, plan, staying)
        if not plan:
            raise DataError(f"{out}: nothing would be left; to be rid of all of it, delete the folder")
        plan = {split: sorted(plan[split], key=_key) for split in sorted(plan, key=split_order)}
        source.samples = hold_samples(sample for pairs in plan.values() for sample, _ in pairs)
        changes.new = Counter({split: len(pairs) for split, pairs in new.items()})
        changes.shards["new"] = sum(1 for pairs in new.values() for _ in cut(pairs, samples_per_shard, shard_mb))
        members = _members(plan, staying)
        affected = {there[place].shard for place in (*changes.removed, *changes.changed, *changes.relabelled)}
        for shard in dataset.shards:
            what = "dropped" if shard not in members else "rewritten" if shard in affected else "kept"
            changes.shards[what] += 1
        _tell(source, changes)
        if changes and not dry_run:
            _room(dataset, new, affected)
            written = _old_shards(source, dataset, folder, members, affected, changes, workers, done)
            more = pack_more(
                new,
                folder,
                {split: _next_number(dataset, split) for split in new},
                demands_of(source),
                workers=workers,
                samples_per_shard=samples_per_shard,
                shard_mb=shard_mb,
                progress=done.after(),
            )
            shards = {split: [*written.get(split, ()), *more.get(split, ())] for split in plan}
            _keep_others(dataset, folder)
            conclude(source, plan, shards, folder, to_png=to_png, workers=workers)
    return changes


def _keep_interrupted() -> Callable[[Path], None]:
    """What clears the private folder, unless an interrupted packing has left finished shards there.

    Raises:
        DataError: it has.
    """
    state = "new"

    def sweep(folder: Path) -> None:
        nonlocal state
        left = len(shard_records.left_over(folder)) if state == "new" else 0
        if left:
            state = "kept"
            shards = "1 finished shard" if left == 1 else f"{left} finished shards"
            raise DataError(
                f"{folder}: {shards} of an interrupted packing; go on with it first (--resume --force instead of "
                "--append), or delete this folder"
            )
        if state != "kept":
            state = "cleared"
            clear(folder)

    return sweep


def _with_glances(dataset: Dataset, there: dict[str, PackedPicture], workers: int) -> dict[str, PackedPicture]:
    """The folder's pictures, looked at anew where other versions of the decoders did: equal ones must be found."""
    if sources.glances_hold(dataset):
        return there
    of_shard: dict[str, list[str]] = defaultdict(list)
    for origin, packed in there.items():
        of_shard[packed.shard].append(origin)
    fresh: dict[str, PackedPicture] = {}

    def finished(job: PoolTask, found: list[str]) -> list[PoolTask]:
        for origin, glance in zip(of_shard[job[1][0].name], found, strict=True):
            fresh[origin] = there[origin]._replace(row=there[origin].row._replace(glance=glance))
        return []

    jobs = ((glances, (dataset.root / name, [there[one].row for one in places])) for name, places in of_shard.items())
    work(jobs, finished, workers)
    return {origin: fresh[origin] for origin in there}


def _keep_others(dataset: Dataset, folder: Path) -> None:
    """Bring along what people have put beside the shards; what this program makes of a data set is made anew."""
    for path in dataset.root.iterdir():
        if path.name in dataset.shards or path.name in SIDECARS or path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, folder / path.name, symlinks=True)
        else:
            shutil.copy2(path, folder / path.name, follow_symlinks=False)
            if not path.is_symlink():
                sync_file(folder / path.name)


class _Done:
    """Samples and bytes done so far."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.samples, self.size = progress, 0, 0

    def add(self, samples: int, size: int) -> None:
        self.samples, self.size = self.samples + samples, self.size + size
        if self.progress is not None:
            self.progress(self.samples, self.size)

    def after(self) -> Progress | None:
        """For what comes next and counts from zero."""
        progress, samples, size = self.progress, self.samples, self.size
        return progress and (lambda more, larger: progress(samples + more, size + larger))


def _key(pair: Pair) -> str:
    return pair[1].key


def _compare(
    dataset: Dataset,
    plan: Mapping[str, Pairs],
    staying: Mapping[str, PackedPicture],
    changes: Changes,
    workers: int,
    done: _Done,
) -> None:
    """Read every shard, and every picture of the source that the folder has; note what is another."""
    known = {entry.files: sample for pairs in plan.values() for sample, entry in pairs if sample.origin in staying}
    files = list(known)
    jobs: list[PoolTask] = [
        (check_shard, (dataset.root / shard["name"], shard["sha256"])) for shard in dataset.meta["shards"]
    ]
    jobs += [(file_sums, (files[start : start + FILES],)) for start in range(0, len(files), FILES)]

    def finished(job: PoolTask, result: Any) -> list[PoolTask]:
        if job[0] is file_sums:
            for file, sum_ in zip(job[1][0], result, strict=True):
                sample, packed = known[file], staying[known[file].origin]
                if sum_ != packed.row.source:
                    changes.changed.add(sample.origin)
                    continue
                if (sample.labels, sample.scene, sample.taken) != (packed.labels, packed.scene, packed.taken):
                    changes.relabelled.add(sample.origin)
                done.add(1, packed.row.size)
        return []

    work(jobs, finished, workers)
    changes.same = len(staying) - len(changes.changed) - len(changes.relabelled)


def _add_staying(source: Source, plan: dict[str, list[Pair]], staying: Mapping[str, PackedPicture]) -> None:
    """Put the folder's pictures that the source lacks into the plan."""
    planned = {sample.origin for pairs in plan.values() for sample, _ in pairs}
    for origin, packed in staying.items():
        if origin not in planned:
            meta = sample_json(source.classes, packed.labels, packed.scene, origin)
            entry = Entry(Path(), packed.row.key, packed.ext, packed.ext, meta)
            sample = LabelledPicture("", origin, packed.labels, packed.scene, packed.split, packed.taken)
            plan.setdefault(packed.split, []).append((sample, entry))


def _members(
    plan: Mapping[str, Pairs], staying: Mapping[str, PackedPicture]
) -> dict[str, list[tuple[Entry, PackedPicture, str]]]:
    """Shard of the folder -> the samples that stay in it, in its order, each with its place in the download."""
    found: dict[str, list[tuple[Entry, PackedPicture, str]]] = defaultdict(list)
    for pairs in plan.values():
        for sample, entry in pairs:
            packed = staying.get(sample.origin)
            if packed is not None:
                found[packed.shard].append((entry, packed, sample.origin))
    for samples in found.values():
        samples.sort(key=lambda one: one[1].row.offset)
    return dict(found)


def _tell(source: Source, changes: Changes) -> None:
    if changes.gone:
        source.warnings.append(
            f"append: {len(changes.gone)} pictures are in the folder and no longer in the download; they were kept: "
            f"{some(changes.gone)}; to take them out: --remove-missing"
        )
    if changes.returning:
        source.warnings.append(
            f"append: {len(changes.returning)} pictures that were taken out are still in the download: "
            f"{some(changes.returning)}; the next --append would add them again"
        )
    if changes.classes:
        source.warnings.append(f"append: new classes, after the others: {', '.join(changes.classes)}")


def _room(dataset: Dataset, new: Mapping[str, Pairs], affected: Collection[str]) -> None:
    """Refuse before the first byte when the disk cannot hold what is written."""
    need = sum(sum(file.stat().st_size for file in entry.files) + 2048 for pairs in new.values() for _, entry in pairs)
    need += sum(shard["size"] for shard in dataset.meta["shards"] if shard["name"] in affected)
    free = shutil.disk_usage(dataset.root).free
    if need > free:
        raise DataError(f"{dataset.root}: needs about {need / 1e6:.1f} MB, the disk has {free / 1e6:.1f} MB free")


def _next_number(dataset: Dataset, split: str) -> int:
    matches: Iterator[re.Match[str] | None] = (re.fullmatch(rf"{split}-(\d+)\.tar", name) for name in dataset.shards)
    return max((int(found[1]) for found in matches if found), default=-1) + 1


def _old_shards(
    source: Source,
    dataset: Dataset,
    folder: Path,
    members: Mapping[str, Sequence[tuple[Entry, PackedPicture, str]]],
    affected: Collection[str],
    changes: Changes,
    workers: int,
    done: _Done,
) -> dict[str, list[WrittenShard]]:
    """Keep or write anew every shard of the folder of which something stays; split -> shards in order."""
    written: dict[str, WrittenShard] = {}
    jobs: list[PoolTask] = []
    for shard in dataset.meta["shards"]:
        name, samples = shard["name"], members.get(shard["name"], ())
        old, new = dataset.root / name, folder / name
        if samples and name in affected:
            again = [(entry, None if place in changes.changed else packed.row) for entry, packed, place in samples]
            jobs.append((rewrite_shard, (old, new, again, demands_of(source))))
        elif samples:
            keep_shard(old, new, shard["sha256"])
            written[name] = WrittenShard(name, [packed.row for _, packed, _ in samples], shard["size"], shard["sha256"])

    def finished(job: PoolTask, result: WrittenShard) -> list[PoolTask]:
        written[result.name] = result
        fresh = [row for (_, was), row in zip(job[1][2], result.rows, strict=True) if was is None]
        done.add(len(fresh), sum(row.size for row in fresh))
        return []

    work(jobs, finished, workers)
    shards: dict[str, list[WrittenShard]] = defaultdict(list)
    for shard in dataset.meta["shards"]:
        if shard["name"] in written:
            shards[members[shard["name"]][0][1].split].append(written[shard["name"]])
    return shards
