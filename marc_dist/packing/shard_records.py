"""What an interrupted packing leaves for the next: a record beside each finished shard that proves what is in it.

A record is written by rename after its shard is on disk. It holds a hash of everything that a shard's bytes depend on
(the entries, the options, the versions of the codecs), the hash of each source file as it was read (with its row), and
the hash of the shard. A shard is taken over when all three are found again; so two plans never mix, and nothing
half-written counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from marc_dist import __version__
from marc_dist.files import sync_folder
from marc_dist.packing.tar import Demands, Entry, Location, ShardPart, WrittenShard, codecs, file_sum, join_parts

FOLDER = ".finished"  # inside the folder that is being written
FORMAT = 5
KINDS = {"plan": str, "name": str, "rows": list, "size": int, "sha256": str}  # of a record


def plan_digest(entries: Sequence[Entry], demands: Demands) -> str:
    """Hash of everything that a shard's bytes and facts depend on besides the source files' content."""
    plan = [[entry.key, entry.source_ext, entry.ext, entry.meta] for entry in entries]
    made_with = (*codecs(), version("rasterio")) if demands.named is not None else codecs()
    return hashlib.sha256(json.dumps([FORMAT, __version__, made_with, demands, plan]).encode()).hexdigest()


def record(folder: Path, shard: WrittenShard, plan: str) -> None:
    """Note that a shard is finished and on disk.

    Args:
        folder: where it lies.
        shard: what is in it.
        plan: its ``plan_digest``.
    """
    body = json.dumps({"plan": plan, **shard._asdict()}).encode()
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    temporary = place / f"{shard.name}.new"
    with temporary.open("wb") as file:
        file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(place / f"{shard.name}.json")
    sync_folder(place)


def _load(folder: Path, name: str) -> dict[str, Any] | None:
    """A whole record of a shard that has the size it had."""
    try:
        check, body = (folder / FOLDER / f"{name}.json").read_bytes().split(b"\n", 1)
        if hashlib.sha256(body).hexdigest().encode() != check:
            return None
        noted: dict[str, Any] = json.loads(body)
        if {key: type(noted[key]) for key in KINDS} != KINDS or not all(map(_is_row, noted["rows"])):
            return None
        path = folder / name
        return noted if path.is_file() and not path.is_symlink() and path.stat().st_size == noted["size"] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_row(row: Any) -> bool:
    kinds = [type(value) for value in row] if isinstance(row, list) else []
    return kinds == [str, int, int, int, int, int, str, str, str]


def take_over(path: Path, entries: Sequence[Entry], plan: str) -> WrittenShard | None:
    """A left-over shard, if it holds what a new one would: every byte of it and of its sources is read.

    Otherwise None, and it is removed.

    Args:
        path: of the shard.
        entries: what belongs into it.
        plan: its ``plan_digest``.

    Raises:
        DataError: a source file that cannot be read.
    """
    noted = _load(path.parent, path.name)
    if noted is not None and noted["plan"] == plan and noted["name"] == path.name:
        with path.open("rb") as file:
            sound = hashlib.file_digest(file, "sha256").hexdigest() == noted["sha256"]
        rows = [Location(*row) for row in noted["rows"]]
        if sound and [file_sum(entry.files) for entry in entries] == [row.source for row in rows]:
            return WrittenShard(path.name, rows, noted["size"], noted["sha256"])
    forget(path.parent, path.name)
    return None


def finish(path: Path, files: Sequence[Path], parts: Sequence[ShardPart], plan: str) -> WrittenShard:
    """Join a shard's parts and note that it is finished.

    Args:
        path: of the new shard.
        files: the parts' files in order.
        parts: what is in them.
        plan: its ``plan_digest``.

    Raises:
        OSError: the disk is full or fails.
    """
    shard = join_parts(path, files, parts)
    record(path.parent, shard, plan)
    return shard


def left_over(folder: Path) -> dict[str, int]:
    """Names and sizes of the shards that have a whole record."""
    names = [path.name.removesuffix(".json") for path in (folder / FOLDER).glob("*.json")]
    return {name: int(noted["size"]) for name in sorted(names) if (noted := _load(folder, name))}


def sweep(folder: Path) -> None:
    """Remove everything but finished shards and their records."""
    if (folder / FOLDER).is_symlink():
        remove(folder / FOLDER)
    names = left_over(folder)
    kept = {folder / name for name in names} | {folder / FOLDER / f"{name}.json" for name in names}
    for path in [*folder.iterdir(), *(folder / FOLDER).glob("*")]:
        if path in kept or (path == folder / FOLDER and names):
            continue
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def forget(folder: Path, name: str | None = None) -> None:
    """Remove a shard with its record, the record first; or, without a name, all records."""
    if name is None:
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
    else:
        remove(folder / FOLDER / f"{name}.json")
        remove(folder / name)
