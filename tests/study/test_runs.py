"""Whole studies with real processes: killed and gone on with, failing cells, changed files."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.ray_cluster import pids_that_name
from tests.study.studies import command, records, run, tables, tiny_study, write_study

pytestmark = pytest.mark.slow


def soon(true: Callable[[], Any], seconds: float = 120.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(true())


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_dir: Path) -> tuple[Path, Path]:
    """A study that nobody disturbed: its file and its folder; read it, never write there."""
    folder = tmp_path_factory.mktemp("study")
    path = write_study(folder, tiny_study(tiny_dir))
    found = run(path, folder / "out", "--jobs", "2")
    assert found.returncode == 0, found.stdout + found.stderr
    return path, folder / "out"


def test_every_cell_is_an_ordinary_run_and_the_tables_have_all(done: tuple[Path, Path]) -> None:
    path, out = done
    for loss in ("macl", "mulsupcon"):
        for seed in range(6):
            cell = out / f"tiny/head/{loss}/seed-{seed}"
            assert (cell / "config.yaml").is_file() and (cell / "encoder.safetensors").is_file()
            assert yaml.safe_load((cell / "config.yaml").read_text())["train"]["seed"] == seed
        assert (out / f"tiny/head/{loss}/search/trials.jsonl").is_file()
    chosen = rows_of(out / "report/chosen.csv")
    assert [row["loss"] for row in chosen] == ["macl", "mulsupcon"] and {row["trials"] for row in chosen} == {"2"}
    for row in chosen:  # cells were trained with what the search has chosen, on all of the training split
        config = yaml.safe_load((out / f"tiny/head/{row['loss']}/seed-3/config.yaml").read_text())
        assert config["optim"]["lr"] == pytest.approx(float(row["value"]))
        assert config["data"]["validation_share"] == 0.0
    scores = rows_of(out / "report/scores.csv")
    rows = {(row["loss"], row["evaluation"], row["metric"]): row for row in scores}
    assert len(rows) == 4 * 4  # two floors and two losses, four metrics
    assert rows["macl", "count", "mAP"]["seeds"] == "6"
    seeds = [row for row in rows_of(out / "report/seeds.csv") if row["loss"] == "macl"]
    kept = json.loads((out / "tiny/head/macl/seed-2/eval/test_vs_train-count/metrics.json").read_text())["scores"][
        "trained"
    ]["mAP"]
    (mine,) = [r for r in seeds if (r["evaluation"], r["metric"], r["seed"]) == ("count", "mAP", "2")]
    assert float(mine["value"]) == kept
    pairs = rows_of(out / "report/pairs.csv")
    assert {(row["loss"], row["other"]) for row in pairs} == {("macl", "mulsupcon")} and len(pairs) == 4
    manifest = json.loads((out / "report/MANIFEST.json").read_text())
    assert manifest["seeds"] == list(range(6)) and not manifest["missing"]
    assert manifest["study"]["text"] == path.read_text() and set(manifest["data"]) == {"tiny"}


def test_what_is_done_is_not_run_again_and_the_report_repeats(done: tuple[Path, Path]) -> None:
    path, out = done
    before, times = tables(out), {file: file.stat().st_mtime_ns for file in records(out)}
    found = run(path, out)
    assert found.returncode == 0 and "at a time" not in found.stdout
    assert {file: file.stat().st_mtime_ns for file in records(out)} == times
    assert run(path, out, "--report").returncode == 0
    assert tables(out) == before
    told = run(path, out, "--dry-run").stdout
    assert "12 of 12 cells done" in told and "left: 0 trainings, 0 trials of 0 searches" in told


def test_killed_three_times_it_ends_with_the_same_tables(done: tuple[Path, Path], tmp_path: Path) -> None:
    path, undisturbed = done
    out = tmp_path / "out"
    moments = (
        lambda: (out / "tiny/head/macl/search/trials.jsonl").exists(),  # in a search
        lambda: any((out / "tiny").glob("head/*/seed-0/checkpoints/*")),  # in a training
        lambda: sum('"done"' in file.read_text() for file in records(out)) >= 6,  # in between
    )
    for moment in moments:
        driver = subprocess.Popen(command(path, out, "--jobs", "2"), stdout=subprocess.DEVNULL)
        assert soon(moment)
        if moment is moments[0]:
            second = run(path, out)
            assert second.returncode == 2 and "another marc-study runs here" in second.stderr
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        assert soon(lambda: not pids_that_name(str(out)))
    found = run(path, out, "--jobs", "2")
    assert found.returncode == 0, found.stdout + found.stderr
    assert tables(out) == tables(undisturbed)


def test_ctrl_c_saves_and_says_how_to_go_on(done: tuple[Path, Path], tmp_path: Path) -> None:
    path, undisturbed = done
    out = tmp_path / "out"
    driver = subprocess.Popen(
        command(path, out, "--jobs", "1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert soon(lambda: any((out / "tiny").glob("head/*/seed-0/checkpoints/*")))
    driver.send_signal(signal.SIGINT)
    told, err = driver.communicate(timeout=120)
    assert driver.returncode == 130 and "go on with: marc-study" in told and "interrupted" in err
    assert not pids_that_name(str(out))
    assert run(path, out).returncode == 0
    assert tables(out) == tables(undisturbed)


def test_a_cell_that_fails_is_named_and_the_others_go_on(tiny_dir: Path, tmp_path: Path) -> None:
    """A backbone that nobody has; with the next file it is there."""
    study = tiny_study(tiny_dir, tune=None, seeds=1, statistics={"tests": False}, floors=[])
    study["losses"]["lost"] = {"like": "macl", "model.weights": str(tmp_path / "later.safetensors")}
    path, out = write_study(tmp_path, study), tmp_path / "out"
    found = run(path, out)
    assert found.returncode == 1, found.stdout + found.stderr
    assert "failed: tiny/head/lost/seed-0: " in found.stdout and "later.safetensors" in found.stdout
    assert "missing: tiny/head/lost/seed-0: " in found.stdout
    assert "| macl | 1 |" in (out / "report/tables.md").read_text()
    again = run(path, out, "--report")
    assert again.returncode == 1 and "missing: tiny/head/lost/seed-0: " in again.stdout


def test_other_settings_are_refused_by_name_and_repeated_when_asked(tiny_dir: Path, tmp_path: Path) -> None:
    study = tiny_study(tiny_dir, tune=None, seeds=1, statistics={"tests": False}, floors=[])
    path, out = write_study(tmp_path, study), tmp_path / "out"
    assert run(path, out).returncode == 0
    before = (out / "tiny/head/macl/seed-0/task.json").stat().st_mtime_ns
    study["losses"]["mulsupcon"]["loss.tau"] = 0.3
    study["evaluations"]["cosine"] = {"eval.gain": "cosine", "eval.ks": [3], "metrics": ["nDCG@3"]}
    write_study(tmp_path, study)
    refused = run(path, out)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "1 made with other settings" in refused.stderr and "tiny/head/mulsupcon/seed-0" in refused.stderr
    assert (out / "tiny/head/macl/seed-0/task.json").stat().st_mtime_ns == before
    assert run(path, out, "--again").returncode == 0
    config = yaml.safe_load((out / "tiny/head/mulsupcon/seed-0/config.yaml").read_text())
    assert config["loss"]["tau"] == 0.3
    assert (
        out / "tiny/head/macl/seed-0/eval/test_vs_train-cosine/metrics.json"
    ).is_file()  # scored once more, not trained
    log = (out / "tiny/head/macl/seed-0/logs/study.log").read_text()
    assert log.count("step 1/") == 1
