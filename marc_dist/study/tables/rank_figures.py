"""Rank diagrams over data sets, as Demsar (2006) draws them: losses on an axis of mean ranks, those that Nemenyi's test
cannot tell apart joined by a bar. The numbers are those of ``ranks.csv``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from marc_dist.study.plan import Plan
from marc_dist.study.tables.collected import Findings, Ranking, title_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXIS_IN, NAMES_IN = 3.4, 2.2
"""Widths of the axis, and of the names at each side of it, in inches."""
LONGEST = 34
"""Letters of a name that have room."""
BARS, STEP = 0.5, 1.0
"""Heights of a bar and of a name; the figure has a quarter of an inch for 1."""


def rank_figures(plan: Plan, findings: Findings) -> dict[str, Figure]:
    """A diagram for each encoder and metric that is ranked: file name without its end -> figure.

    Args:
        plan: of the study.
        findings: its ranks.
    """
    from marc_dist.report.charts import draw_figure  # matplotlib

    titles = {method.name: method.title for method in plan.methods}
    figures = {}
    for ranking in findings.rankings:
        column = ranking.column
        name = f"ranks-{ranking.encoder}-{column.evaluation}-{column.metric}".replace("@", "-at-")
        encoder = title_of(plan, "encoders", ranking.encoder)
        height = 0.25 * (4.0 + BARS * len(ranking.ranks.groups) + STEP * (-(-len(ranking.names) // 2)))
        figure = draw_figure(partial(_diagram, ranking, titles, encoder), AXIS_IN + 2 * NAMES_IN, height)
        assert figure is not None
        figures[name] = figure
    return figures


def _diagram(ranking: Ranking, titles: dict[str, str], encoder: str, figure: Any) -> bool:
    from marc_dist.report.charts import palette

    ranks, num = ranking.ranks, len(ranking.names)
    ink, faint, bar = (palette()[name] for name in ("ink", "faint", "trained"))
    last = max(float(num), 1.0 + ranks.critical_difference)
    side = NAMES_IN / AXIS_IN * (last - 1.0)
    below = BARS * (len(ranks.groups) + 1)
    half = -(-num // 2)
    axes = figure.add_subplot()
    axes.axis("off")
    axes.set(xlim=(1.0 - side, last + side), ylim=(-below - STEP * half, 3.0))
    axes.plot([1.0, num], [0.0, 0.0], color=faint, linewidth=0.8)
    for tick in range(1, num + 1):
        axes.plot([tick, tick], [0.0, 0.2], color=faint, linewidth=0.8)
        axes.text(tick, 0.35, str(tick), ha="center", va="bottom", color=faint, fontsize=8.0)
    axes.plot([1.0, 1.0 + ranks.critical_difference], [1.7, 1.7], color=ink, linewidth=2.0, solid_capstyle="butt")
    axes.text(1.0, 1.85, f"critical difference {ranks.critical_difference:.2f}", va="bottom", fontsize=8.0)
    for at, group in enumerate(ranks.groups):
        ends = [float(ranks.mean_ranks[one]) for one in (group[0], group[-1])]
        room = 0.01 * (last - 1.0)
        y = -BARS * (at + 0.8)
        axes.plot([ends[0] - room, ends[1] + room], [y, y], color=bar, linewidth=3.0, solid_capstyle="butt")
    order = [int(at) for at in np.argsort(ranks.mean_ranks, kind="stable")]
    for place, at in enumerate(order):
        rank, left = float(ranks.mean_ranks[at]), place < half
        y = -below - STEP * (place if left else num - 1 - place) - 0.3
        end = 1.0 - 0.04 * side if left else last + 0.04 * side
        axes.plot([rank, rank, end], [0.0, y, y], color=faint, linewidth=0.7)
        text = (
            f"{_cut(titles[ranking.names[at]])}  {rank:.2f}"
            if left
            else f"{rank:.2f}  {_cut(titles[ranking.names[at]])}"
        )
        axes.text(end + (-0.03 if left else 0.03) * side, y, text, ha="right" if left else "left", va="center")
    axes.set_title(_cut(f"{ranking.column.metric} ({ranking.column.evaluation}): {encoder}", 90), fontsize=9.0)
    return True


def _cut(name: str, longest: int = LONGEST) -> str:
    return name if len(name) <= longest else f"{name[: longest - 3]}..."
