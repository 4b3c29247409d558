"""The rules that keep the house in order: levels, purity, who may name which library, what a login node imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from marc_dist.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "marc_dist"

# Imports point downwards only. Training stands on retrieval: it keeps features and scores validation samples with it.
LEVELS = {
    "config": 0,
    "objective": 1,
    "metrics": 1,
    "augment": 1,
    "place": 1,
    "files": 1,
    "geography": 1,
    "progress_bar": 1,
    "memory_limits": 1,
    "torch_imports": 0,
    "comm": 2,
    "data": 2,
    "packing": 3,
    "losses": 3,
    "run": 3,
    "encoder": 3,
    "cluster": 4,
    "retrieval": 4,
    "preflight": 4,
    "training": 5,
    "report": 5,
    "api": 5,
    "tuning": 6,
    "study": 7,
    "cli": 8,
}
PURE = {
    "objective": {"torch", "numpy", "triton"},
    # the settings of a loss, which the objective reads: a checked value without torch, files or ranks
    "config/loss.py": {"pydantic"},
    "config/section.py": {"pydantic"},
    "metrics": {"numpy"},
    "data/plan.py": {"numpy"},
    "study/statistics.py": {"numpy", "scipy"},
}
OWNERS = {
    "torch.distributed": ("comm/",),
    "faiss": ("retrieval/index/parts.py",),
    "webdataset": ("data/stream.py",),
    "submitit": ("cluster/slurm.py",),
    "ray": ("cluster/ray.py", "cluster/ray_ranks.py", "cluster/ray_supervisor.py", "tuning/"),
    "optuna": ("tuning/",),
    "shtab": ("cli/completion.py",),
    "wandb": ("training/trackers/process.py",),
    "mlflow": ("training/trackers/process.py",),
}
TORCH_FREE = ("cli", "config", "cluster", "memory_limits", "place", "run", "study", "training/trackers", "tuning")
MODULES = sorted(PACKAGE.rglob("*.py"))
WITH_TORCH = {"study/floors.py"}
"""In a room without torch, what its worker alone imports, once it has something to compute."""


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
    places = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(place in PURE or place + ".py" in PURE for place in places)


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_imports_point_downwards(path: Path) -> None:
    own = place(path).split("/")[0].removesuffix(".py")
    if own == "__init__":  # its names are fetched when somebody asks for one; a type checker may read where they are
        assert not any(name.startswith("marc_dist") for name in imports(path, top_level_only=True))
        named = {name for name in imports(path) if name.startswith("marc_dist.")}
        assert {room(name) for name in named} <= {"api", "losses", "config"}
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
    if place(path) in WITH_TORCH:
        return
    heavy = {"torch", "torchvision", "timm", "faiss", "ray", "submitit", "matplotlib", "webdataset", "optuna"}
    assert not heavy & {name.split(".")[0] for name in imports(path, top_level_only=True)}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_answer_help_without_torch(command: str) -> None:
    code = f"""
import sys
from marc_dist.cli.{command} import main
for word in ("--help", "--version"):
    try:
        main([word])
    except SystemExit as stop:
        assert stop.code in (0, None), stop.code
heavy = {{"torch", "faiss", "ray", "timm", "submitit", "matplotlib", "scipy", "pyarrow", "optuna", "shtab"}}
heavy |= {{"numpy", "pydantic", "yaml", "rich", "PIL"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage: marc-" in done.stdout


# What a command imports only once its words are sound; everything else in cli/ is imported plainly.
LATE = {
    "shard": {"run"},
    "train": {"run"},
    "launch": {"job", "run", "search_job"},
    "tune": {"run"},
    "eval": {"run"},
    "search": {"request", "run"},
    "study": {"run"},
    "jobs": {"run"},
}


@pytest.mark.parametrize("path", [path for path in MODULES if place(path).startswith("cli/")], ids=place)
def test_commands_import_plainly(path: Path) -> None:
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    inside = {node for function in functions for node in ast.walk(function)}
    late = {ast.unparse(node) for node in inside if isinstance(node, ast.Import | ast.ImportFrom)}
    command = path.parent.name
    allowed = LATE[command] if path.name == "__init__.py" and command in COMMANDS else set()
    assert late == {f"from marc_dist.cli.{command} import {name}" for name in allowed}


def test_modules_stay_rooms() -> None:
    long = [place(path) for path in MODULES if len(path.read_text().splitlines()) > 400]
    assert not long


def test_a_folder_can_be_taken_in_at_a_glance() -> None:
    folders = {path.parent for path in MODULES}
    crowded = {place(folder): num for folder in folders if (num := len(list(folder.glob("*.py"))) - 1) > 16}
    assert not crowded, "more than sixteen modules are two rooms"
