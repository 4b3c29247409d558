"""Label tables as people publish them: csv, tsv, txt, xlsx and MATLAB files -> stems, class names, a 0/1 matrix."""

from __future__ import annotations

import csv
import io
import re
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from marc_dist.config import DataError
from marc_dist.config.suggest import suggestion

DELIMITERS = (",", ";", "\t")
MAX_ROWS = 1 << 20  # of a sheet, as Excel has it
MAX_SHEET_BYTES = 1 << 29  # of an unpacked .xlsx file


@dataclass(frozen=True)
class Table:
    """A label table.

    Attributes:
        path: the file, for messages.
        names: (N,) pictures as the rows name them: lower case, ``/`` between folders, no extension.
        classes: (L,) column names as written.
        labels: (N, L) bool.
        split: (N,) split names, when the file has such a column.
    """

    path: Path
    names: tuple[str, ...]
    classes: tuple[str, ...]
    labels: NDArray[np.bool_]
    split: tuple[str, ...] | None = None

    @property
    def stems(self) -> tuple[str, ...]:
        """(N,) names without their folders."""
        return tuple(name.rpartition("/")[2] for name in self.names)


class _Row(NamedTuple):
    """One row of a text or sheet, and its line there."""

    line: int
    cells: list[str]


def name_of(name: str) -> str:
    """``Images/Beach/beach_1.JPG`` -> ``images/beach/beach_1``."""
    path = PurePosixPath(name.strip().replace("\\", "/"))
    return (path.parent / stem_of(path.name)).as_posix().lower().lstrip("/")


def stem_of(name: str) -> str:
    """``Images/Beach/beach_1.JPG`` -> ``beach_1``: what pictures, masks and table rows are paired by."""
    last = PurePosixPath(name.strip().replace("\\", "/")).name
    base, dot, extension = last.rpartition(".")
    return (base if dot and re.fullmatch(r"(?i)jpe?g|png|tiff?|bmp|gif|webp", extension) else last).lower()


def normal_name(name: str) -> str:
    """A class name without case, blanks, hyphens, underscores and the plural's s: ``bare-soil`` = ``Bare Soil``."""
    plain = re.sub(r"[\W_]+", "", name.casefold())
    return plain[:-1] if len(plain) > 3 and plain.endswith("s") and not plain.endswith("ss") else plain


def natural_key(stem: str) -> tuple[str, int, str]:
    """Order of MATLAB tables: name in lower case, then number."""
    match = re.fullmatch(r"(.*?)_?(\d+)", stem.lower())
    return (match[1], int(match[2]), stem) if match else (stem.lower(), -1, stem)


def read_table(
    path: Path, *, classes: Sequence[str] | None = None, stems: Sequence[str] | None = None, separator: str = " "
) -> Table:
    """Read a label table of any supported kind.

    Args:
        path: ``.csv``, ``.tsv``, ``.txt``, ``.xlsx`` or ``.mat``.
        classes: class names of the columns; needed by ``.mat``, which has none.
        stems: names of the rows; needed by ``.mat``; its columns run over them in natural order.
        separator: between the names in a ``labels`` column (``image,labels``).

    Raises:
        DataError: not such a table; names file, row and column.
    """
    try:
        if path.suffix.lower() == ".mat":
            return _read_mat(path, classes, stems)
        rows = _read_xlsx(path) if path.suffix.lower() == ".xlsx" else _read_text(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    return _from_rows(path, rows, classes, separator)


def _read_text(path: Path) -> list[_Row]:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return [_Row(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not a table ({error})") from None


def _read_xlsx(path: Path) -> list[_Row]:
    import openpyxl

    rows: list[_Row] = []
    try:
        with zipfile.ZipFile(path) as parts:
            size = sum(part.file_size for part in parts.infolist())
        if size > MAX_SHEET_BYTES:
            raise DataError(f"{path}: {size / 1e6:.0f} MB unpacked, too large for a label table; save it as .csv")
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # remarks on styles and extensions
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            sheet = book.active
            sheet.reset_dimensions()  # some programs claim all of the million rows and 16,384 columns
            for line, row in enumerate(sheet.iter_rows(values_only=True), 1):
                if line > MAX_ROWS:
                    raise DataError(f"{path}: expected at most {MAX_ROWS} rows; save it as .csv")
                cells = ["" if cell is None else str(cell).strip() for cell in row]
                while cells and not cells[-1]:
                    cells.pop()
                if cells:
                    rows.append(_Row(line, cells + [""] * (len(rows[0].cells) - len(cells) if rows else 0)))
            book.close()
    except (DataError, OSError):
        raise
    except Exception as error:  # openpyxl, its zip and its XML raise whatever comes up
        raise DataError(f"{path}: not a readable .xlsx file ({error or type(error).__name__})") from None
    return rows


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


def _from_rows(path: Path, rows: list[_Row], classes: Sequence[str] | None, separator: str) -> Table:
    if len(rows) < 2 or len(rows[0].cells) < 2:
        raise DataError(f"{path}: expected a header and rows `image,label,label,...`, got {len(rows)} rows")
    rows = _without_empty_columns(path, rows)
    header, body = rows[0].cells, rows[1:]
    lower = [name.lower() for name in header]
    split = None
    if "split" in lower[1:]:
        place = lower.index("split", 1)
        split = tuple(row.cells[place] for row in body)
        header, lower = header[:place] + header[place + 1 :], lower[:place] + lower[place + 1 :]
        body = [_Row(row.line, row.cells[:place] + row.cells[place + 1 :]) for row in body]
    if lower[1:] in (["labels"], ["label"], ["tags"]):
        named, labels = _listed(path, body, classes, separator)
    else:
        named, labels = tuple(header[1:]), _matrix(path, header, body)
    return Table(path, tuple(name_of(row.cells[0]) for row in body), named, labels, split)


def _without_empty_columns(path: Path, rows: list[_Row]) -> list[_Row]:
    """Rows of one length, without the empty columns that spreadsheets leave at the right."""
    width = len(rows[0].cells)
    for row in rows:
        if len(row.cells) != width:
            raise DataError(f"{path}: row {row.line} ({row.cells[0]}): expected {width} cells, got {len(row.cells)}")
        if not row.cells[0] and row is not rows[0]:
            raise DataError(f"{path}: row {row.line}: names no picture")
    keep = [column for column in range(width) if any(row.cells[column] for row in rows)]
    return [_Row(row.line, [row.cells[column] for column in keep]) for row in rows]


def _matrix(path: Path, header: list[str], body: list[_Row]) -> NDArray[np.bool_]:
    known = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
    labels = np.zeros((len(body), len(header) - 1), dtype=bool)
    for number, row in enumerate(body):
        for column, cell in enumerate(row.cells[1:]):
            value = known.get(cell.lower())
            if value is None:
                raise DataError(
                    f"{path}: row {row.line} ({row.cells[0]}), column {header[column + 1]!r}: expected 0 or 1, "
                    f"got {cell!r}"
                )
            labels[number, column] = value
    return labels


def _listed(
    path: Path, body: list[_Row], classes: Sequence[str] | None, separator: str
) -> tuple[tuple[str, ...], NDArray[np.bool_]]:
    """``image,labels`` with names in one cell."""
    if separator == " ":  # the default; names with blanks need another one, and then it shows
        separator = next((mark for mark in (";", "|", ",") if any(mark in row.cells[1] for row in body)), " ")
    lists = [[name.strip() for name in row.cells[1].split(separator) if name.strip()] for row in body]
    spelled = {normal_name(name): name for name in sorted({name for names in lists for name in names}, reverse=True)}
    names = tuple(classes) if classes else tuple(sorted(spelled.values()))
    place = {normal_name(name): number for number, name in enumerate(names)}
    labels = np.zeros((len(body), len(names)), dtype=bool)
    for number, (row, found) in enumerate(zip(body, lists, strict=True)):
        for name in found:
            if normal_name(name) not in place:
                raise DataError(
                    f"{path}: row {row.line} ({row.cells[0]}): label {name!r} is not in the class list"
                    f"{suggestion(name, names)}"
                )
            labels[number, place[normal_name(name)]] = True
    return names, labels


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
