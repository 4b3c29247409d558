"""Which picture goes into which shard under which key: decided before a byte is written, and by names alone."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from marc_dist.config import DataError
from marc_dist.packing.reading.samples import LabelledPicture, Source
from marc_dist.packing.tar import Entry

EXTENSIONS = {
    ".jpg": "jpg", ".jpeg": "jpg", ".jfif": "jpg", ".png": "png", ".tif": "tif", ".tiff": "tif", ".bmp": "bmp",
    ".gif": "gif", ".webp": "webp",
}  # fmt: skip
KEY_BYTES = 80  # leaves room for the extension in ustar's 100
SPLIT_ORDER = ("train", "val", "test")

Pairs = list[tuple[LabelledPicture, Entry]]


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
    others = Counter(key.lower() for key in taken)
    paths = [PurePosixPath(origin) for origin in origins]
    keys = [_plain(path.stem) for path in paths]
    for parents in (False, True):
        num = Counter(key.lower() for key in keys)
        num.update(others)
        for row, path in enumerate(paths):
            if num[keys[row].lower()] > 1 and not parents:
                keys[row] = _plain(f"{path.parent.name}_{path.stem}")
            elif num[keys[row].lower()] > 1 or len(keys[row]) > KEY_BYTES:
                digest = hashlib.sha256(origins[row].encode()).hexdigest()[:12]
                keys[row] = f"{keys[row][: KEY_BYTES - 13]}_{digest}"
    others.update(key.lower() for key in keys)
    twice = [key for key, num in others.items() if num > 1]
    if twice:
        raise DataError(f"two pictures of one place (key {twice[0]}); pass each download once")
    return keys


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
    samples = sorted(source.samples, key=lambda sample: sample.origin)
    kinds = Counter(EXTENSIONS[sample.file.suffix.lower()] for sample in samples)
    as_png = set(EXTENSIONS.values()) if to_png else {"tif"} if source.recipe.tif == "png" else set()
    stored = {"png" if kind in as_png else kind for kind in kinds}
    if len(stored) > 1:
        named = " and ".join(f"{num} {kind}" for kind, num in sorted(kinds.items()))
        raise DataError(f"pictures of several kinds ({named}); expected one, or pass --to-png to store all as PNG")
    splits: dict[str, Pairs] = defaultdict(list)
    known = known or {}
    new = iter(safe_keys([sample.origin for sample in samples if sample.origin not in known], known.values()))
    for sample in samples:
        key = known[sample.origin] if sample.origin in known else next(new)
        kind = EXTENSIONS[sample.file.suffix.lower()]
        meta = sample_json(source.classes, sample.labels, sample.scene, sample.origin)
        entry = Entry(sample.file, key, kind, "png" if kind in as_png else kind, meta)
        splits[sample.split].append((sample, entry))
    return {name: sorted(splits[name], key=lambda pair: pair[1].key) for name in sorted(splits, key=split_order)}


def split_order(name: str) -> tuple[int, str]:
    """Splits in the order in which they are shown: train, val, test, others by name."""
    return SPLIT_ORDER.index(name) if name in SPLIT_ORDER else len(SPLIT_ORDER), name


def cut(pairs: Pairs, samples_per_shard: int, shard_mb: float | None) -> Iterator[list[Entry]]:
    """The entries of each shard in turn; a shard holds at least one sample.

    Args:
        pairs: of one split, in order of keys.
        samples_per_shard: the most samples of a shard.
        shard_mb: the most megabytes (10^6 bytes) of picture files, as they lie in the download; None = no limit.
    """
    part: list[Entry] = []
    size = 0
    for _, entry in pairs:
        more = entry.file.stat().st_size if shard_mb is not None else 0
        if part and (len(part) == samples_per_shard or (shard_mb is not None and size + more > shard_mb * 1e6)):
            yield part
            part, size = [], 0
        part.append(entry)
        size += more
    if part:
        yield part
