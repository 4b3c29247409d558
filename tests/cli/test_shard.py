"""The command: its words, its messages, and what signals leave behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from marc_dist.cli.shard import main
from marc_dist.cli.shard.words import CHECKS
from marc_dist.data.dataset import open_dataset
from marc_dist.packing.reading.recipes import Policies
from tests import downloads


@pytest.fixture
def own(tmp_path: Path) -> Path:
    for number in range(12):
        downloads.save(downloads.picture(number, (24, 24)), tmp_path / "own" / f"p{number:02d}.png")
    rows = "".join(f"p{number:02d},{'bare soil' if number % 2 else 'water|bare soil'}\n" for number in range(12))
    (tmp_path / "own" / "labels.csv").write_text("image,labels\n" + rows)
    return tmp_path / "own"


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def test_help_names_every_check_and_gives_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(CHECKS) == set(Policies.model_fields)
    with pytest.raises(SystemExit) as stop:
        run("--help")
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "marc-shard --dataset whdld --source" in out
    assert all(check in "".join(out.split()) for check in CHECKS)


@pytest.mark.parametrize(("word", "kind"), [("mask", "masks"), ("file", "table")])
def test_labels_by_either_word(tmp_path: Path, word: str, kind: str) -> None:
    """``file`` and ``mask`` are what people call them."""
    downloads.dlrsd(tmp_path / "in")
    words = ["--dataset", "dlrsd", "--source", tmp_path / "in", "--allow", "counts,label-counts"]
    for choice in (word, kind):
        assert run(*words, "--labels", choice, "--out", tmp_path / choice) == 0
    assert open_dataset(tmp_path / word).fingerprint == open_dataset(tmp_path / kind).fingerprint


def test_a_wrong_word_is_a_usage_error() -> None:
    for words in (["--labels", "colour"], ["--workers", "two"], ["--nonsense"]):
        with pytest.raises(SystemExit) as stop:
            run("--dataset", "folder", *words)
        assert stop.value.code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--samples-per-shard", "0"), "--samples-per-shard: expected 1 or more, got 0"),
        (("--workers", "-1"), "--workers: expected 0 (every core) or more, got -1"),
        (("--shard-mb", "0"), "--shard-mb: expected megabytes above 0, got 0.0"),
        (("--shard-mb", "nan"), "--shard-mb: expected megabytes above 0, got nan"),
        (("--labels", "masks"), "--labels masks: folder has table here"),
        (("--index-order", "x"), "--index-order: folder knows no index table, got 'x'"),
        (("--classes", "water"), "label 'bare soil' is not in the class list"),
    ],
)
def test_settings_out_of_range(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert run("--dataset", "folder", "--source", own, "--out", tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_table_and_a_separator_by_words(own: Path, tmp_path: Path) -> None:
    (own / "labels.csv").rename(tmp_path / "elsewhere.csv")
    text = (tmp_path / "elsewhere.csv").read_text().replace("|", "/")
    (tmp_path / "elsewhere.csv").write_text(text)
    words = ["--dataset", "folder", "--source", own, "--csv", tmp_path / "elsewhere.csv", "--separator", "/"]
    assert run(*words, "--out", tmp_path / "out") == 0
    assert open_dataset(tmp_path / "out").classes == ("bare soil", "water")


def test_the_default_place_is_data_name(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("--dataset", "folder", "--source", own) == 0
    assert open_dataset("data/folder").name == "folder"


def test_dry_run_writes_nothing(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--dataset", "folder", "--source", own, "--out", tmp_path / "s" / "out", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "nothing written (--dry-run)" in out and "water" in out
    assert not (tmp_path / "s").exists()


def slow(own: Path, out: Path, workers: int) -> subprocess.Popen[str]:
    """A run that stands still once its shards are being written; returned when it has got there."""
    words = ["--dataset", "folder", "--source", str(own), "--out", str(out), "--samples-per-shard", "3"]
    script = out.parent / "slow.py"
    script.parent.mkdir(parents=True)
    script.write_text(f"""
import signal, time
from marc_dist.packing import tar
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite started in the background hands down "ignored"
tar.picture = lambda *args: time.sleep(60)  # in workers too, which import this file
if __name__ == "__main__":
    from marc_dist.cli.shard import main
    raise SystemExit(main({[*words, "--workers", str(workers)]!r}))
""")
    child = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(out.parent.glob(".out.partial/*.tar.*")):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return child


def offspring(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(status.parent.name))
        except (OSError, IndexError):
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_cleans_up(own: Path, tmp_path: Path, number: int) -> None:
    child = slow(own, tmp_path / "s" / "out", workers=1)
    child.send_signal(number)
    _, error = child.communicate(timeout=30)
    assert child.returncode == 130 and error.strip() == "marc-shard: interrupted"
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["slow.py"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_workers_die_with_a_killed_parent(own: Path, tmp_path: Path) -> None:
    child = slow(own, tmp_path / "s" / "out", workers=2)
    workers = offspring(child.pid)
    assert len(workers) >= 2
    child.kill()
    child.wait()
    assert child.stderr
    child.stderr.close()
    deadline = time.monotonic() + 20
    while (alive := [pid for pid in workers if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    assert not alive
    assert run("--dataset", "folder", "--source", own, "--out", tmp_path / "s" / "out") == 0
    assert not (tmp_path / "s" / ".out.partial").exists()


def test_inspect_prints_a_recipe_that_packs(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The way from an unknown folder or archive to shards: inspect, edit, pack."""
    shutil.make_archive(str(tmp_path / "mine"), "zip", own)
    assert run("--inspect", tmp_path / "mine.zip") == 0
    text = capsys.readouterr().out
    assert f"# mine: {tmp_path / 'mine.zip'}" in text and "# layout: table: labels.csv, 12 rows" in text
    assert "unpacked-" not in text and "first rows of labels.csv" in text
    (tmp_path / "mine.yaml").write_text(text)
    assert run("--dataset", tmp_path / "mine.yaml", "--source", own, "--out", tmp_path / "out") == 0
    assert open_dataset(tmp_path / "out").classes == ("bare soil", "water")
    assert run("--dataset", "folder", "--source", own, "--out", tmp_path / "plain") == 0
    assert open_dataset(tmp_path / "out").fingerprint == open_dataset(tmp_path / "plain").fingerprint


def test_the_schema_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--schema") == 0
    text = capsys.readouterr().out
    for key in ("tables", "annotations", "pictures", "min_share", "index_orders", "class_names", "lists"):
        assert re.search(rf"^ *{key}:.*", text, re.M)
    assert yaml.safe_load(re.sub(r": +#", ": null  #", text))["pair_by"] == "name"
