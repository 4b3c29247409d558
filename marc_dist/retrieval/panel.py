"""Queries worth looking at, with their first answers: chosen from the scores, shown as pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from marc_dist.config import Config
from marc_dist.data.augment import MEAN, STD, Augment
from marc_dist.data.dataset import Dataset
from marc_dist.data.reader import IndexedReader
from marc_dist.retrieval.protocols import Bool

SHOWN = 6
KINDS = ("best", "rare label", "median", "worst")
TILE, GAP, SIDE = 112, 8, 188
RIGHT, WRONG, INK, FAINT, PAPER = "#1a7f4b", "#b3372f", "#1d232b", "#5b6673", "#ffffff"


@dataclass(frozen=True)
class Gallery:
    """The pictures of one side, and their labels (len(dataset), L) over the classes of the evaluation."""

    dataset: Dataset
    reader: IndexedReader
    labels: Bool


@dataclass(frozen=True)
class Galleries:
    """Both sides, and the classes that are scored."""

    queries: Gallery
    archive: Gallery
    classes: tuple[str, ...]

    def shared(self, query: int, answer: int) -> list[tuple[str, bool]]:
        """(label, shared with the query) for every label of an answer, shared ones first, in class order."""
        ours, theirs = self.queries.labels[query], self.archive.labels[answer]
        pairs = [(name, bool(ours[at])) for at, name in enumerate(self.classes) if theirs[at]]
        return sorted(pairs, key=lambda pair: not pair[1])

    def asked(self, query: int) -> list[str]:
        """The query's labels, in class order."""
        return [name for at, name in enumerate(self.classes) if self.queries.labels[query, at]]


@dataclass(frozen=True)
class Panel:
    """One query: why it was chosen, its score, its id, and each encoder's first answers."""

    kind: str
    score: float
    query: int
    answers: dict[str, list[int]]


def score_name(summary: dict[str, Any]) -> str:
    """The metric by which queries are called best and worst: it sees order and number of shared labels."""
    return f"nDCG@{min(summary['ks'])}"


def _rarest(labels: Bool, summary: dict[str, Any], ids: Sequence[int]) -> dict[int, int]:
    """Query -> archive count of its rarest label that the archive holds; queries without one are left out."""
    counts = np.array([row["archive_count"] for row in summary["per_label"]])
    out = {}
    for sample in ids:
        held = counts[labels[sample] & (counts > 0)]
        if len(held):
            out[sample] = int(held.min())
    return out


def choose_panels(labels: Bool, summary: dict[str, Any], rows: Sequence[dict[str, Any]], num: int) -> list[Panel]:
    """``num`` different queries, taken in turn: best, rare label, median, worst, by the trained encoder's score.

    Queries without a relevant image are passed over; the best has two labels or more if any query has (a list of one
    common label is perfect too easily); among equals, more labels first, then the lower id.

    Args:
        labels: (n, L) of the queries' data, by sample id.
        summary: of ``results.summarise``.
        rows: of ``per_query.parquet``.
        num: panels wanted.
    """
    name = score_name(summary)
    score = {row["id"]: float(row[name]) for row in rows if row["encoder"] == "trained" and row["num_relevant"] > 0}
    if not score:
        return []
    answers: dict[int, dict[str, list[int]]] = {}
    for row in rows:
        answers.setdefault(row["id"], {})[row["encoder"]] = [sample for sample in row["top"][:SHOWN] if sample >= 0]
    middle = float(np.median(list(score.values())))
    rarest = _rarest(labels, summary, sorted(score))
    num_labels = {sample: int(labels[sample].sum()) for sample in score}
    orders = {
        "best": sorted(score, key=lambda q: (num_labels[q] < 2, -score[q], -num_labels[q], q)),
        "rare label": sorted(rarest, key=lambda q: (rarest[q], abs(score[q] - middle), q)),
        "median": sorted(score, key=lambda q: (abs(score[q] - middle), -num_labels[q], q)),
        "worst": sorted(score, key=lambda q: (score[q], -num_labels[q], q)),
    }
    chosen: list[Panel] = []
    taken: set[int] = set()
    for turn in range(num):
        kind = KINDS[turn % len(KINDS)]
        query = next((q for q in orders[kind] if q not in taken), None)
        if query is not None:
            taken.add(query)
            chosen.append(Panel(kind, score[query], query, answers[query]))
    return sorted(chosen, key=lambda panel: KINDS.index(panel.kind))


def data_uri(image: Image.Image, side: int = 192) -> str:
    """A picture, at most ``side`` pixels wide and high, as a ``data:`` address."""
    image = image.copy()
    image.thumbnail((side, side))
    data = io.BytesIO()
    small = max(image.size) <= 96
    image.save(data, "PNG" if small else "JPEG", **({} if small else {"quality": 88}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def training_views(config: Config, dataset: Dataset, reader: IndexedReader, num: int) -> list[tuple[int, list[Any]]]:
    """``num`` samples of the training split, evenly spaced, each with ``SHOWN`` views as training drew them.

    View 0, view 1, ... of epoch 0, then of epoch 1, and so on; none when the data have no such split.
    """
    rows = np.flatnonzero(dataset.split == config.data.train_split)
    chosen = np.unique(rows[np.linspace(0, len(rows) - 1, num).astype(np.int64)]) if len(rows) else rows
    augment = Augment(config.augment, config.data.image_size, config.train.seed)
    out = []
    for sample in chosen.tolist():
        at = [divmod(number, config.data.num_views) for number in range(SHOWN)]
        views = [augment(reader.image(sample), epoch, sample, view).numpy() for epoch, view in at]
        pixels = [view.transpose(1, 2, 0) * np.array(STD) + np.array(MEAN) for view in views]
        pictures = [Image.fromarray(np.rint(x.clip(0, 1) * 255).astype(np.uint8)) for x in pixels]
        out.append((sample, pictures))
    return out


def _tile(reader: IndexedReader, sample: int) -> Image.Image:
    image = reader.image(sample)
    exact = TILE % image.width == 0 and image.width == image.height
    return image.resize((TILE, TILE), Image.Resampling.NEAREST if exact else Image.Resampling.BICUBIC)


def fit(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> str:
    """``text``, cut with dots to ``width`` pixels."""
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."


def panel_png(galleries: Galleries, panels: Sequence[Panel], title: str, metric: str) -> bytes:
    """The panels as one picture: a line per query, its labels at the left, answers in order, framed by right or wrong.

    Under each answer: how many labels of the query it shares.
    """
    big, plain, tiny = (ImageFont.load_default(size) for size in (17, 14, 12))
    head, line = 58, TILE + 30
    size = (GAP * 3 + SIDE + (TILE + GAP) * (SHOWN + 1) + GAP, head + line * len(panels) + GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP * 2, 9), fit(draw, title, big, size[0] - GAP * 4), fill=INK, font=big)
    first = GAP * 2 + SIDE
    draw.text((first, 36), "query", fill=FAINT, font=plain)
    draw.text((first + TILE + GAP * 2, 36), "first six answers of the trained encoder", fill=FAINT, font=plain)
    for number, panel in enumerate(panels):
        top = head + number * line
        draw.text((GAP * 2, top), f"{panel.kind}: {metric} {panel.score:.2f}", fill=INK, font=plain)
        names = galleries.asked(panel.query)
        for at, name in enumerate(names if len(names) <= 6 else [*names[:5], f"and {len(names) - 5} more"]):
            draw.text((GAP * 2, top + 22 + at * 16), fit(draw, name, tiny, SIDE - GAP), fill=FAINT, font=tiny)
        sheet.paste(_tile(galleries.queries.reader, panel.query), (first, top))
        for at, answer in enumerate(panel.answers["trained"]):
            left = first + (at + 1) * (TILE + GAP) + GAP
            num = sum(same for _, same in galleries.shared(panel.query, answer))
            sheet.paste(_tile(galleries.archive.reader, answer), (left, top))
            colour = RIGHT if num else WRONG
            draw.rectangle((left - 2, top - 2, left + TILE + 1, top + TILE + 1), outline=colour, width=3)
            draw.text((left, top + TILE + 5), f"{num} of {len(names)} shared", fill=colour, font=tiny)
    data = io.BytesIO()
    sheet.save(data, "PNG", optimize=True)
    return data.getvalue()
