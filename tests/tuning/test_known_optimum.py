"""The claim of ``benchmarks/tune_search.py``, which is the same search and the same stopping without a training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "tune_search.py"


@pytest.mark.slow
def test_tpe_with_early_stopping_finds_it_and_beats_random_search(tmp_path: Path) -> None:
    """64 settings, 5 seeds: within 5 % of the optimum, at most half of all epochs, nearer than random at equal cost."""
    done = subprocess.run([sys.executable, str(SCRIPT), "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "tune_search.json").read_text())
    assert len(figures["rows"]) == 5
    assert all(row["tpe_asha"] >= 0.95 and row["share_of_all_in_full"] <= 0.5 for row in figures["rows"])
    assert figures["mean_distance"]["tpe_asha"] < figures["mean_distance"]["random_equal_cost"]
    assert figures["wins"] == 5
