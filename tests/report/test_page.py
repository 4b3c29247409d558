"""Templates: what they are given is text, what they miss is an error, and nothing but a chart is let through."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

from marc_dist.report import charts, page
from marc_dist.report.page import render_page, templates
from marc_dist.report.score_rows import Row

FOLDER = Path(page.__file__).parent


def part(name: str, *values: Any) -> str:
    return str(getattr(templates().get_template("parts.html.j2").module, name)(*values))


def test_values_are_escaped_and_must_be_there() -> None:
    values = {"title": "<t>", "heading": "<h>&", "facts": ['<b>"'], "found": [], "most": 1, "land": ""}
    text = render_page("search_page.html.j2", **values)
    assert (
        "<title>&lt;t&gt;</title>" in text and "<h1>&lt;h&gt;&amp;</h1>" in text and "<li>&lt;b&gt;&#34;</li>" in text
    )
    with pytest.raises(UndefinedError, match="facts"):
        render_page("search_page.html.j2", **{key: value for key, value in values.items() if key != "facts"})


def test_only_charts_and_our_script_are_let_through() -> None:
    """``Markup`` and ``safe`` are how text escapes escaping: two modules use the one, no template the other."""
    for path in (FOLDER / "templates").iterdir():
        assert not re.search(r"\|\s*safe\b|autoescape", path.read_text()), path
    marking = [path.name for path in FOLDER.parent.rglob("*.py") if re.search(r"\bMarkup\b|\|safe", path.read_text())]
    assert sorted(marking) == ["charts.py", "scripts.py"]


def test_the_style_sheet_is_part_of_each_page_and_knows_dark() -> None:
    sheet = (FOLDER / "templates" / "pages.css").read_text()
    values = {"title": "", "heading": "", "facts": [], "found": [], "most": 1, "land": ""}
    assert sheet.strip() in render_page("search_page.html.j2", **values)
    light, dark = (set(re.findall(r"(--[\w-]+): #[0-9a-f]{6};", some)) for some in sheet.split("@media", 2)[:2])
    assert light == dark == {f"--{name}" for name in charts.palette()}
    assert set(re.findall(r"var\((--[\w-]+)\)", sheet)) <= light | {"--natural"}


def test_bars() -> None:
    plain = part("bar", 0.25, None, "trained", "AP")
    assert 'width="25.00"' in plain and ">0.250<" in plain and "whisker" not in plain
    assert "no images" in part("bar", None, None, "trained", "AP")
    whisker = part("bar", 0.25, (0.2, 0.375), "trained", "AP")
    assert 'class="whisker" d="M20.00 5H37.50"' in whisker
    for key in ("title", "aria-label"):
        assert f'{key}="AP, trained: 0.250 (0.200 to 0.375)"' in whisker
    assert "&lt;i&gt;" in part("bar", 0.5, None, "trained", "<i>") and "<i>" not in part("bar", 0.5, None, "a", "<i>")


def test_whiskers_stay_on_their_scale() -> None:
    drawn = part("whiskers", Row("x", (0.5, 0.125), ((0.25, 1.2), None)), ["trained", "untrained"])
    assert 'd="M25.00 5H100.00"' in drawn and "M12.50 15h0" in drawn and drawn.count("reach") == 1
    assert 'viewBox="0 0 100 20"' in drawn
    alone = part("whiskers", Row("x", (None, 0.125), (None, None)), ["trained", "untrained"])
    assert "M12.50 5h0" in alone and 'class="trained"' not in alone and 'viewBox="0 0 100 10"' in alone


def test_a_figure_without_a_drawing_says_why() -> None:
    text = part("figure", charts.Chart("<t>", None, "no values logged"))
    assert "<p>no values logged</p>" in text and "&lt;t&gt;" in text and "<svg" not in text
