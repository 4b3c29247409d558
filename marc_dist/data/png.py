"""Is all of a PNG sound? Answered without making its pixels, in half the time.

Packing looks at every picture. What can break in the data of a PNG is seen before the rows' filters are undone: the
chunks' CRC-32, the compressed stream and its checksum, the number of bytes, the filters' numbers. Anything unusual is
left to Pillow, so a picture is refused by Pillow only, and passed without it only when it has no flaw (PNG
specification, W3C, third edition).
"""

from __future__ import annotations

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a colour type
FILTERS = 5
KEPT = (b"PLTE", b"tRNS")  # what the colours of the first rows depend on


def first_rows(data: bytes, rows: int) -> bytes | None:
    """A PNG of a sound picture's first rows, whose pixels are the picture's.

    Args:
        data: a file that Pillow can open as PNG; its width and height are taken to be acceptable.
        rows: wanted; fewer where the picture has fewer.

    Returns:
        None when the picture is damaged, or interlaced, animated or otherwise not of the plain kind: decode it all.
    """
    chunks = _chunks(data)
    kinds = [kind for kind, _ in chunks or ()]
    if not chunks or kinds[0] != b"IHDR" or kinds.count(b"IHDR") > 1 or len(chunks[0][1]) != 13:
        return None
    width, height, depth, colour, method, filters, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    if method or filters or interlaced or colour not in CHANNELS or not width or not height or b"acTL" in kinds:
        return None
    if b"IDAT" not in kinds or kinds[kinds.index(b"IDAT") :] != [b"IDAT"] * kinds.count(b"IDAT") + [b"IEND"]:
        return None
    stride = 1 + (width * depth * CHANNELS[colour] + 7) // 8
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"), height * stride + 1)
    except zlib.error:
        return None
    if len(raw) != height * stride or not stream.eof or stream.unused_data or max(raw[::stride]) >= FILTERS:
        return None
    rows = min(rows, height)
    few = [(b"IHDR", struct.pack(">II", width, rows) + chunks[0][1][8:])]
    few += [(kind, bytes(body)) for kind, body in chunks if kind in KEPT]
    few += [(b"IDAT", zlib.compress(raw[: rows * stride], 0)), (b"IEND", b"")]
    return SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in few
    )


def _chunks(data: bytes) -> list[tuple[bytes, memoryview]] | None:
    """Kind and content of each chunk up to IEND; None where one is cut off or has another CRC-32."""
    view, at = memoryview(data), len(SIGNATURE)
    chunks: list[tuple[bytes, memoryview]] = []
    while not chunks or chunks[-1][0] != b"IEND":
        if at + 12 > len(data):
            return None
        (size,) = struct.unpack_from(">I", data, at)
        end = at + 8 + size
        if end + 4 > len(data) or struct.unpack_from(">I", data, end)[0] != zlib.crc32(view[at + 4 : end]):
            return None
        chunks.append((data[at + 4 : at + 8], view[at + 8 : end]))
        at = end + 4
    return chunks
