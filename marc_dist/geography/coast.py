"""The land of the Earth, for maps: Natural Earth's 1:110m land, public domain, shipped as ``land_110m.txt``."""

from __future__ import annotations

import functools
from pathlib import Path

FILE = Path(__file__).with_name("land_110m.txt")
HUNDREDTHS = 100
"""Units of the path in a degree; x is the longitude, y the latitude downwards."""


@functools.cache
def land_path() -> str:
    """The land as data of an SVG path, of digits, signs and the letters M, l and z."""
    lines = FILE.read_text(encoding="ascii").splitlines()
    return "".join(line for line in lines if not line.startswith("#"))
