"""YOLO: a text for each picture, a line an object: class number, then numbers from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from marc_dist.config import DataError
from marc_dist.packing.layouts.class_lists import find_class_list
from marc_dist.packing.layouts.splits import find_splits
from marc_dist.packing.layouts.tree import IMAGE_LEVEL, Layout, Tree, spread
from marc_dist.packing.reading.discover import File
from marc_dist.packing.reading.names import tree_parts
from marc_dist.packing.reading.samples import Labels, Source
from marc_dist.packing.reading.sheets import decoded

TRIED = 50
SLACK = 0.01  # boxes may reach a little beyond the picture


def detect(tree: Tree) -> Layout | None:
    """Texts of objects, each with the name of a picture."""
    beside = [file for file in tree.texts if file.path.stem.lower() in tree.stems]
    some = spread(beside, TRIED)
    if not beside or not all(_sound(file) for file in some) or not any(map(_has_shapes, some)):
        return None
    numbers = sorted({number for file in beside for number in _numbers(file)})
    listed = find_class_list(tree)
    names = listed.names if listed is not None else {}
    unclear = ""
    if not all(number in names for number in numbers):
        unclear = (
            f"class numbers up to {numbers[-1]} and no list of names (classes.txt, data.yaml); name them in the recipe"
        )
        names = {number: f"class_{number}" for number in range(numbers[-1] + 1)}
    splits = find_splits(tree, tree.pictures)
    recipe: dict[str, Any] = {
        "labels": ["yolo"],
        "pair_by": "tree",
        "annotations": sorted({f"{file.folders[-1]}/*.txt" if file.folders else "*.txt" for file in beside}),
        "classes": [{"name": names.get(number, f"class_{number}")} for number in range(max([*names, *numbers]) + 1)],
        "splits": splits.recipe,
    }
    where = f", names from {listed.file.origin}" if listed is not None and not unclear else ""
    seen = f"YOLO: {len(beside)} texts, {len(numbers)} classes{where}"
    unclear = unclear or splits.unclear
    return Layout("yolo", seen, recipe, splits.line, IMAGE_LEVEL, unclear, notes=tuple(splits.notes))


def _sound(file: File) -> bool:
    try:
        _numbers(file)
    except DataError:
        return False
    return True


def _numbers(file: File) -> set[int]:
    """The class numbers of a text.

    Raises:
        DataError: a line of another kind.
    """
    return {number for number, _ in _objects(file)}


def _has_shapes(file: File) -> bool:
    """Whether a number lies between 0 and 1: lines of only 0 and 1 say which classes a picture has, not where."""
    return any(0 < value < 1 for _, values in _objects(file) for value in values)


def _objects(file: File) -> list[tuple[int, list[float]]]:
    """Class number and shares of width and height of every line: a box, a box and its score, or a polygon.

    Raises:
        DataError: a line of another kind.
    """
    try:
        lines = decoded(file.path.read_bytes()).splitlines()
    except OSError as error:
        raise DataError(f"{file.path}: cannot be read ({error.strerror or error})") from None
    found = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            values = [float(word) for word in words[1:]]
            if not words[0].isdigit() or len(values) < 4 or (len(values) > 5 and len(values) % 2):
                raise ValueError
            if not all(-SLACK <= value <= 1 + SLACK for value in values):
                raise ValueError
        except ValueError:
            raise DataError(
                f"{file.path}: line {number}: expected a class number and 4, 5 or an even number of numbers from 0 to 1"
            ) from None
        found.append((int(words[0]), values))
    return found


def read(source: Source, files: Sequence[File], keys: set[str]) -> Labels:
    """The class numbers in the text of every picture.

    Args:
        source: its classes are in the order of the numbers, from 0.
        files: texts; those that belong to no picture are passed over.
        keys: of the pictures. One without a text has no labels here; an empty text says that there is no object.

    Raises:
        DataError: a line of another kind, a number beyond the classes, no classes, or two texts for one picture.
    """
    labels: Labels = {}
    for file in files:
        key = "/".join((*tree_parts(file.folders), file.path.stem.lower()))
        if key not in keys:
            continue
        if key in labels:
            raise DataError(f"{file.path}: a second text for {key}; keep one, or name its folder in annotations")
        numbers = _numbers(file)
        if numbers and max(numbers) >= len(source.classes):
            raise DataError(
                f"{file.path}: class number {max(numbers)}, and the recipe has {len(source.classes)} classes"
            )
        labels[key] = tuple(sorted(numbers))
    return labels
