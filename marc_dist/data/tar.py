"""One shard: plain ustar, written so that equal samples give equal bytes, and remembered where each image lies."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from marc_dist.config import DataError
from marc_dist.data.decode import decode_rgb

BLOCK = 512
RECORD = tarfile.RECORDSIZE
FORMATS = {"jpg": ("JPEG", "MPO"), "png": ("PNG",), "tif": ("TIFF",)}


class Entry(NamedTuple):
    """One sample to be written: where its picture lies, what it is called, what its JSON says."""

    file: Path
    key: str
    source_ext: str
    ext: str
    meta: dict[str, object]


class Row(NamedTuple):
    """Where a sample came to lie."""

    key: str
    offset: int
    size: int
    crc32: int
    width: int
    height: int
    pixels: str


class Shard(NamedTuple):
    """A finished shard."""

    name: str
    rows: list[Row]
    size: int
    sha256: str


def header(name: str, size: int) -> bytes:
    """A ustar header that holds nothing of the writer: owner, time and rights are fixed."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o444, 0
    return info.tobuf(tarfile.USTAR_FORMAT)


class _Writer:
    """Counts and hashes what goes into the file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.offset = 0
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.offset += len(data)

    def member(self, name: str, data: bytes) -> int:
        """Append a member; the offset of its content."""
        self.write(header(name, len(data)))
        start = self.offset
        self.write(data + bytes(-len(data) % BLOCK))
        return start


def picture(entry: Entry, size: tuple[int, int] | None) -> tuple[bytes, Image.Image]:
    """A picture's bytes as they will be stored, and its decoded pixels; every picture is decoded once while packing.

    Args:
        entry: which.
        size: the width and height that it must have, if any.

    Raises:
        DataError: cannot be read, damaged, of another kind than its name says, or of another size.
    """
    try:
        data = entry.file.read_bytes()
    except OSError as error:
        raise DataError(f"{entry.file}: cannot be read ({error.strerror})") from None
    image = decode_rgb(data, str(entry.file))
    with Image.open(io.BytesIO(data)) as raw:
        if raw.format not in FORMATS[entry.source_ext]:
            raise DataError(f"{entry.file}: holds {raw.format}, not what its name says; rename it")
    if size is not None and image.size != size:
        raise DataError(
            f"{entry.file}: expected {size[0]}x{size[1]} pixels, got {image.width}x{image.height}; resize it, or go on "
            "with --allow size"
        )
    if entry.ext != entry.source_ext:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        data = buffer.getvalue()
    return data, image


def write_shard(
    path: Path,
    entries: Sequence[Entry],
    size: tuple[int, int] | None = None,
    tick: Callable[[int], None] | None = None,
) -> Shard:
    """Write one shard, flushed to disk: KEY.ext, KEY.json, KEY.ext, ...

    Args:
        path: of the new file.
        entries: its samples in order.
        size: see ``picture``.
        tick: called with the bytes of each picture written.

    Raises:
        DataError: a picture that cannot be packed.
        OSError: the disk is full or fails.
    """
    rows: list[Row] = []
    with path.open("xb") as file:
        writer = _Writer(file)
        for entry in entries:
            data, image = picture(entry, size)
            offset = writer.member(f"{entry.key}.{entry.ext}", data)
            text = json.dumps(entry.meta, ensure_ascii=False, separators=(", ", ": "))
            writer.member(f"{entry.key}.json", text.encode())
            pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
            rows.append(Row(entry.key, offset, len(data), zlib.crc32(data), image.width, image.height, pixels))
            if tick is not None:
                tick(len(data))
        writer.write(bytes(2 * BLOCK))
        writer.write(bytes(-writer.offset % RECORD))
        file.flush()
        os.fsync(file.fileno())
    return Shard(path.name, rows, writer.offset, writer.digest.hexdigest())
