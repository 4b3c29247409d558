"""What the values of each band are like, in one pass and in parts that add up exactly, in any order.

A band's values are counted by a code of 16 bits that keeps their order: of 8- and 16-bit numbers the value itself, of
floats the upper half of their bits (steps of 2^-7 of the value or less). Sums of floats are kept as whole numbers, so a
total does not depend on how many processes counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marc_dist.data.bands.tiff import Planes, missing

CODES = 1 << 16
HELD = 1 << 23  # values, 2 bytes each
PERCENTILES = (2.0, 98.0)
UNIT = 1074  # every finite double is a whole multiple of 2^-1074


def codes_of(values: Planes) -> NDArray[np.uint16]:
    """16 bits that keep the order of the values, of the same shape."""
    if values.dtype == np.int16:
        return values.view(np.uint16) ^ np.uint16(1 << 15)
    if values.dtype.kind == "u":
        return values.astype(np.uint16)
    bits = values.astype(np.float32).view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (ordered >> 16).astype(np.uint16)


def values_of(codes: NDArray[Any], dtype: str) -> NDArray[np.float64]:
    """The values of codes; of floats, the middle of what shares a code."""
    codes = np.asarray(codes, dtype=np.uint32)
    if dtype == "int16":
        return codes.astype(np.float64) - (1 << 15)
    if dtype != "float32":
        return codes.astype(np.float64)
    ordered = (codes << 16) | np.uint32(1 << 15)
    bits = np.where(ordered >> 31, ordered & np.uint32(0x7FFFFFFF), ~ordered)
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def _whole(value: float) -> int:
    """A double as a multiple of 2^-``UNIT``."""
    numerator, denominator = value.as_integer_ratio()
    return numerator << (UNIT - denominator.bit_length() + 1)


class BandCounts:
    """Values of C bands, counted.

    Args:
        num: C.
        dtype: of the values.

    Attributes:
        counts: (C, 65536) int64 values of each code.
        gone: (C,) int64 values that were missing.
        sums, squares: of each band's floats, whole multiples of 2^-1074; unused of whole numbers.
        least, most: of each band's floats.
    """

    def __init__(self, num: int, dtype: str) -> None:
        self.dtype = dtype
        self._held: list[list[NDArray[np.uint16]]] = [[] for _ in range(num)]  # codes that are not counted yet
        self._num_held = 0
        self.counts = np.zeros((num, CODES), dtype=np.int64)
        self.gone = np.zeros(num, dtype=np.int64)
        self.sums, self.squares = [0] * num, [0] * num
        self.least, self.most = [math.inf] * num, [-math.inf] * num

    def __getstate__(self) -> dict[str, Any]:
        """Few codes occur in a part: only those travel between processes."""
        self._count()
        state = dict(self.__dict__)
        places = np.flatnonzero(state.pop("counts"))
        return {**state, "places": places.astype(np.uint32), "there": self.counts.reshape(-1)[places]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        places, there = state.pop("places"), state.pop("there")
        self.__dict__.update(state)
        self.counts = np.zeros((len(self.gone), CODES), dtype=np.int64)
        self.counts.reshape(-1)[places] = there

    def add(self, planes: Planes, nodata: float | None) -> None:
        """Count one picture.

        Args:
            planes: (C, H, W) of ``dtype``.
            nodata: what stands for no value.
        """
        gone = missing(planes, nodata)
        self.gone += gone.sum(axis=(1, 2))
        for band, (plane, out) in enumerate(zip(planes, gone, strict=True)):
            values = plane[~out]
            if not values.size:
                continue
            self._held[band].append(codes_of(values))
            self._num_held += values.size
            if self.dtype == "float32":
                wide = values.astype(np.float64)
                self.sums[band] += _whole(float(wide.sum()))
                self.squares[band] += _whole(float(np.square(wide).sum()))
                self.least[band] = min(self.least[band], float(values.min()))
                self.most[band] = max(self.most[band], float(values.max()))
        if self._num_held > HELD:
            self._count()

    def _count(self) -> None:
        """Count what is held: one count of many values costs less than many of few, for there are many codes."""
        for band, held in enumerate(self._held):
            if held:
                self.counts[band] += np.bincount(np.concatenate(held), minlength=CODES)
        self._held, self._num_held = [[] for _ in self._held], 0

    def merge(self, other: BandCounts) -> None:
        """Add what another part has counted."""
        self._count()
        other._count()
        self.counts += other.counts
        self.gone += other.gone
        self.sums = [a + b for a, b in zip(self.sums, other.sums, strict=True)]
        self.squares = [a + b for a, b in zip(self.squares, other.squares, strict=True)]
        self.least = [min(pair) for pair in zip(self.least, other.least, strict=True)]
        self.most = [max(pair) for pair in zip(self.most, other.most, strict=True)]

    def facts(self) -> dict[str, list[Any]]:
        """A number a band for ``dataset.json``; of a band without values all but the counts are null."""
        self._count()
        rows = [self._of_band(band) for band in range(len(self.gone))]
        return {key: [row[key] for row in rows] for key in rows[0]} if rows else {}

    def _of_band(self, band: int) -> dict[str, Any]:
        there = np.flatnonzero(self.counts[band])
        counts, values = self.counts[band][there], values_of(there, self.dtype)
        num = int(counts.sum())
        names = ("mean", "std", "min", "max", *(f"p{percent:g}" for percent in PERCENTILES))
        found: dict[str, Any] = {"num_values": num, "num_missing": int(self.gone[band]), **dict.fromkeys(names)}
        if not num:
            return found
        if self.dtype == "float32":
            total, squares, unit = self.sums[band], self.squares[band], 1 << UNIT
            least, most = self.least[band], self.most[band]
        else:
            pairs = [(int(value), int(many)) for value, many in zip(values, counts, strict=True)]
            total, unit = sum(value * many for value, many in pairs), 1
            squares = sum(value * value * many for value, many in pairs)
            least, most = float(values[0]), float(values[-1])
        # exact: (n S2 - S^2) / n^2 of whole numbers; one rounding at the end
        spread = max(squares * num * unit - total * total, 0)
        found |= {"mean": total / (unit * num), "std": math.sqrt(spread / (unit * num) ** 2), "min": least, "max": most}
        reached = np.cumsum(counts)
        for percent in PERCENTILES:
            place = int(np.searchsorted(reached, max(math.ceil(num * percent / 100), 1)))
            found[f"p{percent:g}"] = min(max(float(values[place]), least), most)
        return found


def merged(parts: Sequence[BandCounts]) -> BandCounts:
    """All parts as one; at least one."""
    total = BandCounts(len(parts[0].gone), parts[0].dtype)
    for part in parts:
        total.merge(part)
    return total
