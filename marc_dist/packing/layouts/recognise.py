"""Which layout an archive has. One that fits is taken and told; where two fit, nobody guesses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from marc_dist.config import DataError, build
from marc_dist.packing.layouts import coco, folders, masks, objects, tables, yolo
from marc_dist.packing.layouts.splits import DRAWN
from marc_dist.packing.layouts.tree import Layout, Tree
from marc_dist.packing.reading.archive_kinds import is_archive
from marc_dist.packing.reading.discover import UNREAD
from marc_dist.packing.reading.names import composed
from marc_dist.packing.reading.recipes import Recipe


def layouts_of(recipe: Recipe, tree: Tree, wanted: str = "auto", *, any_name: bool = False) -> list[Layout]:
    """Every layout that fits, the likeliest first. Folders count as classes only where nothing else names any.

    Args:
        recipe: whose names of tables come first.
        tree: everything that lies there.
        wanted: kind of the labels, when somebody said so.
        any_name: classes may be called like folders of a download.

    Raises:
        DataError: a label table that cannot be read.
    """
    pairings = masks.find_pairings(tree, by_content=wanted != "folders")
    aside = pairings[0].recipe if pairings else {}
    rest = replace(tree, pictures=pairings[0].pictures) if pairings else tree
    found = [
        tables.detect(rest, recipe.tables),
        coco.detect(rest),
        objects.detect(rest),
        yolo.detect(rest),
        masks.detect(tree, pairings),
        folders.detect(rest, any_name=any_name),
    ]
    fits = [layout for layout in found if layout is not None]
    return [layout if layout.kind == "masks" else replace(layout, recipe={**layout.recipe, **aside}) for layout in fits]


def choose(recipe: Recipe, tree: Tree, wanted: str = "auto", *, any_name: bool = False) -> Layout:
    """The layout that fits.

    Args:
        recipe: see ``layouts_of``.
        tree: everything that lies there.
        wanted: kind of the labels, when somebody said so.
        any_name: classes may be called like folders of a download.

    Raises:
        DataError: none fits, two do, or it cannot be said how it is meant.
    """
    where = ", ".join(map(str, tree.roots))
    if not tree.pictures:
        raise DataError(f"{where}: {nothing_there(tree, recipe)}")
    fits = layouts_of(recipe, tree, wanted, any_name=any_name)
    if wanted != "auto":
        fits = [layout for layout in fits if layout.kind == wanted]
        if not fits:
            had = ", ".join(layout.kind for layout in layouts_of(recipe, tree))
            raise DataError(f"--labels {wanted}: {recipe.name} has {had or 'no labels'} here")
    if not fits:
        raise DataError(_no_labels(tree, recipe))
    explicit = [layout for layout in fits if layout.kind != "folders"] or fits
    if len(explicit) > 1:
        kinds = " or ".join(layout.kind for layout in explicit)
        raise DataError(
            f"{where}: {len(explicit)} layouts fit: {'; '.join(layout.line for layout in explicit)}; say which: "
            f"--labels {kinds}"
        )
    layout = explicit[0]
    if layout.unclear and not (layout.settled and wanted == layout.kind):
        remedy = layout.remedy or "; marc-shard --inspect prints a recipe to edit"
        raise DataError(f"{where}: {layout.unclear}{remedy}")
    return layout


def with_layout(recipe: Recipe, layout: Layout, classes: Sequence[str] = ()) -> Recipe:
    """The recipe that packs a layout: what was found, over what the recipe says.

    Args:
        recipe: what is not found is taken from it; splits of its own are kept where the download has none.
        layout: that fits.
        classes: names in order, when somebody gave them.

    Raises:
        DataError: the download names other classes than those that are given.
    """
    keys = recipe_keys(recipe, layout)
    given = [entry.model_dump(mode="json", exclude_defaults=True) for entry in recipe.classes]
    given = [{"name": name} for name in classes] or given
    if given and "classes" in layout.recipe:
        keys["classes"] = _in_order(given, layout)
    return build(Recipe, keys, place=f"{recipe.name}: ")


def _in_order(given: Sequence[Mapping[str, Any]], layout: Layout) -> list[dict[str, Any]]:
    """The classes of a layout in the order that is given. Numbers of YOLO are places, so their order is fixed."""
    found = {composed(entry["name"]): entry for entry in layout.recipe["classes"]}
    names = [composed(entry["name"]) for entry in given]
    if names != list(found) and (layout.kind == "yolo" or sorted(names) != sorted(found)):
        order = " in this order" if sorted(names) == sorted(found) else ""
        raise DataError(
            f"classes {', '.join(names)} are given, but the {layout.kind} labels of the download have "
            f"{', '.join(found)}; give those{order}, or none"
        )
    return [{**found[name], **entry} for name, entry in zip(names, given, strict=True)]


def recipe_keys(recipe: Recipe, layout: Layout) -> dict[str, Any]:
    """The keys of that recipe, those that have their default left out."""
    given = recipe.model_dump(mode="json", exclude_defaults=True)
    merged: dict[str, Any] = {**given, **layout.recipe, "name": recipe.name}
    for key in ("recognise", *(["tables"] if layout.kind != "table" else [])):
        merged.pop(key, None)
    own = given["splits"]
    if recipe.recognise and (is_drawn(layout) or "shares" not in own):
        plain = own.get("shares") == DRAWN["shares"] and not own.get("seed")
        merged["splits"] = layout.recipe["splits"] if plain else own
    for key in ("table", "masks", "pictures"):
        if isinstance(given.get(key), Mapping) and key in layout.recipe:
            merged[key] = {**given[key], **layout.recipe[key]}
    return merged


def is_drawn(layout: Layout) -> bool:
    """Whether the download has no splits, so that they are drawn."""
    return bool(layout.recipe.get("splits") == DRAWN)


def nothing_there(tree: Tree, recipe: Recipe) -> str:
    """Why there is nothing to pack: what lies there instead of pictures."""
    archives = [file.origin for file in tree.others if is_archive(file.parts[-1])]
    if archives:
        more = f" and {len(archives) - 2} more" if len(archives) > 2 else ""
        return f"holds other archives ({', '.join(archives[:2])}{more}), no pictures; unpack them and pass the folder"
    if tree.foreign:
        kinds: dict[str, int] = {}
        for file in tree.foreign:
            kinds[file.path.suffix.lower()] = kinds.get(file.path.suffix.lower(), 0) + 1
        named = ", ".join(f"{num} {kind}" for kind, num in sorted(kinds.items()))
        return f"{named} files are not taken as they are; to store them as PNG: --to-png"
    there = {kind: num for kind, num in tree.kinds().items() if kind in UNREAD}
    if there:
        named = ", ".join(f"{num} {kind}" for kind, num in sorted(there.items()))
        return f"{named} files are not taken; convert them to PNG or JPEG first (gdal_translate does most)"
    seen = ", ".join(f"{num} {kind}" for kind, num in tree.kinds().most_common(5))
    what = "pictures" if recipe.recognise else f"pictures of {recipe.title}"
    return f"found no {what}{f', only {seen}' if seen else ''}; expected {recipe.layout or 'pictures'}"


def _no_labels(tree: Tree, recipe: Recipe) -> str:
    flat = next(file for file in tree.pictures if not file.folders)
    return f"{flat.origin}: a picture in no folder, and no label table; expected {recipe.layout or 'labels'}"
