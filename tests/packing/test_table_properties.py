"""Any table in: the right labels, or one line. Tables are written in many shapes from known labels and read back."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any
from unicodedata import normalize

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marc_dist.config import DataError
from marc_dist.packing.reading.names import name_of, normal_name
from marc_dist.packing.reading.recipes import load_recipe
from marc_dist.packing.reading.source import read_source
from marc_dist.packing.reading.tables import read_table
from tests import downloads

WORDS = ["water", "bare soil", "trees", "mobile-home", "été", "Sea_Ice", "d'eau", "forest (dense)", "class a", "水"]
STEMS = ["img_01", "b", "7", "Tile.v2", "étang"]
ROWS = st.lists(st.lists(st.sampled_from(WORDS), unique=True, max_size=4), min_size=len(STEMS), max_size=len(STEMS))
EXTRA = {"id": "{n}", "width": "256", "lat": "1.{n}", "caption": "a caption, with marks; {n}", "Unnamed: 0": "{n}"}


def written(rows: list[list[str]], shape: dict[str, object]) -> str:
    """A table of the rows in one of the shapes that programs write."""
    names = sorted({name for row in rows for name in row}) or ["water"]
    listed = shape["labels"] != "matrix"
    join = {
        "python": repr, "json": json.dumps, "semicolons": "; ".join, "bars": "|".join,
        "tuple": lambda row: str(tuple(row)), "numpy": lambda row: "[" + " ".join(map(repr, row)) + "]",
        "blanks": " ".join,
    }  # fmt: skip
    lines: list[dict[str, str]] = []
    for number, (stem, row) in enumerate(zip(STEMS, rows, strict=True)):
        cells = {str(shape["image"]): f"{shape['folder']}{stem}{shape['end']}"}
        if listed:
            cells[str(shape["column"])] = join[str(shape["labels"])](row)  # type: ignore[operator]
        else:
            on, off = shape["truth"]  # type: ignore[misc]
            cells |= {name: on if name in row else off for name in names}
        cells |= {name: EXTRA[name].format(n=number) for name in shape["extra"]}  # type: ignore[attr-defined]
        lines.append(dict(sorted(cells.items(), key=lambda item: hash_of(item[0], shape["order"]))))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]), delimiter=str(shape["mark"]), lineterminator=str(shape["line"]))
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def hash_of(name: str, seed: object) -> int:
    return sum(ord(letter) * (place + 7) for place, letter in enumerate(f"{name}{seed}")) % 101


SHAPES = st.fixed_dictionaries(
    {
        "labels": st.sampled_from(["matrix", "python", "json", "semicolons", "bars", "tuple", "numpy", "blanks"]),
        "column": st.sampled_from(["labels", "tags", "Classes", "multilabels", "label"]),
        "image": st.sampled_from(["image", "file_name", "Filename", "IMAGE\\LABEL", "path"]),
        "folder": st.sampled_from(["", "pictures/", ".\\pictures\\"]),
        "end": st.sampled_from([".png", "", ".PNG", ".tif"]),
        "truth": st.sampled_from([("1", "0"), ("1.0", "0.0"), ("True", "False"), ("1", "-1")]),
        "extra": st.lists(st.sampled_from(sorted(EXTRA)), unique=True, max_size=3),
        "mark": st.sampled_from([",", ";", "\t", "|"]),
        "line": st.sampled_from(["\n", "\r\n"]),
        "order": st.integers(0, 20),
    }
)
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ROWS, SHAPES, ENCODINGS)
def test_the_right_labels_or_one_line(rows: list[list[str]], shape: dict[str, object], encoding: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_bytes(written(rows, shape).encode(encoding))
        try:
            table = read_table(path, stems=[stem.lower() for stem in STEMS])
        except DataError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            return
        read = dict(zip(table.names, table.labels, strict=True))
        assert [name.rpartition("/")[2] for name in read] == [name_of(stem) for stem in STEMS]
        for (name, on), row in zip(read.items(), rows, strict=True):
            if (shape["labels"], shape["column"]) == ("blanks", "label"):  # one name, whatever blanks it has
                row = [" ".join(row)] if row else []
            found = {normal_name(c) for c, is_on in zip(table.classes, on, strict=True) if is_on}
            assert found == {normal_name(one) for one in row}, f"{name}: {table.classes}"


CELLS = st.sampled_from(
    ["image", "labels", "label", "split", "water", "img_01.png", "b", "7.png", "0", "1", "2", "", "train", "Test",
     "['a'", "['a', 'b']", "a b", "a;b", "nan", "-1", "0.5", '"', "水", "img_01", "path", "é"]
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(CELLS, min_size=1, max_size=4), min_size=1, max_size=6), st.sampled_from([",", ";", "\t"]))
def test_a_download_with_any_table_is_packed_whole_or_refused(lines: list[list[str]], mark: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("img_01", "b", "7"):
            downloads.save(downloads.picture(len(name), (8, 8)), root / f"{name}.png")
        buffer = io.StringIO()
        csv.writer(buffer, delimiter=mark).writerows(lines)
        (root / "labels.csv").write_text(buffer.getvalue(), encoding="utf-8")
        try:
            source = read_source(load_recipe("folder"), [root])
        except DataError as error:
            assert "\n" not in str(error)
            return
        assert len(source.samples) == 3 and all(sample.labels for sample in source.samples)
        assert not any(set(name) & set('[]{}"') for name in source.classes)


PICTURES = ["Beach/img_01", "Beach/b", "City/7", "City/Tile.v2", "étang", "City/Straße 5"]
KINDS = {  # of tables: name -> how the rows are written
    "csv": "labels.csv", "tsv": "labels.tsv", "txt": "labels.txt", "xlsx": "labels.xlsx", "parquet": "labels.parquet",
    "jsonl": "metadata.jsonl", "json": "labels.json",
}  # fmt: skip
SPLIT_WORDS = st.sampled_from(
    [
        ("train", "val", "test"),
        ("Train", "Validation", "Test"),
        ("TRAIN", "VALID", "TEST"),
        ("training", "dev", "testing"),
    ]
)
DOWNLOADS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(sorted(KINDS)),
        "labels": st.sampled_from(["matrix", "list", "json", "semicolons", "bars", "commas"]),
        "encoding": st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
        "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
        "mark": st.sampled_from([",", ";", "\t", "|"]),
        "line": st.sampled_from(["\n", "\r\n", "\r"]),
        "names": st.sampled_from(["stem", "name", "path", "windows"]),
        "on_disk": st.sampled_from(["NFC", "NFD"]),
        "in_table": st.sampled_from(["NFC", "NFD"]),
        "splits": st.none() | SPLIT_WORDS,
        "pad": st.booleans(),
        "empty_column": st.booleans(),
        "order": st.integers(0, 20),
    }
)


def one_cell(kind: str, how: str, row: list[str]) -> object:
    """The labels of a picture as a cell."""
    if how == "list":
        return row if kind in ("jsonl", "json", "parquet") else str(row)
    if how == "json":
        return json.dumps(row, ensure_ascii=False)
    return {"semicolons": "; ", "bars": "|", "commas": ", "}[how].join(row)


def records(rows: list[list[str]], shape: dict[str, Any]) -> list[dict[str, object]]:
    """The table's rows, each with the names of its columns."""
    found = []
    classes = sorted({name for row in rows for name in row})
    for number, (place, row) in enumerate(zip(PICTURES, rows, strict=True)):
        windows = f"pictures\\{place}.png".replace("/", "\\")
        name = {"stem": place.rpartition("/")[2], "name": f"{place.rpartition('/')[2]}.png", "path": f"{place}.png",
                "windows": windows}[shape["names"]]  # fmt: skip
        cells: dict[str, object] = {"file_name": normalize(shape["in_table"], name)}
        if shape["labels"] == "matrix":
            cells |= {name: int(name in row) for name in classes}
        else:
            cells["labels"] = one_cell(shape["kind"], shape["labels"], row)
        if shape["splits"] is not None:
            cells["split"] = shape["splits"][number % 3]
        if shape["empty_column"] and shape["kind"] not in ("jsonl", "json", "parquet"):
            cells[""] = ""
        if shape["pad"] and shape["kind"] in ("csv", "tsv", "txt", "xlsx"):
            cells = {key: f" {value} " if isinstance(value, str) else value for key, value in cells.items()}
        found.append(dict(sorted(cells.items(), key=lambda item: hash_of(item[0], shape["order"]))))
    return found


def write_table(path: Path, lines: list[dict[str, object]], shape: dict[str, Any]) -> None:
    """A table as the usual programs write one."""
    if path.suffix == ".xlsx":
        book = openpyxl.Workbook()
        book.active.append(list(lines[0]))
        for line in lines:
            book.active.append(list(line.values()))
        book.save(path)
    elif path.suffix == ".parquet":
        columns = {name: [line[name] for line in lines] for name in lines[0]}
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(lines, ensure_ascii=False), "utf-8")
    else:
        buffer = io.StringIO()
        mark = "\t" if path.suffix == ".tsv" else shape["mark"]
        writer = csv.DictWriter(
            buffer, list(lines[0]), delimiter=mark, lineterminator=shape["line"], quoting=shape["quoting"]
        )
        writer.writeheader()
        writer.writerows(lines)
        path.write_bytes(buffer.getvalue().encode(shape["encoding"]))


refused: list[bool] = []


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.lists(st.sampled_from(WORDS), unique=True, min_size=1, max_size=3), min_size=6, max_size=6), DOWNLOADS
)
def any_table_in(rows: list[list[str]], shape: dict[str, Any]) -> None:
    if shape["encoding"] == "cp1252":
        rows = [[name for name in row if name.isascii() or name == "été"] or ["water"] for row in rows]
        shape = {**shape, "in_table": "NFC"}  # it has no letters of two marks
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number, place in enumerate(PICTURES):
            file = root / "pictures" / f"{normalize(shape['on_disk'], place)}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            downloads.save(downloads.picture(number, (8, 8)), file)
        write_table(root / KINDS[shape["kind"]], records(rows, shape), shape)
        try:
            source = read_source(load_recipe("folder"), [root], allow=["empty_labels"])
        except DataError as error:
            assert "\n" not in str(error)
            refused.append(True)
            return
        refused.append(False)
        found = {sample.origin: sample for sample in source.samples}
        assert sorted(found) == sorted(f"pictures/{place}.png" for place in PICTURES)
        for number, (place, row) in enumerate(zip(PICTURES, rows, strict=True)):
            sample = found[f"pictures/{place}.png"]
            read = {normal_name(source.classes[label]) for label in sample.labels}
            assert read == {normal_name(name) for name in row}, f"{place}: {source.classes}"
            if shape["splits"] is not None:
                assert sample.split == ("train", "val", "test")[number % 3]


def test_any_table_gives_the_right_labels_and_splits_or_one_line() -> None:
    refused.clear()
    any_table_in()
    assert sum(refused) <= len(refused) // 10, "a table that people meet is read, not refused"
