"""Label tables as people publish them: text, sheets, parquet, JSON and MATLAB files -> names, classes, a 0/1 matrix."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from marc_dist.config import DataError
from marc_dist.config.suggest import suggestion
from marc_dist.packing.reading.columns import SIGNS, TRUTH, Columns, Shape, find_columns
from marc_dist.packing.reading.label_cells import BrokenCell, UnclearCell, is_name, split_cells
from marc_dist.packing.reading.names import is_no_class, name_of, natural_key, normal_name, plain
from marc_dist.packing.reading.sheets import Rows, is_guessed, read_rows


@dataclass(frozen=True)
class Table:
    """A label table.

    Attributes:
        path: the file, for messages.
        names: (N,) pictures as the rows name them: lower case, ``/`` between folders, no extension.
        classes: (L,) column names as written.
        labels: (N, L) bool.
        split: (N,) split names, when the file has such a column.
        notes: what was left aside or joined, one line each.
    """

    path: Path
    names: tuple[str, ...]
    classes: tuple[str, ...]
    labels: NDArray[np.bool_]
    split: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def stems(self) -> tuple[str, ...]:
        """(N,) names without their folders."""
        return tuple(name.rpartition("/")[2] for name in self.names)


def read_table(
    path: Path,
    *,
    classes: Sequence[str] | None = None,
    stems: Sequence[str] | None = None,
    separator: str | None = None,
    columns: Columns | None = None,
    aliases: Sequence[Sequence[str]] = (),
) -> Table:
    """Read a label table of any supported kind.

    Args:
        path: ``.csv``, ``.tsv``, ``.txt``, ``.xlsx``, ``.parquet``, ``.jsonl``, ``.json`` or ``.mat``.
        classes: class names of the columns; needed by ``.mat``, which has none.
        stems: names of the pictures: they tell which column names them. Needed by ``.mat``; its columns run over them
            in natural order.
        separator: between the names in a ``labels`` column (``image,labels``); None = to be seen.
        columns: which column is which; what it leaves open is found.
        aliases: other spellings of each of the classes, in a column of names.

    Raises:
        DataError: not such a table; names file, row and column.
    """
    if path.suffix.lower() == ".mat":
        try:
            return _read_mat(path, classes, stems)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    rows = read_rows(path)
    if len(rows) < 2 or len(rows[0].cells) < 2:
        raise DataError(f"{path}: expected a header and rows `image,label,label,...`, got {len(rows)} rows")
    rows = _without_empty_columns(path, rows)
    guessed = "not UTF-8, read as Latin-1; if names look wrong, save it as UTF-8"
    shape = find_columns(path, rows, columns or Columns(), set(stems or ()))
    shape.notes += [guessed] if is_guessed(path) else []
    images = shape.body.column(shape.image)
    if "" in images:
        raise DataError(f"{path}: row {shape.body[images.index('')].line}: names no picture")
    if shape.labels is not None:
        named, labels = _listed(path, shape, classes, separator, aliases)
    else:
        named, labels = tuple(shape.header[place] for place in shape.classes), _matrix(path, shape)
    names = tuple(map(name_of, images))
    split = None if shape.split is None else tuple(shape.body.column(shape.split))
    table = Table(path, names, named, labels, split, tuple(shape.notes))
    one_each = shape.labels is not None and plain(shape.header[shape.labels]) in ("label", "tag", "class", "category")
    return _joined(table) if one_each and len(set(names)) < len(names) else table


def _read_mat(path: Path, classes: Sequence[str] | None, stems: Sequence[str] | None) -> Table:
    import scipy.io

    if not classes or not stems:
        raise DataError(f"{path}: a .mat table has no names; expected pictures and class names beside it")
    shapes = {(len(classes), len(stems)), (len(stems), len(classes))}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            listed = {name: shape for name, shape, _ in scipy.io.whosmat(path)}
            name = "labels" if "labels" in listed else next(iter(listed), "")
            fits = listed.get(name) in shapes  # another one, of any size, is not read
            matrix = scipy.io.loadmat(path, variable_names=[name])[name] if fits else None
    except Exception as error:  # scipy raises errors of its own kind on damaged files
        raise DataError(f"{path}: not a readable .mat file ({error or type(error).__name__})") from None
    if not isinstance(matrix, np.ndarray) or matrix.shape not in shapes or matrix.dtype.kind not in "buif":
        got = " x ".join(map(str, listed.get(name, ()))) or "none"
        got += " of no numbers" if fits else ""
        raise DataError(f"{path}: expected `labels` of {len(classes)} x {len(stems)}, got {got}")
    if matrix.shape == (len(classes), len(stems)):
        matrix = matrix.T
    if not np.isin(matrix, (0, 1)).all():
        raise DataError(f"{path}: expected 0 and 1 in `labels`, got {np.setdiff1d(matrix, (0, 1))[0]}")
    ordered = sorted(stems, key=natural_key)
    return Table(path, tuple(name_of(stem) for stem in ordered), tuple(classes), np.asarray(matrix) == 1)


def _without_empty_columns(path: Path, rows: Rows) -> Rows:
    """Rows of one length, without the empty columns that spreadsheets leave at the right."""
    width = len(rows[0].cells)
    odd = rows.uneven(width)
    if odd is not None:
        raise DataError(f"{path}: row {odd.line} ({odd.cells[0]}): expected {width} cells, got {len(odd.cells)}")
    keep = [column for column in range(width) if any(rows.column(column))]
    return rows if len(keep) == width else rows.only(keep)


def _matrix(path: Path, shape: Shape) -> NDArray[np.bool_]:
    kinds = {place: {cell: cell.lower() for cell in set(shape.body.column(place))} for place in shape.classes}
    cells = {lower for of_column in kinds.values() for lower in of_column.values()}
    known = SIGNS if cells <= set(SIGNS) and cells & {"-1", "-1.0"} else TRUTH
    labels = np.zeros((len(shape.body), len(shape.classes)), dtype=bool)
    for column, (place, of_column) in enumerate(kinds.items()):
        odd = {cell for cell, lower in of_column.items() if lower not in known}
        if odd:
            row = next(row for row in shape.body if row.cells[place] in odd)
            raise DataError(
                f"{path}: row {row.line} ({row.cells[shape.image]}), column {shape.header[place]!r}: expected 0 or 1, "
                f"got {row.cells[place]!r}; a column of names? say table: labels in the recipe; none of labels? table: "
                "ignore"
            )
        labels[:, column] = [known[of_column[cell]] for cell in shape.body.column(place)]
    return labels


def _listed(
    path: Path,
    shape: Shape,
    classes: Sequence[str] | None,
    separator: str | None,
    aliases: Sequence[Sequence[str]],
) -> tuple[tuple[str, ...], NDArray[np.bool_]]:
    """``image,labels`` with names in one cell."""
    assert shape.labels is not None
    column, rows = shape.header[shape.labels], shape.body.column(shape.labels)
    cells = list(dict.fromkeys(rows))  # pictures are many, sets of labels few

    def row_with(cell: str) -> str:
        row = shape.body[rows.index(cell)]
        return f"{path}: row {row.line} ({row.cells[shape.image]})"

    single = plain(column) in ("label", "tag", "class", "category", "labelname", "classname")
    known = [*(classes or ()), *(name for others in aliases for name in others)]
    lists = _names_in(path, shape, cells, separator, single, known)
    if all(name.isdigit() for names in lists for name in names) and any(lists):
        lists = _by_number(path, column, lists, classes)
    for cell, names in zip(cells, lists, strict=True):
        half = next((name for name in names if not is_name(name)), None)
        if half is not None:
            raise DataError(f"{row_with(cell)}, column {column!r}: {half!r} is half a list, no name; mend it")
    spellings = {normal_name(name): name for name in sorted({name for names in lists for name in names}, reverse=True)}
    order = tuple(classes) if classes else tuple(sorted(spellings.values()))
    place = {normal_name(name): number for number, others in enumerate(aliases) for name in others}
    place |= {normal_name(name): number for number, name in enumerate(order)}
    labels = np.zeros((len(cells), len(order)), dtype=bool)
    for number, (cell, found) in enumerate(zip(cells, lists, strict=True)):
        for name in found:
            if normal_name(name) not in place:
                mark = "; is it half a name? say what stands between names with --separator"
                raise DataError(
                    f"{row_with(cell)}: label {name!r} is not in the class list{suggestion(name, order)}"
                    f"{mark if ' ' in cell else ''}"
                )
            labels[number, place[normal_name(name)]] = True
    number_of = {cell: number for number, cell in enumerate(cells)}
    return order, labels[[number_of[cell] for cell in rows]]


def _names_in(
    path: Path, shape: Shape, cells: list[str], separator: str | None, single: bool, known: Sequence[str]
) -> list[list[str]]:
    """The names in each cell; a cell at fault is named."""
    try:
        return split_cells(cells, separator, single, known)
    except UnclearCell as error:
        unclear = str(error)
    assert shape.labels is not None
    for cell in cells:
        try:
            split_cells([cell], separator, single, known)
        except BrokenCell as error:
            line = shape.body[shape.body.column(shape.labels).index(cell)].line
            unclear = f"row {line}: {cell[:60]!r}: {error}"
            break
        except UnclearCell:
            break
    raise DataError(f"{path}: column {shape.header[shape.labels]!r}: {unclear}") from None


def _by_number(path: Path, column: str, lists: list[list[str]], classes: Sequence[str] | None) -> list[list[str]]:
    """Class numbers, which need a list of names; 0 is the first."""
    largest = max(int(name) for names in lists for name in names)
    if not classes or largest >= len(classes):
        had = f"{len(classes)} classes are given" if classes else "no class list is given"
        raise DataError(
            f"{path}: column {column!r} holds numbers up to {largest}, and {had}; name them in order, the first for 0: "
            "--classes A,B,..."
        )
    if not any(int(name) == 0 for names in lists for name in names) and not is_no_class(classes[0]):
        raise DataError(
            f"{path}: column {column!r} never holds 0, which would be {classes[0]!r}; if 1 is the first "
            "class: --classes unused,A,B,...; else write names in the table"
        )
    return [[classes[int(name)] for name in names] for names in lists]


def _joined(table: Table) -> Table:
    """Rows of one picture as one: a table with a row for each label."""
    place = {name: number for number, name in enumerate(dict.fromkeys(table.names))}
    labels = np.zeros((len(place), len(table.classes)), dtype=bool)
    split: dict[str, str] = {}
    for row, name in enumerate(table.names):
        labels[place[name]] |= table.labels[row]
        if table.split is not None and split.setdefault(name, table.split[row]) != table.split[row]:
            raise DataError(f"{table.path}: {name} stands in two splits, {split[name]} and {table.split[row]}")
    note = f"{len(table.names)} rows of {len(place)} pictures, a label each: joined"
    splits = tuple(split.values()) if table.split is not None else None
    return Table(table.path, tuple(place), table.classes, labels, splits, (*table.notes, note))


def in_class_order(table: Table, names: Sequence[str], aliases: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
    """The table's matrix with its columns in the order of ``names``; columns are found by name, never by place.

    Args:
        table: as read.
        names: (L,) class names.
        aliases: (L,) other spellings of each.

    Raises:
        DataError: a column that is no class, a class without a column, or two columns for one class.
    """
    place = {normal_name(n): i for i, name in enumerate(names) for n in (name, *aliases[i])}
    columns: dict[int, int] = {}
    for column, name in enumerate(table.classes):
        number = place.get(normal_name(name))
        if number is None:
            raise DataError(f"{table.path}: column {name!r} is not in the class list{suggestion(name, names)}")
        if number in columns:
            raise DataError(f"{table.path}: two columns for {names[number]!r}")
        columns[number] = column
    missing = [name for number, name in enumerate(names) if number not in columns]
    if missing:
        raise DataError(f"{table.path}: no column for {', '.join(missing)}")
    return table.labels[:, [columns[number] for number in range(len(names))]]
