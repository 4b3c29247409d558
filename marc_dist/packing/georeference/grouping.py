"""Splits drawn by place: cells of a grid, scenes or the values of a column, each wholly in one split."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

from marc_dist.config import DataError
from marc_dist.geography.grid import cell
from marc_dist.packing.georeference.facts import Known
from marc_dist.packing.reading.discover import File
from marc_dist.packing.reading.recipes import Recipe
from marc_dist.packing.reading.samples import Source

ALONE = "alone/"
"""Begins the group of a picture that has no place, and is a group of its own."""


def groups_of(
    source: Source, pictures: Mapping[str, File], scenes: Mapping[str, str], known: Mapping[str, Known]
) -> dict[str, str]:
    """Key of each picture -> its group.

    Args:
        source: its recipe says what makes a group; takes the check of pictures that have none.
        pictures: key -> file.
        scenes: key -> scene, or empty.
        known: key -> what is known of place and time.

    Raises:
        DataError: a picture without a group, and the check may not fail; no picture has one.
    """
    groups = {key: _group(source.recipe, known.get(key, Known()), scenes[key]) for key in pictures}
    bare = [key for key, group in groups.items() if not group]
    rule = source.recipe.splits
    what = {"grid": "a place", "scene": "a scene"}.get(rule.by, f"a value in the column {rule.by!r} of a table")
    if len(bare) == len(groups):
        raise DataError(f"splits.by: {rule.by}: no picture has {what}; name where it stands in the recipe (place)")
    names = [pictures[key].origin for key in bare]
    source.check("no_place", names, f"pictures without {what}, drawn one by one ({len(bare)})")
    groups |= {key: ALONE + pictures[key].origin for key in bare}
    return groups


def _group(recipe: Recipe, known: Known, scene: str) -> str:
    if recipe.splits.by == "grid":
        assert recipe.splits.km is not None, "checked with the recipe"
        return cell(known.footprint, recipe.splits.km) if known.footprint else ""
    return scene if recipe.splits.by == "scene" else known.group


def draw_groups(groups: Mapping[str, str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """A split for every key: whole groups in the order of a hash, each where its middle picture falls.

    So the shares hold to within one group, and any machine draws the same.

    Args:
        groups: key -> group.
        shares: split -> share of the pictures.
        seed: of the draw.

    Raises:
        DataError: a split gets nothing.
    """
    sizes = Counter(groups.values())
    ordered = sorted(sizes, key=lambda group: (hashlib.sha256(f"{seed}/{group}".encode()).digest(), group))
    ends: list[tuple[float, str]] = []
    total = 0.0
    for split, share in shares.items():
        total += share
        ends.append((total * len(groups), split))
    split_of: dict[str, str] = {}
    before = 0
    for group in ordered:
        middle = before + sizes[group] / 2
        split_of[group] = next((split for end, split in ends if middle <= end), ends[-1][1])
        before += sizes[group]
    empty = [split for split in shares if split not in split_of.values()]
    if empty:
        raise DataError(
            f"splits: {', '.join(empty)} would get none of the {len(sizes)} groups of pictures; choose smaller cells "
            "(splits: km), another column, other shares or another seed"
        )
    return {key: split_of[group] for key, group in groups.items()}


def largest(groups: Mapping[str, str]) -> str:
    """A line about the groups: how many, and the largest."""
    sizes = Counter(groups.values())
    group, num = min(sizes.items(), key=lambda one: (-one[1], one[0]))
    return f"{len(sizes)} groups, none in two splits; the largest, {group}, has {num} of {len(groups)} pictures"
