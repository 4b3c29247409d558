"""Which bands of a data set's pictures an encoder takes, in which order: a function from bytes to (H, W, C) values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from marc_dist.augment.bands import BandScale
from marc_dist.config import DataError
from marc_dist.data.bands.tiff import DTYPES, Planes, missing, read_tiff
from marc_dist.data.dataset import Dataset

if TYPE_CHECKING:
    from marc_dist.augment.views import PixelScale
    from marc_dist.config import Config


@dataclass(frozen=True)
class BandPick:
    """Decodes the bands that are wanted of a file; missing values become ``fill``.

    Attributes:
        names: of the bands that are wanted, in order.
        indexes: where in the file each lies, from 1.
        count: bands of the file.
        dtype: of the values.
        nodata: the value that stands for none, or None.
        fill: what stands in the place of a missing value, a number a band, of ``dtype``.
    """

    names: tuple[str, ...]
    indexes: tuple[int, ...]
    count: int
    dtype: str
    nodata: float | None
    fill: tuple[float, ...]

    def __call__(self, data: bytes, place: str) -> Planes:
        """(H, W, C) values of ``dtype``.

        Args:
            data: a file's content.
            place: what to call it in a message.

        Raises:
            DataError: damaged, or with other bands or numbers than the data set.
        """
        found = read_tiff(data, place, self.indexes if self._some else None)
        facts = found.facts
        if (facts.num, facts.dtype) != (self.count, self.dtype):
            raise DataError(
                f"{place}: expected {self.count} bands of {self.dtype}, got {facts.num} of {facts.dtype}; check with "
                "marc-shard --verify"
            )
        planes, gone = found.planes, missing(found.planes, self.nodata)
        if gone.any():
            fill = np.array(self.fill, dtype=self.dtype)[:, None, None]
            planes = np.where(gone, fill, planes)
        return np.ascontiguousarray(np.moveaxis(planes, 0, 2))

    @property
    def _some(self) -> bool:
        return self.indexes != tuple(range(1, self.count + 1))

    @classmethod
    def named(cls, dataset: Dataset, wanted: Sequence[str] | None) -> BandPick | None:
        """Bands by name, missing values as the mean of their band; None: plain RGB pictures.

        Args:
            dataset: an opened shard folder.
            wanted: names; None = all.

        Raises:
            DataError: a band that the data set does not have.
        """
        names, dtype, nodata = bands_of(dataset)
        if not names:
            if wanted is not None:
                raise DataError(f"{dataset.root}: red, green and blue of 8 bits, expected {', '.join(wanted)}")
            return None
        indexes = places_of(tuple(wanted or names), names, str(dataset.root))
        means = (dataset.meta["bands"].get("statistics") or {}).get("mean") or [None] * len(names)
        fill = [float(means[at - 1] or 0.0) for at in indexes]
        whole = tuple(map(float, map(round, fill))) if dtype != "float32" else tuple(fill)
        return cls(tuple(wanted or names), indexes, len(names), dtype, nodata, whole)

    @classmethod
    def all_of(cls, dataset: Dataset) -> BandPick:
        """All bands as they lie there, missing values as they are.

        Args:
            dataset: one with bands.
        """
        names, dtype, _ = bands_of(dataset)
        return cls(names, tuple(range(1, len(names) + 1)), len(names), dtype, None, (0.0,) * len(names))


def bands_of(dataset: Dataset) -> tuple[tuple[str, ...], str, float | None]:
    """Names, dtype and nodata value of a data set's bands; no names where it has plain RGB pictures.

    Raises:
        DataError: ``dataset.json`` says something else.
    """
    told: Any = dataset.meta.get("bands")
    if told is None:
        return (), "uint8", None
    names = told.get("names") if isinstance(told, dict) else None
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(name, str) for name in names)
        or told.get("dtype") not in DTYPES
        or not isinstance(told.get("nodata"), int | float | None)
    ):
        raise DataError(f"{dataset.root / 'dataset.json'}: bands: not readable; pack again with marc-shard --force")
    nodata = told["nodata"]
    return tuple(names), told["dtype"], None if nodata is None else float(nodata)


def pick_for(dataset: Dataset, scale: BandScale | None) -> BandPick | None:
    """How an encoder gets its bands out of a data set's pictures; None: both have plain RGB pictures.

    Args:
        dataset: an opened shard folder.
        scale: the encoder's bands; None = red, green and blue of 8 bits.

    Raises:
        DataError: the data set lacks one of them, or its numbers are others; names both.
    """
    names, dtype, nodata = bands_of(dataset)
    if scale is None and not names:
        return None
    where = dataset.root
    if scale is None:
        raise DataError(
            f"{where}: pictures with the bands {', '.join(names)} ({dtype}), but the encoder takes red, green and blue "
            "of 8 bits; take an encoder that was trained on these bands"
        )
    if not names:
        raise DataError(
            f"{where}: red, green and blue of 8 bits, but the encoder takes the bands {', '.join(scale.names)} "
            f"({scale.dtype}); take data with these bands"
        )
    return BandPick(
        scale.names,
        places_of(scale.names, names, str(where)),
        len(names),
        _same_dtype(scale, dtype, str(where)),
        nodata,
        scale.fill,
    )


def places_of(wanted: Sequence[str], there: Sequence[str], place: str) -> tuple[int, ...]:
    """Where each wanted band lies in a file, from 1.

    Args:
        wanted: names.
        there: names of the file's bands in order.
        place: what to call it in a message.

    Raises:
        DataError: a band that is not there; names both.
    """
    lacking = [name for name in wanted if name not in there]
    if lacking:
        raise DataError(
            f"{place}: has no band {', '.join(lacking)}; the encoder takes {', '.join(wanted)}, the data has "
            f"{', '.join(there)}"
        )
    return tuple(list(there).index(name) + 1 for name in wanted)


def _same_dtype(scale: BandScale, dtype: str, place: str) -> str:
    if scale.dtype != dtype:
        raise DataError(
            f"{place}: bands of {dtype}, but the encoder was trained on {scale.dtype}; convert them before packing, as "
            "with gdal_translate -ot"
        )
    return dtype


def band_notes(config: Config, scale: PixelScale) -> list[str]:
    """A line for people on what an encoder of bands takes, and which changes of colour are left out."""
    if scale.bands is None:
        return []
    from marc_dist.config.augment import COLOURS  # here: a packing needs no settings

    idle = [f"augment.{name}" for name in COLOURS if getattr(config.augment, name)]
    left = f"; {', '.join(idle)}: for red, green and blue alone, left out" if idle else ""
    return [f"bands {', '.join(scale.bands.names)}, scaled by {scale.bands.scaling}{left}"]
