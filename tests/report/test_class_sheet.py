"""The sheet of a data set: a row a class, always the same pictures, one that anybody can open."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marc_dist.cli.shard import main
from marc_dist.data.dataset import open_dataset
from marc_dist.data.reader import IndexedReader
from marc_dist.report import class_sheet as sheets
from marc_dist.report.class_sheet import GAP, HEAD, SIDE, TILE, TILES, chosen, class_sheet


def test_thumbnails_are_pictures_of_the_class(sample_dir: Path) -> None:
    dataset = open_dataset(sample_dir)
    sheet = Image.open(io.BytesIO(class_sheet(dataset)))
    line = (sheet.height - HEAD) // len(dataset.classes)
    assert sheet.height == HEAD + line * len(dataset.classes) and sheet.width > SIDE + TILES * TILE
    for label in (0, 4, 11):
        rows = chosen(dataset, label)
        assert len(rows) == TILES == len(set(rows)) and dataset.label_rows(rows)[:, label].all()
        left, top = GAP * 2 + SIDE, HEAD + line * label
        shown = np.asarray(sheet.crop((left, top, left + TILE, top + TILE)), dtype=float)
        own = IndexedReader(dataset).image(rows[0]).resize((TILE, TILE), Image.Resampling.BICUBIC)
        assert np.abs(shown - np.asarray(own, dtype=float)).max() <= 1
    assert chosen(dataset, 6) != chosen(dataset, 10)


def test_a_sheet_of_a_packed_folder_is_that_of_packing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["--dataset", "sample", "--out", str(out), "--sheet", str(tmp_path / "classes.png")]) == 0
    assert f"drew {tmp_path}/classes.png" in capsys.readouterr().out
    assert main(["--sheet", str(out)]) == 0
    assert (out / "sheet.png").read_bytes() == (tmp_path / "classes.png").read_bytes()
    assert main(["--sheet", str(tmp_path)]) == 2
    assert "not a shard folder" in capsys.readouterr().err


def test_words_that_do_not_go_with_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--dataset", "sample", "--sheet", "a.jpg"], "--sheet: expected the name of a PNG file"),
        (["--dataset", "sample", "--sheet", "--dry-run"], "--sheet: --dry-run writes nothing"),
        (["--list", "--sheet"], "--sheet: goes with --dataset, or alone with a shard folder"),
    ):
        assert main([*words, "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["--sheet"])
    assert stop.value.code == 2 and not (tmp_path / "out").exists()


def test_many_classes_make_small_tiles_then_fewer_rows(sample_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "SHEET_HEIGHT", HEAD + 12 * 60)
    whole = Image.open(io.BytesIO(class_sheet(open_dataset(sample_dir))))
    assert whole.height <= HEAD + 12 * 60
    monkeypatch.setattr(sheets, "MOST_CLASSES", 3)
    few = Image.open(io.BytesIO(class_sheet(open_dataset(sample_dir))))
    assert few.height < whole.height
