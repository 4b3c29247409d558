"""A shard of a folder that is added to: checked, kept as it is, or written anew with some of its samples changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from marc_dist.config import DataError
from marc_dist.files import sync_file
from marc_dist.packing.publish import FULL
from marc_dist.packing.tar import (
    Demands,
    Entry,
    Location,
    Member,
    WrittenShard,
    file_sum,
    glance_at,
    join_parts,
    member,
    write_members,
)


def file_sums(files: Sequence[tuple[Path, ...]]) -> list[str]:
    """The SHA-256 of the files of each picture, one after the other.

    Raises:
        DataError: a file that cannot be read.
    """
    return [file_sum(of_picture) for of_picture in files]


def check_shard(path: Path, sha256: str) -> None:
    """Read a shard.

    Raises:
        DataError: it is not the one that ``dataset.json`` lists.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if found != sha256:
        raise DataError(
            f"{path}: damaged, its SHA-256 differs from dataset.json; nothing was added; put a sound copy there, or "
            "pack all of it again with --force"
        )


def glances(path: Path, rows: Sequence[Location]) -> list[str]:
    """The glances of a shard's samples, taken anew; see ``Location``.

    Args:
        path: of the shard.
        rows: where its samples lie.

    Raises:
        DataError: a picture that cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = []
            for row in rows:
                file.seek(row.offset)
                found.append(glance_at(file.read(row.size), f"{path}: {row.key}"))
            return found
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def keep_shard(old: Path, new: Path, sha256: str) -> None:
    """Give a shard a second name; a copy where the file system has no hard links, or the file lies on another one.

    Args:
        old: the shard.
        new: its second name.
        sha256: of the shard.

    Raises:
        DataError: the copy is not what ``dataset.json`` lists.
        OSError: the disk is full or fails.
    """
    try:
        os.link(old.resolve(), new)
    except OSError as error:
        if error.errno in FULL:
            raise
        shutil.copyfile(old, new)
        sync_file(new)
        check_shard(new, sha256)


def rewrite_shard(
    old: Path, new: Path, samples: Sequence[tuple[Entry, Location | None]], demands: Demands
) -> WrittenShard:
    """Write a shard anew.

    Args:
        old: the shard.
        new: the file to make.
        samples: in order; with its place in ``old``, a picture keeps its bytes; without, it is read from its file.
        demands: what a picture that is read must be.

    Raises:
        DataError: a picture that cannot be packed, or bytes in ``old`` that are not those of the index.
        OSError: the disk is full or fails.
    """
    part = new.with_name(f"{new.name}.000000")
    with old.open("rb") as file:

        def found() -> Iterator[Member]:
            for entry, row in samples:
                if row is None:
                    yield member(entry, demands)
                    continue
                file.seek(row.offset)
                data = file.read(row.size)
                if zlib.crc32(data) != row.crc32:
                    raise DataError(f"{old}: {row.key}: CRC-32 differs from the index; nothing was added")
                yield Member(entry, data, row)

        written = write_members(part, found())
    return join_parts(new, [part], [written])
