"""Spaces: what is shipped builds, what is wrong is told with its place and a remedy before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from marc_dist.config import Config, ConfigError, build, find_preset, flatten, list_presets, load_config
from marc_dist.tuning.search_space.proposals import Observation, propose, rounded
from marc_dist.tuning.search_space.space import Point, Space, load_space, parse_space
from marc_dist.tuning.trial import base_settings
from tests.tuning.searches import space

BASE = base_settings(Config(), 9)
TAU = {"loss.tau": {"loguniform": [0.03, 0.5]}}
DYNAMIC = {
    "switches": {"dynamic": {"choice": [True, False]}},
    "parameters": {
        **TAU,
        "loss.alpha": {"uniform": [0.05, 2.0], "when": {"dynamic": True}, "otherwise": 0.0},
        "loss.temperature_form": {"choice": ["sharpen", "soften"], "when": {"dynamic": True}},
    },
}


def drawn(made: Space, num: int = 40, how: Any = "random") -> list[Point]:
    told: list[Observation] = []
    for number in range(num):
        told.append(Observation(propose(made, BASE, how, 0, number, told), "failed"))
    return [one.point for one in told]


def test_the_shipped_ones() -> None:
    assert list_presets("tune_spaces") == ["ablation", "macl", "smoke", "surface", "temperature"]


@pytest.mark.parametrize("name", list_presets("tune_spaces"))
def test_every_shipped_space_builds_runs(name: str) -> None:
    made = load_space(name)
    points = made.grid(BASE) if made.how == "grid" else drawn(made)
    for point in points:
        config = made.config(point, BASE)
        for key, value in made.settings(point).items():
            section, leaf = key.split(".")
            assert getattr(getattr(config, section), leaf) == value
    json.dumps(made.source)


def test_the_shipped_ones_say_what_they_promise() -> None:
    macl = load_space("macl")
    assert [one.name for one in macl.parameters] == ["loss.alpha", "loss.beta", "loss.tau", "optim.lr"]
    assert macl.first_points(BASE) == [{"loss.alpha": 0.5, "loss.beta": 0.5, "loss.tau": 0.1, "optim.lr": 1e-3}]
    ablation = load_space("ablation")
    off = {"loss.positives": "any", "loss.strength": 0.0, "loss.alpha": 0.0, "loss.beta": 0.0}
    usual = {"loss.positives": "per_label", "loss.strength": 1.0, "loss.alpha": 0.5, "loss.beta": 0.5}
    for own in (usual, usual | {"loss.strength": 0.7, "loss.alpha": 1.3}):  # a tuned run is taken apart as it is
        base = base_settings(build(Config, own), 9)
        flat = [flatten(ablation.config(point, base)) for point in ablation.grid(base)]
        parts = [{key: one[key] for key in off} for one in flat]
        assert len(parts) == 8 and len({json.dumps(part, sort_keys=True) for part in parts}) == 8
        assert parts[-1] == off and parts[0] == own
    assert len(load_space("surface").grid(BASE)) == 36 and not load_space("surface").early_stopping


def test_conditions_decide_what_a_point_has() -> None:
    made = space(DYNAMIC)
    points = drawn(made, 60)
    assert {point["dynamic"] for point in points} == {True, False}
    for point in points:
        config = made.config(point, BASE)
        assert ("loss.alpha" in point) == ("loss.temperature_form" in point) == point["dynamic"]
        assert config.loss.alpha == point.get("loss.alpha", 0.0)
        assert config.loss.temperature_form == point.get("loss.temperature_form", "soften")  # the run file's
        assert "dynamic" not in made.settings(point)


def test_conditions_look_at_settings_that_do_not_vary_and_at_inactive_ones() -> None:
    source = {"parameters": {**TAU, "loss.alpha": {"uniform": [0.1, 1], "when": {"loss.name": ["macl", "msc"]}}}}
    made = space(source)
    assert "loss.alpha" in drawn(made, 1)[0]
    assert "loss.alpha" not in propose(made, {**BASE, "loss.name": "mulsupcon"}, "random", 0, 0, ())


def test_a_condition_on_true_is_not_one_on_1() -> None:
    source = {"parameters": {"loss.strength": {"choice": [1.0, 0.0]}, **TAU}, "switches": {"on": {"choice": [1, 0]}}}
    with pytest.raises(ConfigError, match=r"when: on is never True"):
        space(source | {"parameters": {"loss.tau": {"uniform": [0.1, 1], "when": {"on": True}}}})


def test_constraints_hold_in_every_point() -> None:
    source = {
        "parameters": {"loss.alpha": {"uniform": [0.0, 2.0]}, "loss.beta": {"uniform": [0.0, 2.0]}},
        "constraints": ["loss.alpha + 2 * loss.beta <= 1.5"],
        "first": [],
    }
    points = drawn(space(source), 50)
    assert all(float(str(p["loss.alpha"])) + 2 * float(str(p["loss.beta"])) <= 1.5 for p in points)
    grid = source | {"search": "grid", "parameters": {"loss.alpha": {"grid": [0, 1]}, "loss.beta": {"grid": [0, 1]}}}
    assert space(grid).grid(BASE) == [{"loss.alpha": 0, "loss.beta": 0}, {"loss.alpha": 1, "loss.beta": 0}]


def test_what_the_schema_refuses_together_is_not_drawn() -> None:
    source = {
        "parameters": {"loss.tau": {"loguniform": [0.01, 1]}, "loss.t_min": {"loguniform": [0.01, 1]}},
        "first": [],
    }
    assert all(float(str(p["loss.tau"])) >= float(str(p["loss.t_min"])) for p in drawn(space(source), 50))
    with pytest.raises(ConfigError, match=r"no point out of 200 fits.*tau=.* lies below the floor.*widen"):
        drawn(space({"parameters": {"loss.tau": {"uniform": [0.001, 0.009]}}, "first": []}), 1)


def test_points_stay_in_range_and_are_readable() -> None:
    source = {
        "parameters": {
            **TAU,
            "data.num_views": {"int": [1, 4]},
            "loss.memory": {"logint": [1, 1000]},
            "optim.lr": {"fixed": 1},
        },
        "first": [],
    }
    points = drawn(space(source), 60)
    assert {point["data.num_views"] for point in points} == {1, 2, 3, 4}
    assert {point["optim.lr"] for point in points} == {1}
    assert all(0.03 <= float(str(point["loss.tau"])) <= 0.5 for point in points)
    assert all(float(f"{point['loss.tau']:.4g}") == point["loss.tau"] for point in points)
    assert sum(int(str(point["loss.memory"])) < 32 for point in points) > 15  # logarithmic


def test_every_number_has_a_draw_of_its_own() -> None:
    points = drawn(space({"parameters": TAU, "first": []}), 120)
    assert len({point["loss.tau"] for point in points}) > 110
    made = space({"parameters": TAU, "first": []})
    assert propose(made, BASE, "random", 0, 5, ()) != propose(made, BASE, "random", 0, 6, ())
    assert propose(made, BASE, "random", 0, 5, ()) != propose(made, BASE, "random", 1, 5, ())


def test_nested_sections_are_the_same_as_dotted_keys() -> None:
    assert (
        space({"parameters": {"loss": {"tau": {"loguniform": [0.03, 0.5]}}}}).parameters
        == space({"parameters": TAU}).parameters
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"parametrs": {}}, r"mine: parametrs: unknown part; did you mean parameters\?"),
        ({}, r"mine: parameters: expected at least one"),
        ({"parameters": {"loss.tua": {"uniform": [0, 1]}}}, r"mine: loss.tua: unknown key; did you mean loss.tau\?"),
        ({"parameters": {"loss.tau": {"uniform": [0.5, 0.1]}}}, r"loss.tau: uniform: empty range \[0.5, 0.1\]"),
        ({"parameters": {"loss.tau": {"uniform": [0.1, 0.1]}}}, r"empty range \[0.1, 0.1\]; expected low < high"),
        ({"parameters": {"optim.lr": {"loguniform": [0, 0.1]}}}, r"cannot contain 0, got \[0, 0.1\]; .*use uniform"),
        ({"parameters": {"optim.lr": {"loguniform": [-1, 1]}}}, r"cannot contain 0, got \[-1, 1\]"),
        ({"parameters": {"loss.tau": {"uniform": [0.1, 20]}}}, r"loss.tau: expected less than or equal to 10, got 20"),
        ({"parameters": {"loss.tau": {"uniform": [0.1, float("nan")]}}}, r"expected \[low, high\], two numbers"),
        ({"parameters": {"loss.tau": {"uniform": [0.1]}}}, r"expected \[low, high\], two numbers, got \[0.1\]"),
        ({"parameters": {"loss.tau": {"unifrom": [0.1, 1]}}}, r"no sampler named 'unifrom'; did you mean uniform\?"),
        ({"parameters": {"loss.tau": {"uniform": [0.1, 1], "grid": [1]}}}, r"expected one sampler of .*uniform, grid"),
        ({"parameters": {"loss.tau": 0.1}}, r"loss.tau: expected \{sampler: values\}"),
        ({"parameters": {"loss.overlap": {"choice": ["jacard"]}}}, r"loss.overlap: expected .*'jaccard'.*got 'jacard'"),
        ({"parameters": {"loss.overlap": {"choice": []}}}, r"choice: expected a list of values"),
        ({"parameters": {"loss.alpha": {"grid": [1, 1]}}}, r"a value appears twice"),
        ({"parameters": {"data.num_views": {"int": [1, 2.5]}}}, r"int: expected whole numbers"),
        ({"parameters": {"train.seed": {"int": [0, 9]}}}, r"train.seed: cannot vary: use --seeds"),
        ({"parameters": {"train.epochs": {"int": [1, 9]}}}, r"cannot vary: all trials have the same budget"),
        ({"parameters": {"data.num_workers": {"int": [0, 9]}}}, r"cannot vary: it does not change what a run computes"),
        ({"parameters": {"eval.batch": {"int": [1, 9]}}}, r"cannot vary: it does not change"),
        ({"parameters": TAU, "search": "tpa"}, r"search: expected tpe, random, grid, got 'tpa'; did you mean tpe\?"),
        ({"parameters": TAU, "objectives": "mAP"}, r"objectives: expected a list"),
        ({"parameters": TAU, "first": [{"loss.alpha": 1}]}, r"first: loss.alpha does not vary"),
        ({"parameters": TAU, "first": [{"loss.tau": 0.9}]}, r"first: loss.tau=0.9 is not in loguniform \[0.03, 0.5\]"),
        ({"parameters": TAU, "constraints": ["loss.tau"]}, r"constraints: expected one comparison"),
        ({"parameters": TAU, "constraints": ["loss.tua <= 1"]}, r"unknown name loss.tua; did you mean loss.tau\?"),
        ({"parameters": TAU, "constraints": ["loss.tau * loss.tau <= 1"]}, r"expected terms such as"),
        ({"parameters": {"loss.tau": {"uniform": [0.1, 1], "otherwise": 1}}}, r"otherwise: expected beside when only"),
        ({"parameters": {"loss.tau": {"uniform": [0.1, 1], "when": {"dynamik": True}}}}, r"when: unknown name dynamik"),
        (
            {"parameters": {"loss.tau": {"uniform": [0.1, 1], "when": {"loss.alpha": 1}}, "loss.alpha": {"grid": [1]}}},
            r"loss.tau: when: loss.alpha must come before it",
        ),
        (
            {"parameters": {"train.global_batch": {"uniform": [8, 64]}}},
            r"mine: train.global_batch: expected a valid integer, got .*; between whole numbers use int or logint",
        ),
        ({"parameters": TAU, "switches": {"loss.alpha": {"choice": [1]}}}, r"a switch has no dot in its name"),
    ],
)  # fmt: skip
def test_mistakes_name_place_and_remedy(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_space(source, "mine", "mine")


def test_a_grid_needs_lists() -> None:
    with pytest.raises(ConfigError, match=r"loss.tau: a grid search needs a list, got loguniform.*tpe or random"):
        space({"parameters": TAU, "search": "grid"}).grid(BASE)
    wide = {"loss.memory": {"int": [0, 9000]}, "data.num_views": {"int": [1, 8]}}
    with pytest.raises(ConfigError, match=r"expected a grid of at most 10000 points, got 72008"):
        space({"parameters": wide, "search": "grid"}).grid(BASE)


def test_files_and_names(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("parameters:\n  loss.tau: {loguniform: [3e-2, 0.5]}\n")
    assert load_space(str(path)).name == "own"
    path.write_text("parameters:\n  loss.tau: {loguniform: [0.0, 0.5]}\n")
    with pytest.raises(ConfigError, match=rf"{path}: loss.tau: loguniform"):
        load_space(str(path))
    with pytest.raises(ConfigError, match=r"tune_spaces: no preset named 'mcal'; did you mean macl\?"):
        load_space("mcal")


def test_the_first_point_is_the_run_files() -> None:
    made = space({"parameters": TAU, "first": [{}, {"loss.tau": 0.2}]})
    base = base_settings(build(Config, {"loss.tau": 2.0}), 9)  # outside the range, and tried all the same
    assert made.first_points(base) == [{"loss.tau": 2.0}, {"loss.tau": 0.2}]
    told = [Observation({"loss.tau": 2.0}, "done", (1.0,)), Observation({"loss.tau": 0.2}, "done", (0.5,))]
    assert 0.03 <= float(str(propose(made, base, "tpe", 0, 2, told)["loss.tau"])) <= 0.5


def test_a_grid_keeps_constraints_with_what_is_inactive_as_it_is_then() -> None:
    """Where the switch is off, alpha is 0, whatever the run file says."""
    parameters = {
        "loss.alpha": {"grid": [0.5, 1.0], "when": {"on": True}, "otherwise": 0.0},
        "loss.beta": {"grid": [0.5, 1.0]},
    }
    switches = {"on": {"choice": [True, False]}}
    made = space({"switches": switches, "parameters": parameters, "constraints": ["loss.alpha + loss.beta <= 1"]})
    assert made.grid(base_settings(build(Config, {"loss.alpha": 0.9}), 9)) == [
        {"on": True, "loss.alpha": 0.5, "loss.beta": 0.5},
        {"on": False, "loss.beta": 0.5},
        {"on": False, "loss.beta": 1.0},
    ]


def test_a_condition_on_an_inactive_parameter_sees_its_otherwise() -> None:
    parameters = {
        "loss.alpha": {"grid": [0.5, 1.0], "when": {"on": True}, "otherwise": 0.0},
        "loss.beta": {"grid": [0.25, 0.75], "when": {"loss.alpha": [0.5, 1.0]}, "otherwise": 0.0},
    }
    made = space({"switches": {"on": {"choice": [False, True]}}, "parameters": parameters})
    base = base_settings(build(Config, {"loss.alpha": 0.5}), 9)  # the run file's, which no trial has where on is false
    assert {"on": False} in made.grid(base) and len(made.grid(base)) == 5
    assert flatten(made.config({"on": False}, base))["loss.beta"] == 0.0


@pytest.mark.parametrize("kind", ["uniform", "loguniform"])
def test_numbers_of_a_narrow_range_stay_apart(kind: str) -> None:
    """0.9990 to 0.9999 has ten numbers of four digits."""
    points = drawn(space({"parameters": {"optim.momentum": {kind: [0.999, 0.9999]}}, "first": []}))
    values = [float(str(point["optim.momentum"])) for point in points]
    assert len(set(values)) == len(values) and 0.999 <= min(values) and max(values) <= 0.9999


def test_digits_of_a_wide_range() -> None:
    assert rounded(0.123456, 0.03, 0.5) == 0.1235 and rounded(1.23456, 0.0, 2.0) == 1.235
    assert rounded(0.99951234, 0.999, 0.9999) == 0.9995123
    assert rounded(-0.5, -1.0, 1.0) == -0.5 and rounded(0.03, 0.03, 0.5) == 0.03


@pytest.mark.parametrize("recipe", list_presets("recipes"))
def test_a_search_takes_every_recipe(recipe: str) -> None:
    """Trials and the best setting in full keep no best epoch of their own."""
    base = base_settings(load_config(find_preset("recipes", recipe)), 40)
    for share in (0.2, 0.0):
        config = build(Config, {**base, "data.validation_share": share})
        assert config.train.keep_best is None and config.train.patience is None
