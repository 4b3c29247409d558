"""``import marc_dist``: what it offers, what it costs, and the examples of its page."""

from __future__ import annotations

import ast
import doctest
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import marc_dist
from tests.retrieval.runs import make_run, pack_tiny

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/python.md"
INIT = ast.parse((ROOT / "marc_dist/__init__.py").read_text())


def test_all_is_sorted_and_there() -> None:
    assert marc_dist.__all__ == sorted(set(marc_dist.__all__))
    assert set(dir(marc_dist)) == {*marc_dist.__all__, "__version__"}, "what import marc_dist needs itself is not shown"
    for name in marc_dist.__all__:
        value = getattr(marc_dist, name)
        assert value.__name__ == name and value.__doc__


def test_names_are_fetched_from_where_type_checkers_read_them() -> None:
    told = {
        alias.name: node.module
        for block in INIT.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {name: f"marc_dist.{home}" for home, names in marc_dist._HOMES.items() for name in names}
    assert told == homes and set(homes) == set(marc_dist.__all__)
    assert (ROOT / "marc_dist/py.typed").is_file()


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'marc_dist' has no attribute 'retrieval_metric'"):
        _ = marc_dist.retrieval_metric


def test_importing_is_quick_and_light() -> None:
    """Below 0.2 s of processor time beyond the interpreter's own, whatever else the machine does; nothing heavy."""
    code = """
import json, sys, time
before = time.process_time()
import marc_dist
spent = time.process_time() - before
print(json.dumps([spent, marc_dist.__version__, sorted(sys.modules)]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    spent, version, modules = json.loads(done.stdout)
    assert spent < 0.2 and version == marc_dist.__version__
    assert not {"torch", "numpy", "faiss", "pydantic", "PIL"} & set(modules)
    assert [name for name in modules if name.startswith("marc_dist")] == ["marc_dist"]


def test_version_is_that_of_the_project() -> None:
    assert marc_dist.__version__ == metadata.version("marc-dist")


def test_the_examples_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a folder that holds a packed data set and a finished run, as the page says."""
    dataset = pack_tiny(tmp_path / "data/tiny")
    make_run(tmp_path / "runs/tiny", dataset)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    failed, tried = doctest.testfile(
        str(PAGE), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    )
    assert tried > 15 and not failed


def test_the_page_names_everything() -> None:
    text = PAGE.read_text()
    assert not [name for name in marc_dist.__all__ if f"`{name}" not in text]
