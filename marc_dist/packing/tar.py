"""One shard: plain ustar, written so that equal samples give equal bytes, and remembered where each image lies.

A shard is written in parts, runs of its samples, by as many processes as there are, and then joined.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from marc_dist.config import DataError
from marc_dist.data.decode import ROWS, Examined, decode_rgb, examine

BLOCK = 512
RECORD = tarfile.RECORDSIZE
FORMATS = {"jpg": ("JPEG", "MPO"), "png": ("PNG",), "tif": ("TIFF",)}
BUFFER = 1 << 20
_encode = json.JSONEncoder(ensure_ascii=False, separators=(", ", ": ")).encode


class _Member(tarfile.TarInfo):
    """A member of somebody's tar, whose extra headers (long names and the like) are not read when they are huge."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type not in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE) and not 0 <= self.size <= BUFFER:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]


def members(source: Path | BinaryIO, mode: Literal["r:", "r:*"]) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members of a tar that anybody may have made, each with the opened tar; the walk always comes to an end.

    Args:
        source: the file, or its path.
        mode: ``r:*`` for a tar that may be compressed.

    Raises:
        Exception: of any kind, as ``tarfile`` has it, for a damaged one.
    """
    path, file = (source, None) if isinstance(source, Path) else (None, source)
    with tarfile.open(path, mode, fileobj=file, tarinfo=_Member) as tar:
        end = 0
        for member in tar:
            if member.size < 0 or tar.offset <= end:
                raise tarfile.ReadError("its members do not follow one another")
            end = tar.offset
            yield tar, member
        assert tar.fileobj is not None
        tar.fileobj.seek(end)
        if tar.fileobj.read(BLOCK).strip(b"\0"):  # else taken for the end
            raise tarfile.ReadError(f"a header is damaged, at byte {end}")


class Entry(NamedTuple):
    """One sample to be written: where its picture lies, what it is called, what its JSON says."""

    file: Path
    key: str
    source_ext: str
    ext: str
    meta: dict[str, object]


class Location(NamedTuple):
    """Where a sample came to lie. ``glance`` is the same for equal pixels, and rarely for others."""

    key: str
    offset: int
    size: int
    crc32: int
    width: int
    height: int
    glance: str


class ShardPart(NamedTuple):
    """A finished part; offsets count from its start. ``sources``: the SHA-256 of each file as it was read."""

    rows: list[Location]
    sources: list[str]


class WrittenShard(NamedTuple):
    """A finished shard."""

    name: str
    rows: list[Location]
    size: int
    sha256: str


@functools.cache
def _blank() -> bytes:
    """A ustar header that holds nothing of the writer: owner, time and rights are fixed; no name, no size."""
    info = tarfile.TarInfo("")
    info.mode, info.mtime = 0o444, 0
    return info.tobuf(tarfile.USTAR_FORMAT)


@functools.cache
def _blank_sum() -> int:
    return sum(_blank()[:148]) + 8 * ord(" ") + sum(_blank()[156:])


def header(name: str, size: int) -> bytes:
    """A ustar header; what ``tarfile`` writes, ten times faster."""
    text, octal = name.encode("ascii"), b"%011o" % size
    if len(text) > 100 or len(octal) > 11:
        raise DataError(f"{name}: expected at most 100 characters and 8 GiB, got {len(text)} and {size} bytes")
    blank = _blank()
    total = _blank_sum() + sum(text) + sum(octal) - 11 * ord("0")
    return b"".join((text, blank[len(text) : 124], octal, blank[135:148], b"%06o\0 " % total, blank[156:]))


def picture(entry: Entry, size: tuple[int, int] | None) -> tuple[bytes, bytes, Examined]:
    """A picture's bytes as they are, as they will be stored, and decoded: all of them are looked at while packing.

    Args:
        entry: which.
        size: the width and height that it must have, if any.

    Raises:
        DataError: cannot be read, damaged, of another kind than its name says, or of another size.
    """
    data = read(entry.file)
    found = examine(data, str(entry.file), reduced=entry.ext == entry.source_ext)
    if found.format not in FORMATS[entry.source_ext]:
        raise DataError(f"{entry.file}: holds {found.format}, not what its name says; rename it")
    if size is not None and found.size != size:
        raise DataError(
            f"{entry.file}: expected {size[0]}x{size[1]} pixels, got {found.size[0]}x{found.size[1]}; resize it, or go "
            "on with --allow size"
        )
    if entry.ext == entry.source_ext:
        return data, data, found
    buffer = io.BytesIO()
    found.image.convert("RGB").save(buffer, "PNG")
    return data, buffer.getvalue(), found


def read(file: Path) -> bytes:
    """A source file's content.

    Raises:
        DataError: cannot be read.
    """
    try:
        with open(file, "rb", buffering=0) as opened:  # noqa: PTH123 - half the time of Path.read_bytes
            return opened.read()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None


def _glance(found: Examined) -> str:
    """A few pixels, hashed: equal pictures have equal ones, at a tenth of the cost of hashing them all."""
    few = found.image
    if few.width == found.size[0]:  # not reduced by the decoder, or a PNG to the same rows
        few = few.crop((0, 0, few.width, min(ROWS, few.height)))
    return f"{found.size}{few.size}{hashlib.sha256(few.tobytes()).hexdigest()}"


def pixels(data: bytes, place: str) -> str:
    """A hash of the decoded RGB pixels."""
    image = decode_rgb(data, place)
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def write_part(path: Path, entries: Sequence[Entry], size: tuple[int, int] | None = None) -> ShardPart:
    """Write a run of a shard's samples: KEY.ext, KEY.json, KEY.ext, ...

    Args:
        path: of the new file.
        entries: its samples in order.
        size: see ``picture``.

    Raises:
        DataError: a picture that cannot be packed.
        OSError: the disk is full or fails.
    """
    rows, sources, offset = [], [], 0
    with path.open("xb", buffering=BUFFER) as file:
        for entry in entries:
            source, data, found = picture(entry, size)
            text = _encode(entry.meta).encode()
            start = offset + BLOCK
            for name, content in ((entry.ext, data), ("json", text)):
                padding = -len(content) % BLOCK
                file.write(header(f"{entry.key}.{name}", len(content)) + content + bytes(padding))
                offset += BLOCK + len(content) + padding
            rows.append(Location(entry.key, start, len(data), zlib.crc32(data), *found.size, _glance(found)))
            sources.append(hashlib.sha256(source).hexdigest())
    return ShardPart(rows, sources)


def join_parts(path: Path, files: Sequence[Path], parts: Sequence[ShardPart]) -> WrittenShard:
    """Put the parts together, flushed to disk; they are removed as they are used up.

    Args:
        path: of the new shard.
        files: the parts' files in order.
        parts: what is in them.

    Raises:
        OSError: the disk is full or fails.
    """
    rows: list[Location] = []
    offset, digest = 0, hashlib.sha256()
    with path.open("xb", buffering=0) as file:

        def write(data: bytes) -> None:
            nonlocal offset
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            digest.update(data)
            offset += len(data)

        for source, part in zip(files, parts, strict=True):
            rows += [row._replace(offset=offset + row.offset) for row in part.rows]
            with source.open("rb", buffering=0) as opened:
                while data := opened.read(BUFFER):
                    write(data)
            source.unlink()
        end = 2 * BLOCK
        write(bytes(end + -(offset + end) % RECORD))
        os.fsync(file.fileno())
    return WrittenShard(path.name, rows, offset, digest.hexdigest())
