"""Where and when pictures were taken, as tables say it: ``lat`` and ``lon``, ``geometry``, ``date``, ``scene``.

A table is one that holds labels, or one beside the pictures whose rows name them: csv, xlsx, parquet (GeoParquet
too), JSON lines, GeoJSON.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import shapely

from marc_dist.config import DataError, first_line
from marc_dist.geography.acquisition import parse_date
from marc_dist.geography.footprints import around, parse_shape, point, square, to_wkb
from marc_dist.packing.georeference.column_names import ROLES, place_columns
from marc_dist.packing.georeference.facts import Faults, Known
from marc_dist.packing.reading.columns import Columns, find_columns
from marc_dist.packing.reading.discover import File
from marc_dist.packing.reading.names import name_of, plain, stem_of
from marc_dist.packing.reading.recipes import PlaceEntry
from marc_dist.packing.reading.sheets import Rows, decoded, delimiter_of, read_rows

HEAD_BYTES = 1 << 18
Move = Callable[[Any], Any]
"""A shape of the table's CRS -> the same in WGS84."""


class PictureNames:
    """Which picture a row means: by its whole place, by its end, or by its name alone where that is one picture's.

    Args:
        pictures: key -> file.
        suffix: what the pictures' names end in beside those of their labels.
    """

    def __init__(self, pictures: Mapping[str, File], suffix: str) -> None:
        self._suffix = suffix.lower()
        self._keys: dict[str, str | None] = {}
        for key, file in pictures.items():
            whole = name_of(file.origin)
            parts = whole.split("/")
            for start in range(len(parts)):
                end = "/".join(parts[start:])
                self._keys[end] = None if end in self._keys else key  # several: none is meant
            self._keys[whole] = key
        self.stems = {stem_of(file.name) for file in pictures.values()}

    def key(self, cell: str) -> str | None:
        """The picture that a cell names; None: none, or more than one."""
        name = name_of(cell)
        found = self._keys.get(name) or self._keys.get(name + self._suffix)
        parts = name.split("/")
        while found is None and len(parts) > 1:  # a longer path than the download's own
            parts = parts[1:]
            found = self._keys.get("/".join(parts))
        return found


def read_table(
    file: File,
    wanted: PlaceEntry,
    by: str,
    names: Callable[[], PictureNames],
    image: str,
    faults: Faults,
    *,
    must: bool,
) -> tuple[dict[str, Known], list[str]]:
    """What one table says.

    Args:
        file: the table.
        wanted: columns that the recipe names, and the CRS of their coordinates.
        by: column that splits are drawn by; empty = none.
        names: gives those of the pictures.
        image: column that names the pictures; empty = it is found.
        faults: takes what cannot be told.
        must: the table has to say something: the recipe names it.

    Returns:
        Key of a picture -> what is known of it; names of the columns that were read.

    Raises:
        DataError: ``must``, and it cannot be read, names no picture, or has no such column.
    """
    try:
        header = _header(file.path)
        columns = _columns(header, wanted, by)
        if not columns:
            return _nothing(file, header, must)
        rows = _rows(file.path)
        if len(rows) < 2:
            return _nothing(file, header, must)
        even = rows.of_width(len(rows[0].cells))
        header = list(even[0].cells)
        columns = _columns(header, wanted, by)
        shape = find_columns(file.path, even, Columns(image), names().stems, labels=False)
        keys = [names().key(cell) if cell else None for cell in shape.body.column(shape.image)]
        if not any(keys):
            return _nothing(file, header, must)
        move = _mover(file.path, wanted.columns_crs)
    except DataError:
        if must:
            raise
        return {}, []
    found: dict[str, Known] = {}
    cells = {role: shape.body.column(at) for role, at in columns.items() if at != shape.image}
    for row, key in enumerate(keys):
        if key is not None:
            said = {role: column[row].strip() for role, column in cells.items()}
            known = _known(said, wanted, move, faults, f"{file.name}: {key}")
            if found.setdefault(key, known) != known:
                faults.add("place: rows that say two things about a picture, the first counts", f"{file.name}: {key}")
    return found, [header[at] for at in columns.values() if at != shape.image]


def _columns(header: Sequence[str], wanted: PlaceEntry, by: str) -> dict[str, int]:
    columns = place_columns(header, {role: getattr(wanted, role) for role in ROLES})
    if by and (fits := [at for at, name in enumerate(header) if by == name or plain(by) == plain(name)]):
        columns["group"] = fits[0]
    return columns


def _header(path: Path) -> list[str]:
    """Names of a table's columns, without reading the rest where its kind allows that."""
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            return [str(name).strip() for name in pq.read_schema(path).names]
        if path.suffix.lower() in (".csv", ".tsv", ".txt"):
            with path.open("rb") as file:
                text = decoded(file.read(HEAD_BYTES))
            text = text[: text.rfind("\n") + 1] or text
            if not text.lower().startswith("sep="):
                delimiter = delimiter_of(text, path.suffix.lower())
                first = next(csv.reader(text.splitlines()[:1], delimiter=delimiter), [])
                return [cell.strip() for cell in first]
    except Exception as error:  # of Arrow, of csv, of the file system
        raise DataError(f"{path}: cannot be read ({first_line(error)})") from None
    rows = _rows(path)
    return list(rows[0].cells) if len(rows) else []


def _nothing(file: File, header: Sequence[str], must: bool) -> tuple[dict[str, Known], list[str]]:
    if must:
        raise DataError(
            f"{file.path}: expected columns of place or date, and rows that name the pictures, got columns "
            f"{', '.join(header)}; name them in the recipe (place: lat, lon, geometry, date, scene)"
        )
    return {}, []


def _rows(path: Path) -> Rows:
    """The rows of a table; of GeoJSON, the properties of each feature and its geometry."""
    if path.suffix.lower() != ".geojson":
        return read_rows(path)
    try:
        features = json.loads(path.read_text(encoding="utf-8-sig"))["features"]
        records = [{**(one.get("properties") or {}), "geometry": one.get("geometry")} for one in features]
        ids = [{"id": one["id"]} if "id" in one else {} for one in features]
        records = [{**id_, **record} for id_, record in zip(ids, records, strict=True)]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not a GeoJSON file of features ({error})") from None
    names = list(dict.fromkeys(name for record in records for name in record))

    def cells() -> Iterator[tuple[int, list[str]]]:
        yield 0, names
        for line, record in enumerate(records, 1):
            values = (record.get(name) for name in names)
            yield line, [v if isinstance(v, str) else "" if v is None else json.dumps(v) for v in values]

    return Rows(cells()) if names else Rows()


def _known(said: Mapping[str, str], wanted: PlaceEntry, move: Move, faults: Faults, where: str) -> Known:
    """What one row says; what cannot be told is noted and left empty."""
    footprint, spot, date = b"", b"", ""
    try:
        if said.get("geometry"):
            footprint = to_wkb(around(move(parse_shape(said["geometry"]))))
        if said.get("lat") and said.get("lon"):
            at = move(shapely.Point(_number(said["lon"]), _number(said["lat"])))
            side = wanted.side_m
            spot = to_wkb(point(at.x, at.y) if side is None else square(at.x, at.y, side))
    except ValueError as error:
        faults.add("place: in a table, and none", f"{where} ({error})")
    try:
        date = parse_date(said["date"]) if said.get("date") else ""
    except ValueError as error:
        faults.add("date: in a table, and none", f"{where} ({error})")
    return Known(footprint, date, said.get("scene", ""), said.get("group", ""), spot)


def _number(text: str) -> float:
    try:
        return float(text.replace(",", "."))
    except ValueError:
        raise ValueError(f"{text[:40]!r} is no number of degrees") from None


def _mover(path: Path, given: str) -> Move:
    """From the CRS of a table's coordinates to WGS84: the recipe's, or what a GeoParquet file says of itself.

    Raises:
        DataError: a CRS that cannot be read here.
    """
    crs: Any = given or _geoparquet_crs(path)
    if crs in ("", None):
        return lambda shape: shape
    try:
        from rasterio.crs import CRS
        from rasterio.warp import transform
    except ImportError:
        raise DataError(f"{path}: its coordinates are not WGS84; to turn them: pip install 'marc-dist[geo]'") from None
    try:
        source = CRS.from_user_input(json.dumps(crs) if isinstance(crs, dict) else crs)
    except Exception as error:  # GDAL's
        raise DataError(f"{path}: a CRS that cannot be read ({' '.join(str(error).split())[:80]})") from None
    if source.to_epsg() == 4326:
        return lambda shape: shape

    def moved(shape: Any) -> Any:
        def turn(places: Any) -> Any:
            lons, lats = transform(source, "EPSG:4326", places[:, 0].tolist(), places[:, 1].tolist())
            return shapely.get_coordinates(shapely.points(lons, lats))

        return shapely.transform(shapely.force_2d(shape), turn)

    return moved


def _geoparquet_crs(path: Path) -> Any:
    """The CRS in a GeoParquet file's metadata, as PROJJSON; None where it is WGS84 or not said."""
    if path.suffix.lower() != ".parquet":
        return None
    import pyarrow.parquet as pq

    try:
        geo = json.loads((pq.read_schema(path).metadata or {}).get(b"geo", b"{}"))
        crs = geo["columns"][geo["primary_column"]].get("crs")
        known = crs.get("id", {}) if isinstance(crs, dict) else {}
        return None if str(known.get("code")) in ("CRS84", "4326") else crs
    except Exception:  # no GeoParquet; its reader says what else is wrong
        return None
