"""Files that hold rows, as text cells: csv, tsv, txt, xlsx, parquet, jsonl and json, whichever program wrote them."""

from __future__ import annotations

import csv
import io
import json
import warnings
import zipfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

from marc_dist.config import DataError
from marc_dist.packing.compact import BLOCK, Compact

DELIMITERS = (",", ";", "\t", "|")
MAX_ROWS = 1 << 20  # of a sheet, as Excel has it
MAX_SHEET_BYTES = 1 << 29  # of an unpacked .xlsx file, of JSON
SEEN = 50  # rows that choose the delimiter
MAX_CELL = 1 << 24  # bytes of one


class Row(NamedTuple):
    """One row of a text or sheet, and its line there."""

    line: int
    cells: list[str]


class Rows(Sequence[Row]):
    """The rows of a table, held column by column.

    Args:
        rows: line and cells of each, taken one by one; they may be of unequal length.
    """

    def __init__(self, rows: Iterable[tuple[int, list[str]]] = ()) -> None:
        self._lines, self._widths, self._start = array("q"), array("l"), 0
        self._columns: list[Compact[str]] = []
        for line, cells in rows:
            while len(self._columns) < len(cells):
                self._columns.append(Compact("" for _ in self._lines))
            for place, column in enumerate(self._columns):
                column.append(cells[place] if place < len(cells) else "")
            self._lines.append(line)
            self._widths.append(len(cells))

    def _like(self, columns: list[Compact[str]], start: int) -> Rows:
        other = Rows()
        other._lines, other._widths, other._columns, other._start = self._lines, self._widths, columns, start
        return other

    def below(self, num: int) -> Rows:
        """All but the first ``num``."""
        return self._like(self._columns, self._start + num)

    def only(self, places: Sequence[int]) -> Rows:
        """These columns of rows that are of one length."""
        return Rows((row.line, [row.cells[place] for place in places]) for row in self)

    def of_width(self, width: int) -> Rows:
        """The rows of so many cells."""
        return self if self.uneven(width) is None else Rows(row for row in self if len(row.cells) == width)

    def uneven(self, width: int) -> Row | None:
        """The first row of another number of cells."""
        places = range(self._start, len(self._lines))
        odd = next((place for place in places if self._widths[place] != width), None)
        return None if odd is None else self[odd - self._start]

    def column(self, place: int) -> list[str]:
        """The cell at this place of every row; empty where a row is too short."""
        return list(self._columns[place].plain(self._start))

    def __len__(self) -> int:
        return len(self._lines) - self._start

    def _run(self, start: int, stop: int) -> Iterator[Row]:
        lines, widths = self._lines[start:stop], self._widths[start:stop]
        columns = [column.plain(start, stop) for column in self._columns]
        every = zip(*columns, strict=True) if columns else [()] * len(lines)
        return (Row(line, list(cells[:n])) for line, n, cells in zip(lines, widths, every, strict=True))

    def __iter__(self) -> Iterator[Row]:
        return self._run(self._start, len(self._lines))

    @overload
    def __getitem__(self, item: int) -> Row: ...
    @overload
    def __getitem__(self, item: slice) -> list[Row]: ...
    def __getitem__(self, item: int | slice) -> Row | list[Row]:
        if isinstance(item, slice):
            start, stop, step = item.indices(len(self))
            return list(self._run(self._start + start, self._start + stop))[::step]
        number = item + len(self) if item < 0 else item
        if not 0 <= number < len(self):
            raise IndexError(f"row {item} of {len(self)}")
        return next(self._run(self._start + number, self._start + number + 1))


def read_rows(path: Path) -> Rows:
    """Every row that is not empty, the header included; cells without blanks around them.

    Lists of a parquet or JSON file become JSON text, missing values empty cells.

    Raises:
        DataError: cannot be read, damaged, too large, or no table.
    """
    kinds: dict[str, Callable[[Path], Rows]] = {
        ".xlsx": _xlsx,
        ".parquet": _parquet,
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".json": _json,
    }
    try:
        return kinds.get(path.suffix.lower(), _text)(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def decoded(data: bytes) -> str:
    """Text of a file: by its mark, as UTF-8, or as Latin-1, which takes any bytes."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def is_guessed(path: Path) -> bool:
    """Whether a text is of an encoding that its bytes do not tell: not UTF-8, and without a mark."""
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        return False
    data = path.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return data[:2] not in (b"\xff\xfe", b"\xfe\xff")
    return False


def _text(path: Path) -> Rows:
    text = decoded(path.read_bytes())
    delimiter = delimiter_of(text, path.suffix.lower())
    csv.field_size_limit(MAX_CELL)
    skip = delimiter == " "
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=skip)
    try:
        rows = Rows((reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row)))
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not a table ({error})") from None
    if rows and rows[0].cells[0].lower().startswith("sep=") and len(rows[0].cells) <= 2:  # Excel's own remark
        return rows.below(1)
    return rows


def delimiter_of(text: str, suffix: str = ".csv") -> str:
    """What stands between cells: the mark that gives every row as many as the first, or the first row's commonest.

    Args:
        text: of the file.
        suffix: in a ``.txt`` file without any other mark, blanks are one.
    """
    lines = [line for line in text[: 1 << 20].splitlines() if line.strip()][: SEEN + 1]
    if not lines:
        return ","
    if lines[0].lower().startswith("sep=") and len(lines[0].strip()) <= 5:
        return lines[0][4:5] or ","
    steady = []
    for mark in DELIMITERS:
        try:
            widths = {len(row) for row in csv.reader(lines[:SEEN], delimiter=mark)}
        except csv.Error:
            continue
        if len(widths) == 1 and (width := widths.pop()) > 1:
            steady.append((width, mark))
    if steady:
        return max(steady, key=lambda one: one[0])[1]
    best = max(DELIMITERS, key=lines[0].count)
    if best not in lines[0] and suffix in (".txt", ".list", ".lst") and all(" " in line.strip() for line in lines):
        return " "
    return best


def _xlsx(path: Path) -> Rows:
    try:
        return Rows(_sheet(path))
    except (DataError, OSError):
        raise
    except Exception as error:  # openpyxl, its zip and its XML raise whatever comes up
        raise DataError(f"{path}: not a readable .xlsx file ({error or type(error).__name__})") from None


def _sheet(path: Path) -> Iterator[tuple[int, list[str]]]:
    import openpyxl

    with zipfile.ZipFile(path) as parts:
        size = sum(part.file_size for part in parts.infolist())
    if size > MAX_SHEET_BYTES:
        raise DataError(f"{path}: {size / 1e6:.0f} MB unpacked, too large for a label table; save it as .csv")
    width = 0
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
                width = width or len(cells)
                yield line, cells + [""] * (width - len(cells))
        book.close()


def _parquet(path: Path) -> Rows:
    import pyarrow.parquet as pq

    def rows() -> Iterator[tuple[int, list[str]]]:
        table = pq.read_table(path)
        yield 1, [str(name).strip() for name in table.column_names]
        line = 1
        for batch in table.to_batches(max_chunksize=BLOCK):
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                line += 1
                yield line, [_cell(value) for value in row]

    try:
        return Rows(rows())
    except OSError as error:
        raise DataError(f"{path}: not a readable .parquet file ({error})") from None
    except Exception as error:  # Arrow raises errors of its own kinds
        raise DataError(f"{path}: not a readable .parquet file ({error or type(error).__name__})") from None


def _cell(value: Any) -> str:
    """A value of JSON or Arrow as a cell."""
    if value is None or value != value:
        return ""
    if isinstance(value, bytes):  # a shape, as WKB
        return value.hex()
    if isinstance(value, list | tuple):
        return json.dumps([one for one in value if one is not None], ensure_ascii=False, default=str)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value).strip()


def load_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        DataError: cannot be read, too large, or no JSON.
    """
    try:
        if path.stat().st_size > MAX_SHEET_BYTES:
            raise DataError(f"{path}: {path.stat().st_size / 1e6:.0f} MB, too large for labels in one JSON file")
        return json.loads(decoded(path.read_bytes()))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable JSON file ({str(error) or type(error).__name__})") from None


def _json_lines(path: Path) -> Rows:
    records = []
    for line, text in enumerate(decoded(path.read_bytes()).split("\n"), 1):
        if text.strip():
            try:
                records.append((line, json.loads(text)))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}: line {line}: not JSON ({str(error) or type(error).__name__})") from None
    return _records(path, records)


def _json(path: Path) -> Rows:
    content = load_json(path)
    if isinstance(content, dict) and content and all(isinstance(value, str | list) for value in content.values()):
        content = [{"image": name, "labels": value} for name, value in content.items()]
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of records, or names with their labels")
    return _records(path, list(enumerate(content, 1)))


def _records(path: Path, records: list[tuple[int, Any]]) -> Rows:
    names: dict[str, None] = {}
    for line, record in records:
        if not isinstance(record, dict):
            raise DataError(f"{path}: record {line}: expected names and values, got {type(record).__name__}")
        names |= dict.fromkeys(record)
    if not names:
        return Rows()
    header = (0, [name.strip() for name in names])
    return Rows([header, *((line, [_cell(record.get(name)) for name in names]) for line, record in records)])
