"""Whatever bytes come: an RGB picture or one DataError."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from marc_dist.config import DataError
from marc_dist.data.decode import decode_rgb, examine
from marc_dist.data.png import first_rows
from tests import downloads


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def deep_png(colour_type: int) -> bytes:
    """A 16-bit PNG, which Pillow cannot write: 2 is RGB, 6 is RGBA, 0 is grey."""
    channels = {0: 1, 2: 3, 6: 4}[colour_type]
    rows = b"".join(b"\0" + bytes(4 * 2 * channels) for _ in range(4))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 4, 4, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_tif() -> bytes:
    """An uncompressed 16-bit RGB TIFF of 2 x 2 pixels."""
    tags = [
        (256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 3, 200), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 210),
        (277, 3, 1, 3), (278, 3, 1, 2), (279, 4, 1, 24),
    ]  # fmt: skip
    entries = b"".join(
        struct.pack("<HHI", tag, kind, count)
        + (struct.pack("<HH", value, 0) if kind == 3 and count == 1 else struct.pack("<I", value))
        for tag, kind, count, value in tags
    )
    data = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags)) + entries + bytes(4)
    return data.ljust(200, b"\0") + struct.pack("<HHH", 16, 16, 16) + bytes(4) + bytes(24)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA", "RGBA", "1"])
def test_8_bit_pictures_become_rgb(mode: str) -> None:
    picture = downloads.picture(1, (20, 10)).convert(mode)
    decoded = decode_rgb(encoded(picture, "PNG"), "x.png")
    assert decoded.mode == "RGB" and decoded.size == (20, 10)
    if mode == "RGB":
        assert np.array_equal(np.asarray(decoded), np.asarray(picture))


def test_a_palette_with_transparency_gives_no_warning() -> None:
    picture = downloads.picture(1, (20, 10)).convert("P")
    assert decode_rgb(encoded(picture, "PNG", transparency=bytes(range(256))), "x.png").mode == "RGB"


@pytest.mark.parametrize(
    "data", [deep_png(0), deep_png(2), deep_png(6), deep_tif()], ids=["grey png", "rgb png", "rgba png", "rgb tif"]
)
def test_16_bits_a_channel_are_refused_in_colour_too(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # a sound file: nothing but its depth is wrong
    with pytest.raises(DataError, match="deep: expected 8-bit RGB or grey, got 16 bits a channel"):
        decode_rgb(data, "deep")


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("F", "TIFF"), ("I", "TIFF"), ("YCbCr", "TIFF")])
def test_other_kinds_of_pixels_are_refused(mode: str, kind: str) -> None:
    with pytest.raises(DataError, match=f"expected 8-bit RGB or grey, got mode {mode}"):
        decode_rgb(
            encoded(downloads.picture(1, (8, 8)).convert("L" if mode in "FI" else "RGB").convert(mode), kind), "x"
        )


def test_large_pictures_are_refused_before_they_are_decoded() -> None:
    data = encoded(Image.new("1", (9000, 9000)), "PNG")
    with pytest.raises(DataError, match="x: 9000x9000 pixels, expected at most 64000000"):
        decode_rgb(data, "x")
    with pytest.raises(DataError, match="at most 99"):
        decode_rgb(encoded(downloads.picture(1, (10, 10)), "PNG"), "x", max_pixels=99)
    with pytest.raises(DataError, match="x: "):
        decode_rgb(encoded(Image.new("1", (20_000, 20_000)), "PNG"), "x")  # Pillow's own limit


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_damaged_bytes_raise_nothing_but_data_errors(kind: str) -> None:
    data = encoded(downloads.picture(3, (24, 24)), kind)
    rng = np.random.Generator(np.random.PCG64(0))
    refused = 0
    for _ in range(150):
        broken = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            broken[place] = rng.integers(256)
        broken = broken[: int(rng.integers(1, len(data) + 1))]
        try:
            decode_rgb(bytes(broken), "x")
        except DataError as error:
            refused += 1
            assert str(error).startswith("x: ") and "\n" not in str(error).strip()
    assert refused > 50


def test_a_reduced_jpeg_is_refused_for_the_same_damage() -> None:
    """What packing trusts: reading all of a JPEG without making all of its pixels finds the same faults."""
    rng = random.Random(0)
    sound = encoded(downloads.picture(1, (96, 80)), "JPEG", quality=85)
    reduced = examine(sound, "x", reduced=True)
    assert reduced.image.size == (12, 10) and reduced.size == (96, 80) and reduced.format == "JPEG"
    verdicts = []
    for _ in range(400):
        broken = bytearray(sound)
        place = rng.randrange(2, len(broken))
        if rng.random() < 0.3:
            del broken[place:]
        else:
            broken[place : place + 8] = rng.randbytes(8)
        found = []
        for small in (False, True):
            try:
                examine(bytes(broken), "x", reduced=small)
                found.append("sound")
            except DataError as error:
                found.append(str(error))
        assert found[0] == found[1]
        verdicts.append(found[0] == "sound")
    assert 20 < sum(verdicts) < 380


Chunks = list[tuple[bytes, bytes]]


def chunks_of(data: bytes) -> Chunks:
    at, chunks = 8, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return chunks


def png_of(chunks: Chunks) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def rows_of(chunks: Chunks) -> bytearray:
    return bytearray(zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT")))


def with_stream(chunks: Chunks, *parts: bytes) -> Chunks:
    first = [kind for kind, _ in chunks].index(b"IDAT")
    others = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
    return [*others[:first], *((b"IDAT", part) for part in parts), *others[first:]]


def damaged_png(rng: random.Random, sound: bytes, stride: int) -> bytes:
    """Other pixels, filters, streams, chunks, all of it with the right CRC-32; at times a byte or the end is lost."""
    chunks = chunks_of(sound)
    raw = rows_of(chunks)
    kind = rng.choice(["raw", "raw", "cut", "long", "stream", "split", "late", "header", "order", "lost", "byte"])
    if kind == "raw":
        place, below = rng.choice([(rng.randrange(len(raw)), 256), (rng.randrange(0, len(raw), stride), 8)])  # a filter
        raw[place] = rng.randrange(below)
    elif kind == "cut":
        del raw[rng.randrange(len(raw)) :]
    elif kind == "long":
        raw += bytes(rng.randrange(1, 500))
    stream = bytearray(zlib.compress(bytes(raw), rng.choice([0, 1, 6])))
    if kind == "stream":
        stream[rng.randrange(len(stream))] ^= 1 << rng.randrange(8)
    half = rng.randrange(len(stream)) if kind == "split" else len(stream)
    chunks = with_stream(chunks, bytes(stream[:half]), bytes(stream[half:]))
    if kind == "late":
        name = rng.choice([b"tEXt", b"zTXt", b"fdAT", b"IHDR", b"abcd", b"ABCD"])
        chunks.insert(rng.randrange(1, len(chunks)), (name, rng.randbytes(9)))
    elif kind == "header":
        body = bytearray(chunks[0][1])
        body[rng.randrange(len(body))] = rng.randrange(20)
        chunks[0] = (b"IHDR", bytes(body))
    elif kind == "order":
        rng.shuffle(chunks)
    elif kind == "lost":
        del chunks[rng.randrange(len(chunks))]
    whole = bytearray(png_of(chunks))
    if kind == "byte":
        whole[rng.randrange(8, len(whole))] = rng.randrange(256)
    return bytes(whole[: rng.randrange(len(whole))] if rng.random() < 0.05 else whole)


@pytest.mark.parametrize(("mode", "stride"), [("RGB", 136), ("L", 46), ("P", 46), ("RGBA", 181), ("LA", 91), ("1", 7)])
def test_a_reduced_png_is_refused_for_the_same_damage(mode: str, stride: int) -> None:
    """What packing trusts: a PNG whose rows were not unfiltered is sound exactly when Pillow can decode all of it."""
    rng = random.Random(0)
    sound = encoded(downloads.picture(1, (45, 40)).convert(mode), "PNG")
    assert examine(sound, "x", reduced=True).size == (45, 40)
    verdicts, short = [], 0
    for _ in range(800):
        broken, found = damaged_png(rng, sound, stride), []
        for reduced in (False, True):
            try:
                found.append(examine(broken, "x", reduced=reduced))
            except DataError as error:
                found.append(str(error))
        if isinstance(found[0], str):
            assert found[1] == found[0]
        else:
            assert found[1].size == found[0].size and found[1].format == found[0].format == "PNG"
            few = found[1].image
            assert few.tobytes() == found[0].image.crop((0, 0, *few.size)).tobytes()
            short += few.height < found[0].image.height
        verdicts.append(not isinstance(found[0], str))
    assert 200 < sum(verdicts) < 650 and short > 100


def flawed_pngs(sound: bytes, stride: int) -> dict[str, bytes]:
    """Not plain or not sound, each in one way; Pillow decodes some of them."""
    chunks = chunks_of(sound)
    raw, header, end = bytes(rows_of(chunks)), chunks[0][1], chunks[-1]
    stream = zlib.compress(raw)
    bad_filter = bytearray(raw)
    bad_filter[3 * stride] = 5
    crc = bytearray(sound)
    crc[-16] ^= 1  # of the last IDAT
    return {
        "checksum of a chunk": bytes(crc),
        "checksum of the stream": png_of(with_stream(chunks, stream[:-1] + bytes([stream[-1] ^ 1]))),
        "stream without an end": png_of(with_stream(chunks, stream[:-1])),
        "bytes after the stream": png_of(with_stream(chunks, stream + b"\0")),
        "a row too many": png_of(with_stream(chunks, zlib.compress(raw + raw[:stride]))),
        "a byte too many": png_of(with_stream(chunks, zlib.compress(raw + raw[:1]))),
        "a byte too few": png_of(with_stream(chunks, zlib.compress(raw[:-1]))),
        "filter 5": png_of(with_stream(chunks, zlib.compress(bytes(bad_filter)))),
        "interlaced": png_of([(b"IHDR", header[:12] + b"\1"), *chunks[1:]]),
        "compression method 1": png_of([(b"IHDR", header[:10] + b"\1" + header[11:]), *chunks[1:]]),
        "filter method 1": png_of([(b"IHDR", header[:11] + b"\1" + header[12:]), *chunks[1:]]),
        "two headers": png_of([chunks[0], chunks[0], *chunks[1:]]),
        "animated": png_of([chunks[0], (b"acTL", struct.pack(">II", 1, 0)), *chunks[1:]]),
        "a chunk among the data": png_of(
            [chunks[0], (b"IDAT", stream[:50]), (b"tEXt", b"a\0b"), (b"IDAT", stream[50:]), end]
        ),
        "a chunk after the data": png_of([*chunks[:-1], (b"tEXt", b"a\0b"), end]),
        "no data": png_of([chunks[0], end]),
        "no end": sound[:-12],
        "end cut off": sound[:-1],
        "header of 12 bytes": png_of([(b"IHDR", header[:12]), *chunks[1:]]),
        "no header": png_of(chunks[1:]),
        "nothing": sound[:8],
    }


def test_first_rows_are_of_plain_and_sound_pngs_only() -> None:
    picture = downloads.picture(1, (45, 40))
    sound = encoded(picture, "PNG")
    few, all_rows = first_rows(sound, 8), first_rows(sound + b"more", 100)
    assert few is not None and all_rows is not None
    with Image.open(io.BytesIO(few)) as image:
        assert image.size == (45, 8) and image.tobytes() == picture.crop((0, 0, 45, 8)).tobytes()
    assert decode_rgb(all_rows, "x").tobytes() == picture.tobytes()
    stream = zlib.compress(rows_of(chunks_of(sound)))
    assert first_rows(png_of(with_stream(chunks_of(sound), b"", stream[:1], stream[1:])), 8) == few
    assert {flaw: first_rows(data, 8) for flaw, data in flawed_pngs(sound, 136).items()} == dict.fromkeys(
        flawed_pngs(sound, 136)
    )
