"""COCO: JSON files of images, annotations and categories; a picture's labels are the categories of its annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from marc_dist.config import DataError
from marc_dist.packing.layouts.splits import DRAWN, find_splits, shortest_name
from marc_dist.packing.layouts.tree import IMAGE_LEVEL, Layout, Tree
from marc_dist.packing.reading.discover import File
from marc_dist.packing.reading.lists import pictures_named
from marc_dist.packing.reading.names import name_of, split_word, words_of
from marc_dist.packing.reading.samples import Labels, Source
from marc_dist.packing.reading.sheets import load_json

KEYS = ("images", "annotations", "categories")


def detect(tree: Tree) -> Layout | None:
    """COCO files, if there are any."""
    found = []
    for file in tree.jsons:
        if file.path.stat().st_size < 20:
            continue
        with file.path.open("rb") as opened:
            start = opened.read(1 << 16)
        if b"{" not in start[:8] or not any(f'"{key}"'.encode() in start for key in (*KEYS, "info", "licenses")):
            continue
        try:
            content = load_json(file.path)
        except DataError:
            continue
        if (
            isinstance(content, dict)
            and all(isinstance(content.get(key), list) for key in KEYS)
            and content["categories"]
        ):
            found.append((file, len(content["images"]), len(content["categories"])))
    if not found:
        return None
    files = [file for file, _, _ in found]
    names = [shortest_name(file, tree) for file in files]
    splits = {file: split for file in files if (split := _split(file)) is not None}
    recipe: dict[str, Any] = {"labels": ["coco"], "pair_by": "path", "annotations": names}
    unclear, notes = "", []
    if len(splits) == len(files) and len(set(splits.values())) == len(files) > 1:
        recipe["splits"] = {
            "lists": {splits[f]: n for f, n in zip(files, names, strict=True)},
            "source": "a COCO file each",
        }
        line = f"{len(files)} splits ({', '.join(splits.values())})"
    elif len(files) == 1:
        other = find_splits(tree, tree.pictures)
        recipe["splits"], line, unclear, notes = other.recipe, other.line, other.unclear, other.notes
    else:
        recipe["splits"] = DRAWN
        line = "splits unknown"
        unclear = (
            f"several COCO files for one split ({', '.join(names[:4])}); name those to read in the recipe (annotations)"
        )
    total = sum(num for _, num, _ in found)
    seen = f"COCO: {', '.join(names[:4])}, {total} images, {found[0][2]} categories"
    return Layout("coco", seen, recipe, line, IMAGE_LEVEL, unclear, notes=tuple(notes))


def _same_files(file: File, names: Sequence[str]) -> None:
    """Refuse pictures that only the ends of their names tell apart: labels go by the name without it."""
    of: dict[str, str] = {}
    for name in names:
        other = of.setdefault(name_of(name), name)
        if PurePosixPath(other).suffix.lower() != PurePosixPath(name).suffix.lower():
            raise DataError(f"{file.path}: {other} and {name} are pictures of one name; rename one of them")


def _split(file: File) -> str | None:
    found = {split for word in words_of(file.path.stem) if (split := split_word(word)) is not None}
    return found.pop() if len(found) == 1 else None


def read(source: Source, files: Sequence[File], pictures: Mapping[str, File]) -> Labels:
    """The categories of every picture.

    Args:
        source: gets the classes, in the order of the categories' numbers, if it has none.
        files: COCO files.
        pictures: key -> file.

    Raises:
        DataError: not such a file, an annotation of an unknown image or category, files whose categories differ.
    """
    labels: dict[str, set[str]] = {}
    order: dict[str, int] = {}
    for file in files:
        content = load_json(file.path)
        try:
            categories = {one["id"]: str(one["name"]).strip() for one in content["categories"]}
            images = {one["id"]: name_of(str(one["file_name"])) for one in content["images"]}
            _same_files(file, [str(one["file_name"]) for one in content["images"]])
            present: dict[Any, set[Any]] = {number: set() for number in images}
            for one in content["annotations"]:
                segments = one.get("segments_info")
                kinds = [one["category_id"]] if segments is None else [part["category_id"] for part in segments]
                present[one["image_id"]].update(kinds)
            named: dict[str, set[str]] = {}
            for number, found in present.items():  # merged exports name a picture twice
                named.setdefault(images[number], set()).update(categories[kind] for kind in found)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file.path}: not a sound COCO file ({type(error).__name__}: {error}); mend it") from None
        names = [name for _, name in sorted(categories.items(), key=lambda item: str(item[0]).zfill(12))]
        order = order or {name: place for place, name in enumerate(names)}
        if set(names) != set(order):
            raise DataError(
                f"{file.path}: its categories are not those of {files[0].path.name}; expected one list for all"
            )
        keys = pictures_named(str(file.path), named, pictures, _split(file))
        for key, categories_of in zip(keys, named.values(), strict=True):
            labels.setdefault(key, set()).update(categories_of)
    if not source.classes:
        source.classes = tuple(sorted(order, key=lambda name: order[name]))
    place = str(files[0].path)
    every = {name for found in labels.values() for name in found}
    number = {name: source.numbers([name], place)[0] for name in sorted(every)}
    return {key: tuple(sorted({number[name] for name in found})) for key, found in labels.items()}
