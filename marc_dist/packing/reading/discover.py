"""What lies in a download: pictures, masks and label tables told apart by their content and their folders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from marc_dist.config import DataError
from marc_dist.packing.reading.masks import MaskRule, is_mask
from marc_dist.packing.reading.recipes import Recipe

PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
TABLES = (".csv", ".tsv", ".xlsx", ".mat")
JUNK_FILES = re.compile(r"(?i)(\..*|thumbs\.db|desktop\.ini|(readme|legend|licen[cs]e)(\.[a-z]+)*)")
JUNK_FOLDERS = ("__macosx", ".git", "@eadir")


@dataclass(frozen=True)
class File:
    """A file and the download it belongs to."""

    root: Path
    path: Path

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Folders and name below the root, lower case."""
        return tuple(self.origin.lower().split("/"))

    @cached_property
    def origin(self) -> str:
        """Place below the root."""
        return self.path.relative_to(self.root).as_posix()


@dataclass
class DownloadContent:
    """The files of a download, each kind in the order of its paths."""

    pictures: list[File] = field(default_factory=list)
    masks: list[File] = field(default_factory=list)
    tables: list[File] = field(default_factory=list)
    other_tables: list[File] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def content_root(root: Path, keep: set[str]) -> Path:
    """The folder in which a download begins: archives and copies often wrap it into one or two more.

    Args:
        root: what the person named.
        keep: names of folders that mean something, lower case.
    """
    while True:
        inside = [path for path in root.iterdir() if not _is_junk(path)]
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].name.lower() in keep:
            return root
        if not any(path.is_dir() for path in inside[0].iterdir() if not _is_junk(path)):
            return root
        root = inside[0]


def _is_junk(path: Path) -> bool:
    return bool(JUNK_FILES.fullmatch(path.name)) or path.name.lower() in JUNK_FOLDERS


def discover(recipe: Recipe, roots: Sequence[Path], rule: MaskRule | None = None) -> DownloadContent:
    """Tell pictures, masks and tables apart; system litter and the recipe's list of non-data are passed over.

    Folder names alone do not decide: in older copies of DLRSD the folder ``Images`` holds the masks.

    Args:
        recipe: of the data set.
        roots: folders, searched to any depth.
        rule: how masks are read, for sets that have some.

    Raises:
        DataError: a name that is not UTF-8; shards could not tell it.
    """
    found = DownloadContent()
    tables = [name.lower() for name in recipe.tables]
    folders = {name.lower() for name in recipe.masks.folders}
    keep = folders | {name.lower() for name in recipe.splits.folders.values()}
    for given in roots:
        root = content_root(given, keep)
        for path in sorted(root.rglob("*")):
            file = File(root, path)
            name = file.parts[-1]
            if not path.is_file() or set(file.parts[:-1]) & set(JUNK_FOLDERS):
                continue
            if not file.origin.isascii() and file.origin != file.origin.encode(errors="replace").decode():
                raise DataError(f"{root}: {ascii(file.origin)}: a name that is not UTF-8; rename it, as with convmv")
            if name in tables:
                found.tables.append(file)
            elif JUNK_FILES.fullmatch(name) or name in recipe.ignore:
                continue
            elif not name.endswith(PICTURES):
                if name.endswith(TABLES):
                    found.other_tables.append(file)
                found.passed_over[path.suffix.lower() or name] += 1
            elif rule and name.endswith(".png") and (set(file.parts[:-1]) & folders or is_mask(path, rule)):
                found.masks.append(file)
            else:
                found.pictures.append(file)
    found.tables.sort(key=lambda file: tables.index(file.parts[-1]))
    return found
