"""Which column of a table means what: the pictures' names, the split, the labels; by name, and by what stands in it."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from marc_dist.config import DataError
from marc_dist.packing.georeference.column_names import is_place_column
from marc_dist.packing.reading.label_cells import UnclearCell, literal
from marc_dist.packing.reading.names import plain, split_word, stem_of
from marc_dist.packing.reading.sheets import Rows

IMAGE = re.compile(
    r"(image|img|picture|photo|file|tile|patch|chip|sample|name|path|key|id)+s?(label)?s?|filename|fname|"
)
LISTS = re.compile(r"(multi)?(label|tag|class|categor(y|ie)|landcover|landuse)(s|es)?(name|list|text|str)?s?")
SPLITS = ("split", "splits", "set", "subset", "partition", "phase", "usage", "datasplit", "datasetsplit")
OTHER = re.compile(
    r"|unnamed\d*|index|idx|id|(image|img|file|patch|tile|row|sample)?(id|index|number|no)|width|height|w|h|size|bytes|"
    r"filesize|channels?|bands?|lat|lon|lng|latitude|longitude|x|y|crs|epsg|bbox|date|time|timestamp|datetime|year|month|"
    r"url|source|license|licence|md5|sha1|sha256|hash|crc32|scene|sceneid|country|region|season|sensor|satellite|"
    r"resolution|gsd|caption|description|comment|remarks?|note|notes|fold|numlabels|labelcount|weight|"
    r"path|filepath|folder|filename|image|maskpath|mask|classid|labelid|categoryid|tags?id"
)
TRUTH = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
SIGNS = {"-1": False, "1": True, "-1.0": False, "1.0": True}
SAMPLE = 400  # rows that tell what a column holds


class UnclearColumns(DataError):
    """Labels stand in a table, in more than one column that could be meant."""


class NoLabelColumns(DataError):  # noqa: N818 - beside UnclearColumns
    """A table that names pictures has no labels of them."""


@dataclass(frozen=True)
class Columns:
    """Names of columns, as a recipe gives them; empty = to be found."""

    image: str = ""
    labels: str = ""
    split: str = ""
    ignore: tuple[str, ...] = ()


@dataclass
class Shape:
    """Which column of a table is which.

    Attributes:
        header: names of the columns.
        body: the rows below.
        image: place of the pictures' names.
        split: place of the split names.
        labels: place of the column of names; None = the ``classes`` columns hold 0 and 1.
        classes: places of the columns of 0 and 1.
        notes: what was left aside.
        headless: the first line names a picture, not the columns.
    """

    header: list[str]
    body: Rows
    image: int
    split: int | None = None
    labels: int | None = None
    classes: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    headless: bool = False


def find_columns(path: Path, rows: Rows, wanted: Columns, pictures: Collection[str], *, labels: bool = True) -> Shape:
    """Tell a table's columns apart.

    Args:
        path: for messages.
        rows: of one length, the header first.
        wanted: what the recipe says.
        pictures: stems of the pictures; empty = unknown, the first column names them.
        labels: look for columns of labels and of the split, too.

    Raises:
        DataError: no such column, or two that could be meant.
    """
    header, body = list(rows[0].cells), rows.below(1)
    headless = any(stem_of(cell) in pictures for cell in header if cell)
    if headless and not labels:
        header, body = [""] * len(header), rows
    elif headless:
        if len(header) != 2:
            raise DataError(f"{path}: its first line names a picture ({header[0]}), not the columns; add a header line")
        header, body = ["image", "label"], rows
    shape = Shape(header, body, _image(path, header, body, wanted, pictures), headless=headless)
    if not labels:
        return shape
    if headless:
        shape.notes.append("no header: the columns are taken as `image,label`")
    rest = [place for place in range(len(header)) if place != shape.image]
    ignored = {plain(name) for name in wanted.ignore}
    missing = ignored - {plain(name) for name in header}
    if missing:
        raise DataError(f"{path}: no column {sorted(missing)[0]!r} to ignore; there are {', '.join(header)}")
    rest = [place for place in rest if plain(header[place]) not in ignored]
    shape.split = _split(path, shape, rest, wanted)
    rest = [place for place in rest if place != shape.split and not _is_place(shape, place, wanted)]
    shape.labels = _labels(path, shape, rest, wanted)
    if shape.labels is None:
        shape.classes = [place for place in rest if not _is_other(shape, place)]
        left = [place for place in rest if place not in shape.classes]
    else:
        left = [place for place in rest if place != shape.labels]
    if left:
        shape.notes.append(f"columns not read: {', '.join(header[place] or '(no name)' for place in left)}")
    if shape.labels is None and not shape.classes:
        raise NoLabelColumns(
            f"{path}: no column of labels among {', '.join(header)}; name it in the recipe (table: labels)"
        )
    return shape


def _place(path: Path, header: list[str], name: str) -> int:
    fits = [place for place, other in enumerate(header) if other == name] or [
        place for place, other in enumerate(header) if plain(other) == plain(name)
    ]
    if len(fits) != 1:
        raise DataError(f"{path}: expected one column {name!r}, got {len(fits)}; there are {', '.join(header)}")
    return fits[0]


def _image(path: Path, header: list[str], body: Rows, wanted: Columns, pictures: Collection[str]) -> int:
    if wanted.image:
        return _place(path, header, wanted.image)
    some, places = body[:: max(1, len(body) // SAMPLE)], range(len(header))
    hits = [sum(stem_of(row.cells[place]) in pictures for row in some if place < len(row.cells)) for place in places]
    named = [place for place, num in enumerate(hits) if num and IMAGE.fullmatch(plain(header[place]))]
    best = max(places, key=lambda place: (hits[place], -place))
    if named and 2 * max(hits[place] for place in named) >= hits[best]:
        return max(named, key=lambda place: (hits[place], -place))
    return best if hits[best] else 0


def _split(path: Path, shape: Shape, rest: list[int], wanted: Columns) -> int | None:
    if wanted.split:
        return _place(path, shape.header, wanted.split)
    for place in rest:
        name = plain(shape.header[place])
        if name == "split" or (
            name in SPLITS and all(split_word(row.cells[place]) is not None for row in shape.body[:SAMPLE])
        ):
            return place
    return None


def _cells(shape: Shape, place: int) -> list[str]:
    return shape.body.column(place)


def _is_binary(shape: Shape, place: int) -> bool:
    return {cell.lower() for cell in set(_cells(shape, place))} <= {*TRUTH, *SIGNS}


def _is_other(shape: Shape, place: int) -> bool:
    """Whether a column of a table of 0 and 1 holds something else than labels, by its name and its cells."""
    name = plain(shape.header[place])
    return name in ("", "unnamed0") or (bool(OTHER.fullmatch(name)) and not _is_binary(shape, place))


def _is_place(shape: Shape, place: int, wanted: Columns) -> bool:
    """Whether a column says where or when, and is read for that; one of 0 and 1 is a class of that name."""
    name = shape.header[place]
    return name != wanted.labels and is_place_column(name) and not _is_binary(shape, place)


def _labels(path: Path, shape: Shape, rest: list[int], wanted: Columns) -> int | None:
    if wanted.labels:
        return _place(path, shape.header, wanted.labels)
    lists = [place for place in rest if LISTS.fullmatch(plain(shape.header[place]))]
    if len(lists) > 1:  # a class's number beside its name
        lists = [place for place in lists if not all(cell.isdigit() for cell in _cells(shape, place))] or lists
    if not lists:
        lists = [place for place in rest if _holds_lists(_cells(shape, place))]
    if len(lists) > 1:
        names = ", ".join(shape.header[place] for place in lists)
        raise UnclearColumns(
            f"{path}: labels could stand in any of {names}; name the column in the recipe (table: labels)"
        )
    others = [place for place in rest if place not in lists and not _is_other(shape, place)]
    both = [place for place in others if _is_binary(shape, place)]
    if lists and both:
        raise UnclearColumns(
            f"{path}: both a column {shape.header[lists[0]]!r} and columns of 0 and 1 ({shape.header[both[0]]}); name "
            "the one to read in the recipe (table: labels), or those to leave aside (table: ignore)"
        )
    return lists[0] if lists else None


def _holds_lists(cells: list[str]) -> bool:
    full = [cell for cell in cells if cell]
    try:
        return bool(full) and all(cell[0] in "[({as" and literal(cell) is not None for cell in full[:SAMPLE])
    except UnclearCell:
        return False
