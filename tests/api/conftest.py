"""One tiny data set and one evaluated run, shared; read them, never write there."""

from __future__ import annotations

from pathlib import Path

import pytest

from marc_dist.data.dataset import Dataset
from marc_dist.retrieval.evaluate import evaluate
from tests.retrieval.runs import make_run, pack_tiny


@pytest.fixture(scope="package")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return pack_tiny(tmp_path_factory.mktemp("packed") / "data")


@pytest.fixture(scope="package")
def finished(tmp_path_factory: pytest.TempPathFactory, packed: Dataset) -> Path:
    """Scored by every convention that is not a default, with all further metrics."""
    run = tmp_path_factory.mktemp("finished") / "run"
    words = {
        "gain": "jaccard",
        "relevance": 0.4,
        "denominator": "min",
        "ideal": "retrieved",
        "ndcg_form": "exponential",
        "without_relevant": "skip",
        "extra": True,
        "protocol": "leave_one_out",
    }
    config = make_run(run, packed, **{f"eval__{name}": value for name, value in words.items()})
    evaluate(config, run, print)
    return run
