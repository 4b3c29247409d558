"""Label tables whose rows name the pictures: one, or some with a part of the rows each (a split, a class)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from marc_dist.config import DataError
from marc_dist.packing.georeference.column_names import place_columns
from marc_dist.packing.layouts.class_lists import is_class_list
from marc_dist.packing.layouts.splits import DRAWN, find_splits, shortest_name
from marc_dist.packing.layouts.tree import Layout, Tree
from marc_dist.packing.reading.columns import Columns, NoLabelColumns, UnclearColumns, find_columns
from marc_dist.packing.reading.discover import File, matches
from marc_dist.packing.reading.lists import one_split, pictures_named
from marc_dist.packing.reading.names import name_of, stem_of
from marc_dist.packing.reading.sheets import MAX_SHEET_BYTES, Rows, read_rows

MAX_TABLES = 400  # looked at
JSON_TABLE = 1 << 26  # bytes of a .json file that may hold rows
NAMED = ("labels.*", "multilabels.*", "multilabel.*", "metadata.*")  # tables by these names are read before others


@dataclass
class Candidate:
    """A table whose rows name pictures of the download."""

    file: File
    header: tuple[str, ...]
    names: list[str]
    split_column: str
    kind: str
    fault: str = ""  # why its labels cannot be told


def detect(tree: Tree, tables: Sequence[str] = ()) -> Layout | None:
    """A label table, if there is one.

    Args:
        tree: everything that lies there.
        tables: names of tables to prefer.

    Raises:
        DataError: a table of such a name that cannot be read.
    """
    likely = sorted([*tree.tables, *tree.jsons], key=lambda file: (not _is_named(file, tables), _is_text(file)))
    every = [c for file in likely[:MAX_TABLES] if (c := _candidate(file, tree, tables)) is not None]
    found = [c for c in every if not c.fault]
    if not found:
        return _unclear(every[0]) if every else None
    named = [c for c in found if _is_named(c.file, tables)]
    groups = _groups(named or found)
    names = [", ".join(sorted({shortest_name(c.file, tree) for c in group})[:3]) for group in groups]
    unclear = (
        f"labels stand in {names[0]} and in {names[1]}; name the table to read with --table" if len(groups) > 1 else ""
    )
    group = groups[0]
    first = group[0]
    recipe: dict[str, Any] = {"labels": ["table"], "pair_by": "path"}
    patterns = list(dict.fromkeys(shortest_name(c.file, tree) for c in group))
    if len(group) > 1:
        folder, suffix = first.file.folders, first.file.path.suffix
        one_folder = all(c.file.folders == folder for c in group) and folder
        same_name = all(c.file.parts[-1] == first.file.parts[-1] for c in group)
        recipe["tables"] = (
            [first.file.name] if same_name
            else [f"{folder[-1]}/*{suffix}"] if one_folder and len(group) > 3
            else patterns
        )  # fmt: skip
        recipe["table"] = {"parts": True}
    else:
        recipe["tables"] = patterns
    splits, line, more, notes = _splits(tree, group)
    recipe["splits"] = splits
    what = f"{names[0]}{f' and {len(group) - 3} more' if len(group) > 3 else ''}"
    rows = sum(len(c.names) for c in group)
    kind = "a column of names" if first.kind == "list" else "columns of 0 and 1"
    others = [shortest_name(c.file, tree) for c in found if c not in group]
    notes += [f"or: labels from {', '.join(others[:5])}"] if others else []
    notes += [f"not read: {c.fault}" for c in every if c.fault][:3]
    seen = f"table: {what}, {rows} rows, {kind}"
    return Layout("table", seen, recipe, line, unclear=unclear or more, notes=tuple(notes))


def _unclear(candidate: Candidate) -> Layout:
    """A table that names the pictures, and nobody can say where its labels stand: not packed without a word."""
    seen = f"table: {candidate.file.name}, columns unclear"
    recipe = {"labels": ["table"], "pair_by": "path", "tables": [candidate.file.name], "splits": DRAWN}
    return Layout("table", seen, recipe, unclear=f"{candidate.fault}; to leave the table aside: --labels folders")


def _is_text(file: File) -> bool:
    return file.path.suffix.lower() == ".txt"


def _is_named(file: File, tables: Sequence[str], others: Sequence[str] = NAMED) -> bool:
    return any(matches(file, pattern) for pattern in (*tables, *others))


def _candidate(file: File, tree: Tree, tables: Sequence[str]) -> Candidate | None:
    """What a file is as a label table; None when it is none.

    A file with the name of a label table is taken if any of its rows names a picture, another one if half of them do.
    One that the recipe names is taken whatever it holds: its reader says what is wrong with it.

    Raises:
        DataError: a file with the name of a label table that cannot be read.
    """
    is_json, size = file.parts[-1].endswith(".json"), file.path.stat().st_size
    if size > (JSON_TABLE if is_json else MAX_SHEET_BYTES):
        return None
    named = not is_json and _is_named(file, tables)
    try:
        rows = read_rows(file.path)
        if not rows or len(rows[0].cells) < 2:
            return None
        expected = named and _is_named(file, tables, ()) and not is_class_list(file, tree)
        if len(rows) < 2:
            return Candidate(file, (), [], "", "one-hot") if expected else None
        even = rows.of_width(len(rows[0].cells))
        shape = find_columns(file.path, even, Columns(), tree.stems, labels=False)
    except DataError:
        if named:
            raise
        return None
    names = shape.body.column(shape.image)
    some = names[:: max(1, len(names) // 400)]
    hits = sum(stem_of(name) in tree.stems for name in some)
    enough = hits > 0 if named else 2 * hits >= max(len(some), 1)
    if not (expected or enough):
        return None
    return _with_labels(Candidate(file, tuple(rows[0].cells), names, "", "one-hot"), rows, tree, named=named)


def _with_labels(bare: Candidate, rows: Rows, tree: Tree, *, named: bool) -> Candidate | None:
    """The table with what is known about its labels; None when it has none."""
    file, width = bare.file, len(rows[0].cells)
    placed = bool(place_columns(rows[0].cells, {}))  # metadata.csv may say where pictures were taken, and no more
    try:
        if rows.uneven(width) is not None:
            raise DataError(f"{file.path}: rows of unequal length")
        full = find_columns(file.path, rows, Columns(), tree.stems)
    except UnclearColumns as error:
        return replace(bare, fault="" if named else str(error))
    except NoLabelColumns:
        return bare if named and not placed else None
    except DataError:
        return bare if named else None
    if full.labels is None and (placed or not named) and not _any_binary(full.body, full.classes):
        return None  # names of pictures with other facts about them
    if full.headless and not named and set(full.body.column(width - 1)) <= {"-1", "0", "1"}:
        return None  # Pascal VOC's list of a split and a class
    split = "" if full.split is None else full.header[full.split]
    return Candidate(file, tuple(full.header), bare.names, split, "list" if full.labels is not None else "one-hot")


def _any_binary(body: Rows, places: Sequence[int]) -> bool:
    return any(set(body.column(place)) <= {"0", "1", "0.0", "1.0", "True", "False"} for place in places)


def _groups(found: list[Candidate]) -> list[list[Candidate]]:
    """Tables of one header whose rows name other pictures: parts of one. Each other table is a group of its own."""
    by_header: dict[tuple[str, ...], list[Candidate]] = defaultdict(list)
    for candidate in found:
        by_header[tuple(sorted(candidate.header))].append(candidate)
    groups: list[list[Candidate]] = []
    for same in by_header.values():
        rows = [name_of("/".join((*c.file.folders, name))) for c in same for name in c.names]
        plain = [name_of(name) for c in same for name in c.names]
        apart = len(set(plain)) == len(plain) or (
            len(set(rows)) == len(rows) and len({c.file.folders for c in same}) == len(same)
        )
        groups += [same] if apart else [[candidate] for candidate in same]
    return groups


def given_table(tree: Tree, path: Path, columns: Columns) -> Layout:
    """The layout of a download with a label table that somebody named.

    Args:
        tree: everything that lies there.
        path: of the table, anywhere.
        columns: which column is which, as far as it is known.
    """
    file, first = File(path.parent, path.name), None
    try:
        rows = read_rows(path)
        if rows.uneven(len(rows[0].cells)) is not None:
            raise DataError(f"{path}: rows of unequal length")
        shape = find_columns(path, rows, columns, tree.stems)
        split = "" if shape.split is None else shape.header[shape.split]
        names = shape.body.column(shape.image)
        first = Candidate(file, tuple(shape.header), names, split, "list")
    except (DataError, IndexError):
        pass  # its reader says what is wrong with it, or it is a .mat table, which has no columns
    splits, line, unclear, notes = _splits(tree, [first] if first is not None else [])
    recipe = {"labels": ["table"], "splits": splits}
    return Layout("table", f"table: {path.name}", recipe, line, unclear=unclear, notes=tuple(notes))


def _splits(tree: Tree, group: Sequence[Candidate]) -> tuple[dict[str, Any], str, str, list[str]]:
    """What tables and the tree say about splits: the recipe's ``splits``, in words, why it is unclear, and notes."""
    splits = find_splits(tree, tree.pictures)
    first = next((one for one in group if one.split_column), None)
    if first is None:
        return splits.recipe, splits.line, splits.unclear, splits.notes
    # a split column is the table's own word; folders or lists that say the same are no second one
    said = [one for candidate in group for one in _column_splits(candidate)]
    words = ", ".join(sorted({split for _, split in said}))
    line = f"splits {words} from its column {first.split_column!r}"
    differ = splits.chosen and _differ(said, splits.chosen)
    unclear = f"two splits fit that differ: column {first.split_column!r}, or {splits.line}" if differ else ""
    return {**DRAWN, "source": f"column {first.split_column!r} of the table"}, line, unclear, []


def _differ(said: Sequence[tuple[str, str]], chosen: Mapping[str, str]) -> bool:
    """Whether a split column says of some picture another split than the tree does."""
    try:
        keys = pictures_named("", [name for name, _ in said], chosen)
    except DataError:  # a name fits several pictures: compared by what all of them have
        stems: dict[str, set[str]] = defaultdict(set)
        for key, split in chosen.items():
            stems[stem_of(key)].add(split)
        return any(split not in stems.get(stem_of(name), {split}) for name, split in said)
    return any(chosen.get(key, split) != split for key, (_, split) in zip(keys, said, strict=True))


def _column_splits(candidate: Candidate) -> list[tuple[str, str]]:
    """The name of a picture and its split, as a table says it, a row each."""
    if not candidate.split_column:
        return []
    rows = read_rows(candidate.file.path)
    place = list(rows[0].cells).index(candidate.split_column)
    splits = rows.below(1).column(place)
    return [(name_of(name), one_split(split)) for name, split in zip(candidate.names, splits, strict=True)]
