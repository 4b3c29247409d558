"""What an encoder expects of pictures with bands: which ones, in which order, and how their values are scaled."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class BandScale:
    """The bands of an encoder, C of them: a value v becomes (v - low) / (high - low), then it is normalised.

    Attributes:
        names: of the bands, in the order of the encoder's channels.
        dtype: of the values in the files.
        scaling: where ``low`` and ``high`` come from: percentiles, range, reflectance.
        low, high: (C,) values that become 0 and 1; of ``percentiles``, what lies outside becomes 0 or 1.
        mean, std: (C,) of the values in the files, of the split that the encoder was trained on.
    """

    names: tuple[str, ...]
    dtype: str
    scaling: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def clips(self) -> bool:
        """Whether values below ``low`` and above ``high`` are cut off."""
        return self.scaling == "percentiles"

    @property
    def fill(self) -> tuple[float, ...]:
        """What a missing value becomes: the mean of its band, which is 0 once normalised."""
        whole = self.dtype != "float32"
        return tuple(float(round(value)) if whole else value for value in self.mean)

    def facts(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def read_band_scale(told: Any) -> BandScale:
    """The inverse of ``BandScale.facts``.

    Raises:
        ValueError: not sound; says what is wrong.
    """
    if not isinstance(told, dict) or set(told) != set(BandScale.__dataclass_fields__):
        raise ValueError(f"expected {', '.join(BandScale.__dataclass_fields__)}")
    lists = {key: told[key] for key in ("names", "low", "high", "mean", "std")}
    lengths = {len(value) if isinstance(value, list) else -1 for value in lists.values()}
    if len(lengths) != 1 or lengths == {-1} or lengths == {0}:
        raise ValueError("expected lists of one length")
    if not all(isinstance(name, str) and name for name in told["names"]) or len(set(told["names"])) < len(
        told["names"]
    ):
        raise ValueError(f"names: expected different names, got {told['names']!r:.60}")
    for key in ("low", "high", "mean", "std"):
        if not all(type(value) in (int, float) and abs(value) < 1e39 for value in told[key]):
            raise ValueError(f"{key}: expected numbers, got {told[key]!r:.60}")
    if not all(low < high for low, high in zip(told["low"], told["high"], strict=True)):
        raise ValueError("low: expected numbers below those of high")
    if told["dtype"] not in ("uint8", "uint16", "int16", "float32") or told["scaling"] not in SCALINGS:
        raise ValueError(f"dtype or scaling: got {told['dtype']!r:.30}, {told['scaling']!r:.30}")
    return BandScale(
        dtype=told["dtype"],
        scaling=told["scaling"],
        names=tuple(told["names"]),
        **{key: tuple(map(float, told[key])) for key in ("low", "high", "mean", "std")},
    )


SCALINGS = ("percentiles", "range", "reflectance")
