"""One picture of a data set: some thumbnails of each class, to see in a glance whether the labels are right."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from marc_dist.config import printable
from marc_dist.data.columns import distinct
from marc_dist.data.dataset import Dataset
from marc_dist.data.reader import IndexedReader
from marc_dist.packing.layout import split_order
from marc_dist.report.thumbnails import FAINT, INK, PAPER, SHEET_HEIGHT, cut_to_width, square

TILES = 8  # of a class
TILE, LEAST_TILE, GAP, SIDE, HEAD, CAPTION = 96, 32, 8, 190, 62, 18
MOST_CLASSES = (SHEET_HEIGHT - HEAD) // (LEAST_TILE + GAP)


def chosen(dataset: Dataset, label: int) -> list[int]:
    """Sample ids of a class, at most ``TILES``: as good as drawn, by their CRC-32, so always the same."""
    rows = np.flatnonzero(dataset.bits[:, label // 8] >> np.uint8(label % 8) & 1)
    draws = dataset.crc32[rows] * np.uint32((2 * label + 1) * 0x9E3779B1 & 0xFFFFFFFF)  # others for each class
    return list(map(int, rows[np.argsort(draws, kind="stable")[:TILES]]))


def class_sheet(dataset: Dataset) -> bytes:
    """PNG: a row a class: its name, its pictures in each split, thumbnails with split and key below.

    Of more than ``MOST_CLASSES`` classes the first ones are shown, and the title says so.

    Raises:
        DataError: a picture that cannot be read.
    """
    reader = IndexedReader(dataset)
    big, plain, tiny = (ImageFont.load_default(size) for size in (17, 14, 10))
    classes = dataset.classes[:MOST_CLASSES]
    room = (SHEET_HEIGHT - HEAD) // len(classes) - GAP
    caption = CAPTION if room >= TILE // 2 + CAPTION else 0
    tile = min(TILE, room - caption)
    width, line = GAP * 3 + SIDE + (tile + GAP) * TILES, tile + caption + GAP
    sheet = Image.new("RGB", (width, HEAD + line * len(classes)), PAPER)
    draw = ImageDraw.Draw(sheet)
    splits = sorted(distinct(dataset.split), key=split_order)
    sizes = ", ".join(f"{len(dataset.rows(split)):,} {printable(split)}" for split in splits)
    title = f"{printable(dataset.title)}: {len(dataset):,} pictures"
    if len(classes) < len(dataset.classes):
        title += f", the first {len(classes):,} of {len(dataset.classes):,} classes"
    draw.text((GAP * 2, 10), cut_to_width(draw, title, big, width - GAP * 4), fill=INK, font=big)
    draw.text((GAP * 2, 34), cut_to_width(draw, sizes, plain, width - GAP * 4), fill=FAINT, font=plain)
    counts = {split: dataset.label_counts(split) for split in splits}
    for label, name in enumerate(classes):
        top = HEAD + label * line
        draw.text((GAP * 2, top), cut_to_width(draw, printable(name), plain, SIDE - GAP), fill=INK, font=plain)
        most = max(0, (tile + caption - 20) // 13)
        lines = [f"{split} {counts[split][label]:,}" for split in splits]
        for at, text in enumerate(lines if len(lines) <= most else lines[:most]):
            place = (GAP * 2, top + 20 + 13 * at)
            draw.text(place, cut_to_width(draw, printable(text), tiny, SIDE - GAP), fill=FAINT, font=tiny)
        for at, row in enumerate(chosen(dataset, label)):
            left = GAP * 2 + SIDE + at * (tile + GAP)
            sheet.paste(square(reader.image(row), tile), (left, top))
            if caption:
                text = cut_to_width(draw, printable(f"{dataset.split[row]}/{dataset.keys[row]}"), tiny, tile)
                draw.text((left, top + tile + 2), text, fill=FAINT, font=tiny)
    reader.close()
    data = io.BytesIO()
    sheet.save(data, "PNG", optimize=True)
    return data.getvalue()
