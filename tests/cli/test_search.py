"""``marc-search`` as people call it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from marc_dist.cli.search import main
from marc_dist.data.dataset import open_dataset
from marc_dist.data.reader import IndexedReader
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
    assert "<red> & co.png" in out and "<b>" in out
    folder = run / "search" / "0001-red-co"
    assert f"sheet: {folder / 'search.png'}" in out.splitlines()
    with Image.open(folder / "search.png") as sheet:
        assert sheet.width > 1000 and sheet.height > 300
    page = (folder / "search.html").read_text()
    assert page.count('class="tile"') == 7 and "&lt;red&gt; &amp; co.png" in page
    assert "<red>" not in page and "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert page.count('<li class="same">green</li>') == 7


def test_a_search_keeps_those_before_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query, parent = str(run.parent / "<red> & co.png"), run / "search"
    before = {path.name for path in parent.iterdir()} if parent.is_dir() else set()
    assert main([str(run), query, query, query, "--top", "1"]) == 0
    assert main([str(run), query, "--top", "1"]) == 0
    assert f"page: {sorted(parent.iterdir())[-1] / 'search.html'}" in capsys.readouterr().out.splitlines()
    (first, second) = sorted({path.name for path in parent.iterdir()} - before)
    assert first.endswith("-red-co-and-2-more") and second.endswith("-red-co")
    assert int(second[:4]) == int(first[:4]) + 1 == len(before) + 2


def stored(run: Path, at: int, path: Path) -> str:
    """A picture of the archive as a file; its key."""
    dataset = open_dataset(run.parent / "data")
    path.write_bytes(IndexedReader(dataset).read(at))
    return str(dataset.keys[at])


def test_answers_as_json(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = stored(run, 7, tmp_path / "b.png")
    words = [str(run), str(tmp_path / "b.png"), "--top", "3", "--label", "GREEN or not green", "--json"]
    before = sorted(path for path in run.rglob("*"))
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(path for path in run.rglob("*")) == before  # no sheet, no page
    assert told["sheet"] is None and told["searched"] == 40 and told["labels"] == "green or not green"
    (query,) = told["queries"]
    assert query["path"] == str(tmp_path / "b.png") and [hit["rank"] for hit in query["answers"]] == [1, 2, 3]
    first = query["answers"][0]
    assert first["key"] == key and first["same"] and first["split"] in ("train", "test") and first["score"] > 0.9999
    assert not any(hit["same"] for hit in query["answers"][1:])
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert Path(json.loads(capsys.readouterr().out)["page"]).read_text().count("the query itself") == 1


def test_a_folder_a_list_and_standard_input(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, notes = tmp_path / "pictures", tmp_path / "list.txt"
    folder.mkdir()
    for at, name in enumerate(("b.png", "a.PNG")):
        stored(run, at, folder / name)
    (folder / "notes.txt").touch()
    notes.write_text(f"{folder}/b.png\n\n{folder}\n")

    def paths(*words: str, stdin: bytes = b"") -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        assert main([str(run), *words, "--json", "--top", "1"]) == 0
        return [Path(query["path"]).name for query in json.loads(capsys.readouterr().out)["queries"]]

    assert paths(str(folder)) == ["a.PNG", "b.png"]
    assert paths("--list", str(notes)) == ["b.png", "a.PNG", "b.png"]
    assert paths("--list", "-", stdin=f"{folder}/b.png\n".encode()) == ["b.png"]
    assert paths("-", str(folder / "b.png"), stdin=(folder / "b.png").read_bytes()) == ["standard-input", "b.png"]


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


def test_mistakes_are_told_before_torch_is_loaded(run: Path) -> None:
    code = (
        "import sys\nfrom marc_dist.cli.search import main\n"
        "assert main(sys.argv[1:]) == 2\nassert not {'torch', 'faiss', 'timm'} & set(sys.modules)"
    )
    query = str(run.parent / "<red> & co.png")
    for words in (["--label", "snow"], ["--top", "0"], ["--split", "val"], ["--index", "itq7"], ["--archive", "gone"]):
        done = subprocess.run([sys.executable, "-c", code, str(run), query, *words], capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr.count("\n") == 1, done.stderr


def test_mistakes_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = str(run.parent / "<red> & co.png")
    assert "no such run" in refused(capsys, str(tmp_path / "gone"), query)
    assert "expected a query picture, --list FILE, --like KEY, --near LON,LAT or --index-only" in refused(
        capsys, str(run)
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "list.txt").write_text("\n")
    assert "empty: a folder without pictures" in refused(capsys, str(run), str(empty))
    assert "no paths in it" in refused(capsys, str(run), "--list", str(empty / "list.txt"))
    assert "gone.txt: cannot be read" in refused(capsys, str(run), "--list", str(empty / "gone.txt"))
    assert "standard input is one thing" in refused(capsys, str(run), "-", "--list", "-")
    assert "https://a.b/c.jpg: an address, expected a file; fetch it" in refused(capsys, str(run), "https://a.b/c.jpg")
    assert "no split named 'val'" in refused(capsys, str(run), query, "--split", "val")
    assert "gone.jpg: no such picture" in refused(capsys, str(run), str(tmp_path / "gone.jpg"))
    assert "--top: expected 1 or more, got 0" in refused(capsys, str(run), query, "--top", "0")
    assert "loss.tau: marc-search takes eval.features" in refused(capsys, str(run), query, "loss.tau=1")
    assert "eval.featres: unknown key" in refused(capsys, str(run), query, "eval.featres=1")
    assert "no such shard folder" in refused(capsys, str(run), query, "--archive", str(tmp_path / "gone"))
    assert "FAISS refuses it" in refused(capsys, str(run), query, "--index", "NOPE")
    (tmp_path / "thesis.docx").touch()
    assert "thesis.docx; choose another" in refused(capsys, str(run), query, "--index-dir", str(tmp_path))
    assert "expected a folder" in refused(capsys, str(run), query, "--out", query)
    assert "--index-only: makes" in refused(capsys, str(run), query, "--index-only")
    assert "--label snow: the archive knows no such label; it has" in refused(
        capsys, str(run), query, "--label", "snow"
    )
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
