"""The scores of an evaluation as rows: what tables, cards and bars show of all encoders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from marc_dist.metrics.metric_help import group_of, is_usual, meaning

MISSING = "-"
Interval = Sequence[float] | None


@dataclass(frozen=True)
class Row:
    """One figure of all encoders.

    Attributes:
        name: of the metric or the third of the labels.
        values: one per encoder; None = no value.
        intervals: of the values.
        difference: trained - untrained, None without a baseline.
        between: interval of the difference.
        lower: lower is better.
        kept: queries that count, where a metric leaves some out.
    """

    name: str
    values: tuple[float | None, ...]
    intervals: tuple[Interval, ...]
    difference: float | None = None
    between: Interval = None
    lower: bool = False
    kept: int | None = None

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the interval of the difference excludes 0, else empty.

        An interval without width comes from too few queries to draw from, and says nothing.
        """
        if self.between is None or self.between[0] <= 0.0 <= self.between[1] or self.between[0] == self.between[1]:
            return ""
        return "better" if (self.between[0] > 0.0) != self.lower else "worse"


def score(value: float | None) -> str:
    """A score with four digits after the point; ``-`` for none."""
    return MISSING if value is None else f"{value:.4f}"


def signed(value: float, digits: int = 4) -> str:
    """A difference with its sign; a true minus, as wide as the plus."""
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def _row(name: str, values: dict[str, float | None], intervals: dict[str, Interval]) -> Row:
    first, other = values["trained"], values.get("untrained")
    difference = None if first is None or other is None else first - other
    ends = tuple(intervals[who] for who in values)
    return Row(name, tuple(values.values()), ends, difference, intervals.get("difference"))


def metric_rows(summary: dict[str, Any], *, usual: bool) -> list[Row]:
    """The usual metrics, or all others, in the order in which they were computed."""
    scores, ends = summary["scores"], summary["intervals"]["scores"]
    rows = []
    for metric in scores["trained"]:
        if is_usual(metric) == usual:
            values = {who: one[metric] for who, one in scores.items()}
            row = _row(metric, values, {who: one[metric] for who, one in ends.items()})
            lower, kept = metric in summary["lower_is_better"], summary["queries_kept"].get(metric)
            rows.append(replace(row, lower=lower, kept=kept))
    return rows


def third_rows(summary: dict[str, Any]) -> list[Row]:
    """Mean AP of single labels, of all and of each third."""
    thirds, ends = summary["thirds"], summary["intervals"]["thirds"]
    return [
        _row(
            f"label AP, {third} ({told['num_labels']})",
            {who: one[third]["mAP"] for who, one in thirds.items()},
            {who: one[third] for who, one in ends.items()},
        )
        for third, told in thirds["trained"].items()
    ]


def label_rows(summary: dict[str, Any]) -> list[tuple[dict[str, Any], Row]]:
    """What ``per_label`` says of each label, and its AP; most common first."""
    ends = summary["intervals"]["per_label"]
    rows = [
        (label, _row(label["label"], label["ap"], {who: one[at] for who, one in ends.items()}))
        for at, label in enumerate(summary["per_label"])
    ]
    return sorted(rows, key=lambda row: -row[0]["archive_count"])


def further_rows(summary: dict[str, Any]) -> dict[str, list[Row]]:
    """The further metrics by group; empty when they were not computed."""
    groups: dict[str, list[Row]] = {}
    for row in metric_rows(summary, usual=False):
        groups.setdefault(group_of(row.name), []).append(row)
    return groups


def headline_rows(summary: dict[str, Any]) -> list[Row]:
    """The four scores that the report shows large."""
    rows = {row.name: row for row in metric_rows(summary, usual=True)}
    first = min(summary["ks"])
    whole = "mAP" if summary["full_ranking"] else f"mAP@{max(summary['ks'])}"
    chosen = [rows[name] for name in (whole, f"nDCG@{first}", f"P@{first}")]
    return [*chosen, replace(third_rows(summary)[1], name="AP of rare labels")]


def with_meanings(rows: Sequence[Row], summary: dict[str, Any]) -> list[tuple[Row, str]]:
    """Each row with its meaning; a family of metrics is explained at its first member."""
    how = {key: summary[key] for key in ("denominator", "ideal") if key in summary}  # a choice, of late
    out, explained = [], set()
    for row in rows:
        kind = re.split("[@,]", row.name)[0]
        notes = [] if kind in explained else [meaning(row.name, **how)]
        explained |= {kind} if kind != row.name else set()
        if row.lower:
            notes.append("lower is better")
        if row.kept is not None:
            notes.append(f"{row.kept:,} queries")
        out.append((row, "; ".join(notes)))
    return out
