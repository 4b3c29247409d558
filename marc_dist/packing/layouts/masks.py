"""Masks beside pictures: in folders of their own, with endings of their own, or in parallel trees told by content."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from marc_dist.config import DataError
from marc_dist.packing.layouts.class_lists import ClassList, find_class_list
from marc_dist.packing.layouts.splits import find_splits
from marc_dist.packing.layouts.tree import Layout, Tree, spread
from marc_dist.packing.reading.discover import File
from marc_dist.packing.reading.masks import Colour, mask_values
from marc_dist.packing.reading.names import is_mask_word, is_no_class, stem_of, tree_parts

ENDING = re.compile(r"(?i).*[_-](masks?|labels?|gt|seg|lab|lbl|m|annotations?|groundtruth|\d+label|(label|mask)_?\w+)")
TRIED = 12  # masks that tell whether a folder holds masks
COUNTED = 2000  # masks whose values are counted
MAX_VALUES = 64  # classes of a mask; more tell a picture


@dataclass
class Pairing:
    """Masks and the pictures that they belong to.

    Attributes:
        masks: the masks.
        pictures: the pictures.
        recipe: keys of the recipe that tell them apart.
        line: in words.
    """

    masks: list[File]
    pictures: list[File]
    recipe: dict[str, Any]
    line: str
    unclear: str = ""


@dataclass
class Values:
    """What the masks hold.

    Attributes:
        colours: colour -> pixels, of masks with colours.
        indices: value -> pixels, of masks without.
        folders: value or colour -> folder -> masks with it.
        looked_at: masks.
    """

    colours: Counter[Colour] = field(default_factory=Counter)
    indices: Counter[int] = field(default_factory=Counter)
    folders: dict[Any, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    looked_at: int = 0


def detect(tree: Tree, pairings: Sequence[Pairing]) -> Layout | None:
    """Masks beside pictures, if there are any; their classes where a file names them.

    Without one the recipe gives each value a made-up name, and the layout is unclear: somebody has to name them.

    Args:
        tree: everything that lies there.
        pairings: what ``find_pairings`` found in it.
    """
    if not pairings:
        return None
    pairing = pairings[0]
    splits = find_splits(tree, pairing.pictures)
    recipe: dict[str, Any] = {"labels": ["masks"], "pair_by": "tree", **pairing.recipe, "splits": splits.recipe}
    notes = [*splits.notes, *(f"or: {other.line}" for other in pairings[1:])]
    unclear, remedy = pairing.unclear, ""
    if len(pairings) > 1:
        unclear = f"two sets of masks: {pairing.line}; or {pairings[1].line}; name one in a recipe (masks: folders)"
    try:
        values = count_values(pairing.masks)
    except DataError as error:
        return Layout("masks", pairing.line, recipe, unclear=str(error), notes=tuple(notes))
    listed = find_class_list(tree)
    classes, masks, named, more = _classes(values, listed)
    recipe["classes"] = classes
    recipe["masks"] = {**recipe.get("masks", {}), **masks}
    if named:
        kind = f"names from {named}"
    else:
        kind = "values without names"
        if not unclear:
            unclear = f"{pairing.line}: {len(classes)} values without names{_without_numbers(listed)}"
            remedy = "; see them with marc-shard --inspect, name them in the recipe that it prints"
    seen = f"masks beside pictures: {pairing.line}, {len(classes)} classes ({kind})"
    unclear = unclear or splits.unclear
    return Layout("masks", seen, recipe, splits.line, unclear=unclear, remedy=remedy, notes=tuple([*notes, *more]))


def _without_numbers(listed: ClassList | None) -> str:
    """What a class list lacks that would name the values of masks; nothing when there is none."""
    if listed is None or listed.numbered or not listed.names:
        return ""
    first, num = listed.names[0], len(listed.names)
    return f"; {listed.file.origin} has {num} names without numbers: is {first!r} 0 or 1? write `0: {first}`"


def find_pairings(tree: Tree, *, by_content: bool = True) -> list[Pairing]:
    """Every way in which some of the files are masks of the others.

    Args:
        tree: everything that lies there.
        by_content: look for masks that no folder and no ending names, too.
    """
    files = [*tree.pictures, *tree.foreign]
    found: list[Pairing] = []
    by_folder: dict[str, list[File]] = defaultdict(list)
    for file in files:
        folder = next((folder for folder in file.folders if is_mask_word(folder)), None)
        if folder is not None:
            by_folder[folder.lower()].append(file)
    rest = [file for file in tree.pictures if not any(is_mask_word(folder) for folder in file.folders)]
    for masks in by_folder.values():
        folder = next(folder for folder in masks[0].folders if is_mask_word(folder))
        found += _paired(masks, rest, {"folders": [folder]}, f"masks in {folder}/") if _look_like_masks(masks) else []
    if not found:
        ended = [file for file in files if ENDING.fullmatch(file.path.stem)]
        names = {id(file) for file in ended}
        others = [file for file in tree.pictures if id(file) not in names]
        if ended and others and _look_like_masks(ended):
            found += _paired(ended, others, {}, "masks beside pictures in one folder")
    return found or (_parallel(tree) if by_content else [])


def _parallel(tree: Tree) -> list[Pairing]:
    """Trees with names such as no rule knows, of which one holds what looks like masks of the other's pictures."""
    for depth in range(3):
        groups: dict[str, list[File]] = defaultdict(list)
        for file in tree.pictures:
            if len(file.folders) > depth:
                groups[file.folders[depth]].append(file)
        if not 2 <= len(groups) <= 6:
            continue
        like = {name: _look_like_masks(files) for name, files in groups.items()}
        masks = [name for name in groups if like[name]]
        pictures = [name for name in groups if not like[name]]
        for name in masks:
            for other in pictures:
                found = _paired(groups[name], groups[other], {"folders": [name]}, f"masks in {name}/", [other])
                if found:
                    return found
    return []


def _look_like_masks(files: Sequence[File]) -> bool:
    """Whether some of them hold few values, and none is a JPEG, which keeps no value."""
    some = spread(files, TRIED)
    if any(file.path.suffix.lower() in (".jpg", ".jpeg", ".jfif", ".webp") for file in some):
        return False
    try:
        return all(len(mask_values(file.path).areas) <= MAX_VALUES for file in some)
    except DataError:
        return False


def _paired(
    masks: list[File], pictures: list[File], entry: dict[str, Any], line: str, folders: Sequence[str] = ()
) -> list[Pairing]:
    """The pairing of masks and pictures, if most masks have a picture; with the endings that are theirs alone."""
    ends = endings([stem_of(f.name) for f in pictures], [stem_of(f.name) for f in masks])
    if ends is None:
        return []
    of_picture, of_mask = ends
    dropped = {name.lower() for name in (*folders, *entry.get("folders", ()))}
    keys = Counter(pair_key(file, of_mask, dropped) for file in masks)
    fits = sum(pair_key(file, of_picture, dropped) in keys for file in pictures)
    if 2 * fits < min(len(masks), len(pictures)):
        return []
    own = {folder for file in pictures for folder in file.folders if folder.lower() not in dropped}
    if not folders and entry:
        role = {f for f in own if all(f in file.folders for file in pictures)}
        folders = sorted(role)[:1]
    recipe: dict[str, Any] = {"masks": {**entry, **({"suffix": of_mask} if of_mask else {})}}
    where = {**({"folders": list(folders)} if folders else {}), **({"suffix": of_picture} if of_picture else {})}
    if where:
        recipe["pictures"] = where
    ended = f", {of_picture or '(no ending)'} and {of_mask}" if of_mask or of_picture else ""
    left = next((file.origin for file in pictures if not stem_of(file.name).endswith(of_picture)), "")
    unclear = f"pictures whose names do not end in {of_picture}, such as {left}: are they some, too?" if left else ""
    return [Pairing(masks, pictures, recipe, f"{line}{ended}: {len(masks)} masks, {len(pictures)} pictures", unclear)]


def pair_key(file: File, suffix: str, dropped: set[str]) -> str:
    """What a picture and its mask have in common.

    Args:
        file: one of them.
        suffix: the ending that its kind's names have of their own.
        dropped: names of folders that only tell one kind from the other, lower case.
    """
    return "/".join((*tree_parts(file.folders, dropped), stem_of(file.name).removesuffix(suffix)))


def endings(pictures: Sequence[str], masks: Sequence[str]) -> tuple[str, str] | None:
    """The endings that pictures' and masks' names have of their own, both empty when the names are equal; or None.

    Args:
        pictures: stems, lower case.
        masks: stems, lower case.
    """
    have = set(pictures)
    if 2 * sum(name in have for name in masks) >= len(masks):
        return "", ""
    ends_of = [
        Counter(name[at.start() :] for name in names for at in re.finditer(r"[_-]", name))
        for names in (pictures, masks)
    ]
    best: tuple[int, tuple[str, str]] = (0, ("", ""))
    for end in [name for name, num in ends_of[1].most_common(30) if 2 * num >= len(masks)]:
        bases = {name.removesuffix(end) for name in masks if name.endswith(end)}
        for other in [
            "",
            *(name for name, num in ends_of[0].most_common(30) if 2 * num >= len(pictures) and name != end),
        ]:
            hits = sum(name.endswith(other) and name[: len(name) - len(other)] in bases for name in pictures)
            best = max(best, (hits, (other, end)), key=lambda one: (one[0], -len("".join(one[1]))))
    return best[1] if 2 * best[0] >= len(masks) else None


def count_values(masks: Sequence[File]) -> Values:
    """The values of masks with their pixels; of many masks, evenly spaced ones are looked at.

    Raises:
        DataError: a mask that cannot be read, or more values than masks have.
    """
    values = Values()
    for file in spread(masks, COUNTED):
        one = mask_values(file.path)
        values.looked_at += 1
        ramp = (
            bool(one.indices)
            and one.colours is not None
            and all(colour == (index,) * 3 for colour, index in zip(one.colours, one.indices, strict=True))
        )
        keys: Sequence[Any] = one.colours if one.colours is not None and not ramp else one.indices
        counter: Counter[Any] = values.colours if one.colours is not None and not ramp else values.indices
        for key, area in zip(keys, one.areas, strict=True):
            counter[key] += area
            values.folders[key][file.folders[-1] if file.folders else ""] += 1
        if len(values.colours) > 4 * MAX_VALUES:
            raise DataError(
                f"{file.path}: its masks hold over {len(values.colours)} colours; drawn over, or saved as JPEG?"
            )
    return values


def _classes(values: Values, listed: ClassList | None) -> tuple[list[dict[str, Any]], dict[str, Any], str, list[str]]:
    """The recipe's classes and masks, the file that names them, and notes."""
    seen = f"in {values.looked_at} masks"
    if values.colours:
        known = listed.colours if listed is not None else {}
        if known and set(values.colours) <= set(known) and listed is not None:
            classes = [{"name": name, "colour": list(colour)} for colour, name in known.items()]
            return classes, {}, listed.file.origin, []
        classes = [
            {"name": known.get(colour, "colour_{}_{}_{}".format(*colour)), "colour": list(colour)}
            for colour, _ in sorted(values.colours.items())
        ]
        return classes, {}, "", [f"colour {list(c)}: {n} pixels {seen}" for c, n in sorted(values.colours.items())]
    numbers = sorted(values.indices)
    names = _names_of(numbers, listed)
    table = {number: names.get(number, f"class_{number}") for number in (sorted(names) if names else numbers)}
    notes = [
        f"value {number}: {values.indices[number]} pixels {seen}{_mostly(values.folders[number])}" for number in numbers
    ]
    masks = {"index_orders": {"only": table}}
    return [{"name": name} for name in table.values()], masks, listed.file.origin if names and listed else "", notes


def _mostly(folders: Counter[str]) -> str:
    (name, num), *_ = folders.most_common(1)
    return f", most in {name}/" if name and len(folders) > 1 and 2 * num > folders.total() else ""


def _names_of(numbers: Sequence[int], listed: ClassList | None) -> dict[int, str]:
    """Value -> name, where a class list leaves no doubt which name means which value."""
    if listed is None or not listed.names:
        return {}
    if listed.numbered:
        return dict(listed.names) if set(numbers) <= set(listed.names) else {}
    # 0 to the last but one: names from 0; or 0 means nothing, names from 1, and no mask has the last one
    if 0 in numbers and numbers[-1] == len(listed.names) - 1 and is_no_class(listed.names[0]):
        return dict(listed.names)
    if 0 not in numbers and numbers[-1] == len(listed.names):
        return {number + 1: name for number, name in listed.names.items()}
    return {}
