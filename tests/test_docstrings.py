"""Public functions with three or more arguments describe each of them, by name, in a Google-style ``Args:`` section."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "marc_dist"
MODULES = sorted(PACKAGE.rglob("*.py"))
FEW = 3


class Function(NamedTuple):
    """A public function, method or constructor.

    Attributes:
        node: its definition.
        owner: the class around it.
        doc: its docstring; of a constructor, that of the class before it.
    """

    node: ast.FunctionDef | ast.AsyncFunctionDef
    owner: ast.ClassDef | None
    doc: str

    @property
    def name(self) -> str:
        return f"{self.owner.name}.{self.node.name}" if self.owner else self.node.name

    @property
    def arguments(self) -> list[str]:
        """Names in the order of the signature, without self or cls."""
        given = self.node.args
        names = [one.arg for one in (*given.posonlyargs, *given.args)]
        if self.owner is not None and "staticmethod" not in map(ast.unparse, self.node.decorator_list):
            names = names[1:]
        names += [given.vararg.arg] if given.vararg else []
        names += [one.arg for one in given.kwonlyargs]
        return names + ([given.kwarg.arg] if given.kwarg else [])

    @property
    def described(self) -> dict[str, str] | None:
        """Argument -> what the ``Args:`` section says of it; None without a section."""
        found = re.search(r"^Args:\n((?:    .*\n?|\n)+)", self.doc, re.M)
        if found is None:
            return None
        entries = re.findall(r"^    \*{0,2}(\w+): ?(.*(?:\n {8}.*)*)", found[1], re.M)
        return {name: " ".join(text.split()) for name, text in entries}


def definitions(tree: ast.Module) -> Iterator[Function]:
    """Functions of a module and methods of its classes, private ones included."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Function(node, None, ast.get_docstring(node) or "")
        elif isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                    docs = [ast.get_docstring(method) or ""]
                    docs = [ast.get_docstring(node) or "", *docs] if method.name == "__init__" else docs
                    yield Function(method, node, "\n\n".join(filter(None, docs)))


def is_public(function: Function) -> bool:
    names = [function.node.name, *([function.owner.name] if function.owner else [])]
    return all(not name.startswith("_") or name in ("__init__", "__call__") for name in names)


@cache
def methods() -> dict[str, list[Function]]:
    """``Class.method`` -> all methods of the package with that name."""
    found: dict[str, list[Function]] = {}
    for path in MODULES:
        for function in definitions(ast.parse(path.read_text())):
            if function.owner is not None:
                found.setdefault(function.name, []).append(function)
    return found


@cache
def bases() -> dict[str, set[str]]:
    """Class -> names of its base classes."""
    nodes = [node for path in MODULES for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    found: dict[str, set[str]] = {node.name: set() for node in nodes}
    for node in nodes:
        found[node.name] |= {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
    return found


def ancestors(name: str) -> set[str]:
    above = bases().get(name, set())
    return above.union(*map(ancestors, above)) if above else above


def described_elsewhere(function: Function) -> bool:
    """Whether the method that this one overrides, or that its docstring names first, describes the same arguments.

    A class that keeps a protocol without being derived from it says ``See ``Protocol``.``.
    """
    if function.owner is None or function.node.name == "__init__":
        return False
    named = re.match(r"See ``([\w.]+)``", function.doc)
    others = ancestors(function.owner.name) | set(named[1].split(".") if named else ())
    same = [one for other in others for one in methods().get(f"{other}.{function.node.name}", [])]
    return any(list(one.described or {}) == function.arguments for one in same)


def faults(path: Path) -> list[str]:
    """What is wrong with the docstrings of a module, a line each."""
    found = []
    for function in filter(is_public, definitions(ast.parse(path.read_text()))):
        described = function.described
        where = f"{path.relative_to(PACKAGE.parent)}:{function.node.lineno} {function.name}"
        if described is None:
            if len(function.arguments) >= FEW and not described_elsewhere(function):
                found.append(f"{where}: no Args section for {', '.join(function.arguments)}")
            continue
        if list(described) != function.arguments:
            found.append(f"{where}: Args names {list(described)}, the function takes {function.arguments}")
        mute = [name for name, text in described.items() if text.strip(". ").lower() in ("", name.replace("_", " "))]
        found += [f"{where}: Args says nothing of {name}" for name in mute]
    return found


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_arguments_are_described(path: Path) -> None:
    assert not faults(path)


def doc(*entries: str, deep: int = 1) -> str:
    """A docstring with an Args section, as the body of a function or class ``deep`` levels down."""
    lines = ["'''Add.", "", "Args:", *(f"    {entry}" for entry in entries), "'''"]
    return "".join(f"\n{'    ' * deep}{line}" for line in lines)


SAID = ("a: one.", "b: two, in", "    two lines.", "c: three.")
BAD = {
    "no section": "def f(a, b, c):\n    '''Add.'''",
    "one is missing": "def f(a, b, c):" + doc("a: one.", "b: two."),
    "one too many": "def f(a):" + doc("a: one.", "b: two."),
    "another order": "def f(a, *b):" + doc("b: one.", "a: two."),
    "only its name": "def f(row_size):" + doc("row_size: Row size."),
    "nothing": "def f(a, b):" + doc("a:", "b: two."),
    "constructor": "class C:\n    def __init__(self, a, b, c): ...",
    "call": "class C:\n    def __call__(self, a, *, b, **c): ...",
    "static": "class C:\n    @staticmethod\n    def f(a, b, c): ...",
    "base without a word": "class B:\n    def f(self, a, b, c): ...\nclass C(B):\n    def f(self, a, b, c): ...",
    "see nowhere": "class C:\n    def f(self, a, b, c):\n        '''See ``Nobody``.'''",
}
BASE = "    def f(self, a, b, c):" + doc(*SAID, deep=2)
GOOD = {
    "two": "def f(a, b): ...",
    "private": "def _f(a, b, c): ...\nclass _C:\n    def f(self, a, b, c): ...",
    "function": "def f(a, *b, **c):" + doc(*SAID),
    "class": "class C:" + doc(*SAID) + "\n    def __init__(self, a, b, c): ...",
    "override": f"class B:\n{BASE}\nclass _M(B): ...\nclass C(_M):\n    def f(self, a, b, c): ...",
    "see": f"class P:\n{BASE}\nclass C:\n    def f(self, a, b, c):\n        '''See ``m.P``.'''",
}


@pytest.mark.parametrize("name", [*BAD, *GOOD])
def test_the_rule_itself(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.py"
    path.write_text(({**BAD, **GOOD})[name])
    monkeypatch.setattr(f"{__name__}.MODULES", [path])
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    for kept in (methods, bases):
        kept.cache_clear()
    try:
        assert bool(faults(path)) == (name in BAD)
    finally:
        for kept in (methods, bases):
            kept.cache_clear()
