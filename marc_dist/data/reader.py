"""Random access to the images of a shard folder: one ``pread`` at a known offset, checked by its CRC-32.

Indexed reading is the default because it gives exact epochs and any order, and is several times faster than iterating
over the tar (``benchmarks/reader_speed.py``).

Storage that fails for a moment (a network file system, a stale handle) gets a finite number of further tries, each with
the file opened anew; what fails every time is damage, and is told as such.

Reads in random order defeat the system's own read-ahead, so whoever knows what comes next says so with ``expect``: on a
cold page cache the disk then serves many requests at once, where a reader alone waits for one after the other.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from marc_dist.config import DataError
from marc_dist.data.bands.pick import BandPick, bands_of
from marc_dist.data.bands.preview import preview
from marc_dist.data.dataset import Dataset
from marc_dist.data.decode import decode_rgb

FIRST_WAIT_S = 0.1


def decoded(data: bytes, place: str, pick: BandPick | None) -> NDArray[Any]:
    """A picture's values: (H, W, 3) uint8, or the bands of ``pick``, (H, W, C).

    Args:
        data: a file's content.
        place: what to call it in a message.
        pick: which bands; None = red, green and blue of 8 bits.

    Raises:
        DataError: bytes that are not such a picture.
    """
    return np.asarray(decode_rgb(data, place)) if pick is None else pick(data, place)


class IndexedReader:
    """Reads samples by id. Files are opened on first use in each process, so it may be forked or pickled freely.

    Args:
        dataset: an opened shard folder.
        verify_crc: check every image's CRC-32.
        retries: further tries of a read that failed, with waits of 0.1, 0.2, 0.4, ... seconds.
        pick: the bands that ``picture`` gives; None = red, green and blue of 8 bits.
    """

    def __init__(
        self, dataset: Dataset, *, verify_crc: bool = True, retries: int = 3, pick: BandPick | None = None
    ) -> None:
        self.dataset = dataset
        self.pick = pick
        self.verify_crc = verify_crc
        self.retries = retries
        self._files: dict[int, int] = {}
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}, "_pid": -1}

    def _file(self, shard: int) -> int:
        if self._pid != os.getpid():  # inherited descriptors belong to the parent, which may close them
            self._files, self._pid = {}, os.getpid()
        if shard not in self._files:
            path = self.dataset.root / self.dataset.shards[shard]
            try:
                self._files[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise DataError(f"{path}: cannot be opened ({error.strerror})") from None
        return self._files[shard]

    def expect(self, samples: Iterable[int]) -> None:
        """Tell the system that these are read soon; only a hint, never an error: what is wrong, ``read`` tells."""
        if not hasattr(os, "posix_fadvise"):
            return
        data, rows = self.dataset, np.fromiter(samples, dtype=np.int64)
        places = (column[rows].tolist() for column in (data.shard, data.offset, data.size))
        with suppress(OSError, DataError):
            for shard, offset, size in zip(*places, strict=True):
                os.posix_fadvise(self._file(shard), offset, size, os.POSIX_FADV_WILLNEED)

    def read(self, sample: int) -> bytes:
        """The image file's bytes.

        Raises:
            DataError: the shard is shorter than its index says, cannot be read, or holds other bytes; every time.
        """
        for attempt in range(self.retries):
            try:
                return self._read(sample)
            except DataError:
                self.close()
                time.sleep(FIRST_WAIT_S * 2**attempt)
        return self._read(sample)

    def _read(self, sample: int) -> bytes:
        data = self.dataset
        offset, size = int(data.offset[sample]), int(data.size[sample])
        remedy = f"check with marc-shard --verify {data.root}"
        try:
            content = os.pread(self._file(int(data.shard[sample])), size, offset)
        except OSError as error:
            raise DataError(f"{data.place(sample)} at byte {offset}: cannot be read ({error.strerror})") from None
        if len(content) != size:
            raise DataError(
                f"{data.place(sample)} at byte {offset}: expected {size} bytes, got {len(content)}; {remedy}"
            )
        if self.verify_crc and zlib.crc32(content) != int(data.crc32[sample]):
            raise DataError(
                f"{data.place(sample)} at byte {offset}: expected CRC-32 {int(data.crc32[sample]):08x}, "
                f"got {zlib.crc32(content):08x}; {remedy}"
            )
        return content

    def picture(self, sample: int) -> NDArray[Any]:
        """The decoded picture, (H, W, 3) uint8; or with the bands of ``pick``, (H, W, C) of their type.

        Raises:
            DataError: see ``image``.
        """
        return decoded(self.read(sample), self.dataset.place(sample), self.pick)

    def image(self, sample: int) -> Image.Image:
        """The decoded picture, RGB; one with bands as people look at it.

        Raises:
            DataError: see ``read``; also bytes that are not a picture of a supported kind.
        """
        data, place = self.read(sample), self.dataset.place(sample)
        names, _, nodata = bands_of(self.dataset)
        if not names:
            return decode_rgb(data, place)
        statistics = self.dataset.meta["bands"].get("statistics")
        planes = BandPick.all_of(self.dataset)(data, place).transpose(2, 0, 1)
        return preview(planes, names, nodata, statistics if isinstance(statistics, dict) else {})

    def close(self) -> None:
        """Close what this process has opened."""
        if self._pid == os.getpid():
            for file in self._files.values():
                os.close(file)
        self._files = {}
