"""What lies in an unknown folder, before anybody knows what it means; and what a recognised layout is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from marc_dist.packing.reading.discover import FOREIGN, PICTURES, File, walk
from marc_dist.packing.reading.names import stem_of

TABLES = (".csv", ".tsv", ".xlsx", ".parquet", ".jsonl", ".ndjson", ".txt")


IMAGE_LEVEL = "packed as image-level sets"


@dataclass(frozen=True)
class Layout:
    """A layout that fits.

    Attributes:
        kind: where its labels come from, as in a recipe's ``labels``.
        seen: what was seen, in words.
        recipe: keys of the recipe that packs it.
        splits: which splits there are, in words.
        packed: how it is packed, in words; empty = goes without saying.
        unclear: what could be meant as well; it is then not packed without a recipe. Empty = plain.
        remedy: what to do where it is unclear; empty = look at it with ``--inspect``.
        settled: ``--labels`` with its kind leaves no doubt.
        notes: what else was seen, for a person.
    """

    kind: str
    seen: str
    recipe: dict[str, Any]
    splits: str = ""
    packed: str = ""
    unclear: str = ""
    remedy: str = ""
    settled: bool = False
    notes: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """All of it in one line."""
        return self.told(self.splits)

    def told(self, splits: str) -> str:
        """The same with other words about the splits."""
        return f"{self.seen}{f', {splits}' if splits else ''}{f'; {self.packed}' if self.packed else ''}"


@dataclass
class Tree:
    """The files of a download by kind, each in the order of its places; system litter is left out."""

    roots: Sequence[Path]
    pictures: list[File] = field(default_factory=list)
    foreign: list[File] = field(default_factory=list)
    tables: list[File] = field(default_factory=list)
    jsons: list[File] = field(default_factory=list)
    xmls: list[File] = field(default_factory=list)
    others: list[File] = field(default_factory=list)

    @cached_property
    def stems(self) -> frozenset[str]:
        """Names of the pictures, lower case, no extension."""
        return frozenset(stem_of(file.name) for file in self.pictures)

    @property
    def texts(self) -> list[File]:
        """Plain text files."""
        return [file for file in self.tables if file.path.suffix.lower() == ".txt"]

    def kinds(self) -> Counter[str]:
        """Extension -> files."""
        files = [*self.pictures, *self.foreign, *self.tables, *self.jsons, *self.xmls, *self.others]
        return Counter(file.path.suffix.lower() or file.name for file in files)


def survey(roots: Sequence[Path], *, foreign: bool = False) -> Tree:
    """Every file of a download.

    Args:
        roots: folders, searched to any depth.
        foreign: BMP, GIF and WebP are pictures, too.

    Raises:
        DataError: a name that is not UTF-8.
    """
    tree = Tree(roots)
    for file in walk(roots, set()):
        name = file.parts[-1]
        place = (
            tree.pictures if name.endswith(PICTURES + FOREIGN if foreign else PICTURES)
            else tree.foreign if name.endswith(FOREIGN)
            else tree.tables if name.endswith(TABLES)
            else tree.jsons if name.endswith(".json")
            else tree.xmls if name.endswith(".xml")
            else tree.others
        )  # fmt: skip
        place.append(file)
    return tree


def spread(files: Sequence[File], num: int) -> list[File]:
    """At most ``num`` of the files, evenly spaced."""
    return list(files[:: -(-len(files) // num)]) if len(files) > num else list(files)
