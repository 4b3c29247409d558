"""The rules that keep the house in order: levels, purity, who may name which library, what a login node imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "marc_dist"

# Imports point downwards only. Retrieval stands on training because it embeds with the encoder that training made.
LEVELS = {
    "config": 0,
    "objective": 1,
    "place": 1,
    "comm": 2,
    "data": 2,
    "training": 3,
    "retrieval": 4,
    "cluster": 5,
    "tuning": 6,
    "cli": 7,
}
PURE = {
    "objective": {"torch", "numpy", "triton"},
    "data/plan.py": {"numpy"},
    "retrieval/metrics.py": {"numpy", "torch"},
    "retrieval/label_sets.py": {"numpy"},
    "retrieval/rank_metrics.py": {"numpy"},
    "retrieval/label_metrics.py": {"numpy"},
    "retrieval/intervals.py": {"numpy"},
    "retrieval/meanings.py": set(),
}
OWNERS = {
    "torch.distributed": ("comm.py",),
    "faiss": ("retrieval/index.py",),
    "webdataset": ("data/stream.py",),
    "submitit": ("cluster/slurm.py", "cluster/local.py"),
    "ray": ("cluster/ray.py", "cluster/ray_ranks.py", "cluster/ray_supervisor.py", "tuning/"),
    "optuna": ("tuning/",),
}
TORCH_FREE = ("cli", "config", "cluster", "place", "tuning")
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Dotted names that a module imports; ``from a.b import c`` counts as ``a.b`` and ``a.b.c``."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
    if top_level_only:
        inside = {
            child
            for node in nodes
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in ast.walk(node)
        }
        for node in nodes:  # what only a type checker reads is not imported
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                inside |= set(ast.walk(node))
        nodes = [node for node in nodes if node not in inside]
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room(name: str) -> str:
    return name.split(".")[1].removesuffix(".py") if "." in name else ""


def pure(name: str) -> bool:
    """Whether a dotted name of ours lies in a pure module."""
    parts = name.split(".")[1:]
    return any("/".join(parts[:end]) + ".py" in PURE for end in range(1, len(parts) + 1))


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_imports_point_downwards(path: Path) -> None:
    own = place(path).split("/")[0].removesuffix(".py")
    if own == "__init__":
        assert not any(name.startswith("marc_dist.") for name in imports(path))
        return
    for name in imports(path):
        if name.startswith("marc_dist.") and room(name) in LEVELS:
            other = room(name)
            assert other == own or LEVELS[other] < LEVELS[own], f"{place(path)} ({own}) imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_libraries_have_one_owner(path: Path) -> None:
    for library, owners in OWNERS.items():
        if not place(path).startswith(owners):
            named = [name for name in imports(path) if name == library or name.startswith(library + ".")]
            assert not named, f"{place(path)} names {library}"
            if library == "torch.distributed":
                tree = ast.walk(ast.parse(path.read_text()))
                dotted = {ast.unparse(node) for node in tree if isinstance(node, ast.Attribute)}
                assert not any(name.startswith(library) for name in dotted), f"{place(path)} names {library}"


@pytest.mark.parametrize("rule", PURE)
def test_pure_rooms_import_only_mathematics(rule: str) -> None:
    paths = [PACKAGE / rule] if rule.endswith(".py") else sorted((PACKAGE / rule).glob("*.py"))
    assert paths
    for path in paths:
        for name in imports(path):
            top = name.split(".")[0]
            own = top == "marc_dist" and (room(name) == rule or pure(name))
            assert own or top in PURE[rule] or top in sys.stdlib_module_names, f"{place(path)} imports {name}"
            assert top not in {"os", "pathlib", "io", "socket", "subprocess"}, f"{place(path)} reaches outside: {name}"


@pytest.mark.parametrize("path", [path for path in MODULES if place(path).startswith(TORCH_FREE)], ids=place)
def test_login_nodes_import_no_torch_by_name(path: Path) -> None:
    heavy = {"torch", "torchvision", "timm", "faiss", "ray", "submitit", "matplotlib", "webdataset", "optuna"}
    assert not heavy & {name.split(".")[0] for name in imports(path, top_level_only=True)}


@pytest.mark.parametrize("command", ["shard", "train", "launch", "evaluate", "jobs", "tune"])
def test_commands_answer_help_without_torch(command: str) -> None:
    code = f"""
import sys
from marc_dist.cli.{command} import main
try:
    main(["--help"])
except SystemExit as stop:
    assert stop.code in (0, None), stop.code
heavy = {{"torch", "faiss", "ray", "timm", "submitit", "matplotlib", "scipy", "pyarrow", "optuna"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage: marc-" in done.stdout


def test_modules_stay_rooms() -> None:
    long = [place(path) for path in MODULES if len(path.read_text().splitlines()) > 400]
    assert not long
