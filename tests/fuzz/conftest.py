"""Small sound things to be damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from marc_dist.cli.shard import main
from tests import downloads


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A download: six pictures of two classes, and a table of splits."""
    root = tmp_path_factory.mktemp("download") / "own"
    rows = []
    for number in range(6):
        downloads.save(downloads.picture(number, (16, 12)), root / ("sand", "sea")[number % 2] / f"p{number}.png")
        rows.append(f"p{number},{'sand|sea' if number % 3 else 'sea'},{'train' if number % 3 else 'test'}\n")
    (root / "labels.csv").write_text("image,labels,split\n" + "".join(rows))
    return root


@pytest.fixture(scope="session")
def packed(own: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of its shard folder."""
    out = tmp_path_factory.mktemp("packed") / "out"
    words = [
        "--dataset",
        "folder",
        "--source",
        str(own),
        "--out",
        str(out),
        "--samples-per-shard",
        "3",
        "--workers",
        "1",
    ]
    assert main(words) == 0
    return {path.name: path.read_bytes() for path in out.iterdir()}
