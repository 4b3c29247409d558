"""One tiny data set and one evaluated run with its report for these tests; read them, never write there."""

from __future__ import annotations

from pathlib import Path

import pytest

from marc_dist.data.dataset import Dataset
from marc_dist.retrieval.evaluate import evaluate
from marc_dist.retrieval.report import write_report
from tests.retrieval.runs import make_run, pack_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return pack_tiny(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory, tiny: Dataset) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiny<run>"
    config = make_run(run, tiny)
    evaluate(config, run, print)
    write_report(config, run)
    return run
