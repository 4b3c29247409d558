"""Label tables: the UC Merced set in its three published forms, and what spreadsheets do to rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from marc_dist.config import DataError
from marc_dist.packing.reading.names import name_of, normal_name, stem_of
from marc_dist.packing.reading.tables import in_class_order, read_table
from tests import downloads

NAMES = [f"{scene}{number:02d}" for scene in ("agricultural", "airplane", "tenniscourt") for number in range(12)]
ROWS = downloads.table_rows(NAMES, seed=3)
MATRIX = np.array(list(ROWS.values()), dtype=bool)


def text(folder: Path) -> Path:
    """``LandUse_Multilabeled.txt``: tabs, CRLF, hyphens."""
    return downloads.write_csv(
        folder / "LandUse_Multilabeled.txt", ["IMAGE\\LABEL", *downloads.UCM], ROWS, "\t", "\r\n"
    )


def sheet(folder: Path) -> Path:
    import openpyxl

    book = openpyxl.Workbook()
    book.active.append(["IMAGE\\LABEL", *downloads.UCM])
    for name, row in ROWS.items():
        book.active.append([name, *row])
    book.active.cell(60, 25, " ")  # a stray blank far away, as people leave behind
    book.save(folder / "LandUse_Multilabeled.xlsx")
    return folder / "LandUse_Multilabeled.xlsx"


def matlab(folder: Path, labels: np.ndarray) -> Path:
    import scipy.io

    scipy.io.savemat(folder / "LandUse_multilabels.mat", {"labels": labels.T.astype(np.uint8)})
    return folder / "LandUse_multilabels.mat"


def test_text_sheet_and_matrix_agree_but_for_a_flipped_bit(tmp_path: Path) -> None:
    one, two = read_table(text(tmp_path)), read_table(sheet(tmp_path))
    assert one.stems == two.stems == tuple(NAMES) and one.classes == two.classes == downloads.UCM
    assert np.array_equal(one.labels, MATRIX) and np.array_equal(two.labels, MATRIX)
    flipped = MATRIX.copy()
    flipped[33, 4] ^= True
    shuffled = [NAMES[row] for row in np.random.Generator(np.random.PCG64(0)).permutation(len(NAMES))]
    three = read_table(matlab(tmp_path, flipped), classes=downloads.UCM, stems=shuffled)
    assert three.stems == tuple(NAMES)
    assert np.argwhere(three.labels != one.labels).tolist() == [[33, 4]]


def test_columns_of_a_mat_run_by_lower_case_name_then_number(tmp_path: Path) -> None:
    """park_2 before park_10, and BareLand's pictures before Beach's, whatever the case of the names."""
    stems = ["Park_10", "park_2", "beach_1", "BareLand_3"]
    labels = np.eye(4, dtype=bool)
    table = read_table(matlab(tmp_path, labels), classes=["a", "b", "c", "d"], stems=stems)
    assert table.stems == ("bareland_3", "beach_1", "park_2", "park_10")
    assert np.array_equal(table.labels, labels)
    with pytest.raises(DataError, match="a .mat table has no names"):
        read_table(tmp_path / "LandUse_multilabels.mat")
    with pytest.raises(DataError, match="expected `labels` of 4 x 3, got 4 x 4"):
        read_table(tmp_path / "LandUse_multilabels.mat", classes=["a", "b", "c", "d"], stems=stems[:3])
    with pytest.raises(DataError, match="expected 0 and 1 in `labels`, got 2"):
        read_table(matlab(tmp_path, labels * 2 + np.zeros((4, 4), int)), classes=["a", "b", "c", "d"], stems=stems)


@pytest.mark.parametrize("name", ["t.xlsx", "t.mat"])
def test_files_that_are_no_tables_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(DataError, match=f"{name}: not a readable"):
        read_table(tmp_path / name, classes=["a"], stems=["b"])


def written(folder: Path, content: str, encoding: str = "utf-8") -> Path:
    (folder / "t.csv").write_bytes(content.encode(encoding))
    return folder / "t.csv"


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_separators_marks_and_encodings(tmp_path: Path, mark: str) -> None:
    content = f"\ufeffimage{mark}été{mark}b\r\nx.jpg{mark}1{mark}0.0\r\ny{mark}TRUE{mark}false\r\n"
    table = read_table(written(tmp_path, content))
    assert table.classes == ("été", "b") and table.stems == ("x", "y")
    assert table.labels.tolist() == [[True, False], [True, False]]
    assert read_table(written(tmp_path, content[1:], "latin-1")).classes == ("été", "b")


def test_line_numbers_are_the_file_s_own(tmp_path: Path) -> None:
    content = 'image,a\n\nx,1\n,\n"y\nz",1\nw,3\n'
    with pytest.raises(DataError, match=r"t.csv: row 7 \(w\), column 'a': expected 0 or 1, got '3'"):
        read_table(written(tmp_path, content))
    with pytest.raises(DataError, match="t.csv: row 3: names no picture"):
        read_table(written(tmp_path, "image,a\nx,1\n,1\n"))


def test_empty_columns_at_the_right_are_no_classes(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "image,a,b,,\nx,1,0,,\ny,0,1,,\n"))
    assert table.classes == ("a", "b") and table.labels.tolist() == [[True, False], [False, True]]


def test_lists_of_names(tmp_path: Path) -> None:
    text = "image,tags\nx,haze primary\ny,\nz,primary\n"
    with pytest.raises(DataError, match="column 'tags': 'haze primary' may be one name or two; .*--separator"):
        read_table(written(tmp_path, text))
    blanks = read_table(written(tmp_path, text), separator=" ")
    assert blanks.classes == ("haze", "primary") and blanks.labels.sum(axis=1).tolist() == [2, 0, 1]
    semicolons = read_table(written(tmp_path, "image,labels\nx,bare soil; mobile home\ny,bare soil\n"))
    assert semicolons.classes == ("bare soil", "mobile home")
    given = read_table(written(tmp_path, "image,labels\nx,bare soil/water\n"), separator="/")
    assert given.classes == ("bare soil", "water")
    assert read_table(written(tmp_path, "image,labels\nx,tree\ny,trees\n")).classes == ("tree",)


def test_names_of_classes_are_compared_by_sense() -> None:
    assert normal_name("bare-soil") == normal_name("Bare Soil") == normal_name("bare_soils") == normal_name("BARESOIL")
    assert normal_name("grass") == "grass" and normal_name("sea") != normal_name("seas ide")
    assert normal_name("水") != normal_name("树") and normal_name("水") == "水"


def test_columns_are_found_by_name_never_by_place(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "image,waters,Bare-Soil\nx,1,0\n"))
    assert in_class_order(table, ["bare soil", "water"], [(), ()]).tolist() == [[False, True]]
    aliased = in_class_order(table, ["earth", "water"], [("bare soil",), ()])
    assert aliased.tolist() == [[False, True]]
    with pytest.raises(DataError, match="column 'Bare-Soil' is not in the class list; did you mean bare soil"):
        in_class_order(read_table(written(tmp_path, "image,Bare-Soil\nx,1\n")), ["bare soilx"], [()])
    with pytest.raises(DataError, match="no column for sand"):
        in_class_order(table, ["bare soil", "water", "sand"], [(), (), ()])


def test_names_of_pictures() -> None:
    assert stem_of("Images\\Beach\\beach_1.JPG") == "beach_1" and stem_of("a.v2") == "a.v2"
    assert name_of("Images\\Beach\\B.v2.JPG ") == "images/beach/b.v2" and name_of("./x.png") == "x"
