"""Evaluations of several runs beside each other, with paired intervals over their queries."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marc_dist import metrics
from marc_dist.config import DataError
from marc_dist.metrics import Float
from marc_dist.metrics.intervals import Resampled, percentile_interval, resampled
from marc_dist.report.score_rows import Interval, Row
from marc_dist.run.evaluations import Queries, read_queries, read_summary

ALIKE = ("protocol", "gain", "relevance", "denominator", "ideal", "ndcg_form", "without_relevant", "ks")
"""Settings of ``eval`` that give a metric its meaning; what an earlier version did not write down is not compared."""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation to be compared.

    Attributes:
        name: what people call the run.
        folder: of the evaluation.
        summary: all of ``metrics.json``.
        queries: the trained encoder's scores of each query.
    """

    name: str
    folder: Path
    summary: dict[str, Any]
    queries: Queries


def read_evaluated(name: str, folder: Path) -> Evaluated:
    """Read an evaluation.

    Raises:
        DataError: not there, or damaged.
    """
    summary = read_summary(folder)
    return Evaluated(name, folder, summary, read_queries(folder, summary))


def refuse_unlike(first: Evaluated, other: Evaluated) -> None:
    """Only the same metrics of the same queries in the same archive can be compared.

    Raises:
        DataError: says what differs first.
    """
    for side in ("queries", "archive"):
        mine, theirs = first.summary[side], other.summary[side]
        for key in ("fingerprint", "split"):
            if mine[key] != theirs[key]:
                _unlike(
                    first,
                    other,
                    f"{side}, {key} of the data",
                    *(f"{of['name']} {of[key]:.16}" for of in (mine, theirs)),
                )
    for key in ALIKE:
        pair = first.summary.get(key), other.summary.get(key)
        if None not in pair and pair[0] != pair[1]:
            _unlike(first, other, f"eval.{key}", *pair)
    if first.summary["classes"] != other.summary["classes"]:
        _unlike(
            first, other, "classes", len(first.summary["classes"]), f"{len(other.summary['classes'])}, not the same"
        )
    if first.summary["num_archive"] != other.summary["num_archive"]:
        _unlike(first, other, "images in the archive", first.summary["num_archive"], other.summary["num_archive"])
    mine, theirs = set(first.queries.keys), set(other.queries.keys)
    if mine != theirs:
        told = f"{len(theirs)} of which {len(theirs - mine)} are others"
        _unlike(first, other, "queries", f"the {len(mine)} of the first", told)


def _unlike(first: Evaluated, other: Evaluated, what: str, expected: object, got: object) -> None:
    raise DataError(
        f"{other.folder}: {what}: expected {expected}, as in {first.folder}, got {got}; evaluate both alike "
        "(--name keeps an evaluation beside others), or compare others"
    )


class Compared(NamedTuple):
    """Figures of all runs, a list of one row a run for each.

    A row has the run's value and the first run's, with their intervals over queries, and the difference to the first
    with its paired interval; None for the first itself.

    Attributes:
        metrics: those that all runs have.
        labels: AP of each label.
        thirds: mean AP of all labels and of each third.
    """

    metrics: list[list[Row]]
    labels: list[list[Row]]
    thirds: list[list[Row]]


def compared(runs: Sequence[Evaluated]) -> Compared:
    """Compare runs with the first of them.

    Raises:
        DataError: see ``refuse_unlike``.
    """
    for other in runs[1:]:
        refuse_unlike(runs[0], other)
    first = runs[0].summary
    names = [
        name for name in first["scores"]["trained"] if all(name in run.summary["scores"]["trained"] for run in runs)
    ]
    counts = np.array([label["archive_count"] for label in first["per_label"]], dtype=np.int64)
    third = metrics.label_thirds(counts)
    drawn = [_drawn(run, runs[0], names, third) for run in runs]
    ends = [[percentile_interval(means) for means in one] for one in drawn]
    between = [
        [percentile_interval(mine - theirs) for mine, theirs in zip(one, drawn[0], strict=True)] for one in drawn
    ]
    found = []
    for part, figures in enumerate(_figures(runs, names)):
        rows = []
        for at, (name, values) in enumerate(figures.items()):
            lower, kept = name in first["lower_is_better"], first["queries_kept"].get(name)
            lines = []
            for who, value in enumerate(values):
                own, base = _pair(ends[who][part], at), _pair(ends[0][part], at)
                gap = None if not who or value is None or values[0] is None else value - values[0]
                gap_ends = None if gap is None else _pair(between[who][part], at)
                lines.append(Row(name, (value, values[0]), (own, base), gap, gap_ends, lower, kept))
            rows.append(lines)
        found.append(rows)
    return Compared(*found)


def as_csv(names: Sequence[str], found: Compared) -> bytes:
    """One line a figure and run; empty where there is no value."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    ends = ("low", "high")
    writer.writerow(["figure", "metric", "run", "score", *ends, "difference", *(f"difference_{end}" for end in ends)])
    for figure, rows in zip(("metric", "label AP", "labels"), found, strict=True):
        for lines in rows:
            for name, row in zip(names, lines, strict=True):
                numbers = [row.values[0], *(row.intervals[0] or (None, None)), row.difference]
                numbers += row.between or (None, None)
                told = ["" if number is None else repr(float(number)) for number in numbers]
                writer.writerow([figure, row.name, name, *told])
    return text.getvalue().encode()


def _drawn(run: Evaluated, first: Evaluated, names: Sequence[str], third: metrics.Int) -> Resampled:
    """Means over draws of the first run's queries, in its order; NaN of labels where an earlier version kept none."""
    place = {key: at for at, key in enumerate(run.queries.keys)}
    order = np.array([place[key] for key in first.queries.keys])
    scores = np.stack([run.queries.scores[name][order] for name in names], axis=1)
    label_ap = run.queries.label_ap
    known = np.full((len(order), len(third)), np.nan) if label_ap is None else label_ap[order]
    return resampled(scores, known, third)


def _figures(runs: Sequence[Evaluated], names: Sequence[str]) -> list[dict[str, list[float | None]]]:
    """Metrics, thirds and labels: name -> a value a run; in the order of ``Resampled``."""
    summaries = [run.summary for run in runs]
    thirds = summaries[0]["thirds"]["trained"]
    return [
        {name: [one["scores"]["trained"][name] for one in summaries] for name in names},
        {
            label["label"]: [one["per_label"][at]["ap"]["trained"] for one in summaries]
            for at, label in enumerate(summaries[0]["per_label"])
        },
        {
            f"label AP, {group} ({told['num_labels']})": [one["thirds"]["trained"][group]["mAP"] for one in summaries]
            for group, told in thirds.items()
        },
    ]


def _pair(ends: tuple[Float, Float], at: int) -> Interval:
    low, high = float(ends[0][at]), float(ends[1][at])
    return None if np.isnan(low) else (low, high)
