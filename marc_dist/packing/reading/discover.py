"""What lies in a download: pictures, masks and label tables told apart by their content and their folders."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from marc_dist.config import DataError
from marc_dist.packing.reading.archive_kinds import is_archive
from marc_dist.packing.reading.masks import MaskRule, is_mask
from marc_dist.packing.reading.names import composed, stem_of, tree_parts
from marc_dist.packing.reading.recipes import Recipe

PICTURES = (".jpg", ".jpeg", ".jfif", ".png", ".tif", ".tiff")
FOREIGN = (".bmp", ".gif", ".webp")  # taken with --to-png only
UNREAD = (
    ".jp2",
    ".j2k",
    ".heic",
    ".avif",
    ".ppm",
    ".npy",
    ".img",
    ".ecw",
    ".sid",
    ".hdf",
    ".h5",
    ".nc",
    ".svs",
    ".jxl",
)
TABLES = (".csv", ".tsv", ".xlsx", ".mat", ".parquet", ".jsonl", ".ndjson", ".geojson")
JUNK_FILES = re.compile(r"(?i)(\..*|thumbs\.db|desktop\.ini|(readme|legend|licen[cs]e)(\.[a-z]+)*)")
JUNK_FOLDERS = ("__macosx", ".git", "@eadir", "lost+found")


@dataclass(frozen=True, slots=True)
class File:
    """A file and the download it belongs to; there may be millions, so it holds nothing that can be told from these.

    Attributes:
        root: folder in which the download begins.
        place: path below it, as the file system has it.
    """

    root: Path
    place: str

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.root / self.place

    @property
    def name(self) -> str:
        """Its last part, as the file system has it."""
        return self.place.rpartition("/")[2]

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders and name below the root, lower case."""
        return tuple(self.origin.lower().split("/"))

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders below the root, as written."""
        return tuple(self.origin.split("/")[:-1])

    @property
    def origin(self) -> str:
        """Place below the root; names that look alike are alike, whichever system wrote them."""
        return composed(self.place)


@dataclass
class DownloadContent:
    """The files of a download, each kind in the order of its paths."""

    pictures: list[File] = field(default_factory=list)
    masks: list[File] = field(default_factory=list)
    tables: list[File] = field(default_factory=list)
    annotations: list[File] = field(default_factory=list)
    lists: list[File] = field(default_factory=list)
    other_tables: list[File] = field(default_factory=list)
    archives: list[File] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    incomplete: list[str] = field(default_factory=list)  # pictures that lack files of bands, and which


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


def walk(roots: Sequence[Path], keep: set[str]) -> Iterator[File]:
    """Every file of a download in the order of its places; system litter is passed over.

    A root that is itself a folder with a meaning, as when each folder is passed alone, keeps its name in the places.

    Args:
        roots: folders, searched to any depth.
        keep: names of folders that mean something, lower case.

    Raises:
        DataError: a name that is not UTF-8, which shards could not tell; a folder that cannot be read.
    """
    for given in roots:
        root, name = content_root(given, keep), ""
        if root.name.lower() in keep:
            root, name = root.parent, f"{root.name}/"
        for place in _below(str(root / name), name):
            if not place.isascii() and place != place.encode(errors="replace").decode():
                raise DataError(f"{root}: {ascii(place)}: a name that is not UTF-8; rename it, as with convmv")
            yield File(root, place)


def _below(folder: str, place: str = "") -> Iterator[str]:
    """The files below a folder in the order of their parts, without litter; links to folders are not followed."""
    folders, names = set(), []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.add(entry.name)
                elif not entry.is_file() or JUNK_FILES.fullmatch(entry.name):
                    continue
                names.append(entry.name)
    except OSError as error:
        raise DataError(f"{folder}: a folder that cannot be read ({error.strerror or error}); see its rights") from None
    names.sort()
    for name in names:
        if name not in folders:
            yield place + name
        elif name.lower() not in JUNK_FOLDERS:
            yield from _below(f"{folder}/{name}", f"{place}{name}/")


def matches(file: File, pattern: str) -> bool:
    """Whether a name, or a path's end, as recipes have it, is this file's; ``*`` stands for any text."""
    parts, own = pattern.lower().replace("[", "[[]").split("/"), file.parts
    return len(own) >= len(parts) and all(map(fnmatchcase, own[-len(parts) :], parts))


def discover(
    recipe: Recipe, roots: Sequence[Path], rule: MaskRule | None = None, *, foreign: bool = False
) -> DownloadContent:
    """Tell pictures, masks and tables apart; system litter and the recipe's list of non-data are passed over.

    Folder names alone do not decide: in older copies of DLRSD the folder ``Images`` holds the masks.

    Args:
        recipe: of the data set.
        roots: folders, searched to any depth.
        rule: how masks are read; without it only their place tells them.
        foreign: take BMP, GIF and WebP for pictures, too.

    Raises:
        DataError: a name that is not UTF-8; shards could not tell it.
    """
    found = DownloadContent()
    keep = kept_folders(recipe)
    groups = _BandFiles(recipe) if recipe.band_files else None
    lists = list(recipe.splits.lists.values())
    taken = PICTURES + FOREIGN if foreign else PICTURES
    for file in walk(roots, keep):
        name = file.parts[-1]
        is_list = any(matches(file, pattern) for pattern in lists)
        found.lists += [file] * is_list
        if any(matches(file, pattern) for pattern in recipe.tables):
            found.tables.append(file)
        elif any(matches(file, pattern) for pattern in recipe.annotations):
            found.annotations.append(file)
        elif is_list or name in recipe.ignore or (groups is not None and groups.take(file)):
            continue
        elif name.endswith(PICTURES + FOREIGN) and _may_be_mask(file, recipe) and _is_mask(file, recipe, rule):
            found.masks.append(file)
        elif name.endswith(taken) and is_picture(file, recipe):
            found.pictures.append(file)
        else:
            if name.endswith(TABLES):
                found.other_tables.append(file)
            kind = file.path.suffix.lower() or name
            found.passed_over[f"{kind} that are not the recipe's pictures" if name.endswith(taken) else kind] += 1
            if is_archive(name):
                found.archives.append(file)
    if groups is not None:
        found.pictures, found.incomplete = groups.pictures()
    order = [pattern.lower() for pattern in recipe.tables]
    found.tables.sort(key=lambda file: next(n for n, pattern in enumerate(order) if matches(file, pattern)))
    return found


class _BandFiles:
    """The pictures of a download in which each band has its own file; complete ones are remembered by one of them.

    Args:
        recipe: names the bands and how the files end.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._ends = [recipe.band_files.replace("{band}", name).lower() for name in recipe.bands]
        self._first: list[File] = []
        self._open: dict[tuple[Path, str], dict[int, File]] = {}  # picture -> its files so far, until it has all

    def _band_of(self, name: str) -> int | None:
        """The number of the band that a file holds, by its name in lower case; None = it is no such file."""
        if not name.endswith((".tif", ".tiff")):
            return None
        stem = stem_of(name)
        fits = [band for band, end in enumerate(self._ends) if stem.endswith(end)]
        return max(fits, key=lambda band: len(self._ends[band]), default=None)

    def take(self, file: File) -> bool:
        """Whether a file holds a band, and its folder lets it be one of a picture; it is then remembered."""
        band, folders = self._band_of(file.parts[-1]), {name.lower() for name in self._recipe.pictures.folders}
        if band is None or (folders and not folders & set(file.parts[:-1])):
            return False
        stem, _, end = file.place.rpartition(".")
        key = (file.root, f"{stem[: len(stem) - len(self._ends[band])]}.{end}")
        there = self._open.setdefault(key, {})
        there[band] = file
        if len(there) == len(self._ends):
            self._first.append(self._open.pop(key)[0])
        return True

    def pictures(self) -> tuple[list[File], list[str]]:
        """The first band's file of every complete picture, and what the others lack."""
        lacking = []
        for (_, place), there in self._open.items():
            names = [name for band, name in enumerate(self._recipe.bands) if band not in there]
            lacking.append(f"{composed(place)} ({', '.join(names)})")
        return sorted(self._first, key=lambda file: file.parts), sorted(lacking)


def kept_folders(recipe: Recipe) -> set[str]:
    """Names of folders that mean something to a recipe, lower case."""
    tiled = recipe.pictures.folders if recipe.tile is not None else ()
    return {name.lower() for name in (*recipe.masks.folders, *recipe.splits.folders.values(), *tiled)}


def is_picture(file: File, recipe: Recipe) -> bool:
    """Whether a file's place and name let it be one of the recipe's pictures."""
    folders = {name.lower() for name in recipe.pictures.folders}
    suffix = recipe.pictures.suffix.lower()
    return (not folders or bool(folders & set(file.parts[:-1]))) and stem_of(file.parts[-1]).endswith(suffix)


def pair_key(recipe: Recipe, file: File, suffix: str = "") -> str:
    """What a picture and its mask have in common: of its place and its name, without the suffix.

    Args:
        recipe: says by what they are paired.
        file: one of the two.
        suffix: what its name ends in beside the other's.
    """
    stem = stem_of(file.name).removesuffix(suffix.lower())
    if recipe.pair_by == "path":
        return "/".join((*file.parts[:-1], stem))
    if recipe.pair_by == "tree":
        dropped = {name.lower() for name in (*recipe.pictures.folders, *recipe.masks.folders)}
        return "/".join((*tree_parts(file.folders, dropped), stem))
    return f"{file.parts[-2]}/{stem}" if recipe.pair_by == "folder_and_name" and len(file.parts) > 1 else stem


def is_mask_by_place(file: File, recipe: Recipe) -> bool:
    """Whether a file's place and name say that it is one of the recipe's masks."""
    return _may_be_mask(file, recipe) and _is_mask(file, recipe, None)


def _may_be_mask(file: File, recipe: Recipe) -> bool:
    """Whether a file's place lets it be a mask: where the recipe says which folders hold pictures, no other tells."""
    return not recipe.pictures.folders or not recipe.masks.folders or not is_picture(file, recipe)


def _is_mask(file: File, recipe: Recipe, rule: MaskRule | None) -> bool:
    folders = {name.lower() for name in recipe.masks.folders}
    if recipe.masks.suffix:
        inside = not folders or bool(folders & set(file.parts[:-1]))
        return inside and stem_of(file.parts[-1]).endswith(recipe.masks.suffix.lower())
    if folders & set(file.parts[:-1]):
        return True
    return rule is not None and file.parts[-1].endswith(".png") and is_mask(file.path, rule)
