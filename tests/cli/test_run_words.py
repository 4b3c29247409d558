"""Words that name a run: folders with an equals sign, and paths that mean the same from any folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from marc_dist.cli.eval.words import asked
from marc_dist.cli.eval.words import parser as eval_parser
from marc_dist.cli.run_words import run_config, split_words
from marc_dist.cli.search.request import request_of
from marc_dist.cli.search.words import parser as search_parser
from marc_dist.cli.tune.plan import split_places
from marc_dist.config import Config, ConfigError, DataError, build, dump_yaml, load_config
from marc_dist.config.paths import PATHS
from marc_dist.run.folder import plain_settings, refuse_changes, write_config
from marc_dist.run.settings import load_run

NAMED = "lr=0.1,tau=0.5"


def old_config(folder: Path, **words: object) -> None:
    """A ``config.yaml`` of an earlier version: paths as they were typed."""
    folder.mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    values = {"train.run_dir": "runs/a", "data.dir": "data/x", **{k.replace("__", "."): v for k, v in words.items()}}
    (folder / "config.yaml").write_text(dump_yaml(build(Config, values), comments=True))


@pytest.mark.parametrize("place", [f"mv/{NAMED}", f"./mv/{NAMED}", NAMED, f"mv/{NAMED}/config.yaml", "lr=0.1.yaml"])
def test_what_exists_is_a_place_in_spite_of_its_equals_sign(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mv" / NAMED
    folder.mkdir(parents=True)
    config = build(Config, {"train.run_dir": str(folder), "loss.tau": 0.3})
    write_config(config)
    (tmp_path / "lr=0.1.yaml").write_text(dump_yaml(config))
    monkeypatch.chdir(tmp_path / "mv" if place == NAMED else tmp_path)
    found = run_config([place, "loss.alpha=0.4"])
    assert (found.loss.tau, found.loss.alpha) == (0.3, 0.4)
    assert split_places(["macl", place, "loss.alpha=0.4"]) == ("macl", [place, "loss.alpha=0.4"], True)


def test_a_setting_stays_a_setting_where_a_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    word = "optim.lr=0.1"
    (tmp_path / word).mkdir()
    assert split_words([word]) == ([], [word])  # it holds no run
    (tmp_path / word / "config.yaml").write_text("loss.tau: 0.3\n")
    assert split_words([word]) == ([word], []) and split_words([f"./{word}"]) == ([f"./{word}"], [])
    assert split_words(["run.yaml", word]) == (["run.yaml"], [word])


def test_a_run_folder_that_is_not_there_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (f"mv/{NAMED}", f"./{NAMED}"):
        with pytest.raises(ConfigError, match=f"^{place}: no such folder or file"):
            run_config([place])


def test_a_run_folder_holds_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    typed = {
        "train.run_dir": "runs/a", "data.dir": "../x", "data.cache_dir": "~/cache", "data.features_dir": None,
        "data.urls": ["s/{0..3}.tar", "s3://b/k.tar", "pipe:cat x.tar"], "model.weights": "w.pth",
        "eval.archive_dir": "/data/y", "eval.label_map": "names.yaml", "data.reader": "streamed",
    }  # fmt: skip
    written = yaml.safe_load(write_config(build(Config, typed)).read_text())
    found = {key: written[key.split(".")[0]][key.split(".")[1]] for key in PATHS}
    assert found == {
        "train.run_dir": f"{tmp_path}/runs/a", "data.dir": f"{tmp_path}/../x",
        "data.cache_dir": f"{tmp_path}/home/cache",
        "data.features_dir": None,
        "eval.label_map": f"{tmp_path}/names.yaml",
        "data.urls": [f"{tmp_path}/s/{{0..3}}.tar", "s3://b/k.tar", "pipe:cat x.tar"],
        "model.weights": f"{tmp_path}/w.pth", "eval.archive_dir": "/data/y", "eval.queries_dir": None,
    }  # fmt: skip
    config = load_config(tmp_path / "runs/a/config.yaml")
    refuse_changes(plain_settings(build(Config, typed)), config, "a")  # the checkpoint remembers it as typed
    refuse_changes(plain_settings(config), build(Config, typed), "a")
    with pytest.raises(ConfigError, match=r"model\.weights was"):
        refuse_changes(plain_settings(config), build(Config, typed, {"model.weights": "v.pth"}), "a")


def test_paths_of_an_earlier_version_start_where_the_run_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    old_config(home / "runs/a", eval__archive_dir="data/y")
    (elsewhere / "data/x").mkdir(parents=True)  # another folder of that name: it was searched without a word
    monkeypatch.chdir(elsewhere)
    words = ["../home/runs/a", "--print"]
    assert run_config(words[:1]).data.dir == f"{home}/data/x"
    found = asked(eval_parser().parse_args(words[:1]))
    assert found is not None
    ((_, _, config),) = found.runs
    assert (config.data.dir, config.eval.archive_dir) == (f"{home}/data/x", f"{home}/data/y")
    picture = tmp_path / "q.jpg"
    picture.touch()
    with pytest.raises(DataError, match=f"^{home}/data/x: "):  # there are no shards
        request_of(search_parser().parse_args([words[0], str(picture)]), tmp_path)
    assert run_config([words[0], "data.dir=data/x"]).data.dir == "data/x"  # typed here, means here


def test_paths_of_a_moved_run_of_an_earlier_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old_config(tmp_path / "home/runs/a")
    (tmp_path / "data/x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    shutil.move("home/runs/a", "b")
    with pytest.raises(ConfigError, match=r"^b/config\.yaml: data\.dir: data/x is relative .* give data\.dir=DIR$"):
        run_config(["b"])
    assert run_config(["b", "data.dir=data/x"]).data.dir == "data/x"
    assert load_run(Path("b"), layer={"data": {"dir": "z"}}).data.dir == "z"
    picture = tmp_path / "q.jpg"
    picture.touch()
    with pytest.raises(DataError, match="^data/x: "):  # there are no shards
        request_of(search_parser().parse_args(["b", str(picture), "--archive", "data/x"]), tmp_path)
    (tmp_path / "b/job.json").write_text(json.dumps({"cwd": "/where/it/began"}))
    assert run_config(["b"]).data.dir == "/where/it/began/data/x"
    (tmp_path / "b/job.json").write_text("{")
    (tmp_path / "b/checkpoints").rmdir()  # nothing was trained here: a run file like any other
    assert run_config(["b"]).data.dir == "data/x"
