"""``marc-search`` as people call it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from marc_dist.cli.search import main
from marc_dist.report import picture_sheets, search_page
from tests.retrieval.runs import make_run, pack_tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    make_run(folder / "run", pack_tiny(folder / "data"))
    Image.new("RGB", (64, 48), (200, 30, 40)).save(folder / "<red> & co.png")
    return folder / "run"


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and lines[-1].startswith("marc-search: error: ")
    return lines[-1]


def test_a_picture_is_answered(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = run.parent / "<red> & co.png"
    assert main([str(run), str(query), "--top", "7", "--label", "green", "data.num_workers=0"]) == 0
    out, err = capsys.readouterr()
    assert "archive encoder: 40 images" in err and "index: flat, on the CPU" in err
    assert "<red> & co.png" in out and f"sheet: {run / 'search' / 'search.png'}" in out and "<b>" in out
    with Image.open(run / "search" / "search.png") as sheet:
        assert sheet.width > 1000 and sheet.height > 300
    page = (run / "search" / "search.html").read_text()
    assert page.count('class="tile"') == 7 and "&lt;red&gt; &amp; co.png" in page
    assert "<red>" not in page and "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert page.count('<li class="same">green</li>') == 7


def test_an_index_is_made_and_searched_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--index-dir", str(tmp_path / "index"), "--index", "IVF2,Flat:nprobe=2"]
    data = ["--archive", str(run.parent / "data")]
    assert main([str(run / "encoder.safetensors"), *data, *place, "--index-only", "eval.batch=8"]) == 0
    assert f"index of 40 images: {tmp_path / 'index'}" in capsys.readouterr().out
    query = str(run.parent / "<red> & co.png")
    assert main([str(run), query, query, *place, "--split", "test", "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert "vectors of 10 images from" in err and out.count("<red> & co.png") == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"search.png", "search.html"}


def test_names_cannot_steer_a_terminal(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff\x1b[2J\nb.png"))
    Image.new("RGB", (8, 8)).save(query)
    assert main([str(run), str(query), "--out", str(tmp_path / "out"), "--top", "2"]) == 0
    out = capsys.readouterr().out
    assert "\x1b[2J" not in out and "\\x1b[2J" in out
    assert "a\\udcff\\x1b[2J\\nb.png" in (tmp_path / "out" / "search.html").read_text()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from marc_dist.cli.search import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'faiss', 'numpy', 'pydantic', 'pyarrow', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: marc-search") and done.stdout.splitlines()[-1] == "[]"


def test_mistakes_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = str(run.parent / "<red> & co.png")
    assert "no such run" in refused(capsys, str(tmp_path / "gone"), query)
    assert "expected a query picture, or --index-only" in refused(capsys, str(run))
    assert "gone.jpg: no such picture" in refused(capsys, str(run), str(tmp_path / "gone.jpg"))
    assert "--top: expected 1 or more, got 0" in refused(capsys, str(run), query, "--top", "0")
    assert "loss.tau: marc-search takes eval.features" in refused(capsys, str(run), query, "loss.tau=1")
    assert "eval.featres: unknown key" in refused(capsys, str(run), query, "eval.featres=1")
    assert "no such shard folder" in refused(capsys, str(run), query, "--archive", str(tmp_path / "gone"))
    assert "FAISS refuses it" in refused(capsys, str(run), query, "--index", "NOPE")
    (tmp_path / "thesis.docx").touch()
    assert "got thesis.docx; choose another" in refused(capsys, str(run), query, "--index-dir", str(tmp_path))
    assert "expected a folder" in refused(capsys, str(run), query, "--out", query)
    assert "--index-only: makes" in refused(capsys, str(run), query, "--index-only")
    assert "--label snow: the archive knows no such label" in refused(capsys, str(run), query, "--label", "snow")
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("encoder.safetensors", "head.safetensors", "encoder.json"):
        (alone / name).write_bytes((run / name).read_bytes())
    assert "--archive: expected the shard folder to search" in refused(capsys, str(alone), query)


def test_more_answers_than_a_picture_or_a_page_can_hold(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    query, out = str(run.parent / "<red> & co.png"), ["--out", str(tmp_path), "--top", "40"]
    assert main([str(run), query, *out]) == 0
    assert "shows" not in capsys.readouterr().out
    assert (tmp_path / "search.html").read_text().count('class="tile"') == 40
    monkeypatch.setattr(picture_sheets, "SHEET_HEIGHT", 1200)
    assert main([str(run), query, query, *out]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == "search.png shows the first 12 of 40 answers; search.html and the table show all"
    assert main([str(run), *[query] * 6, *out]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith("search.png shows the first 4 of 6 queries, the first 6 of 40 answers; ")
    with Image.open(tmp_path / "search.png") as picture:
        assert 900 < picture.height <= 1200
    monkeypatch.setattr(search_page, "PAGE_PICTURES", 50)
    assert main([str(run), query, query, *out]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == "search.html shows the first 25 of 40 answers; the table shows all"
    page = (tmp_path / "search.html").read_text()
    assert page.count('class="tile"') == 50 and page.count("the first 25 of 40 answers") == 2
