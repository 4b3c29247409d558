"""Label tables as text, sheets and matrices."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import openpyxl
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st

from marc_dist.config import DataError
from marc_dist.packing.reading.recipes import load_recipe
from marc_dist.packing.reading.source import read_source
from marc_dist.packing.reading.tables import in_class_order, read_table
from tests.fuzz.damage import NAMES, damaged, error_of, fuzz, in_time, little_memory

STEMS = ["p0", "p1", "p2"]
CLASSES = ["sand", "sea"]
CSV = "image,sand,sea,split\np0,1,0,train\np1,0,1,test\nfolder/p2.png,1,1,train\n"
LISTED = "image;labels\np0;sand|sea\np1;sea\n"


def sheet() -> bytes:
    book = openpyxl.Workbook()
    assert book.active is not None
    for line in CSV.splitlines():
        book.active.append([int(cell) if cell.isdigit() else cell for cell in line.split(",")])
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def matrix(**values: object) -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, values or {"labels": np.eye(2, 3, dtype=np.uint8)})
    return buffer.getvalue()


def packed_matrix() -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"labels": np.eye(2, 3, dtype=np.uint8)}, do_compression=True)
    return buffer.getvalue()


SOUND = {
    "a.csv": CSV.encode(),
    "b.csv": LISTED.encode(),
    "c.tsv": CSV.replace(",", "\t").encode("utf-16"),
    "d.xlsx": sheet(),
    "e.mat": matrix(),
    "f.mat": packed_matrix(),
    "g.mat": matrix(labels=np.array(["a", 2, {"b": [1, 2]}], dtype=object), x=np.zeros((2, 3))),
}


def read(path: Path, data: bytes) -> str | None:
    path.write_bytes(data)

    def table() -> None:
        found = read_table(path, classes=CLASSES, stems=STEMS)
        assert found.labels.shape == (len(found.names), len(found.classes))
        in_class_order(found, CLASSES, [(), ()])

    message = error_of(table)
    assert message is None or str(path) in message
    return message


@pytest.mark.parametrize("name", SOUND)
def test_damaged_tables(name: str, tmp_path: Path) -> None:
    @fuzz(60)
    @given(damaged(SOUND[name]))
    def check(data: bytes) -> None:
        read(tmp_path / name, data)

    check()


CELL = st.sampled_from(
    [*[name for name in NAMES if name != "\ud800"], "0", "1", "p0", "sand", "sea", "labels", "split", "1e9"]
)


@fuzz(150)
@given(
    st.lists(st.lists(CELL, max_size=5), max_size=5),
    st.sampled_from(",;\t|"),
    st.sampled_from(["\n", "\r", "\r\n", "\0"]),
)
def test_any_cells(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], mark: str, end: str) -> None:
    text = end.join(mark.join(row) for row in [["image", "sand", "sea"], *rows])
    read(tmp_path_factory.getbasetemp() / "cells.csv", text.encode())


def test_a_table_beside_pictures(own: Path, tmp_path: Path) -> None:
    sound = (own / "labels.csv").read_bytes()

    @fuzz(40)
    @given(damaged(sound))
    def check(data: bytes) -> None:
        table = tmp_path / "labels.csv"
        table.write_bytes(data)
        error_of(
            lambda: read_source(load_recipe("folder"), [own], table=table, allow=["doubled", "missing", "surplus"])
        )

    check()


def part(change: tuple[str, str], name: str = "xl/worksheets/sheet1.xml") -> bytes:
    """The sheet with something else in one of its parts."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(SOUND["d.xlsx"])) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.namelist():
            text = old.read(item).decode()
            new.writestr(item, re.sub(*change, text, count=1) if item == name else text)
    return buffer.getvalue()


CHANGES = {
    "rows": (r'<row r="2"', '<row r="2000000000"'),
    "backwards": (r'<row r="3"', '<row r="-3"'),
    "no number": (r'<row r="3"', '<row r="x"'),
    "cells": (r'r="B2"', 'r="ZZZ2"'),
    "bad cells": (r'r="B2"', 'r="2B"'),
    "dimension": (r'<dimension ref="[^"]*"', '<dimension ref="A1:XFD1048576"'),
    "odd dimension": (r'<dimension ref="[^"]*"', '<dimension ref="B:A"'),
    "types": (r't="n"', 't="d"'),
    "shared": (r"<v>0</v>", "<v>99999</v>"),
    "values": (r"<v>0</v>", "<v>1e999</v>"),
    "cut": (r"</row>.*", ""),
    "laughs": (
        "^",
        '<!DOCTYPE a [<!ENTITY a "haha">'
        + "".join(f'<!ENTITY {b} "{f"&{a};" * 30}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
        + "]>",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_odd_sheets(kind: str, tmp_path: Path) -> None:
    """Found: a row number or a dimension of millions was filled up with empty cells until the memory was full."""
    with little_memory():
        read(tmp_path / "x.xlsx", part(CHANGES[kind]))
    if kind == "dimension":  # what spreadsheets do that were formatted to the end
        assert read(tmp_path / "x.xlsx", part(CHANGES[kind])) is None
    if kind == "rows":
        assert "expected at most 1048576 rows" in (read(tmp_path / "x.xlsx", part(CHANGES[kind])) or "")


@pytest.mark.parametrize("name", ["xl/workbook.xml", "xl/sharedStrings.xml", "[Content_Types].xml", "xl/styles.xml"])
def test_damaged_parts_of_sheets(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(SOUND["d.xlsx"])) as book:
        parts = {item: book.read(item) for item in book.namelist()}

    @fuzz(30)
    @given(damaged(parts.get(name, b"")))
    def check(data: bytes) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as new:
            for item, content in {**parts, name: data}.items():
                new.writestr(item, content)
        read(tmp_path / "x.xlsx", buffer.getvalue())

    check()


def test_a_sheet_that_is_a_bomb(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new, new.open("xl/sharedStrings.xml", "w") as file:
        for _ in range(6):
            file.write(bytes(100_000_000))
    with little_memory(), in_time():
        assert "too large for a label table" in (read(tmp_path / "x.xlsx", buffer.getvalue()) or "")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([["a", "b", "c"]] * 2, dtype=object), "expected `labels` of 2 x 3, got 2 x 3 of no numbers"),
        (np.array([[0, 1, 2]] * 2), "expected 0 and 1 in `labels`, got 2"),
        (np.array([[0, 1, np.nan]] * 2), "expected 0 and 1 in `labels`, got nan"),
        (np.zeros((2, 3), dtype=complex), "got 2 x 3 of no numbers"),
        (scipy.sparse.csc_matrix(np.eye(2, 3)), "of no numbers"),
        ({"a": 1}, "got 1 x 1"),
        (np.zeros((0, 0)), "got 0 x 0"),
    ],
)
def test_matrices_that_are_refused(value: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.mat").write_bytes(matrix(labels=value))
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "x.mat", classes=CLASSES, stems=STEMS)


def test_a_matrix_of_another_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found: every variable of the file was read, of any size; the header alone tells."""
    monkeypatch.setattr(scipy.io, "loadmat", lambda *_, **__: pytest.fail("it is read"))
    scipy.io.savemat(tmp_path / "x.mat", {"labels": np.zeros((2000, 1000), dtype=np.uint8)}, do_compression=True)
    with pytest.raises(DataError, match="got 2000 x 1000"):
        read_table(tmp_path / "x.mat", classes=CLASSES, stems=STEMS)
