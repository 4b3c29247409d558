"""Bytes -> an RGB picture, or one clear line about what is wrong with them."""

from __future__ import annotations

import functools
import io
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import PIL
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError, features

from marc_dist.config import DataError
from marc_dist.data.png import first_rows

MAX_PIXELS = 64_000_000
MAX_SCANS = 100  # of a JPEG that large; a smaller one may have more: each one costs time for every pixel
MAX_BYTES = 1 << 30  # of a file that ``read_any`` takes
MAX_ANY_PIXELS = 178_000_000  # Pillow takes no more
MEASURED_PIXELS = 4_000_000
ORIENTATION = 274  # of EXIF
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ROWS = 8
"""Of a reduced PNG."""
STRETCH = (2.0, 98.0)
"""Percentiles between which ``decode_any`` spreads a deep picture over 8 bits."""
KINDS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP")  # Pillow knows more: EPS, for one, runs Ghostscript
ACCEPTED = ("RGB", "L", "P", "LA", "RGBA", "1")


@functools.cache
def decoders() -> tuple[str, ...]:
    """What decodes: Pillow and its libraries, with their versions. Others may give other pixels of the same bytes."""
    libraries = ("jpg", "zlib", "libtiff", "webp")
    found = [f"{name} {features.version(name) or 'none'}" for name in libraries]
    return f"Pillow {PIL.__version__}", f"libjpeg-turbo {features.version('libjpeg_turbo') or 'none'}", *found


def decode_rgb(data: bytes, place: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a whole picture.

    Grey, palette and transparent pictures become RGB (transparency is dropped). 16-bit, float and CMYK pictures are
    refused: how they map to 8-bit RGB is the owner's choice, not ours.

    Args:
        data: a file's content.
        place: what to call it in a message.
        max_pixels: larger pictures are refused before they are decoded.

    Raises:
        DataError: not a picture, truncated, too large, 16-bit, CMYK.
    """
    return examine(data, place, max_pixels).image


class Examined(NamedTuple):
    """A decoded picture, the whole picture's width and height, and its format as Pillow calls it."""

    image: Image.Image
    size: tuple[int, int]
    format: str


def examine(data: bytes, place: str, max_pixels: int = MAX_PIXELS, *, reduced: bool = False) -> Examined:
    """``decode_rgb`` with what else there is to know.

    Args:
        data: a file's content.
        place: what to call it in a message.
        max_pixels: larger pictures are refused before they are decoded.
        reduced: a JPEG comes at an eighth of its size, a plain PNG as its first ``ROWS`` rows. All of the data is read
            and decompressed, so the same damage is found in half the time; only the last step, from coefficients to
            pixels or from filtered rows to pixels, is shorter.

    Raises:
        DataError: see ``decode_rgb``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on metadata; sizes are checked below
            with Image.open(io.BytesIO(data), formats=KINDS) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise DataError(
                        f"{place}: {width}x{height} pixels, expected at most {max_pixels}; cut it into tiles"
                    )
                if _slow_jpeg(image, data):
                    raise DataError(f"{place}: a JPEG of too many scans to decode in reasonable time; save it anew")
                if image.mode not in ACCEPTED or _is_deep(image):
                    got = f"16 bits a channel ({image.mode})" if _is_deep(image) else f"mode {image.mode}"
                    raise DataError(
                        f"{place}: expected 8-bit RGB or grey, got {got}; "
                        "convert it first, for example with Pillow's image.convert or GDAL's gdal_translate -ot Byte; "
                        "or keep a TIFF as it is: name its bands in the recipe (`bands:`)"
                    )
                if reduced:
                    image.draft(None, (1, 1))  # None keeps the mode; only JPEG heeds it
                few = first_rows(data, ROWS) if reduced and image.format == "PNG" else None
                with image if few is None else Image.open(io.BytesIO(few), formats=("PNG",)) as looked_at:
                    looked_at.load()
                    rgb = looked_at if looked_at.mode == "RGB" else looked_at.convert("RGB")
                    return Examined(rgb, (width, height), str(image.format))
    except DataError:
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError):
        hint = "; a TIFF of several bands? name them in the recipe (`bands:`)" if data[:4] in TIFF else ""
        raise DataError(f"{place}: not a picture that can be read ({len(data)} bytes){hint}") from None
    except Exception as error:  # Pillow's decoders raise whatever comes up: struct.error, KeyError, ...
        raise DataError(f"{place}: damaged picture ({str(error) or type(error).__name__}); fetch it again") from None


def _slow_jpeg(image: Image.Image, data: bytes) -> bool:
    """Whether an opened JPEG has so many scans for its size that decoding takes minutes; few bytes hold few scans."""
    most = MAX_SCANS * MAX_PIXELS // max(1, image.width * image.height)
    return image.format in ("JPEG", "MPO") and len(data) // 2 > most and data.count(b"\xff\xda") > most


def _is_deep(image: Image.Image) -> bool:
    """Whether an opened, not yet loaded picture stores 16 bits a channel; Pillow would drop the lower 8 silently."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    return image.mode.startswith("I;16") or any(";16" in str(tile[-1]) for tile in tiles)


class Query(NamedTuple):
    """Anybody's picture as RGB, the width and height that it had, and what was done to it, empty when nothing.

    ``values``: of an encoder of bands, (H, W, C) of the file; then ``image`` is only what people look at.
    """

    image: Image.Image
    size: tuple[int, int]
    remark: str
    values: Any = None


def decode_any(data: bytes, place: str, side: int) -> Query:
    """Anybody's picture as RGB, for a query: what a data set must not hold is brought into shape, and this is told.

    As ``decode_rgb`` for pictures that it takes, but turned upright by their EXIF note. CMYK and other colour spaces
    are converted; 16-bit, 32-bit and float ones are spread over 8 bits between their percentiles ``STRETCH``; a large
    JPEG is decoded at a fraction of its size.

    Args:
        data: a file's content.
        place: what to call it in a message.
        side: pixels that will be needed; a reduced JPEG keeps twice that.

    Raises:
        DataError: not a picture, truncated, more than ``MAX_ANY_PIXELS`` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=KINDS) as image:
                width, height = image.size
                if width * height > MAX_ANY_PIXELS or _slow_jpeg(image, data):
                    raise DataError(
                        f"{place}: {width}x{height} pixels, expected at most {MAX_ANY_PIXELS}; cut it into tiles"
                    )
                deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
                told = ["the lower 8 of 16 bits dropped"] if _is_deep(image) and not deep else []
                if image.mode == "RGB" and image.draft("RGB", (2 * side, 2 * side)) and image.size != (width, height):
                    told.append(f"decoded at {image.width} x {image.height}")
                image.load()
                return Query(_plain_rgb(image, deep, told), (width, height), "; ".join(told))
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{place}: more than {MAX_ANY_PIXELS} pixels; cut it into tiles") from None
    except UnidentifiedImageError:
        raise DataError(f"{place}: not a picture that can be read ({len(data)} bytes)") from None
    except Exception as error:
        raise DataError(f"{place}: damaged picture ({str(error) or type(error).__name__})") from None


def file_bytes(path: Path) -> bytes:
    """Anybody's picture file as it is.

    Raises:
        DataError: cannot be read, or too large.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{path}: {size} bytes, expected a picture of at most {MAX_BYTES}; cut it into tiles")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_any(path: Path, side: int) -> Query:
    """Anybody's picture file; see ``decode_any``.

    Raises:
        DataError: cannot be read, too large, or not a picture.
    """
    return decode_any(file_bytes(path), str(path), side)


def _plain_rgb(image: Image.Image, deep: bool, told: list[str]) -> Image.Image:
    """A loaded picture upright, in 8 bits and RGB; what was done to it is added to ``told``."""
    upright = ImageOps.exif_transpose(image)
    if image.getexif().get(ORIENTATION, 1) != 1:
        told.append("turned as its EXIF note says")
    if deep:
        low, high = STRETCH
        told.append(f"{image.mode}, percentiles {low:g} to {high:g} spread over 8 bits")
        upright = _stretched(upright)
    elif image.mode not in ACCEPTED:
        told.append(f"{image.mode}, converted to RGB")
    elif image.has_transparency_data:
        told.append("transparency dropped")
    return upright.convert("RGB")


def _stretched(image: Image.Image) -> Image.Image:
    """Spread over 8 bits, some rows at a time; of a large picture, evenly spaced values give the percentiles."""
    import numpy as np  # here: helper processes of a packing do without

    values = np.asarray(image)
    some = values.reshape(-1)[:: max(1, values.size // MEASURED_PIXELS)].astype(np.float64)
    finite = some[np.isfinite(some)]
    low, high = np.percentile(finite, STRETCH) if finite.size else (0.0, 1.0)
    out = np.empty(values.shape, dtype=np.uint8)
    for row in range(0, len(values), 256):
        wide = np.nan_to_num(values[row : row + 256].astype(np.float64), nan=low, posinf=high, neginf=low)
        out[row : row + 256] = np.rint(((wide - low) / max(high - low, 1e-300)).clip(0, 1) * 255)
    return Image.fromarray(out)
