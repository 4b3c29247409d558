"""Files that list the pictures of a split: a text, a table, a COCO file; and which picture each name means."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from marc_dist.config import DataError
from marc_dist.packing.reading.columns import Columns, find_columns
from marc_dist.packing.reading.names import name_of, split_word, stem_of
from marc_dist.packing.reading.sheets import decoded, load_json, read_rows


def listed_names(path: Path, stems: Collection[str]) -> list[str]:
    """The pictures that a file names, as ``name_of`` writes them.

    Args:
        path: a list, a table or a COCO file.
        stems: names of the pictures, which tell names from other words.

    Raises:
        DataError: cannot be read.
    """
    if path.suffix.lower() == ".json":
        content = load_json(path)
        images = content.get("images") if isinstance(content, dict) else content
        found = [one.get("file_name") if isinstance(one, dict) else one for one in images or ()]
        return [name_of(name) for name in found if isinstance(name, str)]
    if path.suffix.lower() in (".txt", ".lst", ".list"):
        try:
            lines = [line.strip() for line in decoded(path.read_bytes()).splitlines() if line.strip()]
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
        if sum(stem_of(line) in stems for line in lines) * 2 >= len(lines):
            return [name_of(line) for line in lines]
        words = [line.replace(",", " ").replace(";", " ").replace("\t", " ").split() for line in lines]
        names = [name_of(word[0]) for word in words if word]
        return names[1:] if names and stem_of(names[0]) not in stems and "." not in names[0] else names
    rows = read_rows(path)
    if not rows:
        return []
    if len(rows[0].cells) == 1:
        names = list(map(name_of, rows.column(0)))
        return names[1:] if stem_of(names[0]) not in stems else names
    shape = find_columns(path, rows, Columns(), stems, labels=False)
    return list(map(name_of, shape.body.column(shape.image)))


def pictures_named(
    place: str, names: Iterable[str], pictures: Collection[str], split: str | None = None
) -> tuple[str, ...]:
    """Which picture each name means when names repeat: its path ends in the name, or the name ends in its whole path.

    A name that fits no picture stays as it is.

    Args:
        place: of the names, for messages.
        names: as ``name_of`` writes them.
        pictures: keys, folders included.
        split: of the names; where one fits several pictures, those in a folder of this split are meant.

    Raises:
        DataError: a name fits several pictures.
    """
    names = list(names)
    ending: dict[str, str | list[str]] = dict.fromkeys(names, "")
    for key in pictures:
        for end in _endings(key):
            other = ending.get(end)
            if other is not None:  # one in most cases: a list for each would take more than all the names
                ending[end] = [*([other] if isinstance(other, str) else other), key] if other else key
    keys = []
    for name in names:
        found = ending[name]
        if not found:
            found = next((end for end in _endings(name) if end in pictures), name)
        if isinstance(found, str):
            keys.append(found)
            continue
        fits = found
        if split is not None:
            fits = [key for key in fits if split in map(split_word, key.split("/")[:-1])] or fits
        if len(fits) > 1:
            raise DataError(
                f"{place}: {name!r} fits {len(fits)} pictures, such as {fits[0]} and {fits[1]}; write their folders too"
            )
        keys.append(fits[0])
    return tuple(keys)


def _endings(path: str) -> list[str]:
    """``a/b/c`` -> ``a/b/c``, ``b/c``, ``c``."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def split_of_lists(lists: Mapping[str, tuple[str, Iterable[str]]]) -> dict[str, str]:
    """Picture -> split.

    Args:
        lists: split -> the list's place, and its pictures.

    Raises:
        DataError: a picture in two lists.
    """
    chosen: dict[str, str] = {}
    for split, (place, keys) in lists.items():
        for key in keys:
            if chosen.setdefault(key, split) != split:
                raise DataError(f"{place}: {key} stands in the list of {chosen[key]}, too; a picture has one split")
    return chosen


def one_split(name: str) -> str:
    """The split that a cell of a table names: ``Train`` is train, ``validation`` is val; other words in lower case."""
    return split_word(name) or name.strip().lower()
