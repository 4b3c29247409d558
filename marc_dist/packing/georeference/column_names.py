"""Which columns of a table say where and when a picture was taken, by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from marc_dist.packing.reading.names import plain

ROLES = {
    "lat": re.compile(r"(cent(er|re|roid)?)?lat(itude)?(cent(er|re|roid)?|deg|wgs84)?"),
    "lon": re.compile(r"(cent(er|re|roid)?)?(lon|lng|long|longitude)(cent(er|re|roid)?|deg|wgs84)?"),
    "geometry": re.compile(r"geom(etry)?|geo(json|wkt|wkb)|wkt|wkb|footprint(wkt)?|bbox|bounds"),
    "date": re.compile(
        r"date|datetime|time|timestamp|day|acquired|(date|time|datetime)?(acquired|acquisition|sensing|capture)"
        r"(date|time|datetime)?|(image|img|capture|observation|obs|scene)(date|time|datetime)|dateofacquisition"
    ),
    "scene": re.compile(r"scene(id|name)?|(source)?product(id|name|uri)?|sourcescene|granule(id)?"),
}
"""What a column may say -> names that say it, without case, blanks and marks."""


def place_columns(header: Sequence[str], wanted: Mapping[str, str]) -> dict[str, int]:
    """What a table says about place and time -> the column's place in its header.

    Args:
        header: names of the columns.
        wanted: role -> the column that a recipe names; roles that are left out are found by name, the first that fits.
    """
    names = list(map(plain, header))
    found: dict[str, int] = {}
    for role, pattern in ROLES.items():
        asked = wanted.get(role, "")
        fits = [
            place
            for place, name in enumerate(names)
            if (header[place] == asked or name == plain(asked) if asked else pattern.fullmatch(name))
        ]
        if fits:
            found[role] = fits[0]
    if ("lat" in found) != ("lon" in found):
        found.pop("lat", None)
        found.pop("lon", None)
    return found


def is_place_column(name: str) -> bool:
    """Whether a column's name says that it holds a place or a date, and so no label."""
    return any(pattern.fullmatch(plain(name)) for pattern in ROLES.values())
