"""One folder a class, below folders of splits or not."""

from __future__ import annotations

import os.path
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from marc_dist.config import DataError
from marc_dist.packing.layouts.splits import find_splits
from marc_dist.packing.layouts.tree import Layout, Tree
from marc_dist.packing.reading.discover import File
from marc_dist.packing.reading.names import composed, is_folder_word, is_mask_word, split_word
from marc_dist.packing.reading.samples import Labels, Source


def detect(tree: Tree, *, any_name: bool = False) -> Layout | None:
    """Folders that may be classes, if every picture lies in one.

    Args:
        tree: everything that lies there.
        any_name: classes may be called like folders of a download (images, masks).
    """
    if not tree.pictures or any(not file.folders for file in tree.pictures):
        return None
    splits = find_splits(tree, tree.pictures)
    names = Counter(class_folders(tree.pictures, "folders" in splits.recipe))
    shown = ", ".join(sorted(names)[:4]) + (", ..." if len(names) > 4 else "")
    shared = len(os.path.commonprefix([file.folders for file in tree.pictures]))
    deep = next((file for file in tree.pictures if len(_above(file, shared)) > 1), None)
    roles, chosen = ("", "") if any_name else _roles(tree.pictures)
    unclear, settled = splits.unclear or roles, False
    alone = ["one class: enough for an archive to search in, but nothing to train on"] if len(names) == 1 else []
    if deep is not None and not unclear:
        settled = True
        unclear = (
            f"{deep.origin} lies below several folders that could be its class ({', '.join(_above(deep, shared))}); to "
            "take the lowest: --labels folders"
        )
    seen = f"one folder a class: {len(names)} classes ({shown})"
    recipe: dict[str, Any] = {"labels": ["folders"], "pair_by": "path", "splits": splits.recipe}
    if roles:
        recipe = {**recipe, "pictures": {"folders": [chosen]}} if chosen else {}
    notes = tuple([*splits.notes, *alone])
    return Layout("folders", seen, recipe, splits.line, unclear=unclear, settled=settled, notes=notes)


def _roles(pictures: Sequence[File]) -> tuple[str, str]:
    """Why it cannot be said which files are the pictures: some lie in ``image``, others in ``label_color``.

    And the folder that is the only one without a word for masks; empty when there is none.
    """
    roles = {tuple(f for f in file.folders if is_folder_word(f) and split_word(f) is None): file for file in pictures}
    if len(roles) < 2:
        return "", ""
    likely = [role for role in roles if not any(map(is_mask_word, role))]
    (one, first), (two, second), *_ = sorted(roles.items())
    text = (
        f"some pictures lie in {'/'.join(one) or 'no such folder'} ({first.origin}), some in {'/'.join(two)} "
        f"({second.origin}): which are the pictures? name their folder in a recipe (pictures: folders), or, if these "
        "are classes: --allow class_names"
    )
    return text, likely[0][0] if len(likely) == 1 and likely[0] else ""


def _above(file: File, shared: int = 0) -> list[str]:
    """The folders above a picture that could be its class; the first ones, which all pictures share, could not."""
    return [folder for folder in file.folders[shared:] if split_word(folder) is None and not is_folder_word(folder)]


def class_folders(pictures: Sequence[File], with_splits: bool) -> list[str]:
    """The folder that is each picture's class: the one right above it.

    Where all of those have names such as ``images``, it is the lowest that has another one.

    Args:
        pictures: each in a folder.
        with_splits: folders called train, val and test are splits.
    """
    names = [composed(file.folders[-1]) for file in pictures]
    no_class = [is_folder_word(name) or (with_splits and split_word(name) is not None) for name in names]
    if all(no_class):
        return [
            composed(_above(file)[-1]) if _above(file) else name for file, name in zip(pictures, names, strict=True)
        ]
    return names


def read(source: Source, pictures: Mapping[str, File]) -> Labels:
    """The class of every picture.

    Args:
        source: gets the classes, if it has none.
        pictures: key -> file.

    Raises:
        DataError: a picture in no folder, or a folder that is no class.
    """
    flat = [file.origin for file in pictures.values() if not file.folders]
    if flat:
        raise DataError(
            f"{flat[0]}: a picture in no folder, and no label table; expected {source.recipe.layout or 'labels'}"
        )
    names = dict(zip(pictures, class_folders(list(pictures.values()), bool(source.recipe.splits.folders)), strict=True))
    if not source.classes:
        source.classes = tuple(sorted(set(names.values())))
    number = {name: source.numbers([name], "a folder's name") for name in sorted(set(names.values()))}
    return {key: number[name] for key, name in names.items()}
