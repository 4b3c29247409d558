"""The picture of a learning-rate range test."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from marc_dist.report.charts import as_png, draw_figure, palette, short


def lr_picture(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float | None], suggestion: float | None
) -> bytes:
    """A PNG: loss against learning rate, both smoothed and as it was, and the suggested rate.

    Args:
        rates: rising.
        losses: at these rates; what is not finite is left out.
        smoothed: likewise, None for no value.
        suggestion: marked by a line, if there is one.
    """

    def paint(figure: Figure) -> bool:
        axes = figure.add_subplot()
        colour = palette()
        means = [math.nan if value is None else value for value in smoothed]
        finite = [loss if math.isfinite(loss) else math.nan for loss in losses]
        axes.grid(axis="y", linewidth=0.8)
        axes.scatter(rates, finite, s=7, color=colour["faint"], linewidths=0, label="a step")
        axes.plot(rates, means, color=colour["trained"], linewidth=1.8, label="smoothed")
        if suggestion is not None:
            axes.axvline(suggestion, color=colour["ink"], linewidth=1.1, linestyle=(0, (4, 3)))
            axes.annotate(
                f"steepest fall: {short(suggestion)}",
                (suggestion, 1),
                xycoords=("data", "axes fraction"),
                xytext=(5, -4),
                textcoords="offset points",
                va="top",
            )
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss", xlim=(rates[0], rates[-1]))
        known = [value for value in means if math.isfinite(value)]
        if known:  # a loss that runs away would flatten all others
            low, high = min(known), min(max(known), 2 * known[0])
            room = 0.1 * (high - low) or 1.0
            axes.set_ylim(low - room, high + 2 * room)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
        return True

    figure = draw_figure(paint, 6.0, 3.6)
    assert figure is not None
    return as_png(figure)
