"""Where and when one picture was taken, as plain values that packing carries along."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

EARLIEST, LATEST = 1800, 2200
"""Years between which a picture may have been taken; others are a slip or a placeholder."""
FORMATS = ("%Y:%m:%d %H:%M:%S", "%Y:%m:%d", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d", "%Y%m%d%H%M%S", "%Y-%m-%d %H:%M:%S UTC")
"""Ways to write a date besides those of ISO 8601: TIFF's, and what is common in tables."""


class Acquisition(NamedTuple):
    """Where and when a picture was taken; whatever is not known is empty.

    Attributes:
        footprint: WKB of a point, polygon or multi-polygon in WGS84 longitude and latitude.
        date: as ``parse_date`` writes it.
        group: pictures of one group lie in one split: a cell of a grid, a country, a tile.
    """

    footprint: bytes = b""
    date: str = ""
    group: str = ""


UNKNOWN = Acquisition()


def parse_date(text: str) -> str:
    """A date, or a date with a time, as ISO 8601: ``2017-06-13`` or ``2017-06-13T10:10:31Z``.

    A time without a zone is taken as UTC; midnight is left out. Numbers of days or seconds are no dates: nobody could
    tell from what they count.

    Args:
        text: ISO 8601, with or without its marks; TIFF's ``2017:06:13 10:10:31``; ``2017/06/13``.

    Raises:
        ValueError: no such date.
    """
    text = text.strip()
    found = _moment(text)
    if found is None or not EARLIEST <= found.year < LATEST:
        raise ValueError(f"{text[:40]!r} is no date; expected e.g. 2017-06-13 or 2017-06-13T10:10:31Z")
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found
    return shown(milliseconds(found.isoformat()))


def _moment(text: str) -> datetime | None:
    if text.isdigit() and len(text) not in (8, 14):
        return None
    for form in FORMATS:
        try:
            return datetime.strptime(text, form)  # noqa: DTZ007 - a zone is set where one is meant
        except ValueError:
            continue
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def milliseconds(date: str) -> int:
    """Milliseconds from 1970 to a date of ``parse_date``; a day without a time begins at midnight UTC."""
    moment = datetime.fromisoformat(date)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return round(moment.timestamp() * 1000)


def shown(milliseconds_: int) -> str:
    """A date of the index for people: without the time where that is midnight UTC."""
    moment = datetime.fromtimestamp(milliseconds_ / 1000, UTC)
    if milliseconds_ % 86_400_000 == 0:
        return moment.date().isoformat()
    return moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds").replace("+00:00", "Z")
