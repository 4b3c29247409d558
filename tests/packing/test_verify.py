"""Damage that leaves checksums of files in order is found too, and named by shard and key."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marc_dist.cli.shard import main
from marc_dist.config import DataError
from marc_dist.data.dataset import open_dataset
from marc_dist.packing.verify import verify
from tests import downloads


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for number in range(8):
        downloads.save(downloads.picture(number, (16, 16)), tmp_path / "own" / ("ab"[number % 2]) / f"p{number}.png")
    words = ["--dataset", "folder", "--source", str(tmp_path / "own"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(words) == 0
    return tmp_path / "out"


def edit(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    meta = json.loads((out / "dataset.json").read_text())
    change(meta)
    (out / "dataset.json").write_text(json.dumps(meta))


def faults(out: Path) -> list[str]:
    return [f"{report.name}: {fault}" for report in verify(out) for fault in report.faults]


def replace_in_tar(out: Path, old: bytes, new: bytes) -> None:
    """Change a shard and put its checksum right, as somebody who repacks by hand would."""
    assert len(old) == len(new)
    path = next(path for path in sorted(out.glob("*.tar")) if old in path.read_bytes())
    data = path.read_bytes().replace(old, new, 1)
    path.write_bytes(data)

    def checksum(meta: dict[str, Any]) -> None:
        for shard in meta["shards"]:
            if shard["name"] == path.name:
                shard["sha256"] = hashlib.sha256(data).hexdigest()

    edit(out, checksum)


def test_labels_that_differ_from_the_index(out: Path) -> None:
    assert faults(out) == []
    replace_in_tar(
        out, b'{"labels": ["a"], "scene": "", "path": "a/p0', b'{"labels": ["b"], "scene": "", "path": "a/p0'
    )
    (fault,) = faults(out)
    assert "tar: p0: labels ['b'] differ from the index's ['a']" in fault


def test_json_that_is_none(out: Path) -> None:
    replace_in_tar(
        out, b'{"labels": ["a"], "scene": "", "path": "a/p2', b'["labels", ["a"], "scene", "", "path", "a/p2'
    )
    (fault,) = faults(out)
    assert "tar: p2: no readable JSON beside the picture" in fault


def test_a_shard_that_nobody_lists(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(next(out.glob("train-*.tar")), out / "train-000009.tar")
    assert faults(out) == ["index.parquet: train-000009.tar: a shard that dataset.json does not list"]
    assert main(["--verify", str(out)]) == 2
    assert "damaged: index.parquet: train-000009.tar" in capsys.readouterr().err


def test_a_fingerprint_of_something_else(out: Path) -> None:
    edit(out, lambda meta: meta.update(fingerprint="0" * 64))
    assert faults(out) == ["index.parquet: its rows do not give the fingerprint in dataset.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta: meta["shards"].append({"name": "x.tar"}), "list of shards is not readable"),
        (lambda meta: meta["shards"][0].update(name="../train-000000.tar"), "list of shards is not readable"),
        (lambda meta: meta["shards"].pop(), "names shards that dataset.json does not"),
        (lambda meta: meta.pop("fingerprint"), "lacks fingerprint"),
    ],
)
def test_a_dataset_json_that_was_meddled_with(
    out: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(out, change)
    with pytest.raises(DataError, match=message):
        open_dataset(out)
