"""Cells of names: every way in which programs write lists, and one line for what could be read in two ways."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marc_dist.packing.reading.label_cells import UnclearCell, bound_words, literal, split_cells


@pytest.mark.parametrize(
    "cell",
    [
        "['water', 'bare soil']", '["water", "bare soil"]', "('water', 'bare soil')", "{'water', 'bare soil'}",
        "['water' 'bare soil']", "['water'\n 'bare soil']", "array(['water', 'bare soil'], dtype=object)",
        "frozenset({'water', 'bare soil'})", "[water, bare soil]", "[np.str_('water'), np.str_('bare soil')]",
        " [ 'water' , 'bare soil' ] ",
    ],
)  # fmt: skip
def test_lists_as_programs_write_them(cell: str) -> None:
    assert literal(cell) == ["water", "bare soil"]


@pytest.mark.parametrize("cell", ["[]", "()", "{}", "set()", "[ ]", "[nan]", "array([], dtype=object)"])
def test_empty_lists_are_no_label(cell: str) -> None:
    assert literal(cell) == []


@pytest.mark.parametrize("cell", ["water", "forest (dense)", "farmer's field", "", "(other)", "trees 5'"])
def test_plain_names_are_no_lists(cell: str) -> None:
    assert literal(cell) is None


@pytest.mark.parametrize("cell", ["['water", "[['a'], ['b']]", "[water trees]", "['a': 1]", "{'a': 1}", '["a"'])
def test_what_is_half_a_list_is_refused(cell: str) -> None:
    with pytest.raises(UnclearCell):
        literal(cell)


def test_one_element_tuples_apostrophes_and_escapes() -> None:
    assert literal("('water',)") == ["water"]
    assert literal('["farmer\'s field"]') == ["farmer's field"]
    assert literal(r'["\u00e9tang"]') == ["étang"]
    assert literal("'water'") == ["water"]


def test_blanks_are_a_mark_only_where_words_combine_freely() -> None:
    assert split_cells(["haze primary", "primary water", "water haze", ""], None, False, ()) == [
        ["haze", "primary"], ["primary", "water"], ["water", "haze"], [],
    ]  # fmt: skip
    for cells in (["bare soil", "water"], ["dense residential", "sparse residential"], ["bare soil", "soil"]):
        with pytest.raises(UnclearCell, match="may be one name or two; say so with --separator"):
            split_cells(cells, None, False, ())
        assert split_cells(cells, None, True, ()) == [[cell] for cell in cells]
        assert split_cells(cells, ";", False, ()) == [[cell] for cell in cells]
    assert split_cells(["bare soil"], None, False, ("Bare-Soil", "water")) == [["bare soil"]]
    assert split_cells(["soil water"], None, False, ("soil", "water")) == [["soil", "water"]]
    assert bound_words(["a b", "b c", "c a"]) is None


SEA = "Beaches, dunes, sands"


@pytest.mark.parametrize(
    "cells",
    [["water; bare soil", "trees, sand"], ["['water', 'sand']", "bare soil, trees"], ["a|b", "c;d", "e"]],
    ids=["two marks", "a list and a mark", "bars and semicolons"],
)
def test_one_mark_a_column(cells: list[str]) -> None:
    with pytest.raises(UnclearCell, match="--separator"):
        split_cells(cells, None, False, ())


def test_commas_within_names() -> None:
    with pytest.raises(UnclearCell, match="'Beaches, dunes, sands' may be one name or several; .*--separator"):
        split_cells([SEA, "water"], None, True, ())
    assert split_cells([SEA, "water"], None, True, (SEA, "water")) == [[SEA], ["water"]]
    assert split_cells([f"water; {SEA}", SEA, ""], None, False, ()) == [["water", SEA], [SEA], []]
    assert split_cells([f"water,{'sand'}", SEA], None, False, (SEA, "sand", "water")) == [["water", "sand"], [SEA]]
    free = ["water, bare soil", "bare soil, trees", "trees, water"]
    assert split_cells(free, None, True, ())[1] == ["bare soil", "trees"]


NAME = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="\\'\"[](){},;|"), min_size=1
)


@given(st.lists(NAME.filter(lambda name: name.lower() not in ("nan", "none")), max_size=4))
def test_any_list_comes_back(names: list[str]) -> None:
    assert literal(json.dumps(names)) == names
    assert literal(json.dumps(names, ensure_ascii=False)) == names
    assert literal(repr(names)) == names
    assert literal(str(tuple(names))) == names
