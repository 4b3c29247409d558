"""Figures of a search: history, parallel coordinates, alpha x beta, curves with intervals, importance, Pareto set.

Each paints on a matplotlib figure in the look of all charts; matplotlib is imported inside functions only.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from marc_dist.report.charts import draw_figure, palette, score_colours
from marc_dist.tuning.importance import importances
from marc_dist.tuning.search_space.samplers import LISTED
from marc_dist.tuning.search_space.space import Parameter
from marc_dist.tuning.state import Search, interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS, LEAST_IN_BIN = 6, 4  # of a curve over a parameter with many values: groups at most, values of a group at least
LEAST_SURFACE = 4


def score(search: Search, number: int, metric: str | None = None) -> float:
    """Mean of a setting over its seeds.

    Args:
        search: that tried it.
        number: of the setting, from 0.
        metric: a validation metric; None = the first objective.
    """
    return statistics.fmean(search.values(number, metric or search.plan.objectives[0]))


def figures(search: Search) -> dict[str, Figure]:
    """Every figure that the search has enough for, by name."""
    painters = (
        ("history", _history, (7.5, 3.6)),
        ("epochs", _epochs, (7.5, 3.6)),
        ("parallel", _parallel, (9.0, 4.4)),
        ("surface", _surface, (10.5, 4.4)),
        ("curves", _curves, (10.5, 3.4)),
        ("importance", _importance, (7.5, 3.0)),
        ("pareto", _pareto, (6.0, 4.4)),
    )
    tried = ((name, draw_figure(partial(paint, search), *size)) for name, paint, size in painters)
    return {name: figure for name, figure in tried if figure is not None}


def _history(search: Search, figure: Any) -> bool:
    """Every setting in order, and the best so far of those trained in full."""
    known = [at for at in range(len(search.points)) if search.values(at, search.plan.objectives[0])]
    if not known:
        return False
    full = set(search.finished())
    axes = figure.add_subplot()
    for chosen, colour, label in (
        ([at for at in known if at not in full], palette()["grey"], "stopped early"),
        ([at for at in known if at in full], palette()["trained"], "trained in full"),
    ):
        if chosen:
            axes.scatter(chosen, [score(search, at) for at in chosen], s=18, color=colour, label=label)
    best, steps = -math.inf, []
    for at in sorted(full):
        best = max(best, score(search, at))
        steps.append((at, best))
    if steps:
        axes.step(*zip(*steps, strict=True), where="post", color=palette()["bad"], linewidth=1.2, label="best so far")
    axes.set(xlabel="setting", ylabel=f"validation {search.plan.objectives[0]}")
    axes.legend()
    return True


def _epochs(search: Search, figure: Any) -> bool:
    """The first objective over the epochs of every first run: who had come to rest, who was stopped when."""
    metric = search.plan.objectives[0]
    labelled: set[str] = set()
    axes = figure.add_subplot()
    ranked = search.finished()
    for (_, seed), run in sorted(search.runs.items(), key=lambda item: item[1].number in ranked):
        course = run.curve(metric)
        if seed or not course:
            continue
        label, colour = (
            ("trained in full", palette()["trained"]) if run.number in ranked else ("not in full", palette()["grey"])
        )
        if run.number in ranked[:1]:
            label, colour = "best", palette()["bad"]
        named = None if label in labelled else label
        labelled.add(label)
        axes.plot(
            list(course), list(course.values()), color=colour, linewidth=1.0, label=named, marker=".", markersize=3
        )
    for rung in search.rungs:
        axes.axvline(rung, color=palette()["ink"], linewidth=0.4, linestyle=":")
    axes.set(xlabel="epoch", ylabel=f"validation {metric}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if labelled:
        axes.legend()
    return bool(labelled)


def _place(parameter: Parameter, value: Any) -> float:
    """Where a value lies on a parameter's axis, 0 to 1."""
    sampler = parameter.sampler
    if sampler.kind in LISTED:
        last = max(len(sampler.values) - 1, 1)
        near = [at for at, known in enumerate(sampler.values) if known == value]
        return near[0] / last if near else 0.5
    low, high = (float(str(end)) for end in sampler.values)
    if sampler.logarithmic:
        low, high, value = math.log(low), math.log(high), math.log(max(float(value), 1e-300))
    return (float(value) - low) / (high - low)


def _parallel(search: Search, figure: Any) -> bool:
    """A line a setting over all parameters; colour is the score, faint lines were stopped early."""
    import matplotlib
    from matplotlib.colors import Normalize

    parameters = [one for one in search.space.parameters if len(one.sampler.values) > 1]
    full = search.finished()
    if not full or not parameters:
        return False
    axes = figure.add_subplot()
    values = [score(search, at) for at in full]
    norm = Normalize(min(values), max(values) if max(values) > min(values) else min(values) + 1e-9)
    colours = score_colours()
    for at in range(len(search.points)):
        point = search.points[at]
        line = [(x, _place(one, point[one.name])) for x, one in enumerate(parameters) if one.name in point]
        if at in full:
            line.append((len(parameters), norm(score(search, at))))
        style = {"color": colours(norm(score(search, at))), "linewidth": 1.6, "zorder": 2} if at in full else {}
        axes.plot(*zip(*line, strict=True), **({"color": palette()["grey"], "linewidth": 0.6} | style))
    for x, one in enumerate(parameters):
        axes.axvline(x, color=palette()["ink"], linewidth=0.6)
        marks = one.sampler.values if one.sampler.kind in LISTED else one.sampler.values[:2]
        for value in marks[:8]:
            axes.annotate(_text(value), (x, _place(one, value)), xytext=(3, 2), textcoords="offset points", fontsize=7)
    axes.axvline(len(parameters), color=palette()["ink"], linewidth=0.6)
    names = [*(one.name for one in parameters), search.plan.objectives[0]]
    axes.set_xticks(range(len(names)), names, rotation=15)
    axes.set_yticks([])
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    figure.colorbar(matplotlib.cm.ScalarMappable(norm, colours), ax=axes, label=search.plan.objectives[0])
    return True


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def surface_points(search: Search) -> list[tuple[float, float, float]]:
    """(alpha, beta, score) of every pair that was trained in full, mean over settings with that pair."""
    cells: dict[tuple[float, float], list[float]] = {}
    for at in search.finished():
        point = search.points[at]
        pair = point.get("loss.alpha"), point.get("loss.beta")
        if isinstance(pair[0], int | float) and isinstance(pair[1], int | float):
            cells.setdefault((float(pair[0]), float(pair[1])), []).append(score(search, at))
    return [(*pair, statistics.fmean(values)) for pair, values in sorted(cells.items())]


def _surface(search: Search, figure: Any) -> bool:
    """Score over alpha and beta, as a surface in space and as a map; between points it is interpolated, no more."""
    import numpy as np

    points = surface_points(search)
    alphas, betas = ({point[axis] for point in points} for axis in (0, 1))
    if len(points) < LEAST_SURFACE or len(alphas) < 2 or len(betas) < 2:
        return False
    x, y, z = (np.array(column) for column in zip(*points, strict=True))
    if np.linalg.matrix_rank(np.stack([x - x.mean(), y - y.mean()]), tol=1e-9) < 2:
        return False
    solid = figure.add_subplot(1, 2, 1, projection="3d")
    solid.plot_trisurf(x, y, z, cmap=score_colours(), linewidth=0.2, edgecolor="white")
    solid.set(xlabel="alpha", ylabel="beta", zlabel=search.plan.objectives[0])
    flat = figure.add_subplot(1, 2, 2)
    if len(points) == len(alphas) * len(betas):  # a whole grid: a cell a point
        table = z.reshape(len(alphas), len(betas)).T
        shown = flat.imshow(table, origin="lower", aspect="auto", cmap=score_colours())
        flat.set_xticks(range(len(alphas)), [f"{value:g}" for value in sorted(alphas)])
        flat.set_yticks(range(len(betas)), [f"{value:g}" for value in sorted(betas)])
        for row, line in enumerate(table):
            for column, value in enumerate(line):
                bright = value > (z.min() + z.max()) / 2
                colour = "black" if bright else "white"
                flat.annotate(f"{value:.3f}", (column, row), ha="center", va="center", fontsize=7, color=colour)
    else:
        shown = flat.tricontourf(x, y, z, levels=12, cmap=score_colours())
        flat.scatter(x, y, s=10, color="white", edgecolor=palette()["ink"], linewidth=0.4)
    flat.set(xlabel="alpha", ylabel="beta")
    figure.colorbar(shown, ax=flat, label=search.plan.objectives[0])
    return True


def curve(
    pairs: Sequence[tuple[float, float]], bins: int = BINS, *, listed: bool = False
) -> list[tuple[float, float, float, float]]:
    """Means over a parameter with 95 % intervals: (place, mean, low, high), ascending.

    Args:
        pairs: (value of the parameter, score).
        bins: groups of about equal size at most, fewer where they would have less than ``LEAST_IN_BIN`` values.
        listed: the parameter has a list of values; then each of them is a group.

    Returns:
        A group of one has low = high = mean. Groups lie at the median of their values.
    """
    if listed:
        groups = [[pair for pair in pairs if pair[0] == value] for value in sorted({value for value, _ in pairs})]
    else:
        ordered = sorted(pairs)
        bins = max(1, min(bins, len(pairs) // LEAST_IN_BIN))
        cuts = [round(at * len(ordered) / bins) for at in range(bins + 1)]
        groups = [ordered[low:high] for low, high in zip(cuts, cuts[1:], strict=False) if high > low]
    out = []
    for group in groups:
        mean, low, high = interval([value for _, value in group])
        assert mean is not None
        place = statistics.median(value for value, _ in group)
        out.append((place, mean, mean if low is None else low, mean if high is None else high))
    return out


def _curves(search: Search, figure: Any) -> bool:
    """Score over each number that varies: settings as points, means with intervals as a line."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    full = search.finished()
    numeric = [one for one in search.space.parameters if one.sampler.numeric and len(one.sampler.values) > 1]
    numeric = [one for one in numeric if sum(one.name in search.points[at] for at in full) > 1]
    if not numeric:
        return False
    columns = min(len(numeric), 3)
    lines = -(-len(numeric) // columns)
    figure.set_size_inches(3.5 * columns, 3.2 * lines)
    grid = figure.subplots(lines, columns, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number >= len(numeric):
            axes.set_visible(False)
            continue
        one = numeric[number]
        having = [at for at in full if one.name in search.points[at]]
        pairs = [(float(str(search.points[at][one.name])), score(search, at)) for at in having]
        axes.scatter(*zip(*pairs, strict=True), s=14, color=palette()["grey"])
        places, means, lows, highs = zip(*curve(pairs, listed=one.sampler.kind in LISTED), strict=True)
        below = [mean - low or math.nan for mean, low in zip(means, lows, strict=True)]  # no bar for a single value
        above = [high - mean or math.nan for mean, high in zip(means, highs, strict=True)]
        axes.errorbar(
            places,
            means,
            yerr=[below, above],
            color=palette()["trained"],
            capsize=3,
            linewidth=1.2,
            marker="o",
            markersize=3,
        )
        scores = [value for _, value in pairs]
        room = 0.3 * (max(scores) - min(scores)) or 0.01
        axes.set_ylim(min(scores) - room, max(scores) + room)  # a wide interval must not flatten the points
        if one.sampler.logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=one.name, ylabel=search.plan.objectives[0] if number % columns == 0 else "")
    return True


def _importance(search: Search, figure: Any) -> bool:
    found = importances(search)
    if not found:
        return False
    axes = figure.add_subplot()
    names = list(found)[::-1]
    axes.barh(names, [found[name] for name in names], color=palette()["trained"])
    axes.set(xlabel=f"importance for a high {search.plan.objectives[0]} (PED-ANOVA, together 1)", xlim=(0, 1))
    return True


def _pareto(search: Search, figure: Any) -> bool:
    """The first two objectives against each other; what no other setting beats in both is joined."""
    names = search.plan.objectives
    full = search.finished()
    if len(names) < 2 or not full:
        return False
    axes = figure.add_subplot()
    best = set(search.pareto())
    for chosen, colour, label in (
        (set(full) - best, palette()["grey"], "beaten"),
        (best, palette()["bad"], "not beaten"),
    ):
        if chosen:
            pairs = [(score(search, at, names[0]), score(search, at, names[1])) for at in chosen]
            axes.scatter(*zip(*pairs, strict=True), s=22, color=colour, label=label)
    for at in best:
        where = score(search, at, names[0]), score(search, at, names[1])
        axes.annotate(f"{at:04d}", where, xytext=(4, 3), textcoords="offset points", fontsize=7)
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.legend()
    return True
