"""What lies in a download: pictures, masks and label tables told apart by their content and their folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from marc_dist.data.masks import is_mask
from marc_dist.data.recipes import Recipe

PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
JUNK_FILES = re.compile(r"(?i)(\._.*|\.ds_store|thumbs\.db|desktop\.ini|readme.*|legend\..*|license.*|\..*)")
JUNK_FOLDERS = ("__macosx", ".git", "@eadir")


@dataclass(frozen=True)
class File:
    """A file and the download it belongs to."""

    root: Path
    path: Path

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders and name below the root, lower case."""
        return tuple(part.lower() for part in self.path.relative_to(self.root).parts)

    @property
    def origin(self) -> str:
        """Place below the root."""
        return self.path.relative_to(self.root).as_posix()


@dataclass
class Found:
    """The files of a download, each kind in the order of its paths."""

    pictures: list[File] = field(default_factory=list)
    masks: list[File] = field(default_factory=list)
    tables: list[File] = field(default_factory=list)


def discover(recipe: Recipe, roots: Sequence[Path]) -> Found:
    """Tell pictures, masks and tables apart; system litter and the recipe's list of non-data are passed over.

    Folder names alone do not decide: in older copies of DLRSD the folder ``Images`` holds the masks.
    """
    found = Found()
    tables = [name.lower() for name in recipe.tables]
    folders = {name.lower() for name in recipe.masks.folders}
    masked = "masks" in recipe.labels
    for root in roots:
        for path in sorted(root.rglob("*")):
            file = File(root, path)
            if not path.is_file() or set(file.parts[:-1]) & set(JUNK_FOLDERS):
                continue
            name = file.parts[-1]
            if name in tables:
                found.tables.append(file)
            elif JUNK_FILES.fullmatch(name) or name in recipe.ignore or not name.endswith(PICTURES):
                continue
            elif masked and name.endswith(".png") and (set(file.parts[:-1]) & folders or is_mask(path)):
                found.masks.append(file)
            else:
                found.pictures.append(file)
    found.tables.sort(key=lambda file: tables.index(file.parts[-1]))
    return found
