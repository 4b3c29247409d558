"""Splits that an archive brings along: folders called train, val and test, or files that list their pictures."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from marc_dist.config import DataError
from marc_dist.packing.layouts.tree import Tree
from marc_dist.packing.reading.discover import File
from marc_dist.packing.reading.lists import listed_names, pictures_named, split_of_lists
from marc_dist.packing.reading.names import BESIDE_SPLIT, name_of, split_word, stem_of, words_of

LISTS = (".txt", ".csv", ".tsv", ".lst", ".list", ".json")
MAX_LIST_FILES = 400
DRAWN = {"shares": {"train": 0.8, "test": 0.2}, "source": "80 / 20 by hash of the name; the archive has no split"}


@dataclass
class Splits:
    """Which splits there are.

    Attributes:
        recipe: the recipe's ``splits``.
        line: in words.
        unclear: why it cannot be said which one is meant; empty = plain.
        notes: what else was seen.
        chosen: picture, as ``name_of`` writes its place -> split; empty = drawn.
    """

    recipe: dict[str, object]
    line: str
    unclear: str = ""
    notes: list[str] = field(default_factory=list)
    chosen: dict[str, str] = field(default_factory=dict)


@dataclass
class _Option:
    """One way in which the archive tells its splits.

    Attributes:
        kind: ``folders`` or ``lists``, as in a recipe's ``splits``.
        places: split -> folder or list.
        chosen: as in ``Splits``.
    """

    kind: str
    places: dict[str, str]
    chosen: dict[str, str]

    @property
    def line(self) -> str:
        return f"{self.kind} {', '.join(self.places.values())}"

    def recipe(self) -> dict[str, object]:
        order = ("train", "val", "test")
        splits = sorted(self.places, key=lambda split: order.index(split) if split in order else len(order))
        return {self.kind: {split: self.places[split] for split in splits}, "source": f"the archive's {self.kind}"}

    def contradicts(self, other: _Option) -> bool:
        """Whether some picture has another split in both."""
        return any(self.chosen.get(key, split) != split for key, split in other.chosen.items())


def find_splits(tree: Tree, pictures: Sequence[File]) -> Splits:
    """The split of an archive, or a draw where it has none.

    Args:
        tree: everything that lies there.
        pictures: the pictures, without masks.
    """
    by_folder, unclear, notes = _by_folder(pictures)
    families, overlap, several = _families(tree, pictures)
    options = []
    if by_folder:
        options.append(_Option("folders", by_folder, {name_of(file.origin): split_of(file) or "" for file in pictures}))
    for files, chosen in families:
        options.append(_Option("lists", {split: shortest_name(file, tree) for split, file in files.items()}, chosen))
    unclear = unclear or overlap or ("" if options else several)
    if not options:
        return Splits(dict(DRAWN), "no split, 80 / 20 drawn by hash", unclear, notes)
    first, *others = options
    differ = [other for other in others if first.contradicts(other)]
    differ += [other for other in others if set(other.chosen) != set(first.chosen) and other not in differ]
    if differ and not unclear:
        unclear = f"two splits fit that differ: {first.line}, or {differ[0].line}; name one in the recipe (splits)"
    notes = [*notes, *(f"or: splits from {other.line}" for other in differ)]
    return Splits(first.recipe(), f"{len(first.places)} splits ({first.line})", unclear, notes, first.chosen)


def split_of(file: File) -> str | None:
    """The split that one of a picture's folders names, if any."""
    return next((split for folder in file.folders if (split := split_word(folder)) is not None), None)


def _by_folder(pictures: Sequence[File]) -> tuple[dict[str, str], str, list[str]]:
    """Split -> folder; why it is not plain; notes."""
    of = [(next((f for f in file.folders if split_word(f)), ""), split_of(file)) for file in pictures]
    names: dict[str, set[str]] = defaultdict(set)
    for folder, split in of:
        if split is not None:
            names[split].add(folder.lower())
    spelled = {folder.lower(): folder for folder, _ in of}
    outside = sum(split is None for _, split in of)
    if not names or (len(names) == 1 and outside):  # one folder `train` beside others: a class of railways
        return {}, "", []
    folders = {split: spelled[sorted(found)[0]] for split, found in names.items()}
    if len(names) == 1:
        split, folder = next(iter(folders.items()))
        return {}, "", [f"folder {folder}: the only one of its kind, so the split is drawn anew"]
    if outside:
        return folders, f"{outside} pictures lie outside the folders {', '.join(folders.values())}", []
    double = next((sorted(found) for found in names.values() if len(found) > 1), None)
    if double:
        return folders, f"two folders for one split: {', '.join(double)}; name one in the recipe (splits: folders)", []
    return folders, "", []


def _families(tree: Tree, pictures: Sequence[File]) -> tuple[list[tuple[dict[str, File], dict[str, str]]], str, str]:
    """Files that list the pictures of splits, a family each: their split -> file, and picture -> split; and faults.

    The second fault is a family with several lists for one split: folds, of which somebody has to choose.
    """
    fault = several = ""
    stems = {stem_of(file.name) for file in pictures}
    keys = {name_of(file.origin): None for file in pictures}
    groups: dict[tuple[str, str], dict[str, list[File]]] = defaultdict(lambda: defaultdict(list))
    for file in [*tree.tables, *tree.jsons]:
        family = _family(file)
        if family is not None and file.path.suffix.lower() in LISTS:
            groups[family[0]][family[1]].append(file)
    families: list[tuple[dict[str, File], dict[str, str]]] = []
    by_name = sorted(groups, key=lambda family: len(family[1]))  # train.txt before ship_train.txt
    for group in [groups[family] for family in by_name][:MAX_LIST_FILES]:
        files = {split: found[0] for split, found in group.items() if len(found) == 1}
        if any(len(found) > 1 for found in group.values()):
            several = several or _several(group, stems, tree)
            continue
        if len(files) < 2:
            continue
        listed = _listed(files, stems)
        if not listed:
            continue
        lists = {}
        try:
            for split, names in listed.items():
                place = files[split].origin
                lists[split] = (place, [key for key in pictures_named(place, names, keys, split) if key in keys])
            chosen = split_of_lists(lists)
        except DataError as error:
            fault = fault or str(error)
            continue
        if not any(chosen == other for _, other in families):
            families.append((files, chosen))
    return families, fault, several


def _several(group: Mapping[str, Sequence[File]], stems: set[str], tree: Tree) -> str:
    """What to say about several lists of pictures for one split; nothing when they are no such lists."""
    if len(group) < 2:
        return ""
    if not _listed({split: found[0] for split, found in group.items()}, stems):
        return ""
    split, found = next((split, found) for split, found in group.items() if len(found) > 1)
    named = ", ".join(shortest_name(file, tree) for file in found[:3])
    return f"{len(found)} lists for the split {split}: {named}; name one for each split in the recipe (splits: lists)"


def _listed(files: Mapping[str, File], stems: set[str]) -> dict[str, list[str]]:
    """Split -> names in its list; empty when one of the files is no list of pictures."""
    try:
        listed = {split: listed_names(file.path, stems) for split, file in files.items()}
    except DataError:
        return {}
    return listed if all(names and _names_pictures(names, stems) for names in listed.values()) else {}


def _names_pictures(names: Sequence[str], stems: set[str]) -> bool:
    some = names[:: max(1, len(names) // 200)]
    return 2 * sum(stem_of(name) in stems for name in some) >= len(some)


def _family(file: File) -> tuple[tuple[str, str], str] | None:
    """``lists/eurosat-train.txt`` -> (its folder and ``eurosat``), train; None when its name tells no split."""
    stem = file.path.stem
    words = [(word, split_word(word)) for word in words_of(stem)]
    splits = [(word, split) for word, split in words if split is not None]
    if len(splits) != 1:
        return None
    rest = "-".join(word for word, split in words if split is None and word not in BESIDE_SPLIT)
    folder = re.sub(r"/?[^/]*$", "", file.origin)
    return (folder, f"{rest}{file.path.suffix.lower()}"), splits[0][1] or ""


def shortest_name(file: File, tree: Tree) -> str:
    """A file's name for a recipe: with as many of its folders as tell it from others."""
    parts = file.origin.split("/")
    every = Counter(
        "/".join(other.parts[-num:]) for other in [*tree.tables, *tree.jsons] for num in range(1, len(parts) + 1)
    )
    for num in range(1, len(parts) + 1):
        end = "/".join(parts[-num:])
        if every[end.lower()] == 1:
            return end
    return file.origin
