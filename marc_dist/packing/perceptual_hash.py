"""The perceptual hash of a picture and of its turned and mirrored copies, of many pictures at a time.

It is the ``phash`` of the library ImageHash (64 bits, of the low frequencies of brightness), bit for bit but for those
that are rounding errors there; the tests compare the two. One cosine transform gives all eight copies: a mirror changes
the sign of every second frequency, the diagonal swaps the two sides. Hashing them one by one takes ten times as long.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

TURNS = 8  # as it lies, mirrored, turned by quarters
HASHED, LOW = 32, 8  # side of the copy that is hashed, pixels; frequencies of each side that are looked at
DIGITS = 6  # behind the point; what differs by less is rounding, in pictures whose brightness depends on one side alone


def turned(pictures: NDArray[Any], turn: int) -> NDArray[Any]:
    """(..., H, W) pictures, mirrored and turned: bit 0 left-right, bit 1 top-bottom, bit 2 over the diagonal."""
    pictures = pictures[..., ::-1] if turn & 1 else pictures
    pictures = pictures[..., ::-1, :] if turn & 2 else pictures
    return pictures.swapaxes(-1, -2) if turn & 4 else pictures


@cache
def _cosines() -> NDArray[np.float64]:
    """(LOW, HASHED) the lowest rows of the cosine transform (DCT-II, not normed)."""
    frequency, place = np.arange(LOW)[:, None], np.arange(HASHED)[None, :]
    return np.asarray(2 * np.cos(np.pi * frequency * (2 * place + 1) / (2 * HASHED)))


def codes_of(grey: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Hashes of pictures.

    Args:
        grey: (n, HASHED, HASHED).

    Returns:
        (n, TURNS), the hash of each turn of each picture, its first bit the highest.
    """
    cosines = _cosines()
    found = np.round(cosines @ grey.astype(np.float64) @ cosines.T, DIGITS)
    sign = np.where(np.arange(LOW) % 2, -1.0, 1.0)
    codes = np.empty((len(grey), TURNS), dtype=np.uint64)
    for turn in range(TURNS):
        low = found * sign if turn & 1 else found
        low = low * sign[:, None] if turn & 2 else low
        low = low.swapaxes(-1, -2) if turn & 4 else low
        flat = low.reshape(len(grey), LOW * LOW)
        bits = flat > np.median(flat, axis=1, keepdims=True)
        codes[:, turn] = np.packbits(bits, axis=1).view(">u8")[:, 0]
    return codes
