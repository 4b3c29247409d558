"""Which images a search looks at, by their labels: ``water and (dock or ship) and not cloud``."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from marc_dist.config import ConfigError
from marc_dist.config.suggest import suggestion

Bool = NDArray[np.bool_]
Test = Callable[[Bool], Bool]
"""Label rows (n, L) -> which of them pass (n,)."""
OPERATORS = ("and", "or", "not")
MAX_DEPTH = 100
"""Brackets and ``not`` inside each other; Python's own stack holds about ten times as many."""


@dataclass(frozen=True)
class LabelQuery:
    """A question about labels.

    Attributes:
        text: as it was written, with the archive's own spelling of the names.
        wanted: labels that an answer may carry because of the question; those after a ``not`` are none of them.
        passes: label rows (n, L) bool -> which of them pass (n,) bool; None: all do.
    """

    text: str
    wanted: frozenset[str]
    passes: Test | None


def parse_labels(texts: Sequence[str], classes: Sequence[str]) -> LabelQuery:
    """The question of ``--label``; several texts must all be true.

    Names are compared without regard to case, blanks and the form of accents; of several that fit, the longest counts,
    so that names with ``and``, ``or``, ``not`` or brackets in them need no quotes. Quotes make one name of what they
    hold. ``not`` binds more tightly than ``and``, and ``and`` than ``or``.

    Args:
        texts: none: every image passes.
        classes: of the archive.

    Raises:
        ConfigError: a name that the archive does not know, or that means two; a text that is no question.
    """
    parsers = [_Parser(text, classes) for text in texts]
    tests = [parser.question() for parser in parsers]
    shown = [parser.shown() for parser in parsers]
    if len(parsers) > 1:
        shown = [f"({one})" if parser.has_or else one for one, parser in zip(shown, parsers, strict=True)]

    if not tests:
        return LabelQuery("", frozenset(), None)

    def passes(rows: Bool) -> Bool:
        found = np.ones(len(rows), dtype=np.bool_)
        for test in tests:
            found &= test(rows)
        return found

    return LabelQuery(" and ".join(shown), frozenset().union(*(parser.wanted for parser in parsers)), passes)


def _plain(text: str) -> str:
    """A name as it is compared; a text keeps its length in words, not in characters."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


class _Parser:
    """Recursive descent over one text; every method of the grammar leaves ``_rest`` behind what it took."""

    def __init__(self, text: str, classes: Sequence[str]) -> None:
        self.text, self.classes = text, list(classes)
        self.wanted: set[str] = set()
        self.has_or = False
        self._shown: list[str] = []
        self._rest = " ".join(unicodedata.normalize("NFC", text).split())
        self._known = {_plain(name) for name in classes} - {""}
        self._longest = max(map(len, self._known), default=0) + 1  # a blank may follow; casefold shortens nothing
        self._denied, self._depth = False, 0

    def question(self) -> Test:
        if not self._rest:
            self._fail("expected a label")
        test = self._either()
        if self._rest:
            self._fail(f"expected and, or, or the end, got {self._rest[:40]!r}")
        return test

    def shown(self) -> str:
        return re.sub(r"(?<=[(]) | (?=[)])", "", " ".join(self._shown))

    def _either(self) -> Test:
        return self._chain("or", self._both)

    def _both(self) -> Test:
        return self._chain("and", self._one)

    def _chain(self, word: str, part: Callable[[], Test]) -> Test:
        tests = [part()]
        while self._takes(word):
            self.has_or |= word == "or"
            tests.append(part())
        if len(tests) == 1:
            return tests[0]
        join = np.logical_or.reduce if word == "or" else np.logical_and.reduce
        return lambda rows: np.asarray(join([test(rows) for test in tests]), dtype=np.bool_)

    def _one(self) -> Test:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(f"expected at most {MAX_DEPTH} brackets and nots inside each other")
        test = self._name()
        if test is None and self._takes("not"):
            self._denied = not self._denied
            inner = self._one()
            self._denied = not self._denied
            test = self._negated(inner)
        elif test is None and self._takes("("):
            test = self._either()
            if not self._takes(")"):
                self._fail("expected ) at its end")
        self._depth -= 1
        if test is None:
            self._unknown()
        return test

    @staticmethod
    def _negated(inner: Test) -> Test:
        return lambda rows: ~inner(rows)

    def _takes(self, token: str) -> bool:
        """Take a keyword or a bracket, if it comes next."""
        found = re.match(rf"{token}\b" if token.isalpha() else re.escape(token), self._rest, re.IGNORECASE)
        if found is None:
            return False
        self._shown.append(token)
        self._rest = self._rest[found.end() :].lstrip()
        return True

    def _name(self) -> Test | None:
        """Take the name of a label, if one comes next: the quoted one, or the longest that fits."""
        if self._rest[:1] in ("'", '"'):
            name, mark, rest = self._rest[1:].partition(self._rest[0])
            if mark and (_plain(name) in self._known or not self._starts()):
                return self._label(name, rest)
        length = self._starts()
        return self._label(self._rest[:length], self._rest[length:]) if length else None

    def _starts(self) -> int:
        """Length of the longest known name that the rest begins with, at the end of a word; 0: none."""
        for end in range(min(len(self._rest), self._longest), 0, -1):
            whole = end == len(self._rest) or not (self._rest[end - 1].isalnum() and self._rest[end].isalnum())
            if whole and _plain(self._rest[:end]) in self._known:
                return end
        return 0

    def _label(self, name: str, rest: str) -> Test:
        same = [known for known in self.classes if _plain(known) == _plain(name)]
        exactly = [known for known in same if " ".join(unicodedata.normalize("NFC", known).split()) == name.strip()]
        if not same:
            self._rest = name
            self._unknown()
        if len(same) > 1 and len(exactly) != 1:
            self._fail(f"{name.strip()} may be {' or '.join(same)}; write it as the archive does")
        label = exactly[0] if exactly else same[0]
        column = self.classes.index(label)
        self._rest = rest.lstrip()
        self._shown.append(label)
        if not self._denied:
            self.wanted.add(label)
        return lambda rows: np.asarray(rows[:, column], dtype=np.bool_)

    def _unknown(self) -> NoReturn:
        word = re.split(r"[()]|\b(?:and|or|not)\b", self._rest, flags=re.IGNORECASE)[0].strip() or self._rest[:40]
        if not word or word.casefold() in OPERATORS or word[0] in "()":
            self._fail(f"expected a label, got {word or 'the end'}")
        near = suggestion(word, self.classes)
        raise ConfigError(f"--label {word}: the archive knows no such label{near}; it has {', '.join(self.classes)}")

    def _fail(self, what: str) -> NoReturn:
        raise ConfigError(f"--label {self.text!r}: {what}; write e.g. 'water and (dock or ship) and not cloud'")
