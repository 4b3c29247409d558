"""A download on disk -> the samples of a data set, every oddity named: what ``pack`` then writes.

Steps: open (folder or archive) -> tell pictures, masks and tables apart -> pair by name -> labels -> splits -> checks.
"""

from __future__ import annotations

import filecmp
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from marc_dist.config import DataError, list_presets
from marc_dist.packing.georeference.collect import whereabouts
from marc_dist.packing.layouts import coco, folders, objects, tables, yolo
from marc_dist.packing.layouts.recognise import choose, is_drawn, nothing_there, with_layout
from marc_dist.packing.layouts.tree import survey
from marc_dist.packing.reading.discover import DownloadContent, File, discover, pair_key
from marc_dist.packing.reading.lists import pictures_named
from marc_dist.packing.reading.masks import MaskRule, UnknownValues, all_unknown, read_mask
from marc_dist.packing.reading.names import composed, is_folder_word, name_of, normal_name, stem_of
from marc_dist.packing.reading.recipes import Recipe, load_recipe
from marc_dist.packing.reading.samples import Labels, Source, expectations
from marc_dist.packing.reading.splits import assign
from marc_dist.packing.reading.tables import in_class_order, read_table
from marc_dist.packing.worker_pool import start_worker
from marc_dist.progress_bar import Show, quiet

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
    foreign: bool = False,
    show: Show = quiet,
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
        foreign: take BMP, GIF and WebP pictures, too; they will be stored as PNG.
        show: tells how far the reading of masks is.

    Raises:
        DataError: the download is not this data set, or something in it is wrong; names the files.
    """
    told: list[str] = []
    asked = {**recipe.rules(), "labels": labels, "index_order": index_order}
    if recipe.recognise:
        recipe, told = _recognised(recipe, roots, labels, table, classes or (), allow, foreign=foreign)
        asked["labels_found"] = recipe.labels[0]
        labels = "auto" if len(recipe.labels) == 1 else labels
    given = [composed(name) for name in classes or recipe.class_names]
    source = Source(recipe, tuple(given), warnings=told, allow=frozenset(allow), asked=asked)
    rule = recipe.mask_rule(index_order) if "masks" in recipe.labels or index_order else None
    found = discover(recipe, roots, rule, foreign=foreign)
    if not found.pictures and (beside := _companions(recipe, roots)):
        source.warnings.append(f"pictures: taken from {', '.join(map(str, beside))}, beside the download")
        found = discover(recipe, [*roots, *beside], rule, foreign=foreign)
    if table is not None:
        others = [file for file in found.tables if file.path.resolve() != table.resolve()]
        found.tables[:] = [File(table.parent, table.name), *others]
    source.check("bands", found.incomplete, f"pictures that lack files of bands ({len(found.incomplete)}, left out)")
    pictures = _pictures(source, found, roots)
    kinds = _label_kinds(source, found, labels, roots)
    known, split_of = _labels(source, kinds, found, pictures, rule, workers, show, strict=labels == "auto")
    if not given:
        no_class = [name for name in source.classes if is_folder_word(name)]
        source.check("class_names", no_class, "classes called like folders of a download, not like what they show")
    taken, lines, read = whereabouts(source.recipe, found, pictures, workers)
    source.warnings += lines
    assign(source, pictures, known, split_of, found.lists, taken)
    _tell_passed_over(source, found, read)
    expectations(source)
    return source


def _recognised(
    recipe: Recipe,
    roots: Sequence[Path],
    labels: str,
    table: Path | None,
    classes: Sequence[str],
    allow: Iterable[str],
    *,
    foreign: bool,
) -> tuple[Recipe, list[str]]:
    """The recipe of the layout that fits, and what to tell about it.

    Raises:
        DataError: none fits, two do, or it has other classes than those that are given.
    """
    tree = survey(roots, foreign=foreign)
    if table is None:
        layout = choose(recipe, tree, labels, any_name="class_names" in allow)
    else:
        layout = tables.given_table(tree, table, recipe.table.columns())
        if layout.unclear:
            raise DataError(f"{', '.join(map(str, roots))}: {layout.unclear}")
    chosen = with_layout(recipe, layout, classes)
    own = chosen.splits == recipe.splits
    line = layout.told("no split, those of the recipe") if own and is_drawn(layout) else layout.line
    more = [] if not own or is_drawn(layout) else ["splits: those of the recipe, not those of the download"]
    return chosen, [f"layout: {note}" for note in (line, *layout.notes, *more)]


def _companions(recipe: Recipe, roots: Sequence[Path]) -> list[Path]:
    """Folders beside the download whose names the recipe knows."""
    names = {name.lower() for name in recipe.companions}
    beside = {path for root in roots for path in root.absolute().parent.iterdir() if path.name.lower() in names}
    return sorted(path for path in beside if path.is_dir() and path not in {root.absolute() for root in roots})


def _tell_passed_over(source: Source, found: DownloadContent, read: Collection[str]) -> None:
    read_too = Counter(file.path.suffix.lower() for file in found.other_tables if file.origin in read)
    if passed_over := found.passed_over - read_too:
        kinds = ", ".join(f"{num} {kind}" for kind, num in sorted(passed_over.items()))
        source.warnings.append(f"files: passed over as neither pictures nor labels: {kinds}")
    unread = [file.origin for file in found.other_tables if file.origin not in read]
    if unread and not found.tables:
        names = ", ".join(unread[:3])
        source.warnings.append(f"files: tables that were not read: {names}; name one with --table to take its labels")


def _by_key(source: Source, files: list[File], kind: str, suffix: str = "") -> dict[str, File]:
    """Files by what they are paired by, the ending of their names left out; the first of doubled ones."""
    keyed: dict[str, File] = {}
    doubled, equal = [], []
    for file in files:
        key = pair_key(source.recipe, file, suffix)
        if key in keyed and kind == "masks" and _equal(keyed[key], file):
            equal.append(f"{keyed[key].origin} = {file.origin}")
        elif key in keyed:
            doubled.append(f"{keyed[key].origin} and {file.origin}")
        else:
            keyed[key] = file
    if equal:
        source.warnings.append(f"masks: {len(equal)} lie there twice and are equal, such as {equal[0]}")
    source.check("doubled", doubled, f"{kind} of one name ({len(doubled)}; the first of each is taken)")
    return keyed


def _equal(one: File, two: File) -> bool:
    return filecmp.cmp(one.path, two.path, shallow=False)


def _pictures(source: Source, found: DownloadContent, roots: Sequence[Path]) -> dict[str, File]:
    recipe = source.recipe
    where = ", ".join(map(str, roots))
    if not found.pictures:
        rest = (
            f"{len(found.masks)} masks and {len(found.tables)} label tables, but "
            if found.masks or found.tables
            else ""
        )
        if not rest:
            raise DataError(f"{where}: {nothing_there(survey(roots), recipe)}")
        raise DataError(f"{where}: found {rest}no pictures of {recipe.title}; expected {recipe.layout or 'pictures'}")
    pattern = recipe.expect.stem
    strange = [file for file in found.pictures if pattern and not re.fullmatch(pattern, stem_of(file.name))]
    if len(strange) > len(found.pictures) / 2:
        raise DataError(
            f"{where}: this does not look like {recipe.title}: {len(strange)} of {len(found.pictures)} pictures have "
            f"other names, such as {strange[0].origin}{_other_recipe(found.pictures)}; expected {recipe.layout}"
        )
    return _by_key(source, found.pictures, "pictures", recipe.pictures.suffix)


def _other_recipe(pictures: Sequence[File]) -> str:
    """A hint at the recipe whose names these pictures have, or nothing."""
    for name in list_presets("shards"):
        pattern = load_recipe(name).expect.stem
        if pattern and all(re.fullmatch(pattern, stem_of(file.name)) for file in pictures):
            return f" (as in {name}: try --dataset {name})"
    return ""


def _label_kinds(source: Source, found: DownloadContent, wanted: str, roots: Sequence[Path]) -> list[str]:
    """Which label sources there are, the one to use first."""
    beside = bool(found.annotations)
    at_hand = {"table": bool(found.tables), "masks": bool(found.masks), "folders": True}
    at_hand |= {"coco": beside, "objects": beside, "yolo": beside}
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
    show: Show,
    *,
    strict: bool,
) -> tuple[Labels, dict[str, str]]:
    """Class numbers of every picture by the first kind; a second kind is compared with it."""
    split_of: dict[str, str] = {}

    def read(kind: str) -> Labels:
        if kind == "table":
            labels, splits = _from_tables(source, found.tables, pictures)
            split_of.update(splits)
            return labels
        if kind == "masks":
            assert rule is not None
            return _from_masks(_by_key(source, found.masks, "masks", source.recipe.masks.suffix), rule, workers, show)
        return _from_annotations(source, kind, found.annotations, pictures)

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


def _from_annotations(source: Source, kind: str, files: list[File], pictures: dict[str, File]) -> Labels:
    if kind == "coco":
        return coco.read(source, files, pictures)
    if kind == "objects":
        return objects.read(source, files)
    if kind == "yolo":
        return yolo.read(source, files, set(pictures))
    return folders.read(source, pictures)


def _from_tables(source: Source, files: list[File], pictures: dict[str, File]) -> tuple[Labels, dict[str, str]]:
    """Labels and splits of the table, or of all tables where each holds a part of the rows."""
    recipe, first = source.recipe, files[0]
    if not recipe.table.parts:
        same = [other.origin for other in files[1:] if other.parts[-1] == first.parts[-1]]
        message = f"more label tables of the name {first.path.name} than {first.origin}, which is taken"
        source.check("doubled", same, message)
        files = files[:1]
    read = partial(
        read_table,
        stems=[stem_of(picture.name) for picture in pictures.values()],
        separator=recipe.separator,
        columns=recipe.table.columns(),
        aliases=[entry.aliases for entry in recipe.classes],
    )
    read_ones = [read(file.path, classes=source.classes or None) for file in files]
    if not source.classes:
        named = {normal_name(name): name for table in reversed(read_ones) for name in reversed(table.classes)}
        of_first = read_ones[0].classes
        source.classes = of_first if len(named) == len(of_first) else tuple(sorted(named.values()))
        if len(read_ones) > 1:
            read_ones = [read(file.path, classes=source.classes) for file in files]
    bare = [file.origin for file, table in zip(files, read_ones, strict=True) if table.split is None]
    if recipe.splits.shares and 0 < len(bare) < len(files):
        raise DataError(f"{bare[0]}: no column of the split, which other tables of the labels have; add it")
    aliases = [entry.aliases for entry in recipe.classes] or [()] * len(source.classes)
    labels: Labels = {}
    split_of: dict[str, str] = {}
    sets: dict[bytes, tuple[int, ...]] = {}  # one object for equal ones
    doubled: dict[str, None] = {}
    for file, table in zip(files, read_ones, strict=True):
        source.warnings += [f"table: {file.name}: {note}" for note in table.notes]
        matrix = in_class_order(table, source.classes, aliases)
        keys = table.stems if recipe.pair_by == "name" else _row_keys(file, table.names, pictures, recipe.table.parts)
        for key, row in zip(keys, matrix, strict=True):
            if key in labels:
                doubled[key] = None
            bits = row.tobytes()
            if bits not in sets:
                sets[bits] = tuple(np.flatnonzero(row).tolist())
            labels[key] = sets[bits]
        if table.split is not None:
            words = {word: word for word in table.split}
            split_of |= zip(keys, map(words.__getitem__, table.split), strict=True)
    source.check("doubled", list(doubled), f"{first.origin}: rows of one name")
    return labels, split_of


def _row_keys(file: File, names: Sequence[str], pictures: Mapping[str, File], parts: bool) -> tuple[str, ...]:
    """Which picture each row means; in a table of a part, names may be those below its own folder."""
    if parts and file.folders:
        below = [name_of("/".join((*file.folders, name))) for name in names]
        names = [long if long in pictures else name for long, name in zip(below, names, strict=True)]
    return pictures_named(str(file.path), names, pictures)


def _mask_labels(path: Path, rule: MaskRule) -> tuple[int, ...] | DataError:
    try:
        return tuple(sorted(read_mask(path, rule)))
    except DataError as error:
        return error


def _from_masks(masks: dict[str, File], rule: MaskRule, workers: int, show: Show) -> Labels:
    paths = [file.path for file in masks.values()]
    read: Callable[[Path], tuple[int, ...] | DataError] = partial(_mask_labels, rule=rule)
    results = []
    with ExitStack() as stack:
        tell = stack.enter_context(show("reading masks", len(paths), "masks"))
        every: Iterable[tuple[int, ...] | DataError] = map(read, paths)
        if workers > 1 and len(paths) > MASKS_A_PROCESS:
            pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start_worker)
            every = stack.enter_context(pool).map(read, paths, chunksize=64)
        try:
            for result in every:
                results.append(result)
                tell(len(results), 0)
        except BrokenProcessPool:
            raise DataError("a process that read masks was killed; out of memory? try --workers 1") from None
    unknown = [result for result in results if isinstance(result, UnknownValues)]
    if unknown:
        raise all_unknown(unknown)
    labels: Labels = {}
    for key, result in zip(masks, results, strict=True):
        if isinstance(result, DataError):
            raise result
        labels[key] = result
    return labels


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
