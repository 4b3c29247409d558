"""The answers of a search as a page: HTML, self-contained, no network, no scripts."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from marc_dist.config import printable
from marc_dist.data.dataset import Dataset
from marc_dist.data.reader import IndexedReader
from marc_dist.geography.coast import land_path
from marc_dist.geography.places import Places
from marc_dist.report.answer_map import HEIGHT, WIDTH, AnswerMap, answer_map
from marc_dist.report.page import render_page
from marc_dist.report.picture_sheets import ITSELF, ROW, key_of, labels_of, sheet_limits, split_of
from marc_dist.retrieval.archive import Answers

PAGE_PICTURES = 5000
"""Answers on a page, about 60 MB of small pictures; a table shows all."""


def page_limit(found: Sequence[Answers]) -> int:
    """At most how many answers of each query a page shows: what a browser can hold."""
    return max(ROW, PAGE_PICTURES // max(1, len(found)))


def left_out(found: Sequence[Answers]) -> list[str]:
    """One line each of what the sheet and the page do not show; none where they show everything."""
    most = max((len(answers.hits) for answers in found), default=0)
    queries, answers = sheet_limits(found)
    told = [f"the first {queries} of {len(found)} queries"] if queries < len(found) else []
    told += [f"the first {answers} of {most} answers"] if answers < most else []
    lines = [f"search.png shows {', '.join(told)}"] if told else []
    if page_limit(found) < most:
        return [*lines, f"search.html shows the first {page_limit(found)} of {most} answers; the table shows all"]
    return [f"{line}; search.html and the table show all" for line in lines]


def search_page(
    found: Sequence[Answers], dataset: Dataset, reader: IndexedReader, title: str, facts: Sequence[str],
    wanted: Collection[str], places: Places | None = None,
) -> str:  # fmt: skip
    """The page: one panel a query.

    Args:
        found: the queries with their answers.
        dataset: of the archive.
        reader: of the archive.
        title: of the page.
        facts: short sentences below the title.
        wanted: labels that were asked for, marked in the answers.
        places: of the archive: where some are known, a map is shown for each query.
    """
    most = page_limit(found)
    drawn: list[AnswerMap | None] = [None] * len(found)
    if places is not None:
        keys = [[key_of(dataset, hit.id) for hit in answers.hits[:most]] for answers in found]
        drawn = [answer_map(answers, places, one, most) for answers, one in zip(found, keys, strict=True)]
    return render_page(
        "search_page.html.j2",
        title=title,
        heading=title,
        facts=facts,
        found=[(printable(answers.path.name), answers) for answers in found],
        most=most,
        drawn=drawn,
        land=land_path() if any(drawn) else "",
        map_size=(WIDTH, HEIGHT),
        date_of=lambda sample: "" if places is None else places.date(sample),
        image_of=reader.image,
        itself=ITSELF,
        split_of=lambda sample: split_of(dataset, sample),
        key_of=lambda sample: key_of(dataset, sample),
        labels_of=lambda sample: [(name, name in wanted) for name in labels_of(dataset, sample)],
    )
