"""Charts of the report: inline SVG and plain HTML that fit any width. Text in, escaped text out."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 600.0, 200.0


def esc(text: object) -> str:
    """Text for HTML, safe between tags and inside quoted attributes."""
    return html.escape(str(text), quote=True)


def short(value: float) -> str:
    """A number for an axis: 0, 0.25, 12k, 1e-05."""
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e6 or size < 1e-3:
        return f"{value:.2g}"
    if size >= 1e4:
        return f"{value / 1000:.3g}k"
    return f"{value:.3g}" if size < 1000 else f"{value:.0f}"


def ticks(low: float, high: float, num: int = 3) -> list[float]:
    """About ``num`` round steps that cover [low, high]: first <= low, last >= high."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / num
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 2.5, 5) if m * power >= rough * 0.999), 10 * power)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * at for at in range(first, last + 1)]


def _paths(points: Sequence[tuple[float, float | None]], box: tuple[float, float, float, float]) -> str:
    """SVG path data; a missing value breaks the line, a lone point becomes a dot."""
    left, right, low, high = box
    pieces: list[list[str]] = [[]]
    for x, y in points:
        if y is None or not math.isfinite(y):
            pieces.append([])
            continue
        across = WIDTH * ((x - left) / (right - left) if right > left else 0.5)
        pieces[-1].append(f"{across:.1f} {HEIGHT * (1 - (y - low) / (high - low)):.1f}")
    return " ".join(f"M{' L'.join(piece if len(piece) > 1 else piece * 2)}" for piece in pieces if piece)


def line_chart(title: str, points: Sequence[tuple[float, float | None]], *, from_zero: bool = True) -> str:
    """One curve over global steps, as a figure; a sentence instead of the picture when there is no value.

    Args:
        title: what is drawn, with its unit.
        points: (step, value or None), steps ascending.
        from_zero: the value axis includes 0.
    """
    known = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
    if not known:
        return f'<figure class="chart"><figcaption>{esc(title)}</figcaption><p>no values logged</p></figure>'
    values = [y for _, y in known]
    marks = ticks(min([*values, 0.0] if from_zero else values), max(values))
    left, right = points[0][0], points[-1][0]
    path = _paths(points, (left, right, marks[0], marks[-1]))
    lines, labels = [], []
    for mark in marks:
        share = 1 - (mark - marks[0]) / (marks[-1] - marks[0])
        lines.append(f'<path class="grid" d="M0 {HEIGHT * share:.1f} H{WIDTH:.0f}"/>')
        labels.append(f'<span style="top:{100 * share:.1f}%">{esc(short(mark))}</span>')
    told = (
        f"{title}: {short(known[0][1])} at step {known[0][0]:.0f}, {short(known[-1][1])} at step {known[-1][0]:.0f}, "
        f"lowest {short(min(values))}, highest {short(max(values))}"
    )
    across = f"<span>{left:.0f}</span><span>step</span><span>{right:.0f}</span>"
    return (
        f'<figure class="chart"><figcaption>{esc(title)}<b>{esc(short(known[-1][1]))}</b></figcaption>'
        f'<div class="plot"><div class="ylabels" aria-hidden="true">{"".join(labels)}</div>'
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" preserveAspectRatio="none" role="img" aria-label="{esc(told)}">'
        f'{"".join(lines)}<path class="curve" d="{path}"/></svg></div>'
        f'<div class="xlabels" aria-hidden="true">{across}</div></figure>'
    )


def bar(value: float | None, name: str, what: str) -> str:
    """One horizontal bar for a value in [0, 1], with its figure.

    Args:
        value: the share, or None for a missing one.
        name: CSS class, and the series it belongs to.
        what: what is measured, for readers that do not see the bar.
    """
    if value is None:
        return f'<div class="bar {esc(name)}"><i style="width:0"></i><span>no images</span></div>'
    width = 100 * min(max(value, 0.0), 1.0)
    told = esc(f"{what}, {name}: {value:.3f}")
    return (
        f'<div class="bar {esc(name)}" role="img" aria-label="{told}" title="{told}">'
        f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="10"/><rect class="fill" width="{width:.2f}" height="10"/></svg>'
        f"<span>{value:.3f}</span></div>"
    )
