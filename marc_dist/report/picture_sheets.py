"""Sheets of pictures as PNG: a query a line with its answers, for an evaluation and for a search."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from marc_dist.config import printable
from marc_dist.data.dataset import Dataset
from marc_dist.data.reader import IndexedReader
from marc_dist.report.example_queries import SHOWN, Example, Galleries
from marc_dist.report.thumbnails import FAINT, INK, PAPER, SHEET_HEIGHT, cut_to_width, square
from marc_dist.retrieval.archive import Answers

RIGHT, WRONG = "#1a7f4b", "#b3372f"
TILE, GAP, SIDE = 112, 8, 188
WIDE_TILE, WIDE_GAP, ROW, LINES = 132, 10, 6, 3
QUERY = 176
HEAD, LINE = 46, WIDE_TILE + 34 + 15 * (LINES + 1)
ITSELF = "the query itself"


def _tile(reader: IndexedReader, sample: int) -> Image.Image:
    image = reader.image(sample)
    exact = TILE % image.width == 0 and image.width == image.height
    return image.resize((TILE, TILE), Image.Resampling.NEAREST if exact else Image.Resampling.BICUBIC)


def example_sheet(galleries: Galleries, examples: Sequence[Example], title: str, metric: str) -> bytes:
    """The examples as one picture: a line a query, its labels at the left, answers in order, framed by right or wrong.

    Under each answer: how many labels of the query it shares.

    Args:
        galleries: the pictures of queries and archive.
        examples: a query and its answers each.
        title: line at the top.
        metric: whose score stands beside each query.
    """
    big, plain, tiny = (ImageFont.load_default(size) for size in (17, 14, 12))
    head, line = 58, TILE + 30
    size = (GAP * 3 + SIDE + (TILE + GAP) * (SHOWN + 1) + GAP, head + line * len(examples) + GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP * 2, 9), cut_to_width(draw, title, big, size[0] - GAP * 4), fill=INK, font=big)
    first = GAP * 2 + SIDE
    draw.text((first, 36), "query", fill=FAINT, font=plain)
    draw.text((first + TILE + GAP * 2, 36), "first six answers of the trained encoder", fill=FAINT, font=plain)
    for number, example in enumerate(examples):
        top = head + number * line
        draw.text((GAP * 2, top), f"{example.kind}: {metric} {example.score:.2f}", fill=INK, font=plain)
        names = [name for name, _ in galleries.own_labels(example.query)]
        for at, name in enumerate(names if len(names) <= 6 else [*names[:5], f"and {len(names) - 5} more"]):
            draw.text((GAP * 2, top + 22 + at * 16), cut_to_width(draw, name, tiny, SIDE - GAP), fill=FAINT, font=tiny)
        sheet.paste(_tile(galleries.queries.reader, example.query), (first, top))
        for at, answer in enumerate(example.answers["trained"]):
            left = first + (at + 1) * (TILE + GAP) + GAP
            num = sum(same for _, same in galleries.shared_labels(example.query, answer))
            sheet.paste(_tile(galleries.archive.reader, answer), (left, top))
            colour = RIGHT if num else WRONG
            draw.rectangle((left - 2, top - 2, left + TILE + 1, top + TILE + 1), outline=colour, width=3)
            draw.text((left, top + TILE + 5), f"{num} of {len(names)} shared", fill=colour, font=tiny)
    data = io.BytesIO()
    sheet.save(data, "PNG", optimize=True)
    return data.getvalue()


def labels_of(dataset: Dataset, sample: int) -> list[str]:
    """The names of a sample's labels, in class order."""
    return [printable(name) for name, on in zip(dataset.classes, dataset.label_rows(sample), strict=True) if on]


def split_of(dataset: Dataset, sample: int) -> str:
    """The name of the split that a sample is in, for a terminal or a page."""
    return printable(str(dataset.split[sample]))


def key_of(dataset: Dataset, sample: int) -> str:
    """A sample's key, for a terminal or a page."""
    return printable(str(dataset.keys[sample]))


def sheet_limits(found: Sequence[Answers]) -> tuple[int, int]:
    """How many queries a contact sheet shows, and at most how many answers of each: it is a picture of sane size."""
    queries = min(len(found), (SHEET_HEIGHT - HEAD) // (LINE + WIDE_GAP))
    return queries, ROW * (((SHEET_HEIGHT - HEAD) // max(1, queries) - WIDE_GAP) // LINE)


def contact_sheet(found: Sequence[Answers], dataset: Dataset, reader: IndexedReader, title: str) -> bytes:
    """PNG: each query at the left with its answers in rows of six: rank and score, key, labels (``sheet_limits``).

    Args:
        found: a query's picture and its answers each.
        dataset: the archive.
        reader: of the archive's pictures.
        title: line at the top.
    """
    big, plain, tiny = (ImageFont.load_default(size) for size in (17, 14, 12))
    queries, most = sheet_limits(found)
    found = found[:queries]
    rows = [max(1, -(-min(most, len(answers.hits)) // ROW)) for answers in found]
    width = WIDE_GAP * 4 + QUERY + (WIDE_TILE + WIDE_GAP) * ROW
    sheet = Image.new("RGB", (width, HEAD + sum(num * LINE + WIDE_GAP for num in rows)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((WIDE_GAP * 2, 12), cut_to_width(draw, title, big, width - WIDE_GAP * 4), fill=INK, font=big)
    top = HEAD
    for answers, num in zip(found, rows, strict=True):
        sheet.paste(square(answers.picture.image, QUERY), (WIDE_GAP * 2, top))
        name = cut_to_width(draw, printable(answers.path.name), plain, QUERY)
        draw.text((WIDE_GAP * 2, top + QUERY + 6), name, fill=INK, font=plain)
        for at, hit in enumerate(answers.hits[:most]):
            left = WIDE_GAP * 4 + QUERY + (at % ROW) * (WIDE_TILE + WIDE_GAP)
            y = top + (at // ROW) * LINE
            sheet.paste(square(reader.image(hit.id), WIDE_TILE), (left, y))
            remark = f" {ITSELF}" if hit.same else ""
            draw.text((left, y + WIDE_TILE + 4), f"{at + 1}.  {hit.score:.4f}{remark}", fill=INK, font=plain)
            texts = [
                f"{key_of(dataset, hit.id)} ({split_of(dataset, hit.id)})",
                *_wrapped(draw, labels_of(dataset, hit.id), tiny),
            ]
            for number, text in enumerate(texts):
                place = (left, y + WIDE_TILE + 22 + 15 * number)
                draw.text(place, cut_to_width(draw, text, tiny, WIDE_TILE), fill=FAINT if number else INK, font=tiny)
        top += num * LINE + WIDE_GAP
    data = io.BytesIO()
    sheet.save(data, "PNG", optimize=True)
    return data.getvalue()


def _wrapped(draw: ImageDraw.ImageDraw, names: Sequence[str], font: Any) -> list[str]:
    """Names in at most ``LINES`` lines of a tile's width; what does not fit is counted."""
    lines = [""]
    for at, name in enumerate(names):
        longer = f"{lines[-1]}, {name}" if lines[-1] else name
        if not lines[-1] or draw.textlength(longer, font=font) <= WIDE_TILE:
            lines[-1] = longer
        elif len(lines) < LINES:
            lines.append(name)
        else:
            lines[-1] = f"{lines[-1]} + {len(names) - at}"
            break
    return lines
