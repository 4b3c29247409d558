"""The files of decoded pictures: ``cache.json`` speaks for ``table.bin`` and ``pixels.npy``."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FORMAT = 2


class OpenedCache(NamedTuple):
    """Files of a cache, open for reading.

    Attributes:
        file: descriptor of the pixels.
        start: byte of the first one.
        shape: (N, H, W, C).
        sizes: (N, 2) height and width.
        sums: (N,) CRC-32 of each picture's first ``height`` rows of W pixels.
        errors: sample id -> why it could not be decoded.
        dtype: of the values.
    """

    file: int
    start: int
    shape: tuple[int, int, int, int]
    sizes: NDArray[np.int32]
    sums: NDArray[np.uint32]
    errors: dict[str, str]
    dtype: np.dtype[Any] = np.dtype(np.uint8)


def read_picture(cache: OpenedCache, row: int) -> NDArray[Any]:
    """A picture, (H, W, C), the caller's own, once its checksum was found right.

    Args:
        cache: its files.
        row: its place among the pictures.

    Raises:
        OSError: it cannot be read, or is damaged.
    """
    height, width = cache.sizes[row].tolist()
    found = np.empty((height, *cache.shape[2:]), dtype=cache.dtype)
    left, at = found.data.cast("B") if height else memoryview(b""), cache.start + row * row_bytes(cache)
    while left:
        num = os.preadv(cache.file, [left], at)
        if not num:
            raise OSError("it was cut short")
        left, at = left[num:], at + num
    if zlib.crc32(found.data) != cache.sums[row]:
        raise OSError("another checksum than when it was made")
    return found[:, :width]


def row_bytes(cache: OpenedCache) -> int:
    """Bytes from one picture to the next."""
    _, height, width, channels = cache.shape
    return height * width * channels * cache.dtype.itemsize


def open_files(folder: Path) -> OpenedCache:
    """The files of a cache.

    Raises:
        OSError, ValueError: missing, or not as they were written.
    """
    content = json.loads((folder / "cache.json").read_bytes())
    meta, crc = (content.get("cache"), content.get("crc32")) if isinstance(content, dict) else (None, None)
    if not isinstance(meta, dict) or crc != crc_of(meta) or meta.get("format") != FORMAT:
        raise ValueError("cache.json is damaged")
    num, height, width = meta["shape"]
    table = (folder / "table.bin").read_bytes()
    if len(table) != 12 * num or zlib.crc32(table) != meta["table_crc32"]:
        raise ValueError("table.bin is damaged")
    sizes = np.frombuffer(table, dtype="<i4", count=2 * num).reshape(num, 2)
    sums = np.frombuffer(table, dtype="<u4", offset=8 * num)
    file = os.open(folder / "pixels.npy", os.O_RDONLY | os.O_CLOEXEC)
    shape, kind = (num, height, width, int(meta.get("channels", 3))), np.dtype(str(meta.get("dtype", "uint8")))
    return OpenedCache(file, meta["start"], shape, sizes, sums, meta["errors"], kind)


def crc_of(meta: dict[str, Any]) -> int:
    """CRC-32 of what ``cache.json`` says."""
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())
