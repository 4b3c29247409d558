"""A label file for each picture: XML (Pascal VOC, FAIR1M) or JSON (labelme, BigEarthNet); labels = the names inside."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

from marc_dist.config import DataError
from marc_dist.packing.layouts.splits import find_splits
from marc_dist.packing.layouts.tree import IMAGE_LEVEL, Layout, Tree, spread
from marc_dist.packing.reading.discover import File
from marc_dist.packing.reading.label_cells import is_name
from marc_dist.packing.reading.names import composed, stem_of, tree_parts
from marc_dist.packing.reading.samples import Labels, Source
from marc_dist.packing.reading.sheets import MAX_CELL, load_json

LISTS = ("labels", "label", "tags", "categories", "classes", "multilabel", "multilabels")
OBJECTS = ("shapes", "objects", "annotations", "instances", "regions")
NAMES = ("label", "name", "category", "class", "classTitle", "class_name", "category_name")
SUFFIX = re.compile(r"_(labels_metadata|labels?|annotations?|gt|objects)$")
TRIED = 20


def detect(tree: Tree) -> Layout | None:
    """Label files of which each has the name of a picture."""
    for files, what in ((tree.xmls, "XML"), (tree.jsons, "JSON")):
        beside = [file for file in files if _stem(file) in tree.stems]
        if not beside or 2 * len(beside) < len(files):
            continue
        some = spread(beside, TRIED)
        read_ones = [names for file in some if (names := _try(file)) is not None]
        if len(read_ones) < len(some) or not any(read_ones):
            continue
        splits = find_splits(tree, tree.pictures)
        suffixes = {stem_of(f.path.stem)[len(_stem(f)) :] for f in beside}
        recipe: dict[str, Any] = {
            "labels": ["objects"],
            "pair_by": "tree",
            "annotations": [f"*{suffix}.{what.lower()}" for suffix in sorted(suffixes)],
            "splits": splits.recipe,
        }
        seen = f"{what}: a label file beside each of {len(beside)} pictures"
        return Layout("objects", seen, recipe, splits.line, IMAGE_LEVEL, splits.unclear, notes=tuple(splits.notes))
    return None


def _stem(file: File) -> str:
    return SUFFIX.sub("", stem_of(file.path.stem))


def _try(file: File) -> list[str] | None:
    try:
        return names_in(file)
    except DataError:
        return None


def names_in(file: File) -> list[str]:
    """The classes that a label file names, each once, sorted.

    Raises:
        DataError: cannot be read, or of another structure.
    """
    path = file.path
    if path.stat().st_size > MAX_CELL:
        raise DataError(f"{path}: {path.stat().st_size / 1e6:.0f} MB, too large for the labels of one picture")
    found = list(_xml(file) if path.suffix.lower() == ".xml" else _json(file))
    bad = next((name for name in found if not name or not is_name(name)), None)
    if bad is not None:
        raise DataError(f"{path}: {bad!r} is no name of a class")
    return sorted({composed(name) for name in found})


def _xml(file: File) -> Iterator[str]:
    data = file.path.read_bytes()
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise DataError(f"{file.path}: XML that declares a document type is not read; remove the declaration")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{file.path}: not readable XML ({error})") from None
    objects = [*root.iter("object")]
    if not objects and root.find("filename") is None and root.find("objects") is None and root.tag != "annotation":
        raise DataError(f"{file.path}: expected <object> with <name>, as Pascal VOC has it")
    for one in objects:
        name = one.find("name")
        possible = one.find("possibleresult/name") if name is None else name
        if possible is None:
            raise DataError(f"{file.path}: an <object> without <name>")
        yield (possible.text or "").strip()


def _json(file: File) -> Iterator[str]:
    content = load_json(file.path)
    if isinstance(content, dict):
        for key in LISTS:
            value = content.get(key)
            if isinstance(value, str):
                yield value.strip()
                return
            if isinstance(value, list) and all(isinstance(one, str) for one in value):
                yield from (one.strip() for one in value)
                return
        for key in OBJECTS:
            value = content.get(key)
            if isinstance(value, list) and all(isinstance(one, dict) for one in value):
                for one in value:
                    name = next((one[key] for key in NAMES if isinstance(one.get(key), str)), None)
                    if name is None:
                        raise DataError(f"{file.path}: an entry of {key!r} names no class")
                    yield name.strip()
                return
    raise DataError(f"{file.path}: expected a list `labels`, or `shapes` with a `label` each")


def read(source: Source, files: Sequence[File]) -> Labels:
    """The names in the label file of every picture.

    Args:
        source: gets the classes, if it has none.
        files: label files.

    Raises:
        DataError: a file that cannot be read, two for one picture, a name that is no class.
    """
    named: dict[str, list[str]] = {}
    for file in files:
        key = "/".join((*tree_parts(file.folders), _stem(file)))
        if key in named:
            raise DataError(f"{file.path}: a second label file for {key}")
        named[key] = names_in(file)
    if not source.classes:
        source.classes = tuple(sorted({name for names in named.values() for name in names}))
    every = sorted({name for names in named.values() for name in names})
    number = {name: source.numbers([name], str(files[0].path.parent))[0] for name in every}
    return {key: tuple(sorted({number[name] for name in names})) for key, names in named.items()}
