"""The search itself, with a function in place of the training: order, early stopping, seeds, resume, accounting."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from marc_dist.config import ConfigError, LaunchError
from marc_dist.tuning.asha import stops_at
from marc_dist.tuning.driver import begin, extend, new_plan, open_search, warm_start
from marc_dist.tuning.journal import Journal, alone, write_plan
from marc_dist.tuning.local_executor import call_trials
from marc_dist.tuning.search_space.proposals import Observation, new_study, propose
from marc_dist.tuning.state import Search, Trial, interval
from tests.tuning.searches import NUMBERS, events, peak, plan, search, space, story, trained


def shuffled(found: Search, seed: int, concurrent: int, steps: int | None = None, crash: float = 0.0) -> None:
    """Carry a search out with runs that take turns in a random order, and lose some of them on the way."""
    draw = random.Random(seed)
    active: list[tuple[Trial, Any]] = []
    while not found.over and steps != 0:
        while len(active) < concurrent and (run := found.next()) is not None:
            found.began(run)
            settings = {**found.plan.base, **found.space.settings(run.point)}
            active.append((run, trained(settings, run.seed)))
        assert active, "nothing runs, nothing may start, and it is not over"
        at = draw.randrange(len(active))
        run, rows = active[at]
        row = next(rows, None)
        if row is not None and found.report(run, row) == "go":
            if draw.random() < crash and run.faults < found.plan.retries:
                found.ended(run, 137, "lost")
                active.pop(at)
        else:
            found.ended(run, 0)
            active.pop(at)
        steps = None if steps is None else steps - 1


def undisturbed(**values: Any) -> Search:
    found = search(plan(24, **values))
    call_trials(found, trained)
    return found


@pytest.mark.parametrize("how", ["tpe", "random"])
@pytest.mark.parametrize("values", [{}, {"seeds": 2}, {"objectives": ("mAP", "rare_mAP")}])
def test_the_same_seed_gives_the_same_search_in_any_order(how: Any, values: dict[str, Any]) -> None:
    """1 or 5 at a time, in whatever order they end, with runs lost on the way: the same points, stops and values."""
    expected = story(undisturbed(how=how, **values))
    for seed in range(3):
        found = search(plan(24, how=how, retries=100, **values))
        shuffled(found, seed, concurrent=5, crash=0.05 * seed)
        assert story(found) == expected
    assert story(undisturbed(how=how, seed=1, **values))[0] != expected[0]


def test_setting_n_knows_exactly_the_settings_up_to_n_minus_ahead() -> None:
    found = undisturbed(how="tpe")
    for number in (12, 23):
        told = [found.observation(at, usable=at <= number - 3) for at in range(number)]
        assert [one.state == "open" for one in told] == [False] * (number - 2) + [True] * 2
        assert propose(found.space, found.plan.base, "tpe", 0, number, told) == found.points[number]
        less = [*told[: number - 3], told[number - 3]._replace(state="open", values=()), *told[number - 2 :]]
        changed = propose(found.space, found.plan.base, "tpe", 0, number, less)
        assert changed != found.points[number] or number < 13


def test_it_learns() -> None:
    found = undisturbed(how="tpe", early_stopping=False)
    scores = [peak({**found.plan.base, **point}) for point in found.points]
    assert sum(scores[12:]) / 12 > sum(scores[1:12]) / 11


def test_a_setting_waits_for_the_one_that_is_ahead_before_it() -> None:
    found = search(plan(10, ahead=3, early_stopping=False))
    runs = [found.next() for _ in range(4)]
    assert [run.number for run in runs if run is not None] == [0, 1, 2] and runs[3] is None
    for at in (2, 1):  # out of order: 0 is still under way
        for row in trained({**found.plan.base, **runs[at].point}, 0):  # type: ignore[union-attr]
            found.report(runs[at], row)  # type: ignore[arg-type]
        found.ended(runs[at], 0)  # type: ignore[arg-type]
        assert found.next() is None
    for row in trained({**found.plan.base, **runs[0].point}, 0):  # type: ignore[union-attr]
        found.report(runs[0], row)  # type: ignore[arg-type]
    found.ended(runs[0], 0)  # type: ignore[arg-type]
    following = [found.next() for _ in range(4)]
    assert [run.number for run in following if run is not None] == [3, 4, 5] and following[3] is None


def test_early_stopping_compares_with_the_settings_up_to_n_minus_ahead() -> None:
    found = undisturbed(how="random")
    assert found.rungs == (1, 4)
    states = [found.runs[at, 0].state for at in range(24)]
    assert states[:3] == ["done"] * 3  # nothing to compare with
    assert states.count("stopped") > 8
    for number in range(24):
        others = [found.runs[at, 0].curve("mAP") for at in range(max(number - 2, 0))]
        run = found.runs[number, 0]
        rung = stops_at({e: peak({**found.plan.base, **run.point}) * e / 9 for e in range(1, 10)}, others, (1, 4), 4.0)
        assert run.epoch == (rung or 9), number
        assert (run.state == "stopped") == (rung is not None)
    assert found.epochs_used < 0.5 * 24 * 9


def test_only_settings_that_are_kept_get_further_seeds() -> None:
    found = undisturbed(how="random", seeds=3)
    for number in range(24):
        seeds = [run.seed for run in found.of(number)]
        assert seeds == ([0, 1, 2] if found.runs[number, 0].state == "done" else [0])
    number = found.finished()[0]
    values = found.values(number, "mAP")
    assert values == pytest.approx([values[0], values[0] + 0.001, values[0] + 0.002])
    rows = [row for row in found.rows() if row["number"] == number]
    assert rows[0]["mAP mean"] == pytest.approx(values[0] + 0.001)
    half = 4.3026527 * 0.001 / 3**0.5
    assert rows[0]["mAP high"] - rows[0]["mAP mean"] == pytest.approx(half, rel=1e-6)


def test_the_interval_is_students() -> None:
    from scipy import stats

    for num in (2, 3, 7, 10, 11, 12, 20, 200):
        values = [0.1 * at * at for at in range(num)]
        mean, low, high = interval(values)
        assert mean is not None and low is not None and high is not None
        sem = stats.sem(values)
        expected = stats.t.interval(0.95, num - 1, loc=mean, scale=sem)
        assert (low, high) == pytest.approx(expected, rel=1e-9)
    assert interval([0.5]) == (0.5, None, None) and interval([]) == (None, None, None)


def carried_out(found: Search, rows: dict[int, list[dict[str, Any]]], code: int = 0, reason: str = "") -> Trial:
    """The next run, with these rows by epoch."""
    run = found.next()
    assert run is not None
    found.began(run)
    for row in rows.get(run.seed, rows[0]):
        assert found.report(run, row) == "go"
    found.ended(run, code, reason)
    return run


def test_a_setting_is_not_better_for_a_seed_that_diverged() -> None:
    """One of three trainings was lost: the mean counts it as the worst, else luck with the others would win."""
    found = search(plan(1, seeds=3, early_stopping=False, retries=0))
    for value in (0.9, 0.9):
        carried_out(found, {0: [{"epoch": 9, "mAP": value}]})
    carried_out(found, {0: [{"epoch": 1, "mAP": 0.8}]}, 2, "step 12: loss or gradients not finite 10 times in a row")
    assert [run.state for run in found.of(0)] == ["done", "done", "failed"] and found.over
    assert found.values(0, "mAP") == [0.9, 0.9, 0.0]
    assert found.observation(0).values == pytest.approx((0.6,))
    lost = search(plan(1, seeds=2, early_stopping=False, retries=0))  # a node that was lost says nothing of the setting
    carried_out(lost, {0: [{"epoch": 9, "mAP": 0.9}]})
    carried_out(lost, {0: [{"epoch": 1, "mAP": 0.8}]}, 137, "its processes or their node were lost")
    assert lost.values(0, "mAP") == [0.9]


def test_a_setting_that_failed_has_no_value() -> None:
    found = search(plan(1, early_stopping=False, retries=0))
    carried_out(found, {0: [{"epoch": 1, "mAP": 0.8}]}, 137, "lost")
    assert found.values(0, "mAP") == [] and found.rows()[0]["mAP mean"] is None


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_the_worst(value: float | None, tmp_path: Path) -> None:
    """The log of a run writes null for it; it must neither win nor end the search."""
    made = plan(14, early_stopping=False)
    write_plan(tmp_path, made)
    found = search(made, Journal(tmp_path))
    for number in range(14):
        carried_out(found, {0: [{"epoch": 9, "mAP": value if number == 1 else 0.5 + number / 100}]})
    assert found.finished()[0] == 13 and found.finished()[-1] == 1
    assert found.observation(1).values == (0.0,)
    assert open_search(tmp_path, Journal(tmp_path)).finished() == found.finished()


def test_a_run_that_scored_its_last_epoch_is_not_stopped() -> None:
    """Validated after epochs 5 and 9 only, a rung at 8 has no score before the training is whole."""
    found = search(plan(8, grace=8))
    assert found.rungs == (8,)
    for number in range(8):
        carried_out(found, {0: [{"epoch": 5, "mAP": 0.1}, {"epoch": 9, "mAP": 0.9 - number / 10}]})
    assert {run.state for run in found.runs.values()} == {"done"}


def test_a_search_ends_when_all_points_were_tried() -> None:
    """Two choices: a third training with the same seed would be the same training."""
    for how in ("tpe", "random"):
        found = search(plan(12, {"parameters": {"loss.counts": {"choice": ["batch", "train"]}}}, how=how))
        call_trials(found, trained)
        assert sorted(point["loss.counts"] for point in found.points) == ["batch", "train"]  # type: ignore[type-var]
        assert found.num_settings == 2


def test_several_objectives_have_a_pareto_set() -> None:
    found = undisturbed(how="tpe", objectives=("mAP", "rare_mAP"), early_stopping=False)
    assert found.pareto() == found.finished()  # rare_mAP = 1 - mAP: no setting beats another
    alone_ = undisturbed(how="tpe", objectives=("mAP",), early_stopping=False)
    assert alone_.pareto() == alone_.finished()[:1]


@pytest.mark.parametrize("torn", [b"", b'{"event": "row", "numb'])
def test_a_driver_that_dies_loses_and_repeats_nothing(tmp_path: Path, torn: bytes) -> None:
    """Killed every few events, with a torn last line or without: the lines grow, and end as those of one go."""
    made = plan(16, how="tpe", seeds=2)
    expected = search(made)
    call_trials(expected, trained)
    write_plan(tmp_path, made)
    starts = 0
    while not (found := open_search(tmp_path, Journal(tmp_path))).over:
        before = (tmp_path / "trials.jsonl").read_bytes() if starts else b""
        shuffled(found, starts, concurrent=3, steps=17)
        after = (tmp_path / "trials.jsonl").read_bytes()
        assert after.startswith(before[: before.rfind(b"\n") + 1])
        (tmp_path / "trials.jsonl").write_bytes(after + torn)
        starts += 1
    assert starts > 5
    assert story(found) == story(expected)
    lines = [event for event in Journal(tmp_path).events if event["event"] in ("row", "end")]
    keys = [(e["event"], e["number"], e["seed"], e.get("row", {}).get("epoch")) for e in lines]
    assert len(set(keys)) == len(keys)


def test_a_failed_trial_is_tried_again_a_bounded_number_of_times() -> None:
    found = search(plan(3, retries=2, early_stopping=False))
    run = found.next()
    assert run is not None
    for start in range(3):
        found.began(run)
        found.ended(run, 137, f"killed by SIGKILL, {start}")
        if start < 2:
            assert run.state == "open"
            assert found.next() is run
    assert (run.state, run.faults, run.starts, run.reason) == ("failed", 3, 3, "killed by SIGKILL, 2")
    assert found.observation(0).state == "failed"
    other = found.next()
    assert other is not None and other.number == 1
    found.ended(other, 2, "step 12: loss or gradients not finite 10 times in a row")
    assert (other.state, other.faults) == ("failed", 1)  # a mistake would come again
    assert found.observation(1).state == "bad"
    third = found.next()
    assert third is not None
    found.ended(third, 0)
    assert "ended after epoch 0 of 9" in third.reason  # without a word, and not done


def test_a_diverged_setting_counts_as_the_worst() -> None:
    point = {"loss.alpha": 0.5, "loss.tau": 0.1, "optim.lr": 1e-3}
    told = [
        Observation(point, "done", (0.9,)),
        Observation(point, "done", (0.4,)),
        Observation(point, "bad"),
        Observation(point, "failed"),
    ]
    told += [
        Observation(point, "stopped", (0.3,), {1: 0.1, 2: 0.3}),
        Observation(point, "open"),
        Observation({**point, "loss.tau": 5.0}, "done", (1,)),
    ]
    trials = new_study(space(), told).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "COMPLETE", "PRUNED", "RUNNING"]
    assert [trial.value for trial in trials[:3]] == [0.9, 0.4, 0.3]
    assert trials[3].intermediate_values == {1: 0.1, 2: 0.3}


def test_an_objective_that_is_not_reported() -> None:
    found = search(plan(2))
    run = found.next()
    assert run is not None
    with pytest.raises(LaunchError, match=r"0000: the trainer does not report the objective mAP; did you mean maP"):
        found.report(run, {"epoch": 1, "maP": 0.5})
    with pytest.raises(
        ConfigError, match=r"objective rare_map: the trainer does not report it; did you mean rare_mAP\?"
    ):
        plan(objectives=("rare_map",))


def test_a_grid_is_gone_through_once() -> None:
    source = {"search": "grid", "parameters": {"loss.alpha": {"grid": [0, 0.5, 1]}, "loss.tau": {"grid": [0.1, 0.2]}}}
    config = {"train.epochs": 4}
    found = search(new_plan(space(source), build_config(config), ahead=2))
    call_trials(found, trained, concurrent=2)
    assert len(found.points) == 6 and {run.state for run in found.runs.values()} == {"done"}
    assert found.points[found.finished()[0]] == {"loss.alpha": 0.5, "loss.tau": 0.1}
    assert len(search(new_plan(space(source), build_config(config), trials=4)).space.parameters) == 2


def build_config(values: dict[str, Any]) -> Any:
    from marc_dist.config import Config, build

    return build(Config, values)


def test_the_best_points_of_another_search_are_tried_first(tmp_path: Path) -> None:
    """After the space's own first point; recorded in the plan, so going on needs nothing of the other search."""
    other = undisturbed(how="random", early_stopping=False)
    best = [other.points[at] for at in other.finished()[:3]]
    warm = warm_start(space(), "tpe", other, tmp_path)
    made = new_plan(warm, build_config({"train.epochs": 9}), trials=6, ahead=3)
    write_plan(tmp_path, made)
    found = open_search(tmp_path, Journal(tmp_path))
    call_trials(found, trained)
    own = {"loss.alpha": 0.5, "loss.tau": 0.1, "optim.lr": 1e-3}
    assert own in best  # the peak: not twice
    assert found.points[:3] == [own, *(point for point in best if point != own)] and found.points[3] not in best
    assert story(found) == story(search(made, Journal(tmp_path)))


def test_what_another_search_can_lend(tmp_path: Path) -> None:
    """Only parameters that vary here, only points within the ranges; and it is told when there is none."""
    other = undisturbed(how="random", early_stopping=False)
    some = space({"parameters": {"loss.tau": {"loguniform": [0.03, 0.1]}, "loss.beta": {"uniform": [0, 1]}}})
    first = warm_start(some, "random", other, tmp_path).first
    inside = [other.points[at]["loss.tau"] for at in other.finished() if other.points[at]["loss.tau"] <= 0.1]  # type: ignore[operator]
    assert first == ({}, *({"loss.tau": tau} for tau in inside[:3]))
    with pytest.raises(ConfigError, match=r"a grid \(mine\) tries all of its points"):
        warm_start(space(), "grid", other, tmp_path)
    far = space({"parameters": {"loss.tau": {"uniform": [2, 3]}}})
    with pytest.raises(ConfigError, match=r"expected settings trained in full that mine could have, got none of 24"):
        warm_start(far, "tpe", other, tmp_path)
    with pytest.raises(ConfigError, match=r"got none of 24"):
        warm_start(space({"parameters": {"loss.beta": {"uniform": [0, 1]}}}), "tpe", other, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"seed was 0, now 1"),
        ({"how": "random"}, r"how was 'tpe', now 'random'"),
        ({"source": NUMBERS | {"title": "other"}}, r"source was"),
        ({"config": {"train.epochs": 9, "loss.gamma": 2.0}}, r"settings: loss.gamma was 1.0, now 2.0"),
        ({"config": {"train.epochs": 12}}, r"epochs was 9, now 12"),
        ({"objectives": ("P@10",)}, r"objectives was \['mAP'\], now \['P@10'\]"),
    ],
)
def test_another_search_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    begin(tmp_path, plan(4), resume=False)
    with pytest.raises(ConfigError, match=r"holds a search; go on with it with --resume"):
        begin(tmp_path, plan(4), resume=False)
    with pytest.raises(ConfigError, match=message):
        begin(tmp_path, plan(4, **change), resume=True)
    assert begin(tmp_path, plan(8, ahead=7), resume=True).trials == 8
    assert open_search(tmp_path, Journal(tmp_path)).plan.ahead == 3
    assert extend(tmp_path, retries=0).trials == 8


def test_two_searches_in_a_folder_are_refused(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(LaunchError, match=r"another marc-tune searches here"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


@pytest.mark.parametrize("line", ['{"event": "end", "number": 3, "seed": 0}', '{"event": "row"}', "{}"])
def test_a_damaged_record_is_told(tmp_path: Path, line: str) -> None:
    write_plan(tmp_path, plan(4))
    (tmp_path / "trials.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigError, match=r"trials.jsonl: not the record of this search"):
        open_search(tmp_path, Journal(tmp_path))


@pytest.mark.parametrize("kind", ["setting", "row", "end"])
@pytest.mark.parametrize("damage", [b'{"event": \n', b"\n", b""])
def test_a_damaged_line_within_a_record_is_told(tmp_path: Path, kind: str, damage: bytes) -> None:
    """Left out in silence, a setting's line would give its results to the next one."""
    made = plan(6)
    write_plan(tmp_path, made)
    call_trials(search(made, Journal(tmp_path)), trained)
    path = tmp_path / "trials.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    at = next(at for at, event in enumerate(events(tmp_path)) if event["event"] == kind and event["number"] == 2)
    path.write_bytes(b"".join([*lines[:at], damage, *lines[at + 1 :]]))
    if damage or kind == "setting":
        with pytest.raises(ConfigError, match=rf"line {at + 1} of|not the record of this search"):
            open_search(tmp_path, Journal(tmp_path))


def test_lines_are_on_the_disk_before_anything_else_happens(tmp_path: Path) -> None:
    write_plan(tmp_path, plan(2))
    found = open_search(tmp_path, Journal(tmp_path))
    run = found.next()
    assert run is not None
    assert events(tmp_path)[-1]["event"] == "setting" and events(tmp_path)[-1]["point"] == run.point
    found.began(run)
    found.report(run, {"epoch": 1, "mAP": 0.5})
    found.report(run, {"epoch": 1, "mAP": 0.5})
    assert [event["event"] for event in events(tmp_path)] == ["setting", "begin", "row"]
