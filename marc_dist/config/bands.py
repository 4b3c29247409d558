"""Settings about named bands that only mean something together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

BandName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def check_bands(names: Sequence[str] | None, scaling: str, limits: tuple[float, float] | None) -> None:
    """Refuse settings of ``data`` that contradict each other.

    Args:
        names: ``data.bands``.
        scaling: ``data.scaling``.
        limits: ``data.range``.

    Raises:
        ValueError: no band, one band twice, a range that is none or that nothing reads.
    """
    if names is not None and (not names or len(set(names)) < len(names)):
        raise ValueError(f"bands: expected different names, at least one, got {list(names)}; null takes all")
    if limits is not None and scaling != "range":
        raise ValueError(f"range: nothing reads it with data.scaling={scaling}; give data.scaling=range")
    if limits is not None and not limits[0] < limits[1]:
        raise ValueError(f"range: expected a smaller and a larger value, got {list(limits)}")
