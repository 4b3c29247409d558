"""What the tags of one GeoTIFF say: its footprint in WGS84, when it was taken, of which scene it is a part.

rasterio reads the tags and turns coordinates of any CRS into longitude and latitude; it comes with ``marc-dist[geo]``.
Without it, Pillow still tells whether there are any, so that nothing is left out without a word.
"""

from __future__ import annotations

import functools
import logging
import re
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin

from marc_dist.geography.acquisition import parse_date
from marc_dist.geography.footprints import from_ring, to_wkb

GEO_TAGS = (33550, 33922, 34264, 34735)  # pixel scale, tie points, transformation, GeoKeys
DATES = (
    "ACQUISITION_DATETIME", "ACQUISITIONDATETIME", "ACQUISITION_DATE", "DATE_ACQUIRED", "SENSING_TIME",
    "DATATAKE_SENSING_START", "DATATAKE_1_DATATAKE_SENSING_START", "PRODUCT_START_TIME", "DATETIME", "DATE",
    "TIFFTAG_DATETIME",
)  # fmt: skip
"""Keys of metadata that hold the date, the first that is there counts; TIFF's own is often that of the file."""
SCENES = (
    "SCENE_ID", "LANDSAT_SCENE_ID", "LANDSAT_PRODUCT_ID", "PRODUCT_ID", "PRODUCT_URI", "PRODUCT_URI_1", "GRANULE_ID",
    "SCENE",
)  # fmt: skip
CUT_FROM = re.compile(r"y(\d{5,})_x(\d{5,})")
"""The folder of a tile says where it was cut; beside it lies a file ``.NAME.source`` with the path of the whole."""
KM_A_STEP = 10.0
"""Length of the pieces of an edge, whose ends are turned into longitude and latitude; at most ``STEPS`` an edge."""
STEPS = 16


class TagFacts(NamedTuple):
    """What one file's tags say.

    Attributes:
        footprint: WKB, or empty.
        date: as ``parse_date`` writes it, or empty.
        scene: or empty.
        crs: of the file, for telling apart files of several; or empty.
        faults: kind of fault -> what was wrong.
    """

    footprint: bytes = b""
    date: str = ""
    scene: str = ""
    crs: str = ""
    faults: Mapping[str, str] = {}


def can_read() -> bool:
    """Whether rasterio is there."""
    return find_spec("rasterio") is not None


def read_tags(paths: list[str], crs: str) -> list[TagFacts]:
    """What the tags of some files say; a file at fault has its faults noted, and nothing is raised.

    Args:
        paths: TIFF files, or PNG tiles cut from them.
        crs: of files that have coordinates and no CRS; empty = unknown.
    """
    logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # what it would log is noted as a fault
    return [_of_file(Path(path), crs) for path in paths]


def has_geo_tags(path: Path) -> bool:
    """Whether a TIFF has coordinates, or tags so damaged that nobody can tell."""
    try:
        with path.open("rb") as file, warnings.catch_warnings(record=True) as damaged:
            warnings.simplefilter("always")
            tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
            return any(tag in tags for tag in GEO_TAGS) or bool(damaged)
    except Exception:  # a damaged file is refused by whoever reads its pixels
        return False


def whole_of(path: Path) -> tuple[Path, int, int] | None:
    """The file that a tile was cut from, and the tile's left and upper edge in it, pixels; None: no tile."""
    cut = CUT_FROM.fullmatch(path.parent.name)
    note = path.parent.parent / f".{path.stem}.source"
    if cut is None or not note.is_file():
        return None
    return Path(note.read_text(encoding="utf-8")), int(cut[2]), int(cut[1])


def _of_file(path: Path, crs: str) -> TagFacts:
    cut = whole_of(path)
    if cut is None:
        return _whole(path, crs).facts(None)
    whole, left, top = cut
    with Image.open(path) as tile:
        window = (left, top, left + tile.width, top + tile.height)
    return _cached(whole, crs).facts(window)


class _Head(NamedTuple):
    """A file's georeference, before it is a footprint."""

    size: tuple[int, int]
    transform: Any
    crs: Any
    date: str
    scene: str
    faults: dict[str, str]

    def facts(self, window: tuple[int, int, int, int] | None) -> TagFacts:
        """Of the whole file, or of a window of it: left, upper, right, lower, pixels."""
        faults = dict(self.faults)
        footprint = b""
        if self.transform is not None and self.crs is not None:
            try:
                footprint = _footprint(window or (0, 0, *self.size), self.transform, self.crs)
            except Exception as error:  # PROJ and GDAL raise errors of many kinds
                faults["place"] = f"its coordinates cannot be turned into longitude and latitude ({_line(error)})"
        name = "" if self.crs is None else _name(self.crs)
        return TagFacts(footprint, self.date, self.scene, name, faults)


@functools.lru_cache(maxsize=8)
def _cached(path: Path, crs: str) -> _Head:
    return _whole(path, crs)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _whole(path: Path, given: str) -> _Head:
    import rasterio

    faults: dict[str, str] = {}
    try:
        with warnings.catch_warnings(), rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", CPL_DEBUG=False):
            warnings.simplefilter("ignore")  # not georeferenced; what rasterio's own libraries find old
            with rasterio.open(path, driver="GTiff") as file:
                transform, crs = _georeference(file)
                notes = {key.upper(): value for name in ("IMAGERY", None) for key, value in _notes(file, name)}
                size = (file.width, file.height)
    except Exception as error:  # damaged tags, or no TIFF at all: its pixels are read, or refused, elsewhere
        if has_geo_tags(path):
            faults["place"] = f"its tags cannot be read ({_line(error)})"
        return _Head((0, 0), None, None, "", "", faults)
    if transform is not None and crs is None and given:
        crs = rasterio.crs.CRS.from_user_input(given)
    if transform is None and has_geo_tags(path):
        faults["place"] = "its tags give no place"
    if transform is not None and crs is None:
        faults["crs"] = "coordinates and no CRS"
    date = ""
    text = next((notes[key] for key in DATES if notes.get(key, "").strip()), "")
    if text:
        try:
            date = parse_date(text)
        except ValueError as error:
            faults["date"] = str(error)
    scene = next((notes[key].strip() for key in SCENES if notes.get(key, "").strip()), "")
    return _Head(size, transform, crs, date, scene, faults)


def _notes(file: Any, name: str | None) -> list[tuple[str, str]]:
    return list(file.tags(ns=name).items() if name else file.tags().items())


def _georeference(file: Any) -> tuple[Any, Any]:
    """The transform of pixels, None without one, and its CRS; of ground control points where there is no other."""
    from rasterio.transform import from_gcps

    if not file.transform.is_identity:
        return file.transform, file.crs
    points, crs = file.gcps
    if len(points) >= 3:
        return from_gcps(points), crs
    return None, None


@functools.lru_cache(maxsize=256)
def _name(crs: Any) -> str:
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs.to_string())[:60]


def _footprint(window: tuple[int, int, int, int], transform: Any, crs: Any) -> bytes:
    """WKB of a window of pixels: its corners, and points between them where an edge is long enough to bend."""
    from rasterio.warp import transform as reproject

    left, top, right, bottom = window
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    a, b, c, d, e, f = tuple(transform)[:6]
    places = np.array([(a * x + b * y + c, d * x + e * y + f) for x, y in corners])
    steps = 1
    if not crs.is_geographic:
        sides = np.hypot(*np.diff(places, axis=0).T) * crs.linear_units_factor[1] / 1000
        steps = int(min(STEPS, max(1, np.ceil(sides.max() / KM_A_STEP))))
    share = np.linspace(0, 1, steps, endpoint=False)[:, None]
    ring = np.concatenate([at + share * (to - at) for at, to in zip(places, places[1:], strict=False)])
    if crs.is_geographic and crs.to_epsg() == 4326:
        lons, lats = ring[:, 0].tolist(), ring[:, 1].tolist()
    else:
        lons, lats = reproject(crs, "EPSG:4326", ring[:, 0].tolist(), ring[:, 1].tolist())
    return to_wkb(from_ring(lons, lats))
