"""What lies in a task's folder, and workers that end: what counts as done, and who goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from marc_dist.cli import study as command
from marc_dist.config import ConfigError, LaunchError
from marc_dist.run.exit_codes import EXIT_REQUEUE
from marc_dist.study import training
from marc_dist.study.checks import make_plan
from marc_dist.study.local import STARTS, LocalStudy
from marc_dist.study.plan import Plan
from marc_dist.study.state import (
    Record,
    claim,
    clear_starts,
    forget_failures,
    is_done,
    note_start,
    read_record,
    refuse_changed,
    write_record,
)
from marc_dist.study.worker import EXIT_UNSOUND, LOST, Bench, Found
from marc_dist.training.signals import StopFlag
from marc_dist.tuning.driver import open_search
from marc_dist.tuning.journal import Journal
from tests.study.studies import tiny_study, write_study


def planned(folder: Path, study: dict[str, Any]) -> Plan:
    return make_plan(str(write_study(folder, study)), str(folder / "out"))


def test_what_other_settings_made_is_not_done(tiny_dir: Path, tmp_path: Path) -> None:
    study = tiny_study(tiny_dir, tune=None, floors=[])
    plan = planned(tmp_path, study)
    cell = plan.cells[0]
    made = {one.name: plan.eval_fingerprint(cell, one) for one in plan.evaluations("tiny")}
    write_record(plan.folder(cell), Record("done", fingerprint=plan.fingerprint(cell), evaluations=made))
    assert is_done(plan, cell)
    for key, value in (("loss.tau", 0.7), ("train.max_nonfinite", 7)):
        other = planned(tmp_path, study | {"settings": study["settings"] | {key: value}})
        assert not is_done(other, cell)
        with pytest.raises(ConfigError, match="1 made with other settings"):
            refuse_changed(other, again=False)
    (plan.folder(cell) / "checkpoints").mkdir()
    assert refuse_changed(other, again=True) == [cell.name]
    assert not plan.folder(cell).exists() and not list(plan.folder(cell).parent.iterdir())


def _ended(code: int) -> Any:
    return SimpleNamespace(poll=lambda: True, code=code, log=Path("x"))


def test_cells_that_fail_one_after_the_other_do_not_end_the_study(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = LocalStudy(planned(tmp_path, tiny_study(tiny_dir)), 1, lambda names: None)
    (seat,) = study.seats
    started: list[str] = []
    monkeypatch.setattr(study, "_start", lambda one: started.append(one.name))
    for _ in range(STARTS + 2):
        seat.process = _ended(EXIT_UNSOUND)
        study._look_after(seat)
    assert len(started) == STARTS + 2
    with pytest.raises(LaunchError, match="workers end before they begin anything"):
        for _ in range(STARTS):
            seat.process = _ended(1)
            study._look_after(seat)


def test_a_lost_worker_fails_a_cell_that_was_scored_once_more(tiny_dir: Path, tmp_path: Path) -> None:
    """Its record said done, so nobody marked it, and the next worker went the same way."""
    plan = planned(tmp_path, tiny_study(tiny_dir, tune=None, floors=[]))
    cell = plan.cells[0]
    write_record(plan.folder(cell), Record("done", fingerprint=plan.fingerprint(cell), evaluations={}))
    LocalStudy(plan, 1, lambda names: None)._lost(cell.name, -9)
    assert read_record(plan.folder(cell)).word == "failed"


def test_a_new_evaluation_of_cells_that_kept_scores_alone_says_so(tiny_dir: Path, tmp_path: Path) -> None:
    study = tiny_study(tiny_dir, tune=None, floors=[], keep="scores")
    plan = planned(tmp_path, study)
    for cell in plan.cells:
        made = {one.name: plan.eval_fingerprint(cell, one) for one in plan.evaluations("tiny")}
        write_record(plan.folder(cell), Record("done", fingerprint=plan.fingerprint(cell), evaluations=made))
    assert refuse_changed(plan, again=False) == []
    study["evaluations"]["cosine"] = {"eval.gain": "cosine", "eval.ks": [3], "metrics": ["nDCG@3"]}
    more = planned(tmp_path, study)
    with pytest.raises(
        ConfigError, match=r"evaluations.cosine: new to 12 cells whose encoders were not kept .* --again"
    ):
        refuse_changed(more, again=False)
    assert len(refuse_changed(more, again=True)) == 12 and not plan.folder(plan.cells[0]).exists()


def test_checkpoints_that_nobody_knows_are_not_gone_on_from(tiny_dir: Path, tmp_path: Path) -> None:
    """The record was lost, or the folder is another study's: no training begins where they end."""
    plan = planned(tmp_path, tiny_study(tiny_dir, tune=None, floors=[]))
    cell = plan.cells[0]
    kept = plan.folder(cell) / "checkpoints/step-000004.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"")
    with pytest.raises(ConfigError, match="1 made with other settings .* or with unknown ones"):
        refuse_changed(plan, again=False)
    assert Bench(plan, StopFlag()).do(cell)  # as a worker that came upon it later
    record = read_record(plan.folder(cell))
    assert record.word == "failed" and "holds checkpoints or trials of other settings" in record.reason
    assert kept.exists()
    assert refuse_changed(plan, again=True) == [cell.name] and not kept.exists()


def test_nothing_is_removed_while_a_worker_is_at_work(tiny_dir: Path, tmp_path: Path) -> None:
    """One of a cluster, which the lock of the command does not know."""
    study = tiny_study(tiny_dir, tune=None, floors=[])
    plan = planned(tmp_path, study)
    first, second = plan.cells[:2]
    write_record(plan.folder(first), Record("done", fingerprint="of another time"))
    held = claim(plan, second)
    assert held is not None
    with pytest.raises(LaunchError, match=f"a worker is at {second.name}; wait for it, or .* marc-jobs cancel"):
        refuse_changed(plan, again=True)
    assert plan.folder(first).exists()
    held.release()
    assert refuse_changed(plan, again=True) == [first.name]
    again = claim(plan, second)  # and what was held for the moment is free
    assert again is not None
    again.release()


def test_a_cell_that_ends_every_worker_is_given_up(tiny_dir: Path, tmp_path: Path) -> None:
    """On a cluster nobody looks after workers: each would take the same cell again until all starts are used up."""
    plan = planned(tmp_path, tiny_study(tiny_dir, tune=None, floors=[]))
    first, second = plan.cells[:2]
    for _ in range(LOST):
        found = Bench(plan, StopFlag()).next()  # takes it, and is lost
        assert isinstance(found, Found) and found.task == first
        found.lock.release()
    found = Bench(plan, StopFlag()).next()
    assert isinstance(found, Found) and found.task == second
    found.lock.release()
    record = read_record(plan.folder(first))
    assert record.word == "failed" and "2 workers in a row ended in it without a word" in record.reason
    forget_failures(plan)  # the next command tries it again
    assert note_start(plan, first) == 0
    kept = plan.folder(first) / "checkpoints/step-000004.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"")
    assert note_start(plan, first) == 0  # it had got on
    assert note_start(plan, first) == 1
    clear_starts(plan, first)
    assert note_start(plan, first) == 0


def test_a_worker_that_stops_unasked_is_told_and_replaced(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    study = LocalStudy(planned(tmp_path, tiny_study(tiny_dir)), 1, lambda names: None, said.append)
    (seat,) = study.seats
    started: list[str] = []
    monkeypatch.setattr(study, "_start", lambda one: started.append(one.name))
    log = tmp_path / "log"
    log.write_text("marc-study: error: shards: does not answer\n")
    for _ in range(STARTS - 1):
        seat.process = _ended(EXIT_REQUEUE)
        seat.process.log = log
        study._look_after(seat)
    assert len(started) == STARTS - 1
    assert said == ["worker here-0 stopped: shards: does not answer; another one goes on"] * (STARTS - 1)
    seat.process = _ended(EXIT_REQUEUE)
    seat.process.log = log
    with pytest.raises(LaunchError, match="has stopped 3 times without a task done: shards: does not answer"):
        study._look_after(seat)


def test_a_trial_that_fails_is_tried_again_and_told(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every loss has the same number of trials: none is passed over for an error that has nothing to do with it."""
    plan = planned(tmp_path, tiny_study(tiny_dir, floors=[]))
    task = next(task for task in plan.tasks.values() if task.kind == "search")
    folder, trained = plan.folder(task), training.train_run
    bench = Bench(plan, StopFlag())

    def broken(config: Any, stop: StopFlag) -> bool:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(training, "train_run", broken)
    for at in range(3):  # each in a process of its own
        assert not bench.do(task)
        assert (read_record(folder).word == "failed") == (at == 2)
    assert "trial 0000: failed 3 times in a row: RuntimeError: out of memory" in read_record(folder).reason

    def full(config: Any, stop: StopFlag) -> bool:
        raise LaunchError("no space left")

    forget_failures(plan)
    monkeypatch.setattr(training, "train_run", full)
    assert Bench(plan, StopFlag()).do(task)
    assert read_record(folder).reason == "trial 0000: no space left"

    def diverged(config: Any, stop: StopFlag) -> bool:
        if config.train.run_dir.endswith("0001"):
            raise LaunchError("step 3: loss or gradients not finite 10 times in a row")
        return trained(config, stop)

    forget_failures(plan)
    monkeypatch.setattr(training, "train_run", diverged)
    assert Bench(plan, StopFlag()).do(task)
    record = read_record(folder)
    assert record.word == "done" and record.reason.startswith("1 of 2 trials failed, the last: step 3: loss")
    search = open_search(folder, Journal(folder))
    assert [run.state for run in search.runs.values()] == ["done", "failed"] and search.finished() == [0]


def test_a_dry_run_counts_the_workers_of_the_place_it_would_run_on(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_study(tmp_path, tiny_study(tiny_dir))
    for words, told in (
        (["--on", "slurm"], "with 15 at a time on slurm"),  # 16, but there are 15 tasks
        (["--on", "slurm", "--jobs", "3"], "with 3 at a time on slurm"),
        (["--jobs", "2"], "with 2 at a time here"),
    ):
        assert command.main([str(path), "--out", str(tmp_path / "out"), "--dry-run", *words]) == 0
        assert told in capsys.readouterr().out
