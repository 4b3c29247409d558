"""From an unknown folder to shards by what `marc-shard --inspect` prints, without a recipe of anybody's."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from marc_dist.cli import shard
from marc_dist.data.dataset import open_dataset

REAL = Path(__file__).resolve().parents[2].parent / "shared/data"
REAL = REAL if REAL.is_dir() else Path("/work/shared/data")


@pytest.mark.parametrize(("name", "pictures", "classes"), [("gid-mtl5", 1391, 6), ("ml-aid-150px", 3000, 17)])
def test_real_archives(
    name: str, pictures: int, classes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (REAL / name).is_dir():
        pytest.skip(f"no {REAL / name}")
    assert shard.main(["--inspect", str(REAL / name), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert f"packs: {pictures} pictures" in printed
    (tmp_path / "mine.yaml").write_text(printed)
    words = ["--dataset", str(tmp_path / "mine.yaml"), "--source", str(REAL / name), "--out", str(tmp_path / "out")]
    assert shard.main([*words, "--workers", "1"]) == 0
    dataset = open_dataset(tmp_path / "out")
    assert len(dataset) == pictures and list(dataset.classes) == [c["name"] for c in yaml.safe_load(printed)["classes"]]
    assert len(dataset.classes) == classes and dataset.label_rows(slice(None)).any(axis=1).all()
