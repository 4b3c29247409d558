"""What a recipe with bands asks of every picture, read off the first one; which files make up a picture."""

from __future__ import annotations

from pathlib import Path

from marc_dist.data.bands.tiff import tiff_facts
from marc_dist.packing.bands.rule import BandRule, read_content, refuse_count
from marc_dist.packing.reading.recipes import Recipe


def band_files(recipe: Recipe, first: Path) -> tuple[Path, ...]:
    """The files of the other bands of a picture, in the order of the recipe; none where one file has them all.

    Args:
        recipe: names the bands and how their files end.
        first: the file of the first band.
    """
    if not recipe.band_files:
        return ()
    ends = [recipe.band_files.replace("{band}", name) for name in recipe.bands]
    start = first.name[: len(first.name) - len(ends[0] + first.suffix)]
    return tuple(first.with_name(f"{start}{end}{first.suffix}") for end in ends[1:])


def band_rule(recipe: Recipe, first: Path) -> BandRule:
    """What every picture must be, as the first one is.

    Args:
        recipe: names the bands.
        first: the first picture's file, or that of its first band.

    Raises:
        ConfigError: ``rasterio`` is not installed.
        DataError: a file that cannot be read or has another number of bands.
    """
    facts = tiff_facts(read_content(first), str(first))
    wanted = 1 if recipe.band_files else len(recipe.bands)
    refuse_count(facts, wanted, recipe.bands, str(first))
    nodata = facts.nodata if recipe.nodata is None else recipe.nodata
    return BandRule(recipe.bands, facts.dtype, nodata, bool(recipe.band_files), recipe.band_resampling)
