"""Which split a picture belongs to: a folder of the download, a column of its table, or a draw that can be repeated."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import accumulate

from marc_dist.config import DataError
from marc_dist.geography.acquisition import UNKNOWN, Acquisition
from marc_dist.packing.georeference.facts import Known
from marc_dist.packing.georeference.grouping import draw_groups, groups_of, largest
from marc_dist.packing.reading.discover import File, matches
from marc_dist.packing.reading.lists import listed_names, one_split, pictures_named, split_of_lists
from marc_dist.packing.reading.names import composed, name_of, stem_of
from marc_dist.packing.reading.recipes import Recipe
from marc_dist.packing.reading.samples import Source, compact_samples


def scene_of(recipe: Recipe, file: File) -> str:
    """The scene of a picture, or empty."""
    if recipe.scene == "folder":
        return file.path.parent.name if len(file.parts) > 1 else ""
    return re.sub(r"_?\d+$", "", stem_of(file.name)) if recipe.scene == "name" else ""


def draw_splits(groups: Mapping[str, Sequence[str]], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """A split for every key: within each group in the order of a hash, so any machine draws the same.

    Args:
        groups: scene -> keys.
        shares: split -> share of each scene.
        seed: of the draw.
    """
    chosen: dict[str, str] = {}
    for keys in groups.values():
        ordered = sorted(keys, key=lambda key: (hashlib.sha256(f"{seed}/{key}".encode()).digest(), key))
        start, total = 0, 0.0
        for split, share in shares.items():
            total += share
            end = round(total * len(ordered))
            chosen |= dict.fromkeys(ordered[start:end], split)
            start = end
    return chosen


def draw_alone(origin: str, shares: Mapping[str, float], seed: int) -> str:
    """The split of a picture that comes later: by a hash of its place, whatever other pictures there are.

    Args:
        origin: its place inside the download.
        shares: split -> share.
        seed: of the draw.
    """
    point = int.from_bytes(hashlib.sha256(f"{seed}/{origin}".encode()).digest()[:8], "big") / 2**64
    chosen = [split for split, end in zip(shares, accumulate(shares.values()), strict=True) if point < end]
    return chosen[0] if chosen else list(shares)[-1]  # shares add up to 1, or to the float below


def assign(
    source: Source,
    pictures: Mapping[str, File],
    labels: Mapping[str, tuple[int, ...]],
    split_of: Mapping[str, str],
    lists: Sequence[File] = (),
    known: Mapping[str, Known] | None = None,
) -> None:
    """Fill ``source.samples``: every picture that has labels, with its scene and split.

    Args:
        source: of the recipe.
        pictures: key -> file.
        labels: key -> class numbers.
        split_of: key -> split, when the table says so.
        lists: the files that the recipe's lists name.
        known: key -> what is known of place and time.

    Raises:
        DataError: a picture outside the split folders, or a split name that is no word.
    """
    groups: Mapping[str, str] = {}
    recipe, known = source.recipe, known or {}
    kept = {key: pictures[key] for key in sorted(pictures) if key in labels}
    if recipe.splits.folders:
        chosen = _by_folder(recipe, kept)
    elif recipe.splits.names:
        chosen = _by_name(recipe, kept)
    elif recipe.splits.lists:
        chosen = _by_list(source, kept, lists)
        kept = {key: file for key, file in kept.items() if key in chosen}
    elif recipe.splits.by:
        groups = groups_of(source, kept, {key: _scene(recipe, kept[key], known.get(key)) for key in kept}, known)
        chosen = draw_groups(groups, recipe.splits.shares, recipe.splits.seed)
        source.drawn = True
        source.warnings.append(f"splits: drawn by {recipe.splits.by}: {largest(groups)}")
    elif split_of:
        chosen = {key: one_split(split_of[key]) for key in kept}
    else:
        of_scene: dict[str, list[str]] = defaultdict(list)
        for key, file in kept.items():
            of_scene[scene_of(recipe, file)].append(key)
        chosen = draw_splits(of_scene, recipe.splits.shares, recipe.splits.seed)
        source.drawn = True
    for key, split in chosen.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*", split):
            raise DataError(
                f"{kept[key].origin}: split {split!r}, expected a lower-case word such as train, val or test"
            )
    source.samples = compact_samples(
        (file.root, file.place, labels[key], _scene(recipe, file, one), chosen[key], _taken(one, groups.get(key, "")))
        for key, file in kept.items()
        for one in (known.get(key),)
    )


def _scene(recipe: Recipe, file: File, known: Known | None) -> str:
    return scene_of(recipe, file) or (known.scene if known is not None else "")


def _taken(known: Known | None, group: str) -> Acquisition:
    if known is None:
        return Acquisition(group=group) if group else UNKNOWN
    return Acquisition(known.footprint, known.date, group)


def _by_folder(recipe: Recipe, kept: Mapping[str, File]) -> dict[str, str]:
    names = {composed(folder).lower(): split for split, folder in recipe.splits.folders.items()}
    chosen = {}
    for key, file in kept.items():
        split = next((names[part] for part in file.parts[:-1] if part in names), None)
        if split is None:
            raise DataError(
                f"{file.path}: lies in none of the folders {', '.join(recipe.splits.folders.values())}, which decide "
                f"the split; expected {recipe.layout}"
            )
        chosen[key] = split
    return chosen


def _by_name(recipe: Recipe, kept: Mapping[str, File]) -> dict[str, str]:
    chosen = {}
    for key, file in kept.items():
        stem = stem_of(file.name)
        fits = [s for s, names in recipe.splits.names.items() if any(fnmatchcase(stem, n.lower()) for n in names)]
        if len(fits) != 1:
            got = f"of {' and '.join(fits)}" if fits else "of none"
            raise DataError(f"{file.path}: expected a picture of one split by its name, got one {got} (splits: names)")
        chosen[key] = fits[0]
    return chosen


def _by_list(source: Source, kept: Mapping[str, File], files: Sequence[File]) -> dict[str, str]:
    """The split of every picture that a list names."""
    stems = {stem_of(file.name) for file in kept.values()}
    places = {name_of(file.origin): key for key, file in kept.items()}
    lists: dict[str, tuple[str, list[str]]] = {}
    for split, pattern in source.recipe.splits.lists.items():
        fits = [file for file in files if matches(file, pattern)]
        if len(fits) != 1:
            raise DataError(f"splits.lists.{split}: expected one file {pattern}, got {len(fits)}")
        path = fits[0].path
        found = pictures_named(str(path), listed_names(path, stems), places, split)
        lists[split] = (str(path), [places[name] for name in found if name in places])
    chosen = split_of_lists(lists)
    left = [file.origin for key, file in kept.items() if key not in chosen]
    source.check("missing", left, f"pictures in no list of a split ({len(left)}, left out)")
    return chosen
