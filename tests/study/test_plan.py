"""A study file: what it becomes, and every mistake in one line before anything starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from marc_dist.cli import study as command
from marc_dist.config import ConfigError, list_presets
from marc_dist.retrieval.protocols import common_classes
from marc_dist.study.checks import make_plan
from marc_dist.study.estimate import estimate
from marc_dist.study.plan import Plan
from marc_dist.study.state import Record, write_record
from tests.retrieval.runs import OTHERS, pack_tiny
from tests.study.studies import tiny_study, write_study


@pytest.fixture(scope="module")
def other_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another data set, which shares two classes with the tiny one."""
    return pack_tiny(tmp_path_factory.mktemp("other") / "data", seed=1, classes=OTHERS).root


def planned(folder: Path, study: dict[str, Any]) -> Plan:
    return make_plan(str(write_study(folder, study)), str(folder / "out"))


def test_cells_are_the_product_and_seeds_come_in_turn(tiny_dir: Path, tmp_path: Path) -> None:
    plan = planned(tmp_path, tiny_study(tiny_dir))
    kinds = [task.kind for task in plan.tasks.values()]
    assert kinds == ["floors", "search", "search", *["cell"] * 12]
    assert [task.name for task in plan.cells[:3]] == [
        "tiny/head/macl/seed-0", "tiny/head/mulsupcon/seed-0", "tiny/head/macl/seed-1",
    ]  # fmt: skip
    cell = plan.cells[2]
    config = plan.config(cell, {"optim.lr": 0.005})
    assert (config.train.seed, config.optim.lr, config.model.head_only) == (1, 0.005, True)
    assert config.train.epochs == 4  # of the study, not 30, of the recipe
    assert config.train.run_dir == str(tmp_path / "out/tiny/head/macl/seed-1")
    assert config.data.features_dir == str(tmp_path / "out/features")
    assert cell.needs == "tiny/head/macl/search"


def test_a_recipe_keeps_nothing_from_a_cell(tiny_dir: Path, tmp_path: Path) -> None:
    study = tiny_study(tiny_dir)
    study["encoders"]["head"]["recipe"] = "scratch"  # which looks at a tenth of the training split
    config = planned(tmp_path, study).config(planned(tmp_path, study).cells[0])
    assert (config.data.validation_share, config.train.keep_best, config.optim.warmup_share) == (0.0, None, 0.1)


def test_sweeps_like_and_fixed_settings_become_rows(tiny_dir: Path, other_dir: Path, tmp_path: Path) -> None:
    study = tiny_study(tiny_dir)
    study["datasets"]["other"] = {"data.dir": str(other_dir), "data.image_size": 32}
    study["losses"] = {
        "macl": {"loss.name": "macl"},
        "plain": {"like": "macl", "loss.strength": 0.0},
        "taus": {"like": "macl", "sweep": {"loss.tau": [0.05, 0.2], "loss.alpha": [0.0, 1.0]}},
    }
    study["tune"]["fixed_from"] = "tiny"
    study["tune"]["all"] = {"loss.tau": {"uniform": [0.1, 0.3]}, "loss.strength": {"uniform": [0.2, 1.0]}}
    plan = planned(tmp_path, study)
    names = [method.name for method in plan.methods_on("tiny")]
    assert names == [
        "macl", "plain", "taus,tau=0.05,alpha=0.0", "taus,tau=0.05,alpha=1.0", "taus,tau=0.2,alpha=0.0",
        "taus,tau=0.2,alpha=1.0",
    ]  # fmt: skip
    elsewhere = [method.name for method in plan.methods_on("other")]
    assert elsewhere == [one for name in names for one in (name, f"{name}@tiny")]
    assert [task.name for task in plan.tasks.values() if task.kind == "search"] == [
        "tiny/head/macl/search", "other/head/macl/search",
    ]  # fmt: skip
    tuned = {"loss.tau": 0.25, "loss.strength": 0.9}
    by_name = plan.tasks
    plain = plan.config(by_name["other/head/plain/seed-0"], tuned)
    assert (plain.loss.tau, plain.loss.strength) == (0.25, 0.0)  # what it says itself goes before what was chosen
    swept = plan.config(by_name["tiny/head/taus,tau=0.05,alpha=1.0/seed-0"], tuned)
    assert (swept.loss.tau, swept.loss.alpha, swept.loss.strength) == (0.05, 1.0, 0.9)
    assert by_name["other/head/plain@tiny/seed-0"].needs == "tiny/head/macl/search"
    assert by_name["other/head/plain/seed-0"].needs == "other/head/macl/search"


def test_transfer_searches_every_other_data_set(tiny_dir: Path, other_dir: Path, tmp_path: Path) -> None:
    study = tiny_study(tiny_dir, tune=None)
    study["datasets"]["other"] = {"data.dir": str(other_dir), "data.image_size": 32}
    study["evaluations"]["away"] = {"eval.protocol": "transfer", "eval.ks": [3], "metrics": ["nDCG@3"]}
    plan = planned(tmp_path, study)
    assert common_classes(plan.datasets["tiny"].classes, plan.datasets["other"].classes)
    assert [one.name for one in plan.evaluations("tiny")] == ["count", "jaccard", "away-other"]
    assert [one.target for one in plan.evaluations("other")] == [None, None, "tiny"]
    cell = plan.tasks["tiny/head/macl/seed-0"]
    config = plan.eval_config(plan.config(cell), plan.evaluations("tiny")[-1])
    assert config.eval.queries_dir == str(other_dir) and config.data.dir == str(tiny_dir)


def test_a_label_map_is_read_before_anything_starts(tiny_dir: Path, other_dir: Path, tmp_path: Path) -> None:
    study = tiny_study(tiny_dir, tune=None)
    study["datasets"]["other"] = {"data.dir": str(other_dir), "data.image_size": 32}
    away: dict[str, Any] = {"eval.protocol": "transfer", "eval.ks": [3], "metrics": ["nDCG@3"]}
    study["evaluations"]["away"] = away

    def prints(text: str | None, name: str = "map") -> list[str]:
        """Fingerprints of a cell's evaluations with a map that says ``text``."""
        away.pop("eval.label_map", None)
        if text is not None:
            (tmp_path / f"{name}.yaml").write_text(text)
            away["eval.label_map"] = str(tmp_path / f"{name}.yaml")
        plan = planned(tmp_path, study)
        cell = plan.tasks["tiny/head/macl/seed-0"]
        return [plan.eval_fingerprint(cell, one) for one in plan.evaluations("tiny")]

    plain, mapped = prints(None), prints("labels: {sea: green}")
    assert plain[:2] == mapped[:2] and plain[2] != mapped[2]
    assert prints("labels: {sea: green}", "moved") == mapped and prints("labels: {sky: green}") != mapped
    with pytest.raises(
        ConfigError, match=r"evaluations\.away: eval\.label_map: .*map\.yaml: labels\.lake: none of the"
    ):
        prints("labels: {lake: green}")
    with pytest.raises(ConfigError, match=r"map\.yaml: datasets\.tinny: no data set of the study .*did you mean tiny"):
        prints("datasets: {tinny: {sea: green}}")
    away["eval.label_map"] = str(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"evaluations\.away: .*none\.yaml: no such file"):
        planned(tmp_path, study)


def test_fingerprints_follow_what_is_computed_and_nothing_else(tiny_dir: Path, tmp_path: Path) -> None:
    def prints(study: dict[str, Any]) -> dict[str, str]:
        plan = planned(tmp_path, study)
        return {name: plan.fingerprint(task) for name, task in plan.tasks.items()}

    first = prints(tiny_study(tiny_dir))
    study = tiny_study(tiny_dir, title="other title", statistics={"level": 0.9})
    study["settings"] |= {"data.num_workers": 1, "train.log_every": 3}
    assert prints(study) == first
    study["losses"]["macl"]["loss.alpha"] = 0.7
    changed = {name for name, value in prints(study).items() if value != first[name]}
    assert changed == {name for name in first if name.startswith("tiny/head/macl/")}
    study = tiny_study(tiny_dir)
    study["tune"]["trials"] = 3  # cells stand on what the search has chosen
    assert {name for name, value in prints(study).items() if value != first[name]} == set(first) - {"tiny/head/floors"}


def test_estimates_are_guesses_until_something_is_done(tiny_dir: Path, tmp_path: Path) -> None:
    plan = planned(tmp_path, tiny_study(tiny_dir, tune=None, floors=[]))
    guess = estimate(plan)
    assert (guess.left["cell"], guess.measured) == (12, 0) and guess.seconds > 0
    cell = plan.cells[0]
    made = {one.name: plan.eval_fingerprint(cell, one) for one in plan.evaluations("tiny")}
    record = Record("done", fingerprint=plan.fingerprint(cell), evaluations=made, seconds={"train": 3.0}, size=1000)
    write_record(plan.folder(cell), record)
    found = estimate(plan)
    assert (found.left["cell"], found.done["cell"], found.measured) == (11, 1, 1)
    assert (found.seconds, found.size) == (33.0, 11_000)


def changed(study: dict[str, Any], path: str, value: Any) -> None:
    """``losses/macl/loss.tau`` -> that place of the study; None takes it away."""
    *parts, last = path.split("/")
    for part in parts:
        study = study[part]
    if value is None:
        del study[last]
    else:
        study[last] = value


WRONG: list[tuple[str, Any, str]] = [
    ("sedes", 3, r"sedes: unknown key; did you mean seeds\?"),
    ("losses/macl/loss.name", "mcal", r"losses\.macl: loss\.name: expected .*'macl'.*got 'mcal'"),
    ("losses/macl/loss.tua", 0.1, r"losses\.macl: loss\.tua: unknown key; did you mean loss\.tau\?"),
    ("losses/macl/lik", "x", r"losses\.macl: lik: unknown key; did you mean like\?"),
    ("losses/mulsupcon", {"like": "mcal"}, r"losses\.mulsupcon\.like: unknown loss mcal; did you mean macl\?"),
    ("losses/mulsupcon", {"like": "mulsupcon"}, r"a circle"),
    ("losses/mulsupcon", {"loss.tau": 0.1}, r"losses\.mulsupcon: expected loss\.name"),
    ("losses/mulsupcon", {"loss.name": "macl"}, r"macl and mulsupcon have the same settings on tiny"),
    ("losses/floors", {"loss.name": "msc"}, r"losses\.floors: is the folder"),
    ("losses/macl/sweep", {"loss.tau": 3}, r"losses\.macl\.sweep: expected key: \[values\]"),
    ("losses/macl/sweep", {"train.seed": [1, 2]}, r"losses\.macl\.sweep: train\.seed: seeds are given once"),
    ("losses/macl/sweep", {"loss.tau": [0.1, -1]}, r"losses\.macl\.sweep: loss\.tau: expected greater than 0, got -1"),
    ("losses/macl/sweep", {"data.dir": ["a", "b"]}, r"losses\.macl\.sweep: data\.dir: belongs to a data set"),
    ("losses/macl/sweep", {"model.weights": ["a b", "a-b"]}, r"another point of it has the same folder, weights=a-b"),
    ("losses/macl/like", ["macl"], r"losses\.macl\.like: expected a text, got \['macl'\]"),
    ("encoders/head/recipe", 5, r"encoders\.head\.recipe: expected a text, got 5"),
    ("encoders/head/data.dir", "x", r"encoders\.head: data\.dir: belongs to a data set"),
    ("evaluations/count/metrics", [10], r"evaluations\.count\.metrics: expected a list of names, got \[10\]"),
    ("evaluations/count/datasets", "gid", r"evaluations\.count\.datasets: expected a list of names, got 'gid'"),
    ("datasets/report", {"data.dir": "x"}, r"datasets\.report: is a folder of the study itself"),
    ("datasets/tiny/encoders", {"head": {"data.dir": "x"}}, r"tiny\.encoders\.head: data\.dir: belongs to a data set"),
    ("datasets/tiny/encoders", {"head": {"eval.queries_dir": "x"}}, r"eval\.queries_dir: belongs to an evaluation"),
    ("datasets/tiny/data.dir", "/nowhere", r"/nowhere: no such shard folder"),
    ("datasets/tiny/data.dir", None, r"datasets\.tiny: expected data\.dir"),
    ("datasets/tiny/encoders", {"haed": {}}, r"unknown encoder haed; did you mean head\?"),
    ("datasets/tiny/train.seed", 3, r"datasets\.tiny: train\.seed: seeds are given once"),
    ("encoders/head/recipe", "haed", r"recipes: no preset named 'haed'; did you mean head"),
    ("encoders/head/data.image_size", 64, r"data\.image_size is 32 by datasets\.tiny and 64 by encoders\.head"),
    ("settings/data.num_views", 0, r"settings: data\.num_views: expected greater than or equal to 1, got 0"),
    ("losses/mulsupcon", {"loss.name": "ntxent", "data.num_views": 1}, r"loss\.name=ntxent has other views"),
    ("seeds", 5, r"seeds: tests need 6 or more, got 5"),
    ("seeds", [1, 1, 2], r"seeds: expected each once"),
    ("evaluations/count/metrics", ["nDCG@10"], r"evaluations\.count: metrics: nDCG@10: .*add 10 to eval\.ks"),
    ("evaluations/count/metrics", ["jaccard@3"], r"jaccard@3: .*set eval\.extra: true"),
    ("evaluations/count/eval.index", "IVF4,Flat", r"mAP: .*eval\.index=IVF4,Flat does not give: use mAP@3, or .*=flat"),
    ("evaluations/count/metrics", ["mpA"], r"mpA: protocol test_vs_train does not give this metric; did you mean mAP"),
    ("evaluations/count/eval.protocol", "transfer", r"transfer searches other data sets; there is only one"),
    ("evaluations/count/eval.query_split", "tset", r"no split named 'tset'"),
    ("evaluations/count/loss.tau", 0.3, r"evaluations\.count: loss\.tau: expected settings of eval"),
    ("settings/eval.protocol", "oml", r"settings: eval\.protocol: belongs to an evaluation"),
    ("evaluations/count/eval.name", "x", r"evaluations\.count: eval\.name: a study decides this"),
    ("tune/metric", "nDCG", r"objective nDCG: the trainer does not report it"),
    ("tune/all", {}, r"nothing varies for macl, while other losses have 2 trials"),
    ("tune/all", {"optim.lr": {"choice": [0.001]}}, r"has 1 settings in all, .*budgets must be equal"),
    ("tune/all", {"optim.rl": {"uniform": [0.1, 0.2]}}, r"optim\.rl: unknown key; did you mean optim\.lr\?"),
    ("tune/losses", {"mcal": {}}, r"tune\.losses: unknown loss mcal; did you mean macl\?"),
    ("tune/fixed_from", "tiny", r"there is no other data set"),
    ("statistics", {"against": "mcal"}, r"statistics\.against: no such loss, mcal"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "told"), WRONG, ids=[f"{path}={value}"[:60] for path, value, _ in WRONG])
def test_a_mistake_is_one_line_before_anything_starts(
    path: str, value: Any, told: str, tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tiny_study(tiny_dir)
    changed(study, path, value)
    out = tmp_path / "out"
    assert command.main([str(write_study(tmp_path, study)), "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("marc-study: error: ") and err.count("\n") == 1
    assert re.search(told, err), err
    assert not out.exists()


def test_an_unknown_study_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["smok"]) == 2
    assert "studies: no preset named 'smok'; did you mean smoke?" in capsys.readouterr().err
    assert command.main(["smoke", "--jobs", "0"]) == 2
    assert "--jobs: expected 1 to 10000, got 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", list_presets("studies"))
def test_every_shipped_study_has_sound_cells(
    name: str, sample_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the sample in place of every data set that a user has to fetch."""
    folder = tmp_path / "data"
    folder.mkdir()
    for data in ("sample", "ml-aid", "gid-mtl5", "dlrsd", "whdld"):
        (folder / data).symlink_to(sample_dir)
    monkeypatch.chdir(tmp_path)
    plan = make_plan(name)
    assert plan.cells and len(set(plan.tasks)) == len(plan.tasks)


def test_like_in_a_circle_is_told(tiny_dir: Path, tmp_path: Path) -> None:
    study = tiny_study(tiny_dir, tune=None)
    study["losses"] = {"a": {"like": "b"}, "b": {"like": "a"}}
    with pytest.raises(ConfigError, match="a circle"):
        planned(tmp_path, study)
