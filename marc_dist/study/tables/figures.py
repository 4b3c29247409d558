"""Figures of sweeps, a curve over one setting, a surface over two; and every figure as PDF and PNG."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from marc_dist.study.plan import Plan
from marc_dist.study.tables.collected import Block, Column, Findings, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST = 2
"""Points of a curve, and values of each side of a surface."""
TITLE_SIZE, LINE = 9.0, 32
"""Points of a title, and letters of a line of it: narrow windows show them a third larger."""
Points = list[tuple[tuple[Any, ...], Row]]


def sweep_figures(plan: Plan, findings: Findings) -> dict[str, Figure]:
    """Every figure that the study has points for: file name without its end -> figure.

    Args:
        plan: of the study.
        findings: its scores.
    """
    figures: dict[str, Figure] = {}
    for block in findings.blocks:
        for loss, keys in _sweeps(plan).items():
            points = _points(plan, block, loss)
            if len(points) < LEAST or len(keys) > 2:
                continue
            for column in block.columns:
                name = f"{loss}-{block.dataset}-{block.encoder}-{column.evaluation}-{column.metric}".replace(
                    "@", "-at-"
                )
                figure = _drawn(block, column, loss, keys, points)
                if figure is not None:
                    figures[name] = figure
    return figures


def figure_files(figures: Mapping[str, Figure]) -> dict[str, bytes]:
    """Each figure as PNG and as PDF; equal figures give equal bytes.

    Args:
        figures: file name without its end -> figure.
    """
    files = {}
    for name, figure in figures.items():
        files[f"{name}.png"], files[f"{name}.pdf"] = _png(figure), _pdf(figure)
    return files


def _sweeps(plan: Plan) -> dict[str, list[str]]:
    """Losses with a sweep, and what varies."""
    return {method.loss: list(method.sweep) for method in plan.methods if method.sweep and method.tuned_on is None}


def _points(plan: Plan, block: Block, loss: str) -> Points:
    rows = {row.name: row for row in block.rows}
    mine = [one for one in plan.methods if one.loss == loss and one.sweep and one.tuned_on is None]
    return [(tuple(one.sweep.values()), rows[one.name]) for one in mine if one.name in rows]


def _drawn(block: Block, column: Column, loss: str, keys: list[str], points: Points) -> Figure | None:
    from marc_dist.report.charts import draw_figure  # matplotlib

    paint = _curve if len(keys) == 1 else _surface
    size = (4.2, 3.0) if len(keys) == 1 else (4.6, 3.6)
    return draw_figure(partial(paint, block, column, loss, keys, points), *size)


def _curve(block: Block, column: Column, loss: str, keys: list[str], points: Points, figure: Any) -> bool:
    from marc_dist.report.charts import palette

    known = [(values[0], row.figures[column]) for values, row in points if column in row.figures]
    known = [(value, one) for value, one in known if not math.isnan(one.mean)]
    if len(known) < LEAST:
        return False
    axes = figure.add_subplot()
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value, _ in known)
    if numbers:
        known.sort(key=lambda one: one[0])
    places = [value for value, _ in known] if numbers else list(range(len(known)))
    low, high = ([getattr(one, end) for _, one in known] for end in ("low", "high"))
    axes.fill_between(places, low, high, color=palette()["trained"], alpha=0.2, linewidth=0)
    axes.plot(places, [one.mean for _, one in known], color=palette()["trained"], marker="o", markersize=3.5)
    if not numbers:
        axes.set_xticks(places, [str(value) for value, _ in known])
    elif min(places) > 0 and max(places) / min(places) >= 10:
        axes.set_xscale("log")
    axes.set(xlabel=keys[0], ylabel=column.metric)
    _entitle(figure, f"{loss}: {block.title}")
    axes.grid(axis="y")
    return True


def _surface(block: Block, column: Column, loss: str, keys: list[str], points: Points, figure: Any) -> bool:
    from marc_dist.report.charts import score_colours

    sides = [sorted({values[at] for values, _ in points}, key=_order) for at in (0, 1)]
    if min(map(len, sides)) < LEAST:
        return False
    grid = np.full((len(sides[1]), len(sides[0])), np.nan)
    for values, row in points:
        if column in row.figures:
            grid[sides[1].index(values[1]), sides[0].index(values[0])] = row.figures[column].mean
    if np.isnan(grid).all():
        return False
    axes = figure.add_subplot()
    image = axes.imshow(grid, origin="lower", cmap=score_colours(), aspect="auto")
    for (y, x), value in np.ndenumerate(grid):
        if not np.isnan(value):
            axes.text(x, y, f"{value:.3f}", ha="center", va="center", fontsize=7, color="black")
    axes.set_xticks(range(len(sides[0])), [str(value) for value in sides[0]])
    axes.set_yticks(range(len(sides[1])), [str(value) for value in sides[1]])
    axes.set(xlabel=keys[0], ylabel=keys[1])
    _entitle(figure, f"{loss}, {column.metric}: {block.title}")
    figure.colorbar(image, ax=axes)
    return True


def _entitle(figure: Any, title: str) -> None:
    figure.suptitle(textwrap.fill(title, LINE), fontsize=TITLE_SIZE)


def _order(value: Any) -> tuple[int, Any]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, value) if number else (1, str(value))


def _png(figure: Figure) -> bytes:
    from marc_dist.report.charts import as_png

    return as_png(figure)


def _pdf(figure: Figure) -> bytes:
    from marc_dist.report.charts import chart_style

    data = io.BytesIO()
    with chart_style():
        figure.savefig(data, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return data.getvalue()
