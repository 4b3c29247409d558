"""Charts of the report: inline SVG and plain HTML that fit any width. Text in, escaped text out."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

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


def bar(value: float | None, name: str, what: str, ends: Sequence[float] | None = None) -> str:
    """One horizontal bar for a value in [0, 1], with its figure.

    Args:
        value: the share, or None for a missing one.
        name: CSS class, and the series it belongs to.
        what: what is measured, for readers that do not see the bar.
        ends: of its interval, drawn as a thin line.
    """
    if value is None:
        return '<div class="bar absent">no images</div>'
    told = esc(f"{what}, {name}: {value:.3f}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else ""))
    reach = f'd="M{_per_cent(ends[0])} 5H{_per_cent(ends[1])}"' if ends else ""
    line = f'<path class="halo" {reach}/><path class="whisker" {reach}/>' if reach else ""
    return (
        f'<div class="bar {esc(name)}" role="img" aria-label="{told}" title="{told}">'
        f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="10"/><rect class="fill" width="{_per_cent(value)}" height="10"/>'
        f"{line}</svg><span>{value:.3f}</span></div>"
    )


def _per_cent(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.2f}"


def whiskers(rows: Sequence[tuple[str, float, Sequence[float] | None]]) -> str:
    """Dots with their intervals on one scale from 0 to 1, a line for each series; for the eye alone.

    Args:
        rows: (series, value, ends of its interval).
    """
    height = 10 * len(rows)
    lines = []
    for at, (name, value, ends) in enumerate(rows):
        y = 10 * at + 5
        thin = f'<path class="reach" d="M{_per_cent(ends[0])} {y}H{_per_cent(ends[1])}"/>' if ends else ""
        lines.append(
            f'<g class="{esc(name)}"><path class="grid" d="M0 {y}H100"/>{thin}'
            f'<path class="dot" d="M{_per_cent(value)} {y}h0"/></g>'
        )
    return (
        f'<div class="scale" aria-hidden="true"><span>0</span><svg viewBox="0 0 100 {height}" '
        f'preserveAspectRatio="none" style="height:{height + 4}px">{"".join(lines)}</svg><span>1</span></div>'
    )


def recall_chart(title: str, curves: Mapping[str, Sequence[float] | None], chance: float | None) -> str:
    """Precision against recall, both from 0 to 1, a line for each series.

    Args:
        title: what is drawn.
        curves: series -> precision at equal steps of recall from 0 to 1; None for one without values.
        chance: precision of answers in random order, drawn as a broken line.
    """
    known = {name: values for name, values in curves.items() if values}
    if not known:
        return f'<figure class="chart"><figcaption>{esc(title)}</figcaption><p>no queries</p></figure>'
    box = (0.0, 1.0, 0.0, 1.0)
    lines = [f'<path class="grid" d="M0 {y:.0f}H{WIDTH:.0f}"/>' for y in (0, HEIGHT / 2, HEIGHT)]
    if chance is not None:
        lines.append(f'<path class="chance" d="{_paths([(0.0, chance), (1.0, chance)], box)}"/>')
    for name, values in reversed(known.items()):  # the first one on top
        points = [(at / (len(values) - 1), value) for at, value in enumerate(values)]
        lines.append(f'<path class="curve {esc(name)}" d="{_paths(points, box)}"/>')
    told = "; ".join(
        f"{name} {values[len(values) // 10]:.2f} at recall 0.1, {values[len(values) // 2]:.2f} at 0.5"
        for name, values in known.items()
    )
    marks = "".join(f'<span style="top:{100 - 50 * at}%">{at / 2:g}</span>' for at in range(3))
    return (
        f'<figure class="chart recall"><figcaption>{esc(title)}</figcaption>'
        f'<div class="plot"><div class="ylabels" aria-hidden="true">{marks}</div>'
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" preserveAspectRatio="none" role="img" '
        f'aria-label="{esc(f"precision, {title}: {told}")}">{"".join(lines)}</svg></div>'
        '<div class="xlabels" aria-hidden="true"><span>0</span><span>recall</span><span>1</span></div></figure>'
    )


def dots(points: Sequence[tuple[int, int]]) -> str:
    """SVG path data of a dot at each place."""
    return "".join(f"M{x} {y}h0" for x, y in points)
