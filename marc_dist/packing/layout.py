"""Which picture goes into which shard under which key: decided before a byte is written, and by names alone."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import overload

from marc_dist.config import DataError
from marc_dist.packing.bands.plan import band_files
from marc_dist.packing.compact import Compact
from marc_dist.packing.reading.recipes import Recipe
from marc_dist.packing.reading.samples import LabelledPicture, Source
from marc_dist.packing.tar import Entry

EXTENSIONS = {
    ".jpg": "jpg", ".jpeg": "jpg", ".jfif": "jpg", ".png": "png", ".tif": "tif", ".tiff": "tif", ".bmp": "bmp",
    ".gif": "gif", ".webp": "webp",
}  # fmt: skip
KEY_BYTES = 80  # leaves room for the extension in ustar's 100
SPLIT_ORDER = ("train", "val", "test")

Pair = tuple[LabelledPicture, Entry]
Pairs = Sequence[Pair]


def safe_keys(origins: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """Keys of pictures: ASCII, no dots or slashes (a dot silently merges samples in WebDataset), unique in any case.

    A name that occurs once is the key; names that repeat get their folder before them; what still clashes, or is too
    long, gets a hash of its place.

    Args:
        origins: places of the pictures inside the download.
        taken: keys that others have.

    Raises:
        DataError: one place twice.
    """
    keys = [_plain(_stem(origin)) for origin in origins]
    for parents in (False, True):
        several = _several(keys, taken)
        for row, key in enumerate(keys):
            if key.lower() in several and not parents:
                folder = origins[row].rpartition("/")[0].rpartition("/")[2]
                keys[row] = _plain(f"{folder}_{_stem(origins[row])}")
            elif key.lower() in several or len(key) > KEY_BYTES:
                digest = hashlib.sha256(origins[row].encode()).hexdigest()[:12]
                keys[row] = f"{key[: KEY_BYTES - 13]}_{digest}"
    twice = _several(keys, taken)
    if twice:
        raise DataError(f"two pictures of one place (key {min(twice)}); pass each download once")
    return keys


def _stem(origin: str) -> str:
    """The name of a file without its extension."""
    name = origin.rpartition("/")[2]
    dot = name.rfind(".")
    return name[:dot] if 0 < dot < len(name) - 1 else name


def _several(keys: Sequence[str], taken: Collection[str]) -> set[str]:
    """The keys, in lower case, that occur more than once or are taken."""
    seen = {key.lower() for key in taken}
    several = set()
    for key in map(str.lower, keys):
        if key in seen:
            several.add(key)
        seen.add(key)
    return several


def _plain(name: str) -> str:
    text = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_") or "sample"


def sample_json(classes: Sequence[str], labels: Iterable[int], scene: str, origin: str) -> dict[str, object]:
    """What a sample's JSON says.

    Args:
        classes: names in order.
        labels: class numbers, ascending.
        scene: or empty.
        origin: place of the picture inside the download.
    """
    return {"labels": [classes[label] for label in labels], "scene": scene, "path": origin}


def plan_entries(source: Source, *, to_png: bool, known: Mapping[str, str] | None = None) -> dict[str, Pairs]:
    """Split -> its samples in key order, with the one image extension that the whole data set gets.

    Args:
        source: what was found.
        to_png: store every picture as PNG, whatever it was.
        known: place -> key of pictures that keep theirs, whether they are among the source's or not.

    Raises:
        DataError: pictures of several kinds, or names that clash.
    """
    known = known or {}
    origins = [sample.origin for sample in source.samples]
    new = sorted((row for row, origin in enumerate(origins) if origin not in known), key=origins.__getitem__)
    kinds = Counter(_kind(origin) for origin in origins)
    bands = source.recipe.bands
    if bands and (to_png or set(kinds) - {"tif"}):
        got = "--to-png" if to_png else ", ".join(f"{num} {kind}" for kind, num in sorted(kinds.items()))
        raise DataError(f"{source.recipe.title}: expected TIFFs, which keep the bands {', '.join(bands)}, got {got}")
    as_png = set(EXTENSIONS.values()) if to_png else {"tif"} if source.recipe.tif == "png" and not bands else set()
    stored = {"png" if kind in as_png else kind for kind in kinds}
    if len(stored) > 1:
        named = " and ".join(f"{num} {kind}" for kind, num in sorted(kinds.items()))
        raise DataError(f"pictures of several kinds ({named}); expected one, or pass --to-png to store all as PNG")
    names = [_named_by(source.recipe, origins[row]) for row in new]
    keys = dict(zip(new, safe_keys(names, known.values()), strict=True))
    keys |= {row: known[origin] for row, origin in enumerate(origins) if origin in known}
    rows: dict[str, list[int]] = defaultdict(list)
    for row, sample in enumerate(source.samples):
        rows[sample.split].append(row)
    return {
        split: PlannedSplit(source, sorted(rows[split], key=keys.__getitem__), keys, as_png)
        for split in sorted(rows, key=split_order)
    }


def _named_by(recipe: Recipe, origin: str) -> str:
    """What a picture's key is made of: its place, of one file a band without the name of the band."""
    if not recipe.band_files:
        return origin
    stem, dot, end = origin.rpartition(".")
    return stem[: len(stem) - len(recipe.pictures.suffix)] + dot + end


class PlannedSplit(Sequence[tuple[LabelledPicture, Entry]]):
    """The samples of a split in key order, each made when it is asked for.

    Args:
        source: of the samples.
        rows: which of its samples, in order.
        keys: of all of its samples.
        as_png: kinds of pictures that are stored as PNG.
    """

    def __init__(self, source: Source, rows: Sequence[int], keys: Mapping[int, str], as_png: Collection[str]) -> None:
        self._classes, self._as_png, self._recipe = source.classes, as_png, source.recipe
        self._samples = source.samples.take(rows)
        self._keys: Compact[str] = Compact(keys[row] for row in rows)

    def _entry(self, sample: LabelledPicture, key: str) -> Entry:
        kind = _kind(sample.origin)
        meta = sample_json(self._classes, sample.labels, sample.scene, sample.origin)
        others = band_files(self._recipe, sample.file)
        return Entry(sample.file, key, kind, "png" if kind in self._as_png else kind, meta, others)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[tuple[LabelledPicture, Entry]]:
        return ((sample, self._entry(sample, key)) for sample, key in zip(self._samples, self._keys, strict=True))

    @overload
    def __getitem__(self, item: int) -> tuple[LabelledPicture, Entry]: ...
    @overload
    def __getitem__(self, item: slice) -> list[tuple[LabelledPicture, Entry]]: ...
    def __getitem__(self, item: int | slice) -> tuple[LabelledPicture, Entry] | list[tuple[LabelledPicture, Entry]]:
        if isinstance(item, slice):
            some = zip(self._samples[item], self._keys[item], strict=True)
            return [(sample, self._entry(sample, key)) for sample, key in some]
        sample = self._samples[item]
        return sample, self._entry(sample, self._keys[item])


def _kind(origin: str) -> str:
    return EXTENSIONS["." + origin.rpartition(".")[2].lower()]


def split_order(name: str) -> tuple[int, str]:
    """Splits in the order in which they are shown: train, val, test, others by name."""
    return SPLIT_ORDER.index(name) if name in SPLIT_ORDER else len(SPLIT_ORDER), name


def cut(pairs: Pairs, samples_per_shard: int, shard_mb: float | None) -> Iterator[range]:
    """The places of each shard's samples in turn; a shard holds at least one sample.

    Args:
        pairs: of one split, in order of keys.
        samples_per_shard: the most samples of a shard.
        shard_mb: the most megabytes (10^6 bytes) of picture files, as they lie in the download; None = no limit.
    """
    if shard_mb is None:
        for start in range(0, len(pairs), samples_per_shard):
            yield range(start, min(start + samples_per_shard, len(pairs)))
        return
    start, size = 0, 0
    for place, (_, entry) in enumerate(pairs):
        more = sum(file.stat().st_size for file in entry.files)
        if place > start and (place - start == samples_per_shard or size + more > shard_mb * 1e6):
            yield range(start, place)
            start, size = place, 0
        size += more
    if start < len(pairs):
        yield range(start, len(pairs))
