"""The parts of the report that show figures: scores, precision and recall, labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from marc_dist.retrieval.charts import bar, esc, recall_chart, whiskers
from marc_dist.retrieval.meanings import meaning
from marc_dist.retrieval.tables import MISSING, Row, figure, further_rows, label_rows, metric_rows, third_rows


def signed(value: float, digits: int = 4) -> str:
    """A difference with its sign; a true minus, as wide as the plus."""
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def _between(ends: Sequence[float] | None, *, difference: bool = False) -> str:
    """An interval, small."""
    if ends is None:
        return ""
    if difference:
        return f"<small>{signed(ends[0], 3)} to {signed(ends[1], 3)}</small>"
    return f"<small>{ends[0]:.3f}\u2013{ends[1]:.3f}</small>"


def cards(summary: dict[str, Any]) -> str:
    """Four figures, large, each with its interval beside the untrained encoder's."""
    rows = {row.name: row for row in metric_rows(summary, usual=True)}
    first = min(summary["ks"])
    whole = "mAP" if summary["full_ranking"] else f"mAP@{max(summary['ks'])}"
    told = [(name, rows[name]) for name in (whole, f"nDCG@{first}", f"P@{first}")]
    told.append(("AP of rare labels", third_rows(summary)[1]))
    return f'<div class="cards">{"".join(_card(name, row, list(summary["scores"])) for name, row in told)}</div>'


def _card(title: str, row: Row, names: Sequence[str]) -> str:
    series = zip(names, row.values, row.intervals, strict=True)
    drawn = whiskers([(name, value, ends) for name, value, ends in series if value is not None])
    under = ""
    if row.difference is not None:
        gain = f'<b class="{row.verdict}">{signed(row.difference)}</b>'
        under = f"<p><span>untrained {figure(row.values[1])}</span>{gain}</p>"
    return f'<div class="card"><h3>{esc(title)}</h3><strong>{figure(row.values[0])}</strong>{drawn}{under}</div>'


def _head(names: Sequence[str]) -> str:
    columns = [*names, "difference"] if len(names) == 2 else names
    cells = "".join(f'<th scope="col" class="num">{esc(name)}</th>' for name in columns)
    return f'<thead><tr><th scope="col">metric</th>{cells}</tr></thead>'


def _lines(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Lines of the table; a family of metrics is explained at its first member."""
    lines, explained = [], set()
    for row in rows:
        kind = re.split("[@,]", row.name)[0]
        note = [] if kind in explained else [meaning(row.name)]
        explained |= {kind} if kind != row.name else set()
        if row.lower:
            note.append("lower is better")
        if row.kept is not None:
            note.append(f"{row.kept:,} queries")
        cells = [
            f'<td class="num">{figure(value)}{_between(ends)}</td>'
            for value, ends in zip(row.values, row.intervals, strict=True)
        ]
        if len(names) == 2:
            told = MISSING if row.difference is None else signed(row.difference)
            ends = _between(row.between, difference=True)
            cells.append(f'<td class="num"><b class="{row.verdict}">{told}</b>{ends}</td>')
        small = f"<small>{esc('; '.join(note))}</small>" if note else ""
        lines.append(f'<tr><th scope="row">{esc(row.name)}{small}</th>{"".join(cells)}</tr>')
    return "".join(lines)


def score_table(summary: dict[str, Any]) -> str:
    """All usual metrics and the label thirds with intervals; the further ones, if computed, folded away."""
    names = list(summary["scores"])
    rows = [*metric_rows(summary, usual=True), *third_rows(summary)]
    told = summary["intervals"]
    note = (
        f"Small figures: {100 * told['level']:.0f} % intervals over the queries (bootstrap, {told['draws']:,} draws)."
    )
    if len(names) == 2:
        note += " A difference is coloured where its interval excludes 0."
    kind = "scores pair" if len(names) == 2 else "scores"
    width = len(names) + 1 + (len(names) == 2)
    groups = "".join(
        f'<tbody><tr><th scope="rowgroup" class="group" colspan="{width}">{esc(group)}</th>'
        f"</tr>{_lines(some, names)}</tbody>"
        for group, some in further_rows(summary).items()
    )
    more = (
        f'<details><summary>all further metrics</summary><table class="{kind}">{_head(names)}{groups}</table></details>'
        if groups
        else ""
    )
    table = f'<table class="{kind}">{_head(names)}<tbody>{_lines(rows, names)}</tbody></table>'
    return f'{table}<p class="note">{esc(note)}</p>{more}'


def recall_charts(summary: dict[str, Any]) -> str:
    """Precision against recall: all queries, then the labels of each third; nothing for rankings that were cut."""
    curves = {name: one for name, one in summary["curves"].items() if one}
    if not curves:
        return ""
    drawn = [
        recall_chart("all queries", {name: one["queries"] for name, one in curves.items()}, summary["relevant_share"])
    ]
    for third in ("rare", "medium", "common"):
        some = {name: one["thirds"][third] for name, one in curves.items()}
        shares = [
            label["archive_count"] / summary["num_archive"]
            for label in summary["per_label"]
            if label["third"] == third and label["ap"]["trained"] is not None
        ]
        drawn.append(recall_chart(f"{third} labels", some, float(np.mean(shares)) if shares else None))
    return f'{legend(summary, "answers in random order")}<div class="recalls">{"".join(drawn)}</div>'


def legend(summary: dict[str, Any], chance: str = "") -> str:
    """The encoders and their colours."""
    names = "".join(f'<li class="{esc(name)}">{esc(name)}</li>' for name in summary["scores"])
    more = f'<li class="random">{esc(chance)}</li>' if chance else ""
    return f'<ul class="legend">{names}{more}</ul>'


def label_table(summary: dict[str, Any]) -> str:
    """AP of every label with intervals, most frequent first."""
    names = list(summary["scores"])
    lines = []
    for label, row in label_rows(summary):
        series = zip(names, row.values, row.intervals, strict=True)
        bars = "".join(bar(value, name, f"average precision of {row.name}", ends) for name, value, ends in series)
        gain = ""
        if len(names) == 2:
            by = "" if row.difference is None else signed(row.difference, 3)
            gain = f'<td class="num"><b class="{row.verdict}">{by}</b>{_between(row.between, difference=True)}</td>'
        asked = f"{label['query_count']:,} {'query' if label['query_count'] == 1 else 'queries'}"
        told = f"{label['archive_count']:,} in archive, {asked}, {esc(label['third'])}"
        lines.append(f'<tr><th scope="row">{esc(row.name)}<small>{told}</small></th><td>{bars}</td>{gain}</tr>')
    columns = ["label", "average precision", *(["difference"] if len(names) == 2 else [])]
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    return (
        f'{legend(summary)}<table class="labels"><thead class="unseen"><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )
