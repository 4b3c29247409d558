"""An unknown folder -> what lies in it, as comments, and the recipe that would pack it, as YAML: both in one text."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from marc_dist.config import DataError, build
from marc_dist.data.decode import KINDS, ORIENTATION
from marc_dist.packing.layout import split_order
from marc_dist.packing.layouts.masks import find_pairings
from marc_dist.packing.layouts.recognise import layouts_of, nothing_there, recipe_keys
from marc_dist.packing.layouts.tree import Layout, Tree, spread, survey
from marc_dist.packing.reading.discover import File
from marc_dist.packing.reading.recipes import Recipe
from marc_dist.packing.reading.samples import Source
from marc_dist.packing.reading.sheets import read_rows
from marc_dist.packing.reading.source import read_source

LOOKED_AT = 1000  # pictures whose headers tell sizes and modes
SHOWN = 8
WIDTH = 110
ORDER = (
    "title", "licence", "citation", "download", "layout", "labels", "tables", "table", "separator", "annotations",
    "classes", "pictures", "masks", "pair_by", "scene", "splits", "policies",
)  # fmt: skip


def inspect(roots: Sequence[Path], recipe: Recipe, name: str, *, workers: int = 1, foreign: bool = False) -> str:
    """What lies in a download, and the recipe for it.

    Args:
        roots: folders, searched to any depth.
        recipe: of unknown pictures, whose ``recognise`` is set.
        name: what to call the data set.
        workers: processes that read masks.
        foreign: BMP, GIF and WebP are pictures, too.

    Returns:
        A YAML file: the report as comments, then the recipe; no keys when nothing can be packed.

    Raises:
        DataError: a name that is not UTF-8, a label table that cannot be read.
    """
    tree = survey(roots, foreign=foreign)
    lines = [f"{name}: {', '.join(map(str, roots))}", *_kinds(tree), *_pictures(tree.pictures)]
    pairings = find_pairings(tree)
    lines += _doubled(pairings[0].pictures if pairings else tree.pictures)
    if not tree.pictures:
        return _comments([*lines, nothing_there(tree, recipe)])
    fits = layouts_of(recipe, tree)
    explicit = [layout for layout in fits if layout.kind != "folders"]
    lines += [line for layout in fits for line in _layout(layout, bool(explicit))]
    if fits and not fits[0].recipe:
        return _comments([*lines, "no recipe: see `not plain`"])
    if not fits:
        return _comments([*lines, "layout: none that is known; a table `image,labels` or one folder a class would do"])
    chosen = fits[0]
    lines += _first_rows(tree, chosen)
    if len(explicit) > 1:
        lines.append(f"several layouts fit; this recipe reads the first ({chosen.kind}); the others are not read")
    keys = {**recipe_keys(recipe, chosen), "title": f"pictures of {name}", "layout": chosen.line}
    try:
        source = read_source(build(Recipe, {"name": "inspected", **keys}), roots, workers=workers, foreign=foreign)
    except DataError as error:
        lines.append(f"as it stands, packing stops: {error}")
    else:
        lines += _content(source)
        keys.setdefault("classes", [{"name": one} for one in source.classes])
    return _comments(lines) + "\n" + _yaml(keys)


def _comments(lines: Sequence[str]) -> str:
    return "".join(f"# {line}\n" for text in lines for line in text.splitlines())


def _yaml(keys: dict[str, Any]) -> str:
    kept = {key: keys[key] for key in ORDER if key in keys}
    text: str = yaml.safe_dump(kept, sort_keys=False, default_flow_style=None, allow_unicode=True, width=WIDTH)
    return text


def _kinds(tree: Tree) -> list[str]:
    kinds = ", ".join(f"{num} {kind}" for kind, num in tree.kinds().most_common(SHOWN))
    folders = Counter(file.folders[0] if file.folders else "." for file in [*tree.pictures, *tree.foreign])
    places = ", ".join(f"{name}/ {num}" for name, num in folders.most_common(SHOWN))
    more = f" and {len(folders) - SHOWN} more" if len(folders) > SHOWN else ""
    return [f"files: {kinds or 'none'}", *([f"pictures in: {places}{more}"] if folders else [])]


def _pictures(files: Sequence[File]) -> Iterator[str]:
    """Sizes and modes."""
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    turned, damaged = 0, []
    some = spread(files, LOOKED_AT)
    for file in some:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(file.path, formats=KINDS) as image:
                    sizes[f"{image.width}x{image.height}"] += 1
                    modes[f"{image.format} {image.mode} ({len(image.getbands())} bands)"] += 1
                    turned += image.getexif().get(ORIENTATION, 1) != 1
        except Exception:  # Pillow raises whatever comes up; packing names each such file
            damaged.append(file.origin)
    seen = f"of {len(some)} looked at" if len(some) < len(files) else f"of {len(files)}"
    for title, counts in (("sizes", sizes), ("modes", modes)):
        if counts:
            more = f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
            yield f"{title} {seen}: {', '.join(f'{num} {name}' for name, num in counts.most_common(SHOWN))}{more}"
    if turned:
        yield f"turned by their EXIF note, {seen}: {turned}"
    if damaged:
        yield f"not readable, {seen}: {len(damaged)}, such as {damaged[0]}"


def _doubled(files: Sequence[File]) -> Iterator[str]:
    """Files of equal content; only those of equal size are read."""
    by_size: dict[int, list[File]] = defaultdict(list)
    for file in files:
        by_size[file.path.stat().st_size].append(file)
    equal: dict[bytes, list[File]] = defaultdict(list)
    for same in by_size.values():
        for file in same if len(same) > 1 else ():
            with file.path.open("rb") as opened:
                equal[hashlib.file_digest(opened, "sha256").digest()].append(file)
    groups = [group for group in equal.values() if len(group) > 1]
    if groups:
        first = groups[0]
        yield f"equal files: {len(groups)} groups, such as {first[0].origin} = {first[1].origin}"


def _layout(layout: Layout, explicit: bool) -> list[str]:
    passed = layout.kind == "folders" and explicit
    what = "folders (not read, since labels stand elsewhere)" if passed else "layout"
    lines = [f"{what}: {layout.line}"]
    if not passed:
        lines += [f"  {note}" for note in layout.notes]
        below = ": name them below" if layout.remedy else ""
        lines += [f"  not plain: {layout.unclear}{below}"] if layout.unclear else []
    return lines


def _first_rows(tree: Tree, layout: Layout) -> list[str]:
    if layout.kind != "table":
        return []
    pattern = layout.recipe["tables"][0].lower().rpartition("/")[2].replace("*", "")
    file = next((f for f in [*tree.tables, *tree.jsons] if f.parts[-1].endswith(pattern)), None)
    if file is None:
        return []
    rows = [" | ".join(row.cells) for row in read_rows(file.path)[:4]]
    return [f"first rows of {file.origin}:", *(f"  {row[:WIDTH]}{'...' if len(row) > WIDTH else ''}" for row in rows)]


def _content(source: Source) -> list[str]:
    """What the recipe would pack."""
    splits = Counter(sample.split for sample in source.samples)
    counts = Counter(label for sample in source.samples for label in sample.labels)
    classes = ", ".join(f"{name} {counts[number]}" for number, name in enumerate(source.classes))
    num = sum(counts.values()) / max(1, len(source.samples))
    parts = ", ".join(f"{splits[split]} {split}" for split in sorted(splits, key=split_order))
    lines = [
        f"packs: {len(source.samples)} pictures, {parts}; {num:.2f} labels a picture",
        f"pictures per class: {classes}",
    ]
    return lines + [f"note: {note}" for note in source.warnings]
