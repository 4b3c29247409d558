"""The documents: a site that builds, citations that a reader can follow, words that lie where the vocabulary says."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import yaml

from marc_dist import __version__
from marc_dist.cluster.preset import LocalPreset, RayPreset, SlurmPreset
from marc_dist.config import Config
from marc_dist.study.study_file import Tune

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("marc_dist", "tests", "benchmarks", "docs", "launchers", "recipes", "shards", "studies", "tune_spaces")
TEXTS = sorted(
    path
    for path in [*ROOT.glob("*.*"), ROOT / "Makefile", *(path for name in FOLDERS for path in (ROOT / name).rglob("*"))]
    if path.suffix in {".py", ".md", ".yaml", ".yml", ".toml", ".cff", ""} and path.is_file() and path != Path(__file__)
)
OUTSIDE = re.compile(r"\bDESIGN\b|\breference/|\b[Rr]eference (?:section )?\d|\b[Pp]romise \d")
"""Numbered sections and promises of documents that are not in the repository, and the folder in which they lay."""
DOCUMENT = re.compile(r"[\w./-]+\.md\b")
WRITTEN = {"tables.md", "audit.md"}
"""Pages that a command writes."""
ANCHORED = re.compile(r"\]\(([\w./-]+\.md)?#([^)\s]+)\)")
"""A link to a heading, of the same page where no page is named."""
FENCED = re.compile(r"^```.*?^```", re.M | re.S)
ELSEWHERE = {"multilabel_metrics.py", "utils/metrics.py"}
"""Files of other people's repositories that docstrings name as a source."""
DOTTED = re.compile(r"(?<!`)`{1,2}([a-z_]\w*(?:\.\w+)+)(?:\(\))?`{1,2}(?!`)")
"""``module.name`` of a docstring, `module.name` of a page."""
MODULES = sorted((ROOT / "marc_dist").rglob("*.py"))
SPEAKING = [*MODULES, *sorted(path for path in TEXTS if path.suffix == ".md")]
SETTINGS = {
    **{section: [field.annotation] for section, field in Config.model_fields.items()},
    "cluster": [LocalPreset, SlurmPreset, RayPreset],
    "tune": [Tune],
}
"""Section -> the models that hold its settings."""


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_builds_without_a_warning_and_shows_docstrings(site: Path) -> None:
    assert "pull" in (site / "objective.html").read_text()
    assert 'id="marc_dist.metrics.score.score_queries"' in (site / "api/metrics.html").read_text()


def test_the_site_needs_no_other_host(site: Path) -> None:
    loads = re.compile(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//[^\s>]*")
    for page in site.rglob("*.html"):
        assert not loads.findall(page.read_text()), page.name


@pytest.mark.parametrize("path", TEXTS, ids=place)
def test_nothing_is_cited_that_a_reader_does_not_have(path: Path) -> None:
    text = path.read_text()
    found = [match[0] for match in OUTSIDE.finditer(text)]
    assert not found
    for name in DOCUMENT.findall(text):
        if Path(name).name in WRITTEN:
            continue
        assert any((folder / name).is_file() for folder in (ROOT, ROOT / "docs", path.parent)), name


def slugs(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCED.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [path for path in TEXTS if path.suffix == ".md"], ids=place)
def test_links_lead_to_headings(path: Path) -> None:
    for name, anchor in ANCHORED.findall(FENCED.sub("", path.read_text())):
        assert anchor in slugs(path.parent / name if name else path), f"{name}#{anchor}"


def test_docstrings_name_modules_that_are_there() -> None:
    names = {place(path) for path in TEXTS if path.suffix == ".py"}
    for path in (ROOT / "marc_dist").rglob("*.py"):
        for name in set(re.findall(r"``([\w/]+\.py)``", path.read_text())) - ELSEWHERE:
            assert any(f"/{known}".endswith(f"/{name}") for known in names), f"{place(path)} names {name}"


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def places() -> dict[Path, list[str]]:
    """Module -> its dotted name, in parts."""
    dotted = {path: ["marc_dist", *path.relative_to(ROOT / "marc_dist").with_suffix("").parts] for path in MODULES}
    return {path: parts[:-1] if parts[-1] == "__init__" else parts for path, parts in dotted.items()}


def defined(body: Sequence[ast.stmt]) -> dict[str, ast.stmt]:
    """Name -> the statement of a module or class that defines or imports it."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id: node for one in targets for name in ast.walk(one) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.If | ast.Try):
            found |= defined([*node.body, *node.orelse])
    return found


def names_something(parts: Sequence[str]) -> bool:
    """Whether a dotted name is a module (written from any room on), a name inside one, or a setting."""
    if any(hasattr(model, "model_fields") and parts[1] in model.model_fields for model in SETTINGS.get(parts[0], [])):
        return True
    for path, module in places().items():
        for cut in range(1, len(parts) + 1):
            if module[-cut:] != list(parts[:cut]):
                continue
            body, rest = tree(path).body, list(parts[cut:])
            while rest and isinstance(node := defined(body).get(rest[0]), ast.ClassDef):
                body, rest = node.body, rest[1:]
            if not rest or (len(rest) == 1 and rest[0] in defined(body)):
                return True
    return False


def own_names(path: Path) -> set[str]:
    """Arguments and variables of a module, or of the examples of a page: ``config.freeze`` is of an argument."""
    if path.suffix == ".md":
        return set(re.findall(r"^(?:>>> )?(\w+) = ", path.read_text(), re.M))
    nodes = list(ast.walk(tree(path)))
    arguments = {node.arg for node in nodes if isinstance(node, ast.arg)}
    return arguments | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def lost_names(path: Path) -> list[str]:
    """Dotted names in a module or page that begin with a room or module of ours and lead nowhere."""
    ours, own = {part for parts in places().values() for part in parts}, own_names(path)
    found = {tuple(name.split(".")) for name in DOTTED.findall(path.read_text())}
    files = {"py", "json", "jsonl", "yaml", "png", "html", "j2", "parquet", "csv", "safetensors", "npy", "md", "tex"}
    files |= {"geojson", "onnx"}
    asked = sorted(parts for parts in found if parts[0] in ours and parts[-1] not in files)
    rooms = {parts[1] for parts in places().values() if len(parts) > 1}
    asked = [parts for parts in asked if parts[0] not in own or (parts[0] in rooms and parts[1] in ours)]
    return [".".join(parts) for parts in asked if not names_something(parts)]


@pytest.mark.parametrize("path", SPEAKING, ids=place)
def test_dotted_names_lead_somewhere(path: Path) -> None:
    assert not lost_names(path)


def test_which_dotted_names_lead_somewhere(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    right = ["augment.views.draw", "views.draw", "objective", "marc_dist.place", "score.score_queries", "loss.tau"]
    right += ["cluster.time_min", "schema.Config.loss", "train.yaml", "torch.nothing", "data.nothing"]
    wrong = ["augment.draw", "data.augment.nothing", "loss.tua", "cluster.tau", "views.draw.more", "schema.Config.lost"]
    page.write_text("data = 1\n" + "\n".join(f"`{name}` and ``{name}()``" for name in right + wrong))
    assert lost_names(page) == sorted(wrong, key=lambda name: name.split("."))


def test_the_vocabulary_has_each_word_once_and_knows_its_room() -> None:
    lines = (ROOT / "docs/vocabulary.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and not line.startswith("| ---")]
    rows = [row for row in rows if row[0] != "word"]
    assert len(rows) > 80
    words = [row[0] for row in rows]
    assert len(words) == len(set(words))
    for word, meaning, room in rows:
        assert meaning
        assert (ROOT / room.strip("`")).exists(), f"{word}: {room}"


def test_the_front_door_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


def test_the_citation_agrees_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert (citation["version"], citation["license"]) == (__version__, project["license"])
    assert citation["authors"] == project["authors"]
