"""Queries worth looking at, with their first answers, chosen from the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from marc_dist.data.dataset import Dataset
from marc_dist.data.reader import IndexedReader
from marc_dist.retrieval.protocols import Bool

SHOWN = 6
KINDS = ("best", "rare label", "median", "worst")


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

    def shared_labels(self, query: int, answer: int) -> list[tuple[str, bool]]:
        """(label, shared with the query) for every label of an answer, shared ones first, in class order."""
        ours, theirs = self.queries.labels[query], self.archive.labels[answer]
        pairs = [(name, bool(ours[at])) for at, name in enumerate(self.classes) if theirs[at]]
        return sorted(pairs, key=lambda pair: not pair[1])

    def own_labels(self, query: int) -> list[tuple[str, bool]]:
        """(label, True) for every label of a query, in class order."""
        return [(name, True) for at, name in enumerate(self.classes) if self.queries.labels[query, at]]


@dataclass(frozen=True)
class Example:
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


def choose_examples(labels: Bool, summary: dict[str, Any], rows: Sequence[dict[str, Any]], num: int) -> list[Example]:
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
    chosen: list[Example] = []
    taken: set[int] = set()
    for turn in range(num):
        kind = KINDS[turn % len(KINDS)]
        query = next((q for q in orders[kind] if q not in taken), None)
        if query is not None:
            taken.add(query)
            chosen.append(Example(kind, score[query], query, answers[query]))
    return sorted(chosen, key=lambda panel: KINDS.index(panel.kind))
