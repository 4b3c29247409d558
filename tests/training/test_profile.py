"""``marc-train --profile``: the parts of a step add up to it, the trace is one, and the run folder is left alone."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest

from marc_dist.config import Config, build
from marc_dist.training.measure.profile import LOADER, STEP, profile_rank
from tests.training.test_trainer import _words
from tests.worlds import run_in_world


def _profile(words: dict[str, Any], num_steps: int) -> tuple[dict[str, Any], float]:
    start = time.perf_counter()
    found = profile_rank(build(Config, words), num_steps)
    return found.__dict__, time.perf_counter() - start


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 1)])
def test_parts_of_a_step(small_dir: Path, tmp_path: Path, world: int, workers: int) -> None:
    run = tmp_path / "run"
    words = _words(small_dir, run) | {"data.num_workers": workers, "data.cache": "none"}
    results = run_in_world(_profile, world, words, 4)
    for rank, (found, seconds) in enumerate(results):
        assert list(found["step"]) == list(STEP.values()) and list(found["loader"]) == list(LOADER)
        assert all(value > 0 for value in (*found["step"].values(), *found["loader"].values()))
        assert 4 * sum(found["step"].values()) < 1000 * seconds
        assert found["trace"] == run / "profile" / f"trace-rank{rank}.json.gz"
        events = json.loads(gzip.decompress(found["trace"].read_bytes()))["traceEvents"]
        assert {"forward", "loss", "backward", "step"} <= {event.get("name") for event in events}
    told = json.loads((run / "profile" / "profile.json").read_text())
    assert told["step"] == pytest.approx(results[0][0]["step"])
    assert {path.name for path in run.iterdir()} == {"profile"}
