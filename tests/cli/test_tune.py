"""``marc-tune`` as a person meets it: mistakes before anything starts, the report; searches are in tests/tuning."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from marc_dist.cli import tune
from marc_dist.cli.tune.plan import planned_search, split_places
from marc_dist.cli.tune.words import parser, place_of_trials, where_words
from marc_dist.config import load_config
from marc_dist.training.trackers import mirrors
from marc_dist.tuning.driver import open_search
from marc_dist.tuning.journal import Journal, alone, write_plan
from marc_dist.tuning.local_executor import call_trials
from tests.retrieval.runs import pack_tiny
from tests.tuning.searches import events, plan, run_file, trained


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_tiny(tmp_path_factory.mktemp("tiny") / "data").root


@pytest.fixture
def run(tiny_dir: Path, tmp_path: Path) -> Path:
    return run_file(tmp_path, tiny_dir)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mcal"], r"tune_spaces: no preset named 'mcal'; did you mean macl\?"),
        (["smoke", "RUN", "loss.tua=1"], r"loss.tua: unknown key; did you mean loss.tau\?"),
        (["smoke", "RUN", "loss.alpha=-1"], r"loss.alpha: expected greater than or equal to 0, got -1"),
        (["smoke", "RUN", "more"], r"expected a space, a run file and key=value words"),
        (["smoke", "RUN", "--trials", "0"], r"--trials: expected 1 or more, got 0"),
        (["smoke", "RUN", "--eta", "1"], r"--eta: expected more than 1"),
        (["smoke", "RUN", "--gpus-per-proc", "1.5"], r"--gpus-per-proc: expected 0 to 1 or a whole number"),
        (["smoke", "RUN", "--gpus-per-proc", "0.5", "--procs-per-trial", "2"], r"NCCL wants one for each"),
        (["smoke", "RUN", "--objectives", "maP"], r"objective maP: the trainer does not report it; did you mean mAP\?"),
        (["smoke", "RUN", "--objectives", "mAP,mAP"], r"--objectives: a metric appears twice"),
        (["smoke", "RUN", "--grace", "2", "--no-early-stop"], r"--grace 2: is for early stopping.*; keep one"),
        (["smoke", "RUN", "--start-from", "nowhere"], r"nowhere: no search.json; expected the folder of a search"),
        (["smoke", "RUN", "--grace", "99"], r"--grace 99: expected at most the 6 epochs of a trial"),
        (["smoke", "RUN", "--search", "grid"], r"loss.tau: a grid search needs a list"),
        (["smoke", "RUN", "train.max_steps=5"], r"train.max_steps: a search counts in epochs"),
        (["smoke", "RUN", "data.dir=nowhere"], r"nowhere: no such shard folder"),
        (["smoke", "RUN", "data.validation_share=0.01"], r"too few for data.validation_share=0.01"),
        (["smoke", "RUN", "--executor", "local", "--address", "auto"], r"--address: names a Ray cluster"),
        (["--resume", "nowhere"], r"nowhere: no search.json; expected the folder of a search"),
        (["--report", "nowhere"], r"nowhere: no search.json"),
    ],
)
def test_mistakes_are_one_line_before_anything_starts(
    words: list[str],
    message: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tune.main([str(run) if word == "RUN" else word for word in words]) == 2
    told = capsys.readouterr().err
    assert re.search(message, told), told
    assert told.startswith("marc-tune: error: ") and told.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_tracker_that_is_not_installed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(mirrors.PACKAGES, "wandb", "no-such-package-of-ours")
    assert tune.main(["smoke", str(run), "train.trackers=[wandb]"]) == 2
    message = "train.trackers: wandb is not installed; pip install 'marc-dist[wandb]', or leave it out"
    assert capsys.readouterr().err == f"marc-tune: error: {message}\n"
    assert not (tmp_path / "runs").exists()


def test_a_cluster_out_of_reach_is_told_in_time(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    assert tune.main(["smoke", str(run), "--address", "127.0.0.1:1"]) == 2
    assert time.monotonic() - began < 30
    told = capsys.readouterr().err
    assert "Ray cluster 127.0.0.1:1: cluster out of reach" in told and told.count("\n") == 1
    assert "--address HOST:PORT" in told


def testsplit_places(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("parameters:\n  loss.tau: {loguniform: [0.03, 0.5]}\n")
    assert split_places([]) == ("macl", [], False)
    assert split_places(["surface"]) == ("surface", [], False)
    assert split_places(["loss.tau=1"]) == ("macl", ["loss.tau=1"], False)
    assert split_places([str(run)]) == ("macl", [str(run)], True)
    assert split_places([str(own)]) == (str(own), [], False)
    assert split_places([str(run), "smoke", "a=1"]) == ("smoke", [str(run), "a=1"], True)  # either order
    assert split_places([str(own), str(run), "a=1"]) == (str(own), [str(run), "a=1"], True)
    assert split_places(["smoke", "data.dir=x"]) == ("smoke", ["data.dir=x"], True)


def test_print_shows_space_and_settings(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main(["temperature", str(run), "--print", "--trials", "9", "--seeds", "2"]) == 0
    told = capsys.readouterr().out
    assert "#   loss.alpha: uniform [0.05, 2.0], when dynamic in [True], otherwise 0.0" in told
    assert "# tpe, 9 settings x 2 seed(s) x 6 epochs, early stopping from epoch 1 on" in told
    assert "validation_share: 0.3" in told and "loss.alpha + loss.beta <= 3" in told


def test_more_trials_are_refused_while_another_search_is_under_way(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And leave no trace: the one under way would end with fewer than its record wants."""
    folder = tmp_path / "search"
    write_plan(folder, plan(4, config={"data.dir": str(load_config(run, []).data.dir), "data.validation_share": 0.3}))
    before = (folder / "search.json").read_bytes()
    for words in (["--resume", str(folder)], ["smoke", str(run), "--out", str(folder), "--resume"]):
        with alone(folder):
            assert tune.main([*words, "--trials", "9", "--executor", "local"]) == 2
        assert "another marc-tune searches here" in capsys.readouterr().err
    assert (folder / "search.json").read_bytes() == before


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        (["macl", "--trials", "9", "--seed", "3"], []),
        (["--executor", "local", "--concurrent", "3", "a=1"], ["--executor", "local", "--concurrent", "3"]),
        (
            ["--address", "auto", "--procs-per-trial", "2", "--gpus-per-proc", "0.5"],
            ["--address", "auto", "--procs-per-trial", "2", "--gpus-per-proc", "0.5"],
        ),
    ],
)
def test_going_on_means_the_same_place(given: list[str], expected: list[str]) -> None:
    options = parser().parse_intermixed_args(given)
    assert where_words(options) == expected
    again = parser().parse_intermixed_args(["--resume", "x", *where_words(options)])
    assert where_words(again) == expected


@pytest.mark.parametrize(
    ("given", "env", "expected"),
    [
        ([], {}, ("local", None)),
        ([], {"RAY_ADDRESS": "10.0.0.1:6379"}, ("ray", "10.0.0.1:6379")),
        (["--address", "auto"], {}, ("ray", "auto")),
        (["--address", "a:1"], {"RAY_ADDRESS": "b:1"}, ("ray", "a:1")),
        (["--executor", "ray"], {}, ("ray", None)),
        (["--executor", "ray"], {"RAY_ADDRESS": "b:1"}, ("ray", "b:1")),
        (["--executor", "local"], {"RAY_ADDRESS": "b:1"}, ("local", None)),
    ],
)
def test_ray_runs_trials_where_a_cluster_is_named(
    given: list[str], env: dict[str, str], expected: tuple[str, str | None]
) -> None:
    assert place_of_trials(parser().parse_intermixed_args(given), env) == expected


def test_what_another_search_lends_is_recorded(run: Path, tmp_path: Path) -> None:
    """A job that Slurm starts again gives the same words; the other search may have gone on, or be gone."""
    other = tmp_path / "other"
    write_plan(other, plan(4))
    call_trials(open_search(other, Journal(other)), trained)
    words = ["macl", str(run), "--start-from", str(other), "--out", str(tmp_path / "search")]
    folder, first, _ = planned_search(parser().parse_intermixed_args(words))
    assert len(first.source["first"]) == 4
    write_plan(folder, first)
    (other / "search.json").unlink()
    _, again, _ = planned_search(parser().parse_intermixed_args([*words[:-2], "--resume", str(folder)]))
    assert first.differences(again) == []


def test_a_first_point_outside_its_constraints_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("parameters:\n  loss.tau: {uniform: [0.03, 0.5]}\nconstraints: [loss.tau < 0.05]\n")
    assert tune.main([str(own), str(run), "--print"]) == 2
    told = capsys.readouterr().err
    assert "own: first: loss.tau=0.1: breaks the constraint loss.tau < 0.05; change it, or the run file" in told


@pytest.mark.slow
def test_alone_it_tunes_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one epoch and two trials: packs the sample, searches, says how to go on; the report is rebuilt from it."""
    monkeypatch.chdir(tmp_path)
    words = [
        "--trials",
        "2",
        "data.image_size=32",
        "train.epochs=1",
        "model.backbone=test_resnet",
        "model.pretrained=false",
    ]
    assert tune.main(words) == 0
    told = capsys.readouterr().out
    folder = tmp_path / "runs/tune-macl"
    assert "at a time on processes of this machine" in " ".join(told.split())
    assert "packing the built-in sample" in told and told.splitlines()[-1] == f"marc-train {folder}/best.yaml"
    assert sum(event["event"] == "end" for event in events(folder)) == 2
    before = (folder / "report.html").read_bytes()
    for name in ("report.html", "best.yaml", "trials.parquet"):
        (folder / name).unlink()
    assert tune.main(["--report", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == before and (folder / "best.yaml").is_file()
    assert tune.main(words) == 2
    assert "holds a search; go on with it with --resume" in capsys.readouterr().err
    assert tune.main([*words, "--resume"]) == 0  # nothing is left to do
    assert tune.main(["--resume", str(folder), "--out", "x"]) == 2
