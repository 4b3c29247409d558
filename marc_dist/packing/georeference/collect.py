"""Where and when every picture of a download was taken, from all that says so, and one line for each kind of fault.

Of a footprint, a table's ``geometry`` counts first, then the picture's own GeoTIFF tags, then a table's ``lat`` and
``lon``; of a date, a table, then the tags, then the picture's name (``place: date_pattern``); of a scene, a table, then
the tags. The recipe's ``scene`` comes before both.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import shapely

from marc_dist.config import DataError
from marc_dist.geography.acquisition import parse_date
from marc_dist.packing.georeference.facts import Faults, Known, shown
from marc_dist.packing.georeference.tables import PictureNames, read_table
from marc_dist.packing.georeference.tags import TagFacts, can_read, has_geo_tags, read_tags, whole_of
from marc_dist.packing.reading.discover import DownloadContent, File, matches
from marc_dist.packing.reading.names import stem_of
from marc_dist.packing.reading.recipes import Recipe
from marc_dist.packing.worker_pool import PoolTask, work

FILES = 128  # whose tags a process reads at a time
OTHER_TABLES = 64  # tables besides those of labels that are looked at, unless the recipe names them
APART_DEGREES = 0.5
"""How far a table's place may lie from the tags' footprint before the two disagree."""
CRS_FAULT = "place: GeoTIFF with coordinates and no CRS, say it in the recipe (place: crs)"
KINDS = {"crs": CRS_FAULT, "place": "place: GeoTIFF tags that give none", "date": "date: in GeoTIFF tags, and none"}


def whereabouts(
    recipe: Recipe, found: DownloadContent, pictures: Mapping[str, File], workers: int
) -> tuple[dict[str, Known], list[str], list[str]]:
    """What is known of each picture.

    Args:
        recipe: its keys ``place`` and ``splits: by``.
        found: in the download.
        pictures: key -> file.
        workers: processes that read tags.

    Returns:
        Key -> what is known, only of pictures of which something is; a line for each kind of fault; the places of
        tables that were read for this.

    Raises:
        DataError: a table that the recipe names says nothing, a CRS that cannot be read, or rasterio is missing where
            the recipe asks for it.
    """
    faults = Faults()
    said, read = _from_tables(recipe, found, pictures, faults)
    tagged = _from_tags(recipe, pictures, workers, faults)
    known: dict[str, Known] = {}
    apart = []
    for key, file in pictures.items():
        table, tags = said.get(key, Known()), tagged.get(key, TagFacts())
        footprint = table.footprint or tags.footprint or table.spot
        by_table = table.footprint or table.spot
        if by_table and tags.footprint and _apart(by_table, tags.footprint):
            apart.append(file.origin)
        date = table.date or tags.date or _from_name(recipe, file, faults)
        one = Known(footprint, date, table.scene or tags.scene, table.group)
        if any(one):
            known[key] = one
    lines = faults.lines()
    if apart:
        lines.append(
            f"place: {len(apart)} pictures lie elsewhere by their table than by their tags (latitude and longitude "
            f"swapped?): {shown(apart)}"
        )
    for what, field in (("place", "footprint"), ("date", "date")):
        without = [file.origin for key, file in pictures.items() if not getattr(known.get(key, Known()), field)]
        if 0 < len(without) < len(pictures):
            lines.append(f"{what}: {len(without)} of {len(pictures)} pictures have none: {shown(without)}")
    several = Counter(facts.crs for facts in tagged.values() if facts.crs)
    if len(several) > 1:
        named = ", ".join(f"{num} {name}" for name, num in several.most_common(4))
        more = f" and {len(several) - 4} other" if len(several) > 4 else ""
        lines.append(f"place: pictures of {len(several)} CRS, all turned into WGS84: {named}{more}")
    return known, lines, read


def _apart(one: bytes, two: bytes) -> bool:
    a, b = shapely.from_wkb([one, two])
    return bool(shapely.distance(a, b) > APART_DEGREES)


def _from_tables(
    recipe: Recipe, found: DownloadContent, pictures: Mapping[str, File], faults: Faults
) -> tuple[dict[str, Known], list[str]]:
    """What all tables say, those that the recipe names first; the first that says something of a picture counts."""
    wanted, by = recipe.place, recipe.splits.column
    asked = [file for file in [*found.tables, *found.other_tables] if any(matches(file, p) for p in wanted.tables)]
    if wanted.tables and not asked:
        raise DataError(f"place.tables: expected {', '.join(wanted.tables)} in the download, got no such file")
    others = found.other_tables if len(found.other_tables) <= OTHER_TABLES else []
    tables = [*asked, *(file for file in [*found.tables, *others] if file not in asked)]
    if not tables or not pictures:
        return {}, []
    names = functools.cache(lambda: PictureNames(pictures, recipe.pictures.suffix))
    known: dict[str, Known] = {}
    read = []
    for file in tables:
        if file.path.suffix.lower() == ".mat":
            continue
        image = recipe.table.image if file in found.tables else wanted.image
        said, columns = read_table(file, wanted, by, names, image, faults, must=file in asked)
        if columns:
            read.append(file.origin)
        for key, one in said.items():
            known[key] = known.get(key, Known()).or_else(one)
    for role in ("lat", "lon", "geometry", "date", "scene"):
        column = getattr(wanted, role)
        if column and not read:
            raise DataError(f"place.{role}: no table of the download has a column {column!r} and names the pictures")
    return known, read


def _from_tags(recipe: Recipe, pictures: Mapping[str, File], workers: int, faults: Faults) -> dict[str, TagFacts]:
    """What GeoTIFF tags say, of the pictures that are TIFF files or were cut from one."""
    if not recipe.place.tags:
        return {}
    tiled = recipe.tile is not None
    keys = [
        key
        for key, file in pictures.items()
        if file.name.lower().endswith((".tif", ".tiff")) or (tiled and whole_of(file.path) is not None)
    ]
    if keys and not can_read():
        _without_rasterio(recipe, [pictures[key] for key in keys], faults)
        return {}
    _check_crs(recipe)
    found: dict[str, TagFacts] = {}

    def done(job: PoolTask, result: Any) -> list[PoolTask]:
        for key, facts in zip(job[1][2], result, strict=True):
            found[key] = facts
        return []

    parts = [keys[at : at + FILES] for at in range(0, len(keys), FILES)]
    jobs = ((_read_part, ([str(pictures[key].path) for key in part], recipe.place.crs, part)) for part in parts)
    work(jobs, done, workers if len(keys) > 2 * FILES else 1)
    for key in keys:
        for kind, text in found[key].faults.items():
            faults.add(KINDS[kind], f"{pictures[key].origin} ({text})" if kind != "crs" else pictures[key].origin)
    return found


def _read_part(paths: list[str], crs: str, keys: Sequence[str]) -> list[TagFacts]:
    return read_tags(paths, crs)


def _check_crs(recipe: Recipe) -> None:
    if not recipe.place.crs:
        return
    from rasterio.crs import CRS

    try:
        CRS.from_user_input(recipe.place.crs)
    except Exception as error:  # GDAL's
        reason = " ".join(str(error).split())[:80]
        raise DataError(f"place.crs: expected a CRS such as EPSG:32633, got {recipe.place.crs!r} ({reason})") from None


def _without_rasterio(recipe: Recipe, files: Sequence[File], faults: Faults) -> None:
    geo = [file.origin for file in files if has_geo_tags((whole_of(file.path) or (file.path,))[0])]
    if recipe.place.crs:
        raise DataError("place.crs: reading GeoTIFF tags needs rasterio; pip install 'marc-dist[geo]'")
    for origin in geo:
        faults.add("place: GeoTIFF tags that were not read, to read them: pip install 'marc-dist[geo]'", origin)


def _from_name(recipe: Recipe, file: File, faults: Faults) -> str:
    """The date that a picture's name holds, where the recipe says how."""
    if not recipe.place.date_pattern:
        return ""
    match = re.search(recipe.place.date_pattern, stem_of(file.name), re.IGNORECASE)
    if match is None:
        faults.add("date: not in the picture's name (place: date_pattern)", file.origin)
        return ""
    try:
        return parse_date(match[1].upper())
    except ValueError as error:
        faults.add("date: in a picture's name, and none", f"{file.origin} ({error})")
        return ""
