"""Charts: what they draw and tell, that pages can colour them, that names in them stay text."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from marc_dist.report import charts
from marc_dist.report.charts import recall_chart, step_chart


def parts(chart: charts.Chart) -> dict[str, Any]:
    """The drawing's groups by id; it must be whole XML, but for the name space that HTML does not need."""
    assert chart.svg is not None
    whole = str(chart.svg).replace("<svg ", '<svg xmlns:xlink="x" ', 1)
    return {one.attrib["id"]: one for one in ElementTree.fromstring(whole).iter() if "id" in one.attrib}


def curve_of(chart: charts.Chart, name: str) -> str:
    return str(parts(chart)[name].find("path").attrib["d"])


def test_a_gap_breaks_the_curve() -> None:
    chart = step_chart("a", "x < y", [(1, 2.0), (2, 4.0), (3, None), (4, 3.0), (5, math.nan), (6, 1.0), (7, 1.0)])
    assert curve_of(chart, "a-curve").count("M") == 3 and "nan" not in str(chart.svg)
    assert len(parts(chart)["a-curve"].findall(".//use")) == 1  # the lone value is a dot
    assert "x &lt; y: 2 at step 1, 1 at step 7, lowest 1, highest 4" in str(chart.svg) and chart.note == "1"
    for points in ([(1.0, None)], []):
        assert step_chart("a", "t", points) == charts.Chart("t", None, "no values logged")
    assert "nan" not in str(step_chart("a", "one", [(3, 0.5)]).svg)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 8.05), (0.4, 0.41), (0, 3e-4), (-3, 17), (5, 5), (0, 0), (0, 123456), (-1e-9, 1e-9)]
)
def test_the_value_axis_has_zero_and_covers_all(low: float, high: float) -> None:
    """Marks are few; the curve lies between the lowest and the highest of them, and so does zero."""
    chart = step_chart("a", "t", [(1, low), (2, high)])
    found = parts(chart)
    marks = [(name, one) for name, one in found.items() if re.fullmatch(r"a-ytick_\d+", name)]
    assert 2 <= len(marks) <= 6
    lines = sorted(float(one.find(".//path").attrib["d"].split()[2]) for _, one in marks)
    ends = [float(word) for word in re.findall(r"[\d.]+ ([\d.]+)", curve_of(chart, "a-curve"))]
    assert lines[0] - 0.01 <= min(ends) and max(ends) <= lines[-1] + 0.01
    texts = [one.find(".//text").text for _, one in marks]
    assert any(float(text.replace("\u2212", "-")) == 0 for text in texts)


def test_colours_follow_the_page() -> None:
    """A drawing names the variables of the style sheet, so that it is dark where the page is."""
    every = {"trained": [0.9, 0.5, 0.1], "untrained": [0.5, 0.4, 0.1]}
    text = str(recall_chart("r", "all", every, 0.25).svg)
    assert "var(--trained)" in text and "var(--untrained)" in text and "var(--faint)" in text
    assert not re.search(r": (#[0-9a-f]{3,6}|black|white)\b", text)
    assert "font-family" not in text and "<style" not in text and "fill: var(--card)" not in text  # no background


def test_both_encoders_and_chance_are_drawn() -> None:
    chart = recall_chart("r", "<i>", {"trained": [1.0, 0.5, 0.0], "untrained": None}, 0.25)
    assert {"r-curve-trained", "r-chance"} <= set(parts(chart)) and "r-curve-untrained" not in parts(chart)
    steps = [
        [float(n) for n in pair.split()] for pair in re.findall(r"[\d.]+ [\d.]+", curve_of(chart, "r-curve-trained"))
    ]
    (x0, y0), (x1, y1), (x2, y2) = steps
    assert x1 - x0 == pytest.approx(x2 - x1) and y1 - y0 == pytest.approx(y2 - y1) and y2 > y0
    assert "r-chance" not in parts(recall_chart("r", "t", {"trained": [1.0, 0.5]}, None))
    assert "<i>" not in str(chart.svg) and "precision, &lt;i&gt;: trained 1.00 at recall 0.1, 0.50 at 0.5" in str(
        chart.svg
    )
    assert recall_chart("r", "rare", {"trained": None}, 0.5) == charts.Chart("rare", None, "no queries")


def test_text_in_a_drawing_stays_text() -> None:
    def paint(figure: Any) -> bool:
        figure.add_subplot().set(xlabel="<script>$x$ & 'y'</script>")
        return True

    figure = charts.draw_figure(paint, 2, 2)
    assert figure is not None and charts.draw_figure(lambda figure: False, 2, 2) is None
    text = str(charts.as_svg(figure, "a", '"><script>'))
    assert "<!--" not in text and "<script" not in text and "&lt;script&gt;$x$ &amp; 'y'&lt;/script&gt;" in text
    assert text == charts.as_svg(figure, "a", '"><script>')  # the same each time
    assert charts.as_png(figure).startswith(b"\x89PNG")


def test_numbers_are_short() -> None:
    values = (0, 0.25, 12_000, 1e-5, 150.4, 2e6, -1234.5)
    assert [charts.short(value) for value in values] == ["0", "0.25", "12,000", "1e-05", "150", "2e+06", "-1,234"]
