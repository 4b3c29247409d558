"""A shard folder small enough for many whole runs."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROWS = 53


@pytest.fixture(scope="session")
def small_dir(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed sample, its index cut to the first 53 training tiles."""
    out = tmp_path_factory.mktemp("small") / "sample"
    shutil.copytree(sample_dir, out)
    table = pq.read_table(out / "index.parquet")
    train = [place for place, split in enumerate(table.column("split").to_pylist()) if split == "train"]
    pq.write_table(table.take(train[:ROWS]), out / "index.parquet")
    meta = json.loads((out / "dataset.json").read_text())
    meta["index_sha256"] = hashlib.sha256((out / "index.parquet").read_bytes()).hexdigest()
    meta["fingerprint"] = hashlib.sha256(meta["index_sha256"].encode()).hexdigest()
    (out / "dataset.json").write_text(json.dumps(meta))
    return out
