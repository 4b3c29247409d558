"""Cells that hold several names: lists as programs write them, names between marks, names between blanks.

Whatever is not plainly one of them is refused: half a name, a bracket or a quote never becomes a class.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from marc_dist.packing.reading.names import normal_name

MARKS = (";", "|", ",")
WRAPPER = re.compile(r"(?:np\.|numpy\.)?(?:array|set|frozenset|list|tuple)\s*\((.*)\)", re.DOTALL)
EMPTY = {"set()", "frozenset()", "list()", "tuple()"}
QUOTED = re.compile(r"""(?s)(?:np\.str_\()?(?P<mark>['"])(?P<name>(?:\\.|(?!(?P=mark)).)*)(?P=mark)\)?""")
CLOSES = {"[": "]", "(": ")", "{": "}"}


class UnclearCell(ValueError):
    """A cell that could be read in more than one way, or in none; the message says what it holds."""


class BrokenCell(UnclearCell):
    """A cell that begins like a list and is none, whatever the other cells hold."""


def literal(cell: str) -> list[str] | None:
    """The names of a cell that holds a list as JSON, Python or NumPy write it; None when it holds no such list.

    Args:
        cell: ``['a', 'b']``, ``["a"]``, ``('a',)``, ``{'a', 'b'}``, ``['a' 'b']``, ``[a, b]``, ``[]``,
            ``array(['a'], dtype=object)``.

    Raises:
        BrokenCell: a list of lists, of names without marks between them, a bracket that does not close.
    """
    text = cell.strip()
    if text in EMPTY:
        return []
    wrapper = WRAPPER.fullmatch(text)
    if wrapper is not None:
        text = re.sub(r",\s*dtype=.*", "", wrapper.group(1)).strip()
    if text[:1] not in CLOSES or (text[0] in "({" and text[1:-1].strip() and not QUOTED.search(text)):
        return _single(text) if QUOTED.fullmatch(text) else None  # `(other)` is a name
    if len(text) < 2 or CLOSES[text[0]] != text[-1]:
        raise BrokenCell("a list that does not close")
    inside = text[1:-1]
    if not inside.strip():
        return []
    names = [_unescaped(found.group("name")) for found in QUOTED.finditer(inside)]
    rest = QUOTED.sub("", inside)
    if names:
        if rest.strip(", \n\t"):
            raise BrokenCell("not a plain list of names")
        return [name.strip() for name in names if name.strip()]
    if any(mark in inside for mark in "[](){}:'\""):
        raise BrokenCell("not a plain list of names")
    if "," not in inside and len(inside.split()) > 1:
        raise BrokenCell("a list without commas and quotes")
    return [name.strip() for name in inside.split(",") if name.strip() and name.strip().lower() not in ("nan", "none")]


def _single(text: str) -> list[str]:
    quoted = QUOTED.fullmatch(text)
    assert quoted is not None
    return [_unescaped(quoted.group("name")).strip()]


def _unescaped(name: str) -> str:
    def characters(found: re.Match[str]) -> str:
        units = bytes.fromhex(found.group(0).replace("\\u", ""))
        return units.decode("utf-16-be", errors="replace")

    return re.sub(r"\\(.)", r"\1", re.sub(r"(?:\\u[0-9a-fA-F]{4})+", characters, name))


def split_cells(cells: Sequence[str], separator: str | None, single: bool, known: Collection[str]) -> list[list[str]]:
    """The names in each cell of a column of labels.

    Args:
        cells: of one column.
        separator: what stands between names, when somebody said so; None = to be seen.
        single: the column is called ``label``, not ``labels``: without marks, a cell holds one name, blanks and all.
        known: class names, when they are given.

    Raises:
        UnclearCell: the cells could be read in more than one way.
    """
    if separator is not None:
        return [_parts(cell, separator) for cell in cells]
    plain = {normal_name(name) for name in known}
    lists = [literal(cell) for cell in cells]
    if any(found is not None for found in lists):
        names = [cell for cell, found in zip(cells, lists, strict=True) if found is None]
        odd = next((cell for cell in names if any(m in cell for m in MARKS) and normal_name(cell) not in plain), None)
        if odd is not None:
            raise UnclearCell(f"lists in some cells, and {odd[:60]!r} in another; {_SAY} what stands between names")
        return [found if found is not None else [cell] * bool(cell) for cell, found in zip(cells, lists, strict=True)]
    marked = [cell for cell in cells if normal_name(cell) not in plain and any(mark in cell for mark in MARKS)]
    if marked:
        mark = _one_mark(marked, single and not known)
        return [[cell] if normal_name(cell) in plain else _parts(cell, mark) for cell in cells]
    if any(mark in cell for cell in cells for mark in MARKS):  # every such cell is a name of the list
        return [[cell] if cell else [] for cell in cells]
    whole = [[cell] if cell else [] for cell in cells]
    blanks = [cell for cell in cells if len(cell.split()) > 1]
    if single or not blanks:
        return whole
    if known:
        if all(normal_name(cell) in plain for cell in cells if cell):
            return whole
        return [cell.split() for cell in cells]
    bound = bound_words(cells)
    if bound is not None:
        raise UnclearCell(
            f"{bound!r} may be one name or two; say so with --separator ' ' (names between blanks) or "
            "--separator ';' (blanks belong to the names)"
        )
    return [cell.split() for cell in cells]


_SAY = "say so with --separator:"


def _one_mark(cells: Sequence[str], single: bool) -> str:
    """The mark between the names of a column.

    Args:
        cells: each with a mark.
        single: a cell is one name rather than several.

    Raises:
        UnclearCell: cells with another mark, or commas that may belong to one name.
    """
    mark = next(mark for mark in MARKS if any(mark in cell for cell in cells))
    names = {name for cell in cells if mark in cell for name in _parts(cell, mark)}
    odd = next((cell for cell in cells if mark not in cell and cell.strip() not in names), None)
    if odd is not None:
        raise UnclearCell(f"{mark!r} stands between names, and {odd[:60]!r} has another mark; {_SAY} which one it is")
    bound = bound_words([" ".join(name.replace(" ", "_") for name in _parts(c, ",")) for c in cells])
    if single and mark == "," and bound is not None:
        one = next(cell for cell in cells if "," in cell)
        raise UnclearCell(
            f"{one[:60]!r} may be one name or several; {_SAY} ',' (names between commas) or ';' (commas belong to the "
            "names)"
        )
    return mark


def _parts(cell: str, separator: str) -> list[str]:
    return [name.strip() for name in cell.split(separator) if name.strip()]


def bound_words(cells: Sequence[str]) -> str | None:
    """Two words that may be one name: one of them never stands without the other beside it. None when there are none.

    Args:
        cells: words between blanks.
    """
    beside: dict[str, set[str]] = {}
    for cell in set(cells):
        words = cell.split()
        for place, word in enumerate(words):
            around = {*words[max(0, place - 1) : place], *words[place + 1 : place + 2]}
            beside[word] = beside.get(word, around) & around
    for word in sorted(beside):
        for other in sorted(beside[word]):
            for pair in (f"{word} {other}", f"{other} {word}"):
                if any(pair in " ".join(cell.split()) for cell in cells):
                    return pair
    return None


def is_name(name: str) -> bool:
    """Whether a text may be a class name: brackets or quotes around it tell that a list was read as a name."""
    return not (name[:1] in "[{'\"" or name[-1:] in ']}"' or (name[:1] == "(" and name[-1:] == ")" and "," in name))
