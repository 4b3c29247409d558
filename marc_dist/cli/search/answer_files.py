"""The answers of a search with where and when each was taken: GeoJSON, GeoParquet, and for ``--json``."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from marc_dist.data.dataset import Dataset
from marc_dist.geography.places import Places, bounds_column, described
from marc_dist.report.picture_sheets import labels_of
from marc_dist.retrieval.archive import Answers

GEOJSON, GEOPARQUET = "search.geojson", "search.parquet"


def facts_of(dataset: Dataset, places: Places, row: int) -> dict[str, Any]:
    """Where and when an image was taken, as plain values; None where it is not known.

    Args:
        dataset: of the archive.
        places: of its index.
        row: the image.
    """
    return {
        "date": places.date(row) or None,
        "scene": str(dataset.scene[row]) or None,
        "footprint": _geometry(places, row),
    }


def _geometry(places: Places, row: int) -> Any:
    (shape,) = places.shapes(np.array([row], dtype=np.int64))
    return None if shape is None else json.loads(shapely.to_geojson(shape))


def _rows(found: Sequence[Answers], names: Sequence[str], dataset: Dataset) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every answer of every query: its id, and what is told of it."""
    for number, (answers, name) in enumerate(zip(found, names, strict=True), 1):
        for rank, hit in enumerate(answers.hits, 1):
            yield (
                hit.id,
                {
                    "query": number,
                    "query_name": name,
                    "rank": rank,
                    "key": str(dataset.keys[hit.id]),
                    "score": hit.score,
                    "split": str(dataset.split[hit.id]),
                    "labels": labels_of(dataset, hit.id),
                    "scene": str(dataset.scene[hit.id]),
                },
            )


def as_geojson(found: Sequence[Answers], names: Sequence[str], dataset: Dataset, places: Places) -> bytes:
    """All answers as one GeoJSON text (RFC 7946), an answer a line; one without a place has no geometry.

    Args:
        found: the queries with their answers.
        names: of the queries.
        dataset: of the archive.
        places: of its index.
    """
    lines = []
    for row, told in _rows(found, names, dataset):
        told |= {"date": places.date(row) or None}
        feature = {"type": "Feature", "geometry": _geometry(places, row), "properties": told}
        lines.append(json.dumps(feature, ensure_ascii=False, allow_nan=False))
    return ('{"type": "FeatureCollection", "features": [\n' + ",\n".join(lines) + "\n]}\n").encode(errors="replace")


def as_geoparquet(found: Sequence[Answers], names: Sequence[str], dataset: Dataset, places: Places) -> bytes:
    """All answers as one GeoParquet file, an answer a row.

    Args:
        found: the queries with their answers.
        names: of the queries.
        dataset: of the archive.
        places: of its index.
    """
    ids, told = [], []
    for row, one in _rows(found, names, dataset):
        ids.append(row)
        told.append({**one, "query_name": one["query_name"].encode(errors="replace").decode()})
    rows = np.array(ids, dtype=np.int64)
    kinds = {
        "query": pa.int32(), "query_name": pa.string(), "rank": pa.int32(), "key": pa.string(),
        "score": pa.float64(), "split": pa.string(), "labels": pa.list_(pa.string()), "scene": pa.string(),
    }  # fmt: skip
    columns = {name: pa.array([one[name] for one in told], kind) for name, kind in kinds.items()}
    known = places.dated[rows]
    columns["date"] = pa.array(places.dates[rows], pa.int64(), mask=~known).cast(pa.timestamp("ms", "UTC"))
    shapes = places.shapes(rows)
    wkb = [None if shape is None else shapely.to_wkb(shape, byte_order=1) for shape in shapes]
    columns |= {"geometry": pa.array(wkb, pa.binary()), "bbox": bounds_column(shapes)}
    out = io.BytesIO()
    pq.write_table(described(pa.table(columns)), out, compression="zstd")
    return out.getvalue()
