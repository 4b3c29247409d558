"""What is known about where and when each picture was taken, and what could not be told, a line for each kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

SHOWN = 3


class Known(NamedTuple):
    """What is known about one picture; empty where nothing is.

    Attributes:
        footprint: WKB.
        date: as ``parse_date`` writes it.
        scene: that the picture was cut from.
        group: what its splits are drawn by, when that is a column.
        spot: WKB of what a table's ``lat`` and ``lon`` say, which counts where nothing says more.
    """

    footprint: bytes = b""
    date: str = ""
    scene: str = ""
    group: str = ""
    spot: bytes = b""

    def or_else(self, other: Known) -> Known:
        """What is known, and of the rest what another says."""
        return Known(
            self.footprint or other.footprint,
            self.date or other.date,
            self.scene or other.scene,
            self.group or other.group,
            self.spot or other.spot,
        )


class Faults:
    """Pictures about which something could not be told, by kind of fault; all of them are packed."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, where: str) -> None:
        """Note a fault.

        Args:
            kind: of fault, as people read it.
            where: the picture, and what is wrong with this one.
        """
        self._found[kind].append(where)

    def lines(self) -> list[str]:
        """A line for each kind: how many, and the first of them."""
        return [f"{kind}: {len(where)} pictures: {shown(where)}" for kind, where in self._found.items()]


def shown(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
