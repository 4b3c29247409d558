"""Where and when the pictures of a shard folder were taken: columns of ``index.parquet``, which is then GeoParquet.

    geometry   WKB in WGS84 longitude, latitude (OGC:CRS84), empty where it is not known
    bbox       struct xmin, ymin, xmax, ymax of each geometry: GeoParquet's covering column
    date       timestamp in UTC, empty where it is not known
    group      what kept pictures together when splits were drawn by place

A folder of pictures without place and date has none of the columns.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from marc_dist.config import DataError, first_line
from marc_dist.geography.acquisition import UNKNOWN, Acquisition, milliseconds, shown

CHUNK = 1 << 16
VERSION = "1.1.0"
"""Of GeoParquet."""
SIDES = ("xmin", "ymin", "xmax", "ymax")
COLUMNS = ("geometry", "bbox", "date", "group")
NO_DATE = np.iinfo(np.int64).min


def add_to_index(file: Path, rows: Iterable[Acquisition]) -> None:
    """Give an index its columns of place and time; on disk when this returns.

    Args:
        file: ``index.parquet``, closed.
        rows: of each of its rows, in order.
    """
    import pyarrow.parquet as pq

    pq.write_table(add_columns(pq.read_table(file), rows), file, compression="zstd")
    with file.open("rb") as written:
        os.fsync(written.fileno())


def add_columns(table: Any, rows: Iterable[Acquisition]) -> Any:
    """The table of an index with the columns that these pictures need; none of them where nothing is known.

    Args:
        table: of pyarrow.
        rows: of each row of the table, in order.
    """
    import pyarrow as pa

    parts: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    rest = iter(rows)
    while some := list(islice(rest, CHUNK)):
        shapes = shapely.from_wkb([row[0] or None for row in some])
        parts["geometry"].append(pa.array([row[0] or None for row in some], pa.binary()))
        parts["bbox"].append(bounds_column(shapes))
        dates = [milliseconds(row[1]) if row[1] else None for row in some]
        parts["date"].append(pa.array(dates, pa.timestamp("ms", "UTC")))
        parts["group"].append(pa.array([row[2] or None for row in some], pa.string()))
    columns = {name: pa.chunked_array(chunks) for name, chunks in parts.items() if chunks}
    for name, column in columns.items():
        if column.null_count < len(column):
            table = table.append_column(name, column)
    return described(table) if "geometry" in table.column_names else table


def bounds_column(shapes: NDArray[Any]) -> Any:
    """The covering column of GeoParquet: a struct of the bounds of each shape, empty where there is none."""
    import pyarrow as pa

    bounds = shapely.bounds(shapes)
    sides = [pa.array(bounds[:, place], pa.float64()) for place in range(4)]
    return pa.StructArray.from_arrays(sides, names=list(SIDES), mask=pa.array(np.isnan(bounds[:, 0])))


def described(table: Any) -> Any:
    """A table with columns ``geometry`` and ``bbox``, as GeoParquet: what they hold stands in the file's metadata."""
    kinds: set[str] = set()
    bounds = []
    for chunk in table["geometry"].chunks:
        shapes = shapely.from_wkb(chunk.drop_null().to_numpy(zero_copy_only=False))
        kinds |= {str(shape.geom_type) for shape in shapes}
        bounds += [shapely.total_bounds(shapes)] if len(shapes) else []
    covering = {"bbox": {side: ["bbox", side] for side in SIDES}}
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": sorted(kinds)}
    column |= {"orientation": "counterclockwise", "edges": "planar", "covering": covering}
    if bounds:
        sides = np.array(bounds)
        column["bbox"] = [*sides[:, :2].min(axis=0).tolist(), *sides[:, 2:].max(axis=0).tolist()]
    geo = {"version": VERSION, "primary_column": "geometry", "columns": {"geometry": column}}
    return table.replace_schema_metadata({**(table.schema.metadata or {}), b"geo": json.dumps(geo).encode()})


@dataclass(frozen=True)
class Places:
    """Where and when the n pictures of an index were taken. Footprints are read when they are asked for.

    Attributes:
        file: ``index.parquet``.
        names: which of ``COLUMNS`` it has.
        bounds: (n, 4) west, south, east, north in degrees; NaN where no place is known.
        dates: (n,) milliseconds from 1970, UTC; ``NO_DATE`` where none is known.
        stamp: of the file, by which another one of its name is noticed.
    """

    file: Path
    names: tuple[str, ...]
    bounds: NDArray[np.float64]
    dates: NDArray[np.int64]
    stamp: tuple[int, int]

    def __len__(self) -> int:
        return len(self.dates)

    @cached_property
    def wkb(self) -> Any:
        """(n,) pyarrow binary, empty where no place is known; None: of no picture."""
        return _column(self.file, "geometry", self.stamp) if "geometry" in self.names else None

    @cached_property
    def groups(self) -> Any:
        """(n,) pyarrow strings; None: splits were not drawn by place."""
        return _column(self.file, "group", self.stamp) if "group" in self.names else None

    @cached_property
    def placed(self) -> NDArray[np.bool_]:
        """(n,) whether a place is known."""
        return np.asarray(~np.isnan(self.bounds[:, 0]))

    @cached_property
    def dated(self) -> NDArray[np.bool_]:
        """(n,) whether a date is known."""
        return np.asarray(self.dates != NO_DATE)

    def shapes(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """(m,) footprints of these rows, of shapely; None where no place is known."""
        if self.wkb is None:
            return np.full(len(rows), None, dtype=object)
        return np.asarray(shapely.from_wkb(self.wkb.take(rows).to_numpy(zero_copy_only=False)), dtype=object)

    def date(self, row: int) -> str:
        """The date of a row for people, or empty."""
        return shown(int(self.dates[row])) if self.dated[row] else ""

    def acquisitions(self, start: int, stop: int) -> list[Acquisition]:
        """Where and when the pictures of a run of rows were taken, as packing carries it."""
        num = min(stop, len(self)) - start
        wkb = [None] * num if self.wkb is None else self.wkb.slice(start, num).to_pylist()
        groups = [None] * num if self.groups is None else self.groups.slice(start, num).to_pylist()
        dates = [self.date(row) for row in range(start, start + num)]
        return [
            Acquisition(one or b"", date, group or "") if one or date or group else UNKNOWN
            for one, date, group in zip(wkb, dates, groups, strict=True)
        ]


def read_places(file: Path) -> Places:
    """Where and when the pictures of an index were taken.

    Args:
        file: ``index.parquet`` of an opened shard folder.

    Raises:
        DataError: columns that are not those of ``add_columns``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        stamp = _stamp(file)
        known = pq.ParquetFile(file)
        names = tuple(name for name in COLUMNS if name in known.schema_arrow.names)
        num = known.metadata.num_rows
        bounds, dates = np.full((num, 4), np.nan), np.full(num, NO_DATE, dtype=np.int64)
        if "bbox" in names:
            start = 0
            for boxes in known.read(columns=["bbox"])["bbox"].chunks:
                for place, values in enumerate(boxes.flatten()):
                    cells = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
                    bounds[start : start + len(boxes), place] = cells
                start += len(boxes)
        if "date" in names:
            stamps = known.read(columns=["date"])["date"].cast(pa.timestamp("ms", "UTC")).cast(pa.int64())
            dates = stamps.fill_null(NO_DATE).to_numpy().copy()
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise _unreadable(file, error) from None
    return Places(file, names, bounds, dates, stamp)


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(
        f"{file}: its columns {', '.join(COLUMNS)} cannot be read ({first_line(error)}); pack again with marc-shard "
        "--force"
    )


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_ino, found.st_mtime_ns


def _column(file: Path, name: str, stamp: tuple[int, int]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if _stamp(file) != stamp:
            raise DataError(f"{file}: was written anew in the meantime; run it again")
        column = pq.read_table(file, columns=[name])[name].combine_chunks()
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise _unreadable(file, error) from None
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
