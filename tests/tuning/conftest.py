"""One tiny packed data set for these tests; read it, never write there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.retrieval.runs import pack_tiny


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_tiny(tmp_path_factory.mktemp("tiny") / "data").root
