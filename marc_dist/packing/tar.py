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
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

import PIL
from PIL import Image, features

from marc_dist.config import DataError
from marc_dist.data.decode import ROWS, Examined, decode_rgb, examine
from marc_dist.packing.upright import losses, upright

if TYPE_CHECKING:
    from marc_dist.packing.bands.rule import BandRule

BLOCK = 512
RECORD = tarfile.RECORDSIZE
FORMATS = {
    "jpg": ("JPEG", "MPO"), "png": ("PNG",), "tif": ("TIFF",), "bmp": ("BMP",), "gif": ("GIF",), "webp": ("WEBP",),
}  # fmt: skip
AGAIN: dict[str, dict[str, Any]] = {
    "jpg": {"quality": 100, "subsampling": 0},
    "png": {},
    "tif": {"compression": "tiff_deflate"},
}
"""How a picture that had to be turned is written; a JPEG as nearly the same as JPEG can."""
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
    """One sample to be written: where its picture lies, what it is called, what its JSON says.

    ``others``: the files of its other bands, where each band has its own.
    """

    file: Path
    key: str
    source_ext: str
    ext: str
    meta: dict[str, object]
    others: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the picture."""
        return self.file, *self.others


class Location(NamedTuple):
    """Where a sample came to lie. ``glance`` is the same for equal pixels, and rarely for others.

    ``remark``: what was done to the picture: ``turned``, ``band dropped``, ``opaque band dropped``; or nothing.
    ``source``: the SHA-256 of the picture's file as it was read.
    """

    key: str
    offset: int
    size: int
    crc32: int
    width: int
    height: int
    glance: str
    remark: str
    source: str


class ShardPart(NamedTuple):
    """A finished part; offsets count from its start."""

    rows: list[Location]


class WrittenShard(NamedTuple):
    """A finished shard."""

    name: str
    rows: Sequence[Location]
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


class Demands(NamedTuple):
    """What every picture must be.

    Attributes:
        size: width and height, if any.
        bands: without a fourth band that holds something.
        named: the bands that every picture has, where the recipe names them.
    """

    size: tuple[int, int] | None = None
    bands: bool = True
    named: BandRule | None = None


ANY_PICTURE = Demands()


class StoredPicture(NamedTuple):
    """A picture's bytes as they are, as they will be stored, decoded, and what was done to it."""

    source: bytes
    data: bytes
    found: Examined
    remark: str


def picture(entry: Entry, demands: Demands) -> StoredPicture:
    """Read a picture for its shard: all of its bytes are looked at while packing.

    Args:
        entry: which.
        demands: what it must be.

    Raises:
        DataError: cannot be read, damaged, of another kind than its name says, or not what is demanded.
    """
    if demands.named is not None:
        return _with_bands(entry, demands, demands.named)
    data = read(entry.file)
    found = examine(data, str(entry.file), reduced=entry.ext == entry.source_ext)
    if found.format not in FORMATS[entry.source_ext]:
        raise DataError(f"{entry.file}: holds {found.format}, not what its name says; rename it")
    lost = losses(data, str(entry.file))
    if lost.band and demands.bands:
        raise DataError(
            f"{entry.file}: has a fourth band (alpha, or near infrared) that would be dropped; to drop it: --allow "
            "bands"
        )
    remark = "band dropped" if lost.band else "opaque band dropped" if lost.opaque else ""
    if lost.turn != 1:
        image = upright(data)
        found, remark = Examined(image, image.size, found.format), ", ".join(filter(None, ("turned", remark)))
    _refuse_size(entry.file, found.size, demands.size)
    if entry.ext == entry.source_ext and lost.turn == 1:
        return StoredPicture(data, data, found, remark)
    buffer = io.BytesIO()
    if entry.ext == "png":
        found.image.convert("RGB").save(buffer, "PNG")
    else:
        found.image.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}[entry.ext], **AGAIN[entry.ext])
    return StoredPicture(data, buffer.getvalue(), found, remark)


def _with_bands(entry: Entry, demands: Demands, rule: BandRule) -> StoredPicture:
    """``picture`` of one whose bands the recipe names; its decoded form holds some of the values, not a picture."""
    from marc_dist.packing.bands.pictures import band_picture  # here: other packings do without numpy

    found = band_picture(entry.files, rule)
    _refuse_size(entry.file, found.size, demands.size)
    some = Image.frombytes("L", (len(found.glance), 1), found.glance)
    return StoredPicture(found.source, found.data, Examined(some, found.size, "TIFF"), found.remark)


def _refuse_size(file: Path, size: tuple[int, int], expected: tuple[int, int] | None) -> None:
    if expected is not None and size != expected:
        raise DataError(
            f"{file}: expected {expected[0]}x{expected[1]} pixels, got {size[0]}x{size[1]}; "
            "resize it, or go on with --allow size"
        )


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


def file_sum(files: Sequence[Path]) -> str:
    """The SHA-256 of the content of a picture's files, one after the other.

    Raises:
        DataError: cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(read(file))
    return digest.hexdigest()


@functools.cache
def codecs() -> tuple[str | None, ...]:
    """The versions of what decodes and encodes pictures: others may give other bytes and pixels."""
    return (PIL.__version__, *(features.version(name) for name in ("jpg", "zlib", "libtiff")))


def glance_at(data: bytes, place: str) -> str:
    """The glance of a stored picture; see ``Location``.

    Args:
        data: its bytes.
        place: what to call it in a message.

    Raises:
        DataError: damaged.
    """
    return _glance(examine(data, place, reduced=True))


def _glance(found: Examined) -> str:
    """A few pixels, hashed: equal pictures have equal ones, at a tenth of the cost of hashing them all."""
    few = found.image
    if few.width == found.size[0]:  # not reduced by the decoder, or a PNG to the same rows
        few = few.crop((0, 0, few.width, min(ROWS, few.height)))
    return hashlib.blake2b(few.tobytes(), digest_size=8, key=f"{found.size}{few.size}".encode()[:64]).hexdigest()


def pixels(data: bytes, place: str) -> str:
    """A hash of the decoded RGB pixels."""
    image = decode_rgb(data, place)
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


class Member(NamedTuple):
    """A sample as it is written: its picture's bytes, and where they will lie, ``offset`` not known yet."""

    entry: Entry
    data: bytes
    row: Location


def member(entry: Entry, demands: Demands) -> Member:
    """A sample whose picture is read and looked at now; see ``picture``."""
    source, data, found, remark = picture(entry, demands)
    sum_ = hashlib.sha256(source).hexdigest()
    row = Location(entry.key, 0, len(data), zlib.crc32(data), *found.size, _glance(found), remark, sum_)
    return Member(entry, data, row)


def by_key(shards: Sequence[WrittenShard]) -> Iterator[tuple[str, Location]]:
    """The samples of a split in order of their keys, each with the name of its shard.

    A fresh packing's shards follow one another, and nothing is sorted; after an appending they overlap.

    Args:
        shards: of the split, each with its samples in order of their keys.
    """
    rows = ((shard.name, row) for shard in shards for row in shard.rows)
    if all(one.rows[-1].key < other.rows[0].key for one, other in pairwise(shards)):
        return rows
    return iter(sorted(rows, key=lambda place: place[1].key))


def write_part(path: Path, entries: Sequence[Entry], demands: Demands = ANY_PICTURE) -> ShardPart:
    """Write a run of a shard's samples: KEY.ext, KEY.json, KEY.ext, ...

    Args:
        path: of the new file.
        entries: its samples in order.
        demands: see ``picture``.

    Raises:
        DataError: a picture that cannot be packed.
        OSError: the disk is full or fails.
    """
    return write_members(path, (member(entry, demands) for entry in entries))


def write_members(path: Path, samples: Iterable[Member]) -> ShardPart:
    """See ``write_part``; with pictures that lie in memory."""
    rows, offset = [], 0
    with path.open("xb", buffering=BUFFER) as file:
        for entry, data, row in samples:
            text = _encode(entry.meta).encode()
            start = offset + BLOCK
            for name, content in ((entry.ext, data), ("json", text)):
                padding = -len(content) % BLOCK
                file.write(header(f"{entry.key}.{name}", len(content)) + content + bytes(padding))
                offset += BLOCK + len(content) + padding
            rows.append(row._replace(offset=start))
    return ShardPart(rows)


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
