"""A download on disk -> the samples of a data set, every oddity named: what ``pack`` then writes.

Steps: open (folder or archive) -> tell pictures, masks and tables apart -> pair by name -> labels -> splits -> checks.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from marc_dist.config import DataError
from marc_dist.data.discover import File, Found, discover
from marc_dist.data.masks import MaskRule, read_mask
from marc_dist.data.recipes import Recipe
from marc_dist.data.tables import Table, in_class_order, read_table, stem_of


@dataclass(frozen=True)
class Sample:
    """One picture to be packed.

    Attributes:
        file: where it lies.
        origin: its place inside the download, kept in the shard.
        labels: class numbers, ascending.
        scene: its scene, or empty.
        split: its split.
    """

    file: Path
    origin: str
    labels: tuple[int, ...]
    scene: str
    split: str


@dataclass
class Source:
    """What was found in a download.

    Attributes:
        recipe: of the data set.
        classes: names in order.
        samples: in the order of their places.
        warnings: everything odd that was let pass, one line each.
        allow: names of checks that may fail.
    """

    recipe: Recipe
    classes: tuple[str, ...] = ()
    samples: list[Sample] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    allow: frozenset[str] = frozenset()

    def check(self, name: str, faults: Sequence[str], message: str) -> None:
        """Stop at a failed check, or note it when the recipe or ``--allow`` lets it pass.

        Raises:
            DataError: the check fails and may not.
        """
        if not faults:
            return
        shown = ", ".join(faults[:3]) + (f" and {len(faults) - 3} more" if len(faults) > 3 else "")
        text = f"{message}: {shown}"
        if name not in self.allow and getattr(self.recipe.policies, name) == "stop":
            raise DataError(f"{text}; to go on all the same: --allow {name}")
        self.warnings.append(f"{name}: {text}")


def read_source(
    recipe: Recipe,
    roots: Sequence[Path],
    *,
    labels: str = "auto",
    table: Path | None = None,
    index_order: str | None = None,
    classes: Sequence[str] | None = None,
    allow: Iterable[str] = (),
    workers: int = 1,
) -> Source:
    """Read a download.

    Args:
        recipe: of the data set.
        roots: folders, searched to any depth; the first one's files come first.
        labels: ``auto`` (the recipe's order), ``table``, ``masks`` or ``folders``.
        table: the label table, when it does not lie in the download.
        index_order: which index table masks without a palette follow.
        classes: the class list of a data set whose recipe has none.
        allow: names of checks that may fail.
        workers: processes that read masks.

    Raises:
        DataError: the download is not this data set, or something in it is wrong; names the files.
    """
    source = Source(recipe, tuple(classes or recipe.class_names), allow=frozenset(allow))
    found = discover(recipe, roots)
    if table is not None:
        found.tables.insert(0, File(table.parent, table))
    pictures = _pictures(source, found, roots)
    kinds = _label_kinds(source, found, labels, roots)
    known, split_of = _labels(source, kinds, found, pictures, index_order, workers)
    _assemble(source, pictures, known, split_of)
    _expectations(source)
    return source


def _pair_key(recipe: Recipe, file: File) -> str:
    stem = stem_of(file.path.name)
    return f"{file.parts[-2]}/{stem}" if recipe.pair_by == "folder_and_name" and len(file.parts) > 1 else stem


def _by_key(source: Source, files: list[File], kind: str) -> dict[str, File]:
    """Files by what they are paired by; the first of doubled ones."""
    keyed: dict[str, File] = {}
    doubled = []
    for file in files:
        key = _pair_key(source.recipe, file)
        if key in keyed:
            doubled.append(f"{keyed[key].origin} and {file.origin}")
        else:
            keyed[key] = file
    source.check("doubled", doubled, f"{kind} of one name ({len(doubled)}; the first of each is taken)")
    return keyed


def _pictures(source: Source, found: Found, roots: Sequence[Path]) -> dict[str, File]:
    recipe = source.recipe
    where = ", ".join(map(str, roots))
    if not found.pictures:
        rest = (
            f"{len(found.masks)} masks and {len(found.tables)} label tables, but "
            if found.masks or found.tables
            else ""
        )
        raise DataError(f"{where}: found {rest}no pictures of {recipe.title}; expected {recipe.layout or 'pictures'}")
    pictures = _by_key(source, found.pictures, "pictures")
    if recipe.expect.stem:
        strange = [file.origin for key, file in pictures.items() if not re.fullmatch(recipe.expect.stem, stem_of(key))]
        if len(strange) > len(pictures) / 2:
            raise DataError(
                f"{where}: this does not look like {recipe.title}: {len(strange)} of {len(pictures)} pictures have "
                f"other names, such as {strange[0]}; expected {recipe.layout}"
            )
    return pictures


def _label_kinds(source: Source, found: Found, wanted: str, roots: Sequence[Path]) -> list[str]:
    """Which label sources there are, the one to use first."""
    at_hand = {"table": bool(found.tables), "masks": bool(found.masks), "folders": True}
    kinds: list[str] = [kind for kind in source.recipe.labels if at_hand[kind]]
    if wanted != "auto":
        if wanted not in kinds:
            raise DataError(f"--labels {wanted}: {source.recipe.name} has {', '.join(kinds) or 'no labels'} here")
        kinds = [wanted, *(kind for kind in kinds if kind != wanted)]
    if not kinds:
        raise DataError(
            f"{', '.join(map(str, roots))}: {len(found.pictures)} pictures but no labels of {source.recipe.title}; "
            f"expected {source.recipe.layout}"
        )
    return kinds


Labels = dict[str, tuple[int, ...]]


def _labels(
    source: Source, kinds: list[str], found: Found, pictures: dict[str, File], index_order: str | None, workers: int
) -> tuple[Labels, dict[str, str]]:
    """Class numbers of every picture by the first kind; a second kind is compared with it."""
    split_of: dict[str, str] = {}
    known: list[Labels] = []
    for kind in kinds:
        if kind == "table":
            labels, split_of = _from_table(source, found.tables[0], pictures)
            known.append(labels)
        elif kind == "masks":
            rule = source.recipe.mask_rule(index_order)
            known.append(_from_masks(_by_key(source, found.masks, "masks"), rule, workers))
        elif len(known) == 0:
            known.append(_from_folders(source, pictures))
    _pairing(source, kinds[0], known[0], pictures)
    if len(known) > 1:
        _compare(source, known[0], known[1])
    return known[0], split_of


def _from_table(source: Source, file: File, pictures: dict[str, File]) -> tuple[Labels, dict[str, str]]:
    classes = source.classes or None
    table: Table = read_table(
        file.path,
        classes=classes,
        stems=[stem_of(picture.path.name) for picture in pictures.values()],
        separator=source.recipe.separator,
    )
    if not source.classes:
        source.classes = table.classes
    aliases = [entry.aliases for entry in source.recipe.classes] or [()] * len(source.classes)
    matrix = in_class_order(table, source.classes, aliases)
    rows = Counter(table.stems)
    source.check("doubled", [stem for stem, num in rows.items() if num > 1], f"{file.origin}: rows of one name")
    labels = {stem: tuple(np.flatnonzero(row).tolist()) for stem, row in zip(table.stems, matrix, strict=True)}
    split_of = dict(zip(table.stems, table.split, strict=True)) if table.split is not None else {}
    return labels, split_of


def _mask_labels(path: Path, rule: MaskRule) -> tuple[int, ...] | DataError:
    try:
        return tuple(sorted(read_mask(path, rule)))
    except DataError as error:
        return error


def _from_masks(masks: dict[str, File], rule: MaskRule, workers: int) -> Labels:
    paths = [file.path for file in masks.values()]
    read: Callable[[Path], tuple[int, ...] | DataError] = partial(_mask_labels, rule=rule)
    if workers > 1 and len(paths) > 200:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            results = list(pool.map(read, paths, chunksize=64))
    else:
        results = [read(path) for path in paths]
    labels: Labels = {}
    for key, result in zip(masks, results, strict=True):
        if isinstance(result, DataError):
            raise result
        labels[key] = result
    return labels


def _from_folders(source: Source, pictures: dict[str, File]) -> Labels:
    """One folder a class: the folder right above a picture is its label."""
    flat = [file.origin for file in pictures.values() if len(file.parts) < 2]
    if flat:
        raise DataError(
            f"{flat[0]}: a picture in no folder, and no label table; expected {source.recipe.layout or 'labels'}"
        )
    names = {key: file.path.parent.name for key, file in pictures.items()}
    if not source.classes:
        source.classes = tuple(sorted(set(names.values())))
    unknown = sorted(set(names.values()) - set(source.classes))
    if unknown:
        raise DataError(f"folder {unknown[0]!r} is not in the class list ({', '.join(source.classes)})")
    return {key: (source.classes.index(name),) for key, name in names.items()}


def _pairing(source: Source, kind: str, labels: Labels, pictures: dict[str, File]) -> None:
    bare = [file.origin for key, file in pictures.items() if key not in labels]
    if len(bare) == len(pictures):
        raise DataError(
            f"no picture is named in the {kind} of {source.recipe.title} (first picture {bare[0]}, first label "
            f"{next(iter(labels), 'none')}); are they of one data set?"
        )
    source.check("missing", bare, f"pictures without labels in the {kind} ({len(bare)}, left out)")
    lost = [key for key in labels if key not in pictures]
    source.check("missing", lost, f"labels in the {kind} without a picture ({len(lost)}, left out)")


def _compare(source: Source, one: Labels, two: Labels) -> None:
    """Tell how far two label sources of one set disagree, per class."""
    differ: Counter[int] = Counter()
    rows = 0
    for key in one.keys() & two.keys():
        change = set(one[key]) ^ set(two[key])
        rows += bool(change)
        differ.update(change)
    if rows:
        named = ", ".join(f"{source.classes[label]} {num}" for label, num in sorted(differ.items()))
        source.warnings.append(f"labels: table and masks disagree about {rows} pictures ({named})")


def _scene(recipe: Recipe, file: File) -> str:
    if recipe.scene == "folder":
        return file.path.parent.name if len(file.parts) > 1 else ""
    return re.sub(r"_?\d+$", "", stem_of(file.path.name)) if recipe.scene == "name" else ""


def draw_splits(groups: dict[str, list[str]], shares: dict[str, float], seed: int) -> dict[str, str]:
    """A split for every key: within each group in the order of a hash, so any machine draws the same.

    Args:
        groups: scene -> keys.
        shares: split -> share of each scene.
        seed: of the draw.
    """
    chosen: dict[str, str] = {}
    for keys in groups.values():
        ordered = sorted(keys, key=lambda key: (hashlib.sha256(f"{seed}/{key}".encode()).digest(), key))
        start, total = 0, 0.0
        for split, share in shares.items():
            total += share
            end = round(total * len(ordered))
            chosen |= dict.fromkeys(ordered[start:end], split)
            start = end
    return chosen


def _assemble(source: Source, pictures: dict[str, File], labels: Labels, split_of: dict[str, str]) -> None:
    recipe = source.recipe
    kept = {key: file for key, file in sorted(pictures.items()) if key in labels}
    if recipe.splits.folders:
        names = {folder.lower(): split for split, folder in recipe.splits.folders.items()}
        chosen = {
            key: next((names[part] for part in file.parts[:-1] if part in names), "") for key, file in kept.items()
        }
        lost = [kept[key].origin for key, split in chosen.items() if not split]
        if lost:
            raise DataError(f"{lost[0]}: in none of the folders {', '.join(recipe.splits.folders.values())}")
    elif split_of:
        chosen = {key: split_of[key] for key in kept}
    else:
        groups: dict[str, list[str]] = defaultdict(list)
        for key, file in kept.items():
            groups[_scene(recipe, file)].append(key)
        chosen = draw_splits(groups, dict(recipe.splits.shares), recipe.splits.seed)
    bad = [
        f"{kept[key].origin}: {split!r}" for key, split in chosen.items() if not re.fullmatch(r"[a-z][a-z0-9_]*", split)
    ]
    if bad:
        raise DataError(f"split names must be lower-case words, got {bad[0]}")
    source.samples = [
        Sample(file.path, file.origin, labels[key], _scene(recipe, file), chosen[key]) for key, file in kept.items()
    ]


def _expectations(source: Source) -> None:
    """Compare with what the published set holds."""
    expect, samples = source.recipe.expect, source.samples
    if not source.classes:
        raise DataError(f"{source.recipe.title}: no classes")
    sizes = Counter(sample.split for sample in samples)
    faults = []
    if expect.num_images is not None and len(samples) != expect.num_images:
        faults.append(f"{len(samples)} pictures instead of {expect.num_images}")
    for split, num in expect.num_per_split.items():
        if sizes[split] != num:
            faults.append(f"{sizes[split]} in {split} instead of {num}")
    source.check("counts", faults, "not the published number of pictures")
    empty = [sample.origin for sample in samples if not sample.labels]
    source.check("empty_labels", empty, f"pictures without any label ({len(empty)}, kept as negatives)")
    low, high = expect.labels_per_image
    strange = [
        f"{sample.origin} ({len(sample.labels)})"
        for sample in samples
        if sample.labels and not low <= len(sample.labels) <= high
    ]
    source.check("label_range", strange, f"expected {low} to {high} labels a picture; is the table damaged?")
    for split, counts in expect.label_counts.items():
        found = Counter(label for sample in samples if split in ("all", sample.split) for label in sample.labels)
        differ = [
            f"{source.classes[label]} {found[label]} instead of {num}"
            for label, num in enumerate(counts)
            if found[label] != num
        ]
        source.check("label_counts", differ, f"{split}: pictures per class differ from the published ones")
    lonely = [name for label, name in enumerate(source.classes) if not any(label in s.labels for s in samples)]
    if lonely:
        source.warnings.append(f"classes that no picture carries: {', '.join(lonely)}")
