"""Questions about labels: what they mean, how names are found in them, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marc_dist.config import ConfigError
from marc_dist.retrieval.label_query import LabelQuery, parse_labels

CLASSES = [
    "Water", "dock", "ship", "cloud", "Natural grassland and sparsely vegetated areas", "bare soil", "soil", "not used",
    "(odd)", "it's", "caf\u00e9", "ice", "Ice", "Stra\u00dfe", "\u0130zmir",
]  # fmt: skip
ROWS = np.random.default_rng(0).random((300, len(CLASSES))) < 0.5


def column(name: str) -> np.ndarray:
    return ROWS[:, CLASSES.index(name)]


@pytest.mark.parametrize(
    ("text", "shown", "wanted"),
    [
        ("water", "Water", {"Water"}),
        ("WATER  and (dock or ship) and not cloud",
         "Water and (dock or ship) and not cloud", {"Water", "dock", "ship"}),
        ("natural grassland and  sparsely VEGETATED areas or bare soil",
         "Natural grassland and sparsely vegetated areas or bare soil", {CLASSES[4], "bare soil"}),
        ("not used", "not used", {"not used"}),
        ("not not used", "not not used", set()),
        ("(odd) or it's", "(odd) or it's", {"(odd)", "it's"}),
        ("'water' AND \"bare soil\"", "Water and bare soil", {"Water", "bare soil"}),
        ("not (water or not dock)", "not (Water or not dock)", {"dock"}),
        ("cafe\u0301", "caf\u00e9", {"caf\u00e9"}),
        ("Ice", "Ice", {"Ice"}),
        ("stra\u00dfe or STRASSE", "Stra\u00dfe or Stra\u00dfe", {"Stra\u00dfe"}),
        ("\u0130zmir and soil", "\u0130zmir and soil", {"\u0130zmir", "soil"}),
    ],
)  # fmt: skip
def test_what_was_asked(text: str, shown: str, wanted: set[str]) -> None:
    query = parse_labels([text], CLASSES)
    assert query.text == shown and query.wanted == wanted
    again = parse_labels([shown], CLASSES)
    assert again.text == shown and again.passes is not None and query.passes is not None
    assert (again.passes(ROWS) == query.passes(ROWS)).all()


def test_which_pass() -> None:
    def passes(*texts: str) -> np.ndarray:
        query = parse_labels(texts, CLASSES)
        assert query.passes is not None
        return query.passes(ROWS)

    assert (passes("water or dock and ship") == (column("Water") | column("dock") & column("ship"))).all()
    assert (passes("(water or dock) and not ship") == ((column("Water") | column("dock")) & ~column("ship"))).all()
    assert (passes("water or dock", "ship") == ((column("Water") | column("dock")) & column("ship"))).all()
    assert (passes("not not used") == ~column("not used")).all()
    assert parse_labels([], CLASSES) == LabelQuery("", frozenset(), None)
    assert parse_labels(["water or dock", "ship"], CLASSES).text == "(Water or dock) and ship"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected a label"),
        ("snow", "knows no such label; it has Water, dock"),
        ("soils", "did you mean soil"),
        ("water and", "expected a label, got the end"),
        ("water dock", "expected and, or, or the end, got 'dock'"),
        ("(water", r"expected \) at its end"),
        ("water)", r"got '\)'"),
        ("and", "expected a label, got and"),
        ("()", r"expected a label, got \)"),
        ("waters", "--label waters: the archive knows no such label"),
        ("'snow' or water", "--label snow: the archive knows"),
        ("ICE", "may be ice or Ice; write it as the archive does"),
        ("(" * 200 + "water" + ")" * 200, "at most 100"),
        ("not " * 5000 + "water", "at most 100"),
    ],
)
def test_what_is_no_question(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_labels([text], CLASSES)


PLAIN = ["a", "bare soil", "soil", "x and y", "not z", "z"]
QUESTIONS = st.recursive(
    st.sampled_from(PLAIN).map(lambda name: (f"'{name}'", f"r[{PLAIN.index(name)}]")),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: (f"({p[0][0]} and {p[1][0]})", f"({p[0][1]} and {p[1][1]})")),
        st.tuples(inner, inner).map(lambda p: (f"({p[0][0]} or {p[1][0]})", f"({p[0][1]} or {p[1][1]})")),
        inner.map(lambda p: (f"not {p[0]}", f"(not {p[1]})")),
    ),
    max_leaves=12,
)


@given(QUESTIONS, st.booleans())
def test_any_question_means_what_python_says(question: tuple[str, str], quoted: bool) -> None:
    text, python = question
    rows = np.array([[bool(n >> i & 1) for i in range(len(PLAIN))] for n in range(2 ** len(PLAIN))])
    text = text if quoted else text.replace("'", "")
    passes = parse_labels([text], PLAIN).passes
    assert passes is not None
    told = passes(rows)
    if quoted or "not z" not in text:  # without quotes, "not z" is the name
        assert told.tolist() == [bool(eval(python, {"r": row})) for row in rows.tolist()]
