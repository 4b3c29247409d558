"""Files that name classes: a name a line, numbers with names, or names with mask colours."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import yaml

from marc_dist.config import DataError
from marc_dist.packing.layouts.tree import Tree
from marc_dist.packing.reading.discover import File
from marc_dist.packing.reading.names import plain, stem_of
from marc_dist.packing.reading.sheets import decoded, read_rows

NAME = re.compile(
    r"_?(predefined_)?(class|label|categor(y|ie)|obj)(e?s)?([-_. ]?(name|list|map|dict|info|id|color|colour)s?)*|names|"
    r"(data|dataset)"
)
ENDS = (".txt", ".names", ".csv", ".yaml", ".yml", ".lst")
MAX_BYTES = 1 << 20


@dataclass
class ClassList:
    """Names of classes.

    Attributes:
        file: where they stand.
        names: number -> name.
        colours: colour in masks -> name.
        numbered: the file itself gives the numbers; else they are places, from 0.
    """

    file: File
    names: dict[int, str] = field(default_factory=dict)
    colours: dict[tuple[int, int, int], str] = field(default_factory=dict)
    numbered: bool = False


def find_class_list(tree: Tree) -> ClassList | None:
    """The class list of a download; of several, the first that says the most (colours, numbers, names)."""
    found = []
    for file in [*tree.tables, *tree.others]:
        name = file.name.lower()
        stem, _, _ = name.rpartition(".")
        if not name.endswith(ENDS) or not NAME.fullmatch(stem) or file.path.stat().st_size > MAX_BYTES:
            continue
        listed = _yaml(file) if name.endswith((".yaml", ".yml")) else _table(file, tree)
        if listed is not None and (listed.names or listed.colours):
            found.append(listed)
    return max(found, key=lambda one: (bool(one.colours), one.numbered), default=None)


def is_class_list(file: File, tree: Tree) -> bool:
    """Whether a file that could be a label table, by its name, names classes instead."""
    listed = _table(file, tree)
    return listed is not None and (listed.numbered or bool(listed.colours))


def _yaml(file: File) -> ClassList | None:
    """``data.yaml`` as YOLO writes it: ``names`` as a list or by number."""
    try:
        content = yaml.safe_load(decoded(file.path.read_bytes()))
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return None
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, list):
        return ClassList(file, {number: str(name) for number, name in enumerate(names)}, numbered=True)
    if isinstance(names, dict) and all(isinstance(number, int) for number in names):
        return ClassList(file, {number: str(name) for number, name in names.items()}, numbered=True)
    return None


def _table(file: File, tree: Tree) -> ClassList | None:
    lines = _lines(file)
    if lines is not None and lines.numbered:
        return lines
    try:
        rows = read_rows(file.path)
    except DataError:
        return None
    width = len(rows[0].cells) if rows else 0
    if not rows or rows.uneven(width) is not None:
        return lines
    if any(stem_of(cell) in tree.stems for row in rows[:50] for cell in row.cells):
        return None  # a label table
    header = [plain(cell) for cell in rows[0].cells]
    channels = [
        next((header.index(n) for n in names if n in header), -1)
        for names in (("r", "red"), ("g", "green"), ("b", "blue"))
    ]
    if width >= 4 and min(channels) >= 0:
        place = next((header.index(n) for n in ("name", "class", "classname", "label", "category") if n in header), 0)
        try:
            colours = {tuple(int(float(row.cells[c])) for c in channels): row.cells[place] for row in rows[1:]}
        except ValueError:
            return None
        return ClassList(file, colours=colours)  # type: ignore[arg-type]
    if width == 1:
        return lines
    columns = [rows.below(1).column(place) for place in range(width)]
    numbers = [place for place, cells in enumerate(columns) if all(map(str.isdigit, cells)) and len(rows) > 2]
    names = [place for place, cells in enumerate(columns) if not any(map(str.isdigit, cells))]
    if len(numbers) == 1 and names:
        body = rows if rows[0].cells[numbers[0]].isdigit() else rows.below(1)
        return ClassList(file, {int(row.cells[numbers[0]]): row.cells[names[0]] for row in body}, numbered=True)
    return None


def _lines(file: File) -> ClassList | None:
    """``water``, or ``1: water``, ``1 water``, ``water 1``, a line."""
    lines = [line.strip() for line in decoded(file.path.read_bytes()).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("#")]
    for pattern in (r"(?P<n>\d+)\s*[:=,;\t ]\s*(?P<name>\D.*)", r"(?P<name>.*\D)\s*[:=,;\t ]\s*(?P<n>\d+)"):
        found = [re.fullmatch(pattern, line) for line in lines]
        if found and all(found):
            return ClassList(file, {int(f["n"]): f["name"].strip().strip("'\"") for f in found if f}, numbered=True)
    if not lines or any(len(line) > 80 for line in lines) or len(lines) != len(set(lines)):
        return None
    return ClassList(file, dict(enumerate(lines)))
