"""The answers of a search as a page: HTML, self-contained, no network, no scripts."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from marc_dist.config import printable
from marc_dist.data.dataset import Dataset
from marc_dist.data.reader import IndexedReader
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
    wanted: Collection[str],
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
    return render_page(
        "search_page.html.j2",
        title=title,
        heading=title,
        facts=facts,
        found=[(printable(answers.path.name), answers) for answers in found],
        most=page_limit(found),
        image_of=reader.image,
        itself=ITSELF,
        split_of=lambda sample: split_of(dataset, sample),
        key_of=lambda sample: key_of(dataset, sample),
        labels_of=lambda sample: [(name, name in wanted) for name in labels_of(dataset, sample)],
    )
