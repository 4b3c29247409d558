"""Charts in one look, drawn by matplotlib: as SVG inside a page, as PNG in a file.

matplotlib draws them all, and not code of our own: papers and searches need its scales, surfaces and file formats.
Pages lose nothing: text stays text, and the colours of the SVG are the style sheet's variables, so it turns dark.
"""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import resources
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

PIXELS_AN_INCH = 96
NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}
"""What matplotlib would write into an SVG; without it the same values give the same text."""


@dataclass(frozen=True)
class Chart:
    """A chart of a page.

    Attributes:
        title: what is drawn, with its unit.
        svg: the drawing; None for none.
        note: the last value beside a drawing, or why there is none.
    """

    title: str
    svg: Markup | None
    note: str = ""


@functools.cache
def palette() -> dict[str, str]:
    """The colours of pages in the light, and of every file: name of the style sheet's variable -> ``#rrggbb``."""
    sheet = (resources.files("marc_dist.report") / "templates" / "pages.css").read_text(encoding="utf-8")
    light = sheet[: sheet.index("@media")]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light))


def chart_style() -> AbstractContextManager[None]:
    """The settings of matplotlib for every chart."""
    colour = palette()
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "marc-dist",
        "text.parse_math": False,
        "font.size": 9.0,
        "text.color": colour["ink"],
        "axes.edgecolor": colour["faint"],
        "axes.labelcolor": colour["faint"],
        "axes.linewidth": 0.6,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes3d.xaxis.panecolor": "none",
        "axes3d.yaxis.panecolor": "none",
        "axes3d.zaxis.panecolor": "none",
        "grid.color": colour["line"],
        "xtick.color": colour["faint"],
        "ytick.color": colour["faint"],
        "legend.frameon": False,
        "legend.fontsize": 8.5,
    }
    return matplotlib.rc_context(settings)


@functools.cache
def score_colours() -> Colormap:
    """Colours of scores from low to high, without the ends that are lost on dark or on white."""
    return ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.3, 0.93, 256)), "scores")


def draw_figure(paint: Callable[[Figure], bool], width: float, height: float) -> Figure | None:
    """A figure in the common look.

    Args:
        paint: draws on the figure; False where there is nothing to draw.
        width: in inches.
        height: in inches.
    """
    with chart_style():
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure if paint(figure) else None


def as_png(figure: Figure) -> bytes:
    """The figure as a file for papers, always light."""
    data = io.BytesIO()
    with chart_style():
        figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    return data.getvalue()


def as_svg(figure: Figure, name: str, told: str) -> Markup:
    """The figure as part of a page: colours by name, no background, text in the page's font.

    Args:
        figure: of ``draw_figure``.
        name: no other chart of the page has it; ids begin with it.
        told: what the chart shows, for those who point at it or do not see it.
    """
    data = io.StringIO()
    with chart_style():
        figure.savefig(data, format="svg", transparent=True, metadata=NO_METADATA)
    whole = data.getvalue()
    names = {value: f"var(--{key})" for key, value in palette().items()}
    body = whole[whole.index("</defs>") + len("</defs>") :]  # after the head and a style for the whole page
    body = re.sub(r"(?<=: )#[0-9a-f]{6}\b", lambda found: names.get(found[0], found[0]), body)
    body = re.sub(r" font-family: [^;\"]*;", "", body)
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    box = re.search(r'viewBox="([^"]*)"', whole)
    assert box is not None
    natural = f"{figure.get_size_inches()[0] * PIXELS_AN_INCH:.0f}px"
    head = Markup('<svg viewBox="{}" style="--natural:{}" role="img" aria-label="{}"><title>{}</title>')
    return head.format(box[1], natural, told, told) + Markup(" ".join(body.split()))


def short(value: float) -> str:
    """A number with three digits, in full from 1,000 to 1,000,000: 0, 0.25, 12,000, 1e-05."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


def _plain_axes(figure: Figure) -> Axes:
    """Axes of lines across and numbers; they end at round numbers."""
    axes = figure.add_subplot()
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", linewidth=0.8, clip_on=False)
    axes.tick_params(length=0, pad=5)
    axes.margins(x=0)
    return axes


def step_chart(name: str, title: str, points: Sequence[tuple[float, float | None]]) -> Chart:
    """One curve over global steps; a missing value breaks it, a lone one is a dot.

    Args:
        name: no other chart of the page has it.
        title: what is drawn, with its unit.
        points: (step, value or None), steps ascending.
    """
    steps = [step for step, _ in points]
    values = [math.nan if value is None or not math.isfinite(value) else value for _, value in points]
    known = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    if not known:
        return Chart(title, None, "no values logged")
    there = [False, *(math.isfinite(value) for value in values), False]
    lone = [at for at in range(len(values)) if there[at + 1] and not there[at] and not there[at + 2]]

    (first, start), (last, end) = known[0], known[-1]
    low, high = (pick(value for _, value in known) for pick in (min, max))

    def paint(figure: Figure) -> bool:
        axes = _plain_axes(figure)
        axes.plot(steps, values, color=palette()["trained"], linewidth=1.5, marker=".", markevery=lone, gid="curve")
        marks = MaxNLocator(3).tick_values(min(0.0, low), high)
        axes.set_yticks(marks)
        axes.set_ylim(marks[0], marks[-1])
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel("step")
        return True

    told = (
        f"{title}: {short(start)} at step {first:.0f}, {short(end)} at step {last:.0f}, "
        f"lowest {short(low)}, highest {short(high)}"
    )
    figure = draw_figure(paint, 4.1, 1.8)
    assert figure is not None
    return Chart(title, as_svg(figure, name, told), short(end))


def recall_chart(name: str, title: str, curves: Mapping[str, Sequence[float] | None], chance: float | None) -> Chart:
    """Precision against recall, both from 0 to 1, a line for each encoder.

    Args:
        name: no other chart of the page has it.
        title: what is drawn.
        curves: encoder -> precision at equal steps of recall from 0 to 1; None for one without values.
        chance: precision of answers in random order, drawn as a broken line.
    """
    known = {encoder: values for encoder, values in curves.items() if values}
    if not known:
        return Chart(title, None, "no queries")

    def paint(figure: Figure) -> bool:
        axes = _plain_axes(figure)
        if chance is not None:
            axes.axhline(chance, color=palette()["faint"], linewidth=1.1, linestyle=(0, (4, 3)), gid="chance")
        for encoder, values in reversed(known.items()):  # the first one on top
            recall = [at / (len(values) - 1) for at in range(len(values))]
            axes.plot(recall, values, color=palette()[encoder], linewidth=1.5, gid=f"curve-{encoder}", clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.set_xticks((0, 0.5, 1), ("0", "recall", "1"))
        axes.set_yticks((0, 0.5, 1), ("0", "0.5", "1"))
        return True

    told = "; ".join(
        f"{encoder} {values[len(values) // 10]:.2f} at recall 0.1, {values[len(values) // 2]:.2f} at 0.5"
        for encoder, values in known.items()
    )
    figure = draw_figure(paint, 2.3, 2.0)
    assert figure is not None
    return Chart(title, as_svg(figure, name, f"precision, {title}: {told}"))
