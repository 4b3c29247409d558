"""What a picture would lose when it is stored as it lies there: its EXIF turn, a fourth band, further frames."""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

from PIL import Image, ImageOps

from marc_dist.config import DataError
from marc_dist.data.decode import KINDS, ORIENTATION

PNG = b"\x89PNG\r\n\x1a\n"
WITH_ALPHA = (4, 6)  # colour types of PNG
# What may turn a picture, or make it more than one, for Pillow: EXIF in a chunk or as text, XMP, an animation.
IN_PNG = (b"eXIf", b"Raw profile", b"XML:com.adobe.xmp", b"acTL")
IN_JPEG = (b"Exif\0", b"http://ns.adobe.com/xap")


class Losses(NamedTuple):
    """What would be lost.

    Attributes:
        turn: the EXIF orientation; 1 = upright.
        band: the fourth band, or grey's second, holds something: it is not the same everywhere.
        opaque: there is such a band, and it says nothing.
    """

    turn: int = 1
    band: bool = False
    opaque: bool = False


def losses(data: bytes, place: str) -> Losses:
    """Look at a picture's header, and at its fourth band if it has one.

    Args:
        data: a file's content.
        place: what to call it in a message.

    Raises:
        DataError: an animation: which of its frames is the picture, nobody knows.
    """
    if data.startswith(PNG):
        plain = data[25] not in WITH_ALPHA and not any(mark in data for mark in IN_PNG)
    else:
        plain = data.startswith(b"\xff\xd8") and not any(mark in data for mark in IN_JPEG)
    if plain:
        return Losses()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=KINDS) as image:
                turn = image.getexif().get(ORIENTATION, 1)
                if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                    raise DataError(f"{place}: {image.n_frames} frames or pages in one file; expected one picture")  # type: ignore[attr-defined]
                if image.mode not in ("RGBA", "LA"):
                    return Losses(turn if turn in range(2, 9) else 1)
                low, high = image.getchannel("A").getextrema()
                return Losses(turn if turn in range(2, 9) else 1, low != high, low == high)
    except DataError:
        raise
    except Exception as error:  # as in decode.examine, which has looked at the pixels already
        raise DataError(f"{place}: damaged picture ({error or type(error).__name__}); fetch it again") from None


def upright(data: bytes) -> Image.Image:
    """The picture turned as its EXIF note says, in RGB.

    Args:
        data: a sound file's content.
    """
    with Image.open(io.BytesIO(data), formats=KINDS) as image:
        image.load()
        return ImageOps.exif_transpose(image).convert("RGB")
