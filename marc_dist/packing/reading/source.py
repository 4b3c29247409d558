"""A download on disk -> the samples of a data set, every oddity named: what ``pack`` then writes.

Steps: open (folder or archive) -> tell pictures, masks and tables apart -> pair by name -> labels -> splits -> checks.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from marc_dist.config import DataError, list_presets
from marc_dist.packing.reading.discover import DownloadContent, File, discover
from marc_dist.packing.reading.masks import MaskRule, read_mask
from marc_dist.packing.reading.recipes import Recipe, load_recipe
from marc_dist.packing.reading.samples import Source, expectations
from marc_dist.packing.reading.splits import assign
from marc_dist.packing.reading.tables import Table, in_class_order, read_table, stem_of
from marc_dist.packing.worker_pool import start_worker

Labels = dict[str, tuple[int, ...]]
MASKS_A_PROCESS = 200  # below, starting processes costs more than it saves


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
    rule = recipe.mask_rule(index_order) if "masks" in recipe.labels or index_order else None
    found = discover(recipe, roots, rule)
    if not found.pictures and (beside := _companions(recipe, roots)):
        source.warnings.append(f"pictures: taken from {', '.join(map(str, beside))}, beside the download")
        found = discover(recipe, [*roots, *beside], rule)
    if table is not None:
        found.tables.insert(0, File(table.parent, table))
    pictures = _pictures(source, found, roots)
    kinds = _label_kinds(source, found, labels, roots)
    known, split_of = _labels(source, kinds, found, pictures, rule, workers, strict=labels == "auto")
    assign(source, pictures, known, split_of)
    _tell_passed_over(source, found)
    expectations(source)
    return source


def _companions(recipe: Recipe, roots: Sequence[Path]) -> list[Path]:
    """Folders beside the download whose names the recipe knows."""
    names = {name.lower() for name in recipe.companions}
    beside = {path for root in roots for path in root.absolute().parent.iterdir() if path.name.lower() in names}
    return sorted(path for path in beside if path.is_dir() and path not in {root.absolute() for root in roots})


def _tell_passed_over(source: Source, found: DownloadContent) -> None:
    if found.passed_over:
        kinds = ", ".join(f"{num} {kind}" for kind, num in sorted(found.passed_over.items()))
        source.warnings.append(f"files: passed over as neither pictures nor labels: {kinds}")
    if found.other_tables and not found.tables:
        names = ", ".join(file.origin for file in found.other_tables[:3])
        source.warnings.append(f"files: tables that were not read: {names}; name one with --table to take its labels")


def _pair_key(recipe: Recipe, file: File) -> str:
    stem = stem_of(file.path.name)
    if recipe.pair_by == "path":
        return "/".join((*file.parts[:-1], stem))
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


def _pictures(source: Source, found: DownloadContent, roots: Sequence[Path]) -> dict[str, File]:
    recipe = source.recipe
    where = ", ".join(map(str, roots))
    if not found.pictures:
        rest = (
            f"{len(found.masks)} masks and {len(found.tables)} label tables, but "
            if found.masks or found.tables
            else ""
        )
        raise DataError(f"{where}: found {rest}no pictures of {recipe.title}; expected {recipe.layout or 'pictures'}")
    pattern = recipe.expect.stem
    strange = [file for file in found.pictures if pattern and not re.fullmatch(pattern, stem_of(file.path.name))]
    if len(strange) > len(found.pictures) / 2:
        raise DataError(
            f"{where}: this does not look like {recipe.title}: {len(strange)} of {len(found.pictures)} pictures have "
            f"other names, such as {strange[0].origin}{_other_recipe(found.pictures)}; expected {recipe.layout}"
        )
    return _by_key(source, found.pictures, "pictures")


def _other_recipe(pictures: Sequence[File]) -> str:
    """A hint at the recipe whose names these pictures have, or nothing."""
    for name in list_presets("shards"):
        pattern = load_recipe(name).expect.stem
        if pattern and all(re.fullmatch(pattern, stem_of(file.path.name)) for file in pictures):
            return f" (as in {name}: try --dataset {name})"
    return ""


def _label_kinds(source: Source, found: DownloadContent, wanted: str, roots: Sequence[Path]) -> list[str]:
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


def _labels(
    source: Source,
    kinds: list[str],
    found: DownloadContent,
    pictures: dict[str, File],
    rule: MaskRule | None,
    workers: int,
    *,
    strict: bool,
) -> tuple[Labels, dict[str, str]]:
    """Class numbers of every picture by the first kind; a second kind is compared with it."""
    split_of: dict[str, str] = {}

    def read(kind: str) -> Labels:
        if kind == "table":
            labels, splits = _from_table(source, found.tables, pictures)
            split_of.update(splits)
            return labels
        if kind == "masks":
            assert rule is not None
            return _from_masks(_by_key(source, found.masks, "masks"), rule, workers)
        return _from_folders(source, pictures)

    labels = read(kinds[0])
    _pairing(source, kinds[0], labels, pictures)
    for kind in kinds[1:]:
        if kind == "folders":  # with a table or masks, folders are only folders
            continue
        try:
            _compare(source, labels, read(kind))
        except DataError as error:
            if strict:
                raise DataError(f"{error}; to leave the {kind} aside: --labels {kinds[0]}") from None
            source.warnings.append(f"labels: {kind} not compared: {error}")
    return labels, split_of


def _from_table(source: Source, files: list[File], pictures: dict[str, File]) -> tuple[Labels, dict[str, str]]:
    file = files[0]
    same = [other.origin for other in files[1:] if other.parts[-1] == file.parts[-1]]
    source.check("doubled", same, f"more label tables of the name {file.path.name} than {file.origin}, which is taken")
    table = read_table(
        file.path,
        classes=source.classes or None,
        stems=[stem_of(picture.path.name) for picture in pictures.values()],
        separator=source.recipe.separator,
    )
    if not source.classes:
        source.classes = table.classes
    aliases = [entry.aliases for entry in source.recipe.classes] or [()] * len(source.classes)
    matrix = in_class_order(table, source.classes, aliases)
    keys = table.stems if source.recipe.pair_by == "name" else _row_keys(table, pictures)
    rows = Counter(keys)
    source.check("doubled", [key for key, num in rows.items() if num > 1], f"{file.origin}: rows of one name")
    labels = {key: tuple(np.flatnonzero(row).tolist()) for key, row in zip(keys, matrix, strict=True)}
    return labels, dict(zip(keys, table.split, strict=True)) if table.split is not None else {}


def _row_keys(table: Table, pictures: Mapping[str, File]) -> tuple[str, ...]:
    """Which picture each row means when names repeat: its path ends in the row's, or the row's ends in its whole path.

    Raises:
        DataError: a row fits several pictures.
    """
    ending: dict[str, list[str]] = defaultdict(list)
    for key in pictures:
        for end in _endings(key):
            ending[end].append(key)
    keys = []
    for name in table.names:
        whole = next((end for end in _endings(name) if end in pictures), name)
        fits = ending.get(name, [whole])
        if len(fits) > 1:
            raise DataError(
                f"{table.path}: {name!r} fits {len(fits)} pictures, such as {fits[0]} and {fits[1]}; "
                "write their folders too"
            )
        keys.append(fits[0])
    return tuple(keys)


def _endings(path: str) -> list[str]:
    """``a/b/c`` -> ``a/b/c``, ``b/c``, ``c``."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _mask_labels(path: Path, rule: MaskRule) -> tuple[int, ...] | DataError:
    try:
        return tuple(sorted(read_mask(path, rule)))
    except DataError as error:
        return error


def _from_masks(masks: dict[str, File], rule: MaskRule, workers: int) -> Labels:
    paths = [file.path for file in masks.values()]
    read: Callable[[Path], tuple[int, ...] | DataError] = partial(_mask_labels, rule=rule)
    if workers > 1 and len(paths) > MASKS_A_PROCESS:
        try:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start_worker) as pool:
                results = list(pool.map(read, paths, chunksize=64))
        except BrokenProcessPool:
            raise DataError("a process that read masks was killed; out of memory? try --workers 1") from None
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
    source.check("surplus", lost, f"labels in the {kind} without a picture ({len(lost)}, left out)")


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
