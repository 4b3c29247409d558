"""Queries that are images of the archive: by key, or by a place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from marc_dist.config import ConfigError, DataError
from marc_dist.config.suggest import suggestion
from marc_dist.data.dataset import Dataset
from marc_dist.data.reader import IndexedReader
from marc_dist.geography.areas import nearest
from marc_dist.geography.places import read_places


class OwnPicture(NamedTuple):
    """An image of the archive that is asked for.

    Attributes:
        id: row of the index; it is not among the answers.
        key: of the image.
        path: of its bytes as a file.
        remark: why it is asked for, or empty.
    """

    id: int
    key: str
    path: Path
    remark: str


def own_pictures(
    keys: Sequence[str], places: Sequence[tuple[str, tuple[float, float]]], dataset: Dataset, scratch: Path
) -> list[OwnPicture]:
    """The images that ``--like`` and ``--near`` name, of any split of the archive.

    Args:
        keys: of images.
        places: what was written, and longitude and latitude.
        dataset: the archive.
        scratch: a folder for their files.

    Raises:
        ConfigError: no such key.
        DataError: no image has a place, or one cannot be read.
    """
    asked = [(row, "") for row in _rows(keys, dataset)]
    if places:
        known = read_places(dataset.root / "index.parquet")
        if not known.placed.any():
            raise DataError(f"{dataset.root}: no image has a place, so none is near one (docs/place-and-time.md)")
        every = np.arange(len(dataset), dtype=np.int64)
        for text, (lon, lat) in places:
            row, km = nearest(known, every, lon, lat)
            asked.append((row, f"its middle is {km:.1f} km from {text}"))
    found = []
    if asked:
        reader = IndexedReader(dataset)
        for number, (row, remark) in enumerate(asked):
            kind = re.fullmatch(
                r"[a-z0-9]{1,5}", str(dataset.ext[row])
            )  # names of an archive never reach the file system
            path = scratch / f"own-{number}.{kind[0] if kind else 'picture'}"
            path.write_bytes(reader.read(row))
            found.append(OwnPicture(row, str(dataset.keys[row]), path, remark))
        reader.close()
    return found


def _rows(keys: Sequence[str], dataset: Dataset) -> list[int]:
    wanted: dict[str, int | None] = dict.fromkeys(keys)
    if wanted:
        wanted |= {key: row for row, key in enumerate(dataset.keys) if key in wanted}
    rows = []
    for key, row in wanted.items():
        if row is None:
            near = suggestion(key, list(dataset.keys[: 1 << 16]))
            raise ConfigError(f"--like {key}: {dataset.root} has no image of this key{near}")
        rows.append(row)
    return rows
