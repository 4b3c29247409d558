"""The scores and tests of a study as the page shows them: tables that can be sorted, differences, who won."""

from __future__ import annotations

import math
from dataclasses import dataclass

from marc_dist.study.plan import Plan
from marc_dist.study.statistics import SIGNIFICANT, Interval
from marc_dist.study.tables.collected import Block, Column, Pair, Row, families
from marc_dist.study.tables.text import heads_of, p_text


@dataclass(frozen=True)
class Cell:
    """A figure in a table.

    Attributes:
        value: by which the column is sorted; None for none.
        text: of the figure.
        ends: its interval in words; empty for none.
        note: a further line.
        mark: ``best`` of a loss that is it; ``better`` or ``worse`` where a test says so; else empty.
    """

    value: float | None
    text: str
    ends: str = ""
    note: str = ""
    mark: str = ""


NONE = Cell(None, "-")


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    title: str
    floor: bool
    cells: list[Cell]
    remark: str = ""


@dataclass(frozen=True)
class Shown:
    """A data set and an encoder on the page.

    Attributes:
        title: of both.
        anchor: its name in links.
        heads: name of each column, and whether less is better.
        scores: a line a loss and floor.
        first: title of the loss that the others are compared with.
        tests: a line a loss, of differences to that one.
        pairs: losses and their differences in the first column, a group of losses each.
        winner: the best loss by the first column.
        told: sentences on the first column.
    """

    title: str
    anchor: str
    heads: list[tuple[str, bool]]
    scores: list[Line]
    first: str
    tests: list[Line]
    pairs: list[tuple[list[str], list[Line]]]
    winner: tuple[str, Cell] | None
    told: list[str]


def shown_block(plan: Plan, block: Block) -> Shown:
    """A table of the study as the page shows it.

    Args:
        plan: of the study.
        block: one of its tables.
    """
    titles = {row.name: row.title for row in block.rows}
    first, tests = "", []
    if block.pairs:
        name, tested = block.against(plan)
        first = titles.get(name, name)
        tests = [
            Line(titles[loss], False, [_difference(pairs.get(column), loss) for column in block.columns])
            for loss, pairs in tested
        ]
    lead = block.columns[0] if block.columns else None
    best = None if lead is None else next((row for row in block.rows if row.name == block.best(lead)), None)
    return Shown(
        block.title,
        f"{block.dataset}-{block.encoder}",
        [(head, column.lower) for head, column in zip(heads_of(block), block.columns, strict=True)],
        [_scores(block, row) for row in block.rows],
        first,
        tests,
        [_matrix(block, lead, family) for family in families(plan, block.rows)] if lead and block.pairs else [],
        None if lead is None or best is None else (best.title, _score(best.figures[lead])),
        [] if lead is None else _told(plan, block, lead, best),
    )


def _scores(block: Block, row: Row) -> Line:
    cells = [
        _score(row.figures.get(column), best=not row.floor and block.best(column) == row.name)
        for column in block.columns
    ]
    seeds = "floor" if row.floor else f"{len(row.seeds)} seed{'' if len(row.seeds) == 1 else 's'}"
    return Line(row.title, row.floor, cells, seeds)


def _score(figure: Interval | None, *, best: bool = False) -> Cell:
    if figure is None or math.isnan(figure.mean):
        return NONE
    ends = "" if math.isnan(figure.low) else f"{figure.low:.3f}\u2013{figure.high:.3f}"
    return Cell(figure.mean, f"{figure.mean:.3f}", ends, mark="best" if best else "")


def signed(value: float) -> str:
    """A difference with its sign; a true minus."""
    return f"{value:+.3f}".replace("-", "\u2212")


def _difference(pair: Pair | None, name: str) -> Cell:
    if pair is None or math.isnan(pair.paired.difference):
        return NONE
    difference, low, high = pair.seen_from(name)
    note = f"p {p_text(pair.t_holm)}, {p_text(pair.wilcoxon_holm)}"
    mark = ""
    if pair.t_holm < SIGNIFICANT:
        mark = "better" if (difference > 0.0) != pair.column.lower else "worse"
    return Cell(difference, signed(difference), f"{signed(low)} to {signed(high)}", note, mark)


def _matrix(block: Block, column: Column, family: list[tuple[Row, Row]]) -> tuple[list[str], list[Line]]:
    """Every loss of a group against every other one: the row's score - the column's."""
    rows = list({row.name: row for pair in family for row in pair}.values())
    known = {frozenset((pair.one, pair.other)): pair for pair in block.pairs if pair.column == column}
    lines = [
        Line(row.title, False, [_difference(known.get(frozenset((row.name, other.name))), row.name) for other in rows])
        for row in rows
    ]
    return [row.title for row in rows], lines


def _told(plan: Plan, block: Block, lead: Column, best: Row | None) -> list[str]:
    """What the first column says of the best loss and of the one that the others are compared with."""
    told = []
    floors = [row for row in block.rows if row.floor and not math.isnan(row.figures.get(lead, _NAN).mean)]
    if best is not None and floors:
        sign = -1.0 if lead.lower else 1.0
        floor = max(floors, key=lambda row: sign * row.figures[lead].mean)
        gap = best.figures[lead].mean - floor.figures[lead].mean
        told.append(f"{signed(gap)} to the best floor, {floor.title} ({floor.figures[lead].mean:.3f})")
    if block.pairs:
        first, tested = block.against(plan)
        marks = [
            _difference(pairs[lead], name).mark
            for name, pairs in tested
            if lead in pairs and not _other_source(plan, name)
        ]
        title = next((row.title for row in block.rows if row.name == first), first)
        told.append(
            f"{title} is better than {marks.count('worse')}, worse than {marks.count('better')} and not told apart "
            f"from {marks.count('')} of {len(marks)} other{'' if len(marks) == 1 else 's'}"
        )
    return told


_NAN = Interval(math.nan, math.nan, math.nan)


def _other_source(plan: Plan, name: str) -> bool:
    return any(method.name == name and method.tuned_on is not None for method in plan.methods)
