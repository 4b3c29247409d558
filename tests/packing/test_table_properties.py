"""Any table in: the right labels, or one line. Tables are written in many shapes from known labels and read back."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path

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
