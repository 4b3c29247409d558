"""Bytes that call themselves pictures or masks."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from marc_dist.config import DataError
from marc_dist.data.decode import decode_rgb, examine
from marc_dist.packing.reading.masks import MaskRule, is_mask, read_mask
from tests import downloads
from tests.fuzz.damage import NUMBERS, damaged, error_of, fuzz, in_time, little_memory

PICTURE = downloads.picture(3, (24, 20))
RULE = MaskRule({(0, 0, 0): 0, (255, 0, 0): 1}, {0: 0, 1: 1}, frozenset(), frozenset(), 1)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


SOUND = {
    "jpeg": saved(PICTURE, "JPEG", quality=70),
    "progressive": saved(PICTURE, "JPEG", progressive=True),
    "mpo": saved(PICTURE, "MPO", save_all=True, append_images=[PICTURE]),
    "png": saved(PICTURE, "PNG"),
    "palette": saved(PICTURE.convert("P"), "PNG", transparency=b"\0\1\2"),
    "tiff": saved(PICTURE, "TIFF"),
    "lzw": saved(PICTURE, "TIFF", compression="tiff_lzw"),
    "deflate": saved(PICTURE, "TIFF", compression="tiff_adobe_deflate"),
    "tiff jpeg": saved(PICTURE, "TIFF", compression="jpeg"),
    "pages": saved(PICTURE, "TIFF", save_all=True, append_images=[PICTURE] * 3),
    "gif": saved(PICTURE, "GIF"),
    "bmp": saved(PICTURE, "BMP"),
    "webp": saved(PICTURE, "WEBP"),
}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def header(width: int, height: int, colours: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width % 2**32, height % 2**32, 8, colours, 0, 0, 0)


def tiff(*tags: tuple[int, int, int, int]) -> bytes:
    """One directory of (tag, type, count, value) that comes again and again."""
    entries = b"".join(
        struct.pack("<HHII", tag, kind, count % 2**32, value % 2**32) for tag, kind, count, value in tags
    )
    return (
        struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 8) + bytes(64)
    )


def decoded(data: bytes) -> str | None:
    def both() -> None:
        for reduced in (False, True):
            found = examine(data, "x", reduced=reduced)
            assert found.image.mode == "RGB" and len(found.image.tobytes()) > 0

    message = error_of(both)
    assert message is None or message.startswith("x: ")
    return message


@pytest.mark.parametrize("kind", SOUND)
def test_damaged_pictures(kind: str) -> None:
    assert decoded(SOUND[kind]) is None

    @fuzz(35)
    @given(damaged(SOUND[kind]))
    def check(data: bytes) -> None:
        decoded(data)

    check()


TAGS = st.sampled_from(
    [256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339, 330, 34665]
)
BASE = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1),
        (278, 3, 1, 8), (279, 4, 1, 64)]  # fmt: skip
ENTRY = st.tuples(
    TAGS,
    st.integers(0, 18),
    st.sampled_from([0, 1, 2, 3, 2**31, 2**32 - 1]),
    st.sampled_from(NUMBERS) | st.integers(0, 90),
)


@fuzz(150)
@given(st.lists(ENTRY, min_size=1, max_size=4))
def test_tiff_tags(tags: list[tuple[int, int, int, int]]) -> None:
    merged = {entry[0]: entry for entry in (*BASE, *tags)}
    with little_memory():
        decoded(tiff(*(merged[tag] for tag in sorted(merged))))


@fuzz(100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"acTL", b"fcTL", b"eXIf", b"pHYs"]
            ),
            st.binary(max_size=40),
        ),
        max_size=3,
    ),
    st.sampled_from([0, 2, 3, 4, 6]),
    st.binary(max_size=300).map(zlib.compress) | st.binary(max_size=30),
)
def test_png_chunks(chunks: list[tuple[bytes, bytes]], colours: int, pixels: bytes) -> None:
    decoded(png(header(8, 8, colours), *chunks, (b"IDAT", pixels), (b"IEND", b"")))


def scans() -> bytes:
    """A progressive JPEG whose last scan, of thirty bytes, comes thousands of times: minutes to decode."""
    data = saved(Image.new("L", (2000, 2000), 128), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * 20_000 + b"\xff\xd9"


ZEROS = zlib.compress(bytes(100_000_000), 9)
PIXELS = (b"IDAT", zlib.compress(bytes(25 * 8)))
BOMBS = {
    "png size": png(header(60_000, 60_000), (b"IDAT", ZEROS), (b"IEND", b"")),
    "png side": png(header(2**31 - 1, 2**31 - 1), (b"IDAT", ZEROS)),
    "zTXt": png(header(8, 8), (b"zTXt", b"a\0\0" + ZEROS), PIXELS, (b"IEND", b"")),
    "zTXts": png(header(8, 8), *[(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**6)))] * 99, PIXELS, (b"IEND", b"")),
    "iTXt": png(header(8, 8), (b"iTXt", b"a\0\1\0\0\0" + ZEROS), PIXELS, (b"IEND", b"")),
    "tiff size": tiff((256, 4, 1, 10**6), (257, 4, 1, 10**6), *BASE[2:7], (278, 4, 1, 10**6), (279, 4, 1, 64)),
    "gif screen": SOUND["gif"][:6] + b"\xff\xff\xff\xff" + SOUND["gif"][10:],
    "scans": scans(),
    "bmp": SOUND["bmp"][:18] + struct.pack("<ii", 2**30, 2**30) + SOUND["bmp"][26:],
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_at_once(kind: str) -> None:
    with little_memory():
        assert decoded(BOMBS[kind])


HARMLESS = {
    "iCCP": png(header(8, 8), (b"iCCP", b"a\0\0" + ZEROS), PIXELS, (b"IEND", b"")),
    "IDAT": png(header(8, 8), (b"IDAT", ZEROS), (b"IEND", b"")),
    "tiff tile": tiff(*BASE[:5], *BASE[6:7], (322, 4, 1, 2**16), (323, 4, 1, 2**16), (324, 4, 1, 8), (325, 4, 1, 64)),
    "tiff deflate tile": tiff(
        *BASE[:3], (259, 3, 1, 8), *BASE[4:5], *BASE[6:7], (322, 4, 1, 2**15), (323, 4, 1, 2**15),
        (324, 4, 1, 8), (325, 4, 1, 64),
    ),
    "directories": saved(Image.new("1", (8, 8)), "TIFF", save_all=True, append_images=[Image.new("1", (8, 8))] * 2000),
    "scans": SOUND["progressive"][:-2] + SOUND["progressive"][-40:-2] * 20 + b"\xff\xd9",
}  # fmt: skip


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_unpacks_to_much_is_not_unpacked(kind: str) -> None:
    with little_memory():
        decoded(HARMLESS[kind])


def test_no_program_is_run_for_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found: Pillow gives an EPS file, whatever its name says, to Ghostscript."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript is run"))
    data = saved(PICTURE, "EPS")
    with pytest.raises(DataError, match="not a picture that can be read"):
        decode_rgb(data, "x")


MASKS = {
    "palette": saved(downloads.mask([0, 1], [(0, 0, 0), (255, 0, 0)], 16), "PNG"),
    "grey": saved(downloads.mask([0, 1], None, 16), "PNG"),
    "colours": saved(Image.fromarray(np.zeros((9, 9, 3), dtype=np.uint8)), "PNG"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_damaged_masks(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m.png"

    @fuzz(60)
    @given(damaged(MASKS[kind]))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        with in_time():
            is_mask(path, RULE)
        error_of(lambda: read_mask(path, RULE))

    check()


@pytest.mark.parametrize("colours", [0, 2, 3])
def test_masks_that_are_bombs(colours: int, tmp_path: Path) -> None:
    """Found: Pillow warns of 100 megapixels, and refuses 180; a mask had no limit of ours."""
    path = tmp_path / "m.png"
    rows = (b"PLTE", bytes(6)), (b"IDAT", ZEROS), (b"IEND", b"")
    path.write_bytes(png(header(10_000, 10_000, colours), *rows))
    with little_memory(250):
        assert is_mask(path, RULE) == (colours == 3)
        with pytest.raises(DataError, match="a mask of 10000x10000 pixels, expected at most 64000000"):
            read_mask(path, RULE)
