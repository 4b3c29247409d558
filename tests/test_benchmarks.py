"""The scripts behind the figures: they start, and the seeded bugs still fit the code."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py") if path.name != "common.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_help(script: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--help"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert run.returncode == 0, run.stderr
    assert f"python benchmarks/{script}" in run.stdout


def test_every_script_is_in_the_table() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    assert [script for script in SCRIPTS if f"`{script}`" not in text] == []


def test_seeded_bugs_fit_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    mutations = importlib.import_module("mutations").MUTATIONS
    (said,) = re.findall(r"plants (\d+) bugs", (ROOT / "docs/guarantees.md").read_text())
    assert len(mutations) == len({mutation.name for mutation in mutations}) == int(said)
    for mutation in mutations:
        text = (ROOT / mutation.path).read_text()
        assert text.count(mutation.old) == 1, mutation.name
        # it compiles, and to something else: what fails is a test, not the import
        seeded = ast.dump(ast.parse(text.replace(mutation.old, mutation.new)))
        assert seeded != ast.dump(ast.parse(text)), mutation.name
        assert (ROOT / mutation.tests).is_file()


@pytest.mark.parametrize(
    "script",
    [
        "loss_speed.py", "loss_memory.py", "loss_precision.py", "temperature_forms.py", "shuffle_quality.py",
        "metrics_speed.py",
    ],
)  # fmt: skip
def test_quick_scripts_run(script: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--quick"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "figures in" in run.stdout


@pytest.mark.alone
@pytest.mark.slow
def test_a_few_faults_cost_no_run(tmp_path: Path) -> None:
    """The campaign's own script, real jobs and real signals; 200 of them are thrown by ``make campaign``."""
    kinds = "kill-rank,checkpoint,signal,shard,nonfinite"
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--seed", "7", "--count", "5", "--kinds", kinds]
    run = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=500, check=False)
    assert run.returncode == 0, run.stdout
    figures = json.loads((tmp_path / "faults.json").read_text())
    assert figures["faults"] == 5 and not figures["failures"]
