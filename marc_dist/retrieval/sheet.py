"""The answers of a search as a contact sheet (PNG) and as a page (HTML, self-contained, no network, no scripts)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from marc_dist.config import printable
from marc_dist.data.dataset import Dataset
from marc_dist.data.reader import IndexedReader
from marc_dist.retrieval.archive import Answers, Hit
from marc_dist.retrieval.charts import esc
from marc_dist.retrieval.panel import FAINT, INK, PAPER, data_uri, fit
from marc_dist.retrieval.style import CSS

TILE, GAP, ROW, LINES = 132, 10, 6, 3
QUERY = 176
HEAD, LINE = 46, TILE + 34 + 15 * (LINES + 1)
SHEET_HEIGHT = 30_000
"""Pixels; programs that show pictures stop at 32,767, some at less memory."""
PAGE_PICTURES = 5000
"""Answers on a page, about 60 MB of small pictures; a table shows all."""
MORE_CSS = """
.answers { row-gap:18px; } .query h3 { margin-top:6px; } .query h3::first-letter { text-transform:none; }
.panel > div:last-child { padding-top:0; }
.answers .tile { content-visibility:auto; contain-intrinsic-size:auto 200px; }
.tile img { outline:none; } .rank { margin:5px 0 4px; }
.plain { color:var(--faint); border:1px solid var(--line); } .key { margin:0 0 4px; font-size:12px;
  color:var(--faint); }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def labels_of(dataset: Dataset, sample: int) -> list[str]:
    """The names of a sample's labels, in class order."""
    return [printable(name) for name, on in zip(dataset.classes, dataset.labels[sample], strict=True) if on]


def key_of(dataset: Dataset, sample: int) -> str:
    """A sample's key, for a terminal or a page."""
    return printable(str(dataset.keys[sample]))


def _square(image: Image.Image, side: int) -> Image.Image:
    """The middle square of a picture."""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    cut = image.crop((left, top, left + short, top + short))
    return cut.resize((side, side), Image.Resampling.NEAREST if side % short == 0 else Image.Resampling.BICUBIC)


def on_sheet(found: Sequence[Answers]) -> tuple[int, int]:
    """How many queries a contact sheet shows, and at most how many answers of each: it is a picture of sane size."""
    queries = min(len(found), (SHEET_HEIGHT - HEAD) // (LINE + GAP))
    return queries, ROW * (((SHEET_HEIGHT - HEAD) // max(1, queries) - GAP) // LINE)


def on_page(found: Sequence[Answers]) -> int:
    """At most how many answers of each query a page shows: what a browser can hold."""
    return max(ROW, PAGE_PICTURES // max(1, len(found)))


def left_out(found: Sequence[Answers]) -> list[str]:
    """One line each of what the sheet and the page do not show; none where they show everything."""
    most = max((len(answers.hits) for answers in found), default=0)
    queries, answers = on_sheet(found)
    told = [f"the first {queries} of {len(found)} queries"] if queries < len(found) else []
    told += [f"the first {answers} of {most} answers"] if answers < most else []
    lines = [f"search.png shows {', '.join(told)}"] if told else []
    if on_page(found) < most:
        return [*lines, f"search.html shows the first {on_page(found)} of {most} answers; the table shows all"]
    return [f"{line}; search.html and the table show all" for line in lines]


def contact_sheet(found: Sequence[Answers], dataset: Dataset, reader: IndexedReader, title: str) -> bytes:
    """PNG: each query at the left with its answers in rows of six: rank and score, key, labels; see ``on_sheet``."""
    big, plain, tiny = (ImageFont.load_default(size) for size in (17, 14, 12))
    queries, most = on_sheet(found)
    found = found[:queries]
    rows = [max(1, -(-min(most, len(answers.hits)) // ROW)) for answers in found]
    width = GAP * 4 + QUERY + (TILE + GAP) * ROW
    sheet = Image.new("RGB", (width, HEAD + sum(num * LINE + GAP for num in rows)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP * 2, 12), fit(draw, title, big, width - GAP * 4), fill=INK, font=big)
    top = HEAD
    for answers, num in zip(found, rows, strict=True):
        sheet.paste(_square(answers.picture.image, QUERY), (GAP * 2, top))
        name = fit(draw, printable(answers.path.name), plain, QUERY)
        draw.text((GAP * 2, top + QUERY + 6), name, fill=INK, font=plain)
        for at, hit in enumerate(answers.hits[:most]):
            left = GAP * 4 + QUERY + (at % ROW) * (TILE + GAP)
            y = top + (at // ROW) * LINE
            sheet.paste(_square(reader.image(hit.id), TILE), (left, y))
            draw.text((left, y + TILE + 4), f"{at + 1}.  {hit.score:.3f}", fill=INK, font=plain)
            texts = [key_of(dataset, hit.id), *_wrapped(draw, labels_of(dataset, hit.id), tiny)]
            for number, text in enumerate(texts):
                place = (left, y + TILE + 22 + 15 * number)
                draw.text(place, fit(draw, text, tiny, TILE), fill=FAINT if number else INK, font=tiny)
        top += num * LINE + GAP
    data = io.BytesIO()
    sheet.save(data, "PNG", optimize=True)
    return data.getvalue()


def _wrapped(draw: ImageDraw.ImageDraw, names: Sequence[str], font: Any) -> list[str]:
    """Names in at most ``LINES`` lines of a tile's width; what does not fit is counted."""
    lines = [""]
    for at, name in enumerate(names):
        longer = f"{lines[-1]}, {name}" if lines[-1] else name
        if not lines[-1] or draw.textlength(longer, font=font) <= TILE:
            lines[-1] = longer
        elif len(lines) < LINES:
            lines.append(name)
        else:
            lines[-1] = f"{lines[-1]} + {len(names) - at}"
            break
    return lines


def _tile(dataset: Dataset, reader: IndexedReader, rank: int, hit: Hit, wanted: Sequence[str]) -> str:
    names = labels_of(dataset, hit.id)
    chips = "".join(f'<li class="{"same" if name in wanted else "plain"}">{esc(name)}</li>' for name in names)
    told = f"answer {rank}, {key_of(dataset, hit.id)}: {', '.join(names) or 'no labels'}"
    return (
        f'<li class="tile"><img src="{data_uri(reader.image(hit.id))}" alt="{esc(told)}">'
        f'<p class="rank">{rank}. <b>{hit.score:.3f}</b></p><p class="key">{esc(key_of(dataset, hit.id))}</p>'
        f'<ul class="chips">{chips}</ul></li>'
    )


def search_page(
    found: Sequence[Answers], dataset: Dataset, reader: IndexedReader, title: str, facts: Sequence[str],
    wanted: Sequence[str],
) -> str:  # fmt: skip
    """The page: one panel a query.

    Args:
        found: the queries with their answers.
        dataset: of the archive.
        reader: of the archive.
        title: of the page.
        facts: short sentences below the title.
        wanted: labels that were asked for, marked in the answers.
    """
    panels = []
    for answers in found:
        shown = answers.hits[: on_page(found)]
        tiles = "".join(_tile(dataset, reader, at, hit, wanted) for at, hit in enumerate(shown, 1))
        picture, name = answers.picture, esc(printable(answers.path.name))
        remark = f"<p>{esc(picture.remark)}</p>" if picture.remark else ""
        if len(shown) < len(answers.hits):
            remark += f"<p>the first {len(shown)} of {len(answers.hits)} answers</p>"
        size = f"{picture.size[0]} x {picture.size[1]} px"
        panels.append(
            f'<article class="panel"><div class="query"><img src="{data_uri(picture.image, 320)}" '
            f'alt="query {name}"><h3>{name}</h3><p>{size}</p>{remark}</div>'
            f'<div><ol class="answers">{tiles}</ol></div></article>'
        )
    chips = "".join(f"<li>{esc(fact)}</li>" for fact in facts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{esc(title)}</title><style>{CSS}{MORE_CSS}</style></head>\n<body><main>"
        f'<header><p class="kicker">marc-dist search</p><h1>{esc(title)}</h1><ul class="facts">{chips}</ul></header>'
        f"<section>{''.join(panels)}</section></main></body></html>\n"
    )
