"""The record and the figures: rows that any reader opens, figures that say what they show, a report in one file."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from marc_dist.config import load_config
from marc_dist.tuning.driver import open_search
from marc_dist.tuning.figures import curve, figures, surface_points
from marc_dist.tuning.importance import importances
from marc_dist.tuning.journal import Journal, write_plan, write_rows
from marc_dist.tuning.local_executor import call_trials
from marc_dist.tuning.progress_table import Board, print_end, shown_point
from marc_dist.tuning.report import write_report
from marc_dist.tuning.trial import write_best
from tests.tuning.searches import NUMBERS, finished, plan, search, trained

SURFACE = {
    "search": "grid",
    "parameters": {
        "loss.alpha": {"grid": [0.0, 0.5, 1.0]},
        "loss.beta": {"grid": [0.0, 1.0]},
        "loss.tau": {"fixed": 0.1},
        "optim.lr": {"fixed": 1e-3},
    },
}


def test_rows_are_complete_and_anybodys(tmp_path: Path) -> None:
    found = finished(tmp_path, trials=20, seeds=2)
    write_rows(tmp_path, found.rows())
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert [(row["number"], row["seed"]) for row in rows] == sorted(found.runs)
    for row in rows:
        run = found.runs[row["number"], row["seed"]]
        assert (row["state"], row["epoch"], row["mAP"]) == (run.state, run.epoch, run.last("mAP"))
        assert row["loss.tau"] == run.point["loss.tau"] and row["run"] == run.name
    assert {row["state"] for row in rows} == {"done", "stopped"}


def test_a_choice_between_kinds_of_values_is_text(tmp_path: Path) -> None:
    write_rows(tmp_path, [{"a": 1, "b": True}, {"a": "x", "b": None}])
    assert pq.read_table(tmp_path / "trials.parquet").to_pylist() == [{"a": "1", "b": True}, {"a": "x", "b": None}]


def test_best_is_the_best_trained_in_full(tmp_path: Path) -> None:
    found = finished(tmp_path, trials=20)
    path = write_best(found, tmp_path)
    assert path is not None
    scores = {at: found.values(at, "mAP")[0] for at in range(20) if found.runs[at, 0].state == "done"}
    best = max(scores, key=lambda at: scores[at])
    config = load_config(path)
    assert config.loss.tau == found.points[best]["loss.tau"] and config.optim.lr == found.points[best]["optim.lr"]
    assert write_best(search(plan(2)), tmp_path / "none") is None


def test_figures_of_every_kind(tmp_path: Path) -> None:
    found = finished(tmp_path, trials=24, objectives=("mAP", "rare_mAP"), early_stopping=False)
    assert list(figures(found)) == ["history", "epochs", "parallel", "curves", "importance", "pareto"]
    path = write_report(found, tmp_path)
    text = path.read_text()
    assert text.count('<div class="drawing"><svg ') == 6
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)|<script", re.sub(r'base64,[^"]*', "", text))
    assert "default-src 'none'" in text
    named = re.findall(r' id="([^"]*)"', text)
    assert len(set(named)) == len(named) and set(re.findall(r'(?:href="|url\()#([^")]*)', text)) <= set(named)
    for number in range(24):
        assert f"{number:04d}" in text
    pictures = list((tmp_path / "figures").iterdir())
    assert {one.stem for one in pictures} == set(figures(found))
    assert all(one.read_bytes().startswith(b"\x89PNG") for one in pictures)


def test_names_in_the_report_stay_text(tmp_path: Path) -> None:
    found = finished(tmp_path, trials=4, early_stopping=False)
    found.space = dataclasses.replace(found.space, title="<script>a & b</script>")
    text = write_report(found, tmp_path).read_text()
    assert "<script" not in text and text.count("&lt;script&gt;a &amp; b&lt;/script&gt;") == 2


def test_the_surface(tmp_path: Path) -> None:
    found = finished(tmp_path, SURFACE, trials=6)
    assert surface_points(found) == [
        (alpha, beta, pytest.approx(found.values(at, "mAP")[0]))
        for at, (alpha, beta) in enumerate((a, b) for a in (0.0, 0.5, 1.0) for b in (0.0, 1.0))
    ]
    assert "surface" in figures(found)
    scattered = finished(
        _made(tmp_path / "two"), {"parameters": {k: {"uniform": [0, 1]} for k in ("loss.alpha", "loss.beta")}}
    )
    assert "surface" in figures(scattered)
    line = finished(
        _made(tmp_path / "three"), SURFACE | {"parameters": SURFACE["parameters"] | {"loss.beta": {"fixed": 1}}}
    )  # type: ignore[operator]
    assert "surface" not in figures(line)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_search_without_results_has_a_report(tmp_path: Path) -> None:
    write_plan(tmp_path, plan(2))
    found = open_search(tmp_path, Journal(tmp_path))
    assert figures(found) == {}
    assert "No setting was trained in full" in write_report(found, tmp_path).read_text()
    run = found.next()
    assert run is not None
    assert "0000" in write_report(found, tmp_path).read_text()


def test_curves_have_intervals() -> None:
    assert curve([(1, 0.5), (1, 0.7), (2, 0.6)], listed=True) == [
        (1, pytest.approx(0.6), pytest.approx(0.6 - 12.706205 * 0.1), pytest.approx(0.6 + 12.706205 * 0.1)),
        (2, 0.6, 0.6, 0.6),
    ]
    assert len(curve([(at, 0.5) for at in range(7)])) == 1  # too few for two groups
    many = curve([(at, float(at)) for at in range(60)])
    assert len(many) == 6 and [place for place, *_ in many] == [4.5, 14.5, 24.5, 34.5, 44.5, 54.5]
    assert [mean for _, mean, *_ in many] == [4.5, 14.5, 24.5, 34.5, 44.5, 54.5]


def test_what_matters_is_told(tmp_path: Path) -> None:
    source = {"parameters": NUMBERS["parameters"] | {"loss.gamma": {"uniform": [0.0, 4.0]}}}  # changes nothing here
    found = finished(tmp_path, source, trials=60, how="random", early_stopping=False)
    shares = importances(found)
    assert set(shares) == {"loss.alpha", "loss.tau", "optim.lr", "loss.gamma"}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["loss.alpha"] > 0.5 and shares["loss.gamma"] < 0.1  # alpha: e^-2.25 at the end of its range
    assert importances(search(plan(2))) == {}


def test_the_board_and_the_end(tmp_path: Path) -> None:
    found = finished(tmp_path, trials=8, seeds=2, objectives=("mAP", "rare_mAP"))
    console = Console(record=True, width=160, force_terminal=True, file=(tmp_path / "out").open("w"))
    with Board(found, console) as board:
        board.show()
        table = Console(record=True, width=160, file=(tmp_path / "out2").open("w"))
        table.print(board._table())
    told = table.export_text()
    assert "best" in told and "8 of 8 settings" in told and f"{found.epochs_used:g} epochs" in told
    print_end(found, tmp_path, tmp_path / "best.yaml", tmp_path / "report.html", console)
    told = console.export_text()
    assert f"marc-train {tmp_path}/best.yaml" in told.replace("\n", "") and "±" in told
    console.file.close()
    table.file.close()
    plain = Console(record=True, width=160, file=(tmp_path / "out3").open("w"))
    other = search(plan(3))
    with Board(other, plain) as board:
        call_trials(other, trained)
        board.show()
        board.show()
    plain.file.close()
    assert plain.export_text().count("trial 000") == 3


@pytest.mark.parametrize("terminal", [True, False])
def test_the_time_left_is_shown_in_80_columns(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the table; elsewhere on a line every 10 s. Half of the epochs took 100 s, so the other half will, too."""
    now = 1000.0
    monkeypatch.setattr("marc_dist.tuning.progress_table.time.monotonic", lambda: now)
    found = search(plan(4, ahead=1, early_stopping=False, objectives=("mAP", "rare_mAP")))
    console = Console(width=80, force_terminal=terminal, file=io.StringIO())
    with Board(found, console) as board:
        for _ in range(2):
            run = found.next()
            assert run is not None
            found.began(run)
            for row in trained({**found.plan.base, **found.space.settings(run.point)}, 0):
                found.report(run, row)
            found.ended(run, 0)
            now += 50.0
            board.show()
            board.show()
        assert isinstance(console.file, io.StringIO)
        told = console.file.getvalue()
        if terminal:
            told = "\n".join(line.text.rstrip() for line in console.render_lines(board._table()) for line in line)
    assert "2 of 4 settings, 0 run, 18 epochs, best mAP " in told and "left 0:01:40" in told
    status = [line for line in told.splitlines() if "left" in line]
    assert all(len(line) <= 80 for line in status) and (terminal or len(status) == 2)


@pytest.mark.parametrize("better", [True, False])
def test_the_best_is_told_beside_the_run_files_own(tmp_path: Path, better: bool) -> None:
    """A search is for a gain over what one has; when there is none, it says so."""
    config = {"train.epochs": 9, "loss.tau": 0.4 if better else 0.1, "optim.lr": 1e-3, "loss.alpha": 0.5}
    found = finished(tmp_path, trials=12, how="random", early_stopping=False, config=config)
    console = Console(width=200, file=io.StringIO())
    print_end(found, tmp_path, tmp_path / "best.yaml", None, console)
    assert isinstance(console.file, io.StringIO)
    told, page = console.file.getvalue(), write_report(found, tmp_path).read_text()
    assert found.own() == 0 and (found.finished()[0] != 0) == better
    if better:
        own = found.values(0, "mAP")[0]
        assert f"the run file's own, 0000: mAP {own:.4f}" in told and f"own, 0000: {own:.4f}" in page
    else:
        assert "the run file's own setting: none of the others is better" in told
        assert "0000, the run file&#39;s own: none of the others is better" in page


def test_points_are_shown_as_words() -> None:
    assert shown_point({"loss.tau": 0.07, "dynamic": True, "loss.memory": 12, "model.weights": None}) == (
        "loss.tau=0.07 dynamic=true loss.memory=12 model.weights=null"
    )
