"""What lies in a task's folder, and workers that end: what counts as done, and who goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from marc_dist.config import ConfigError, LaunchError
from marc_dist.study.checks import make_plan
from marc_dist.study.local import STARTS, LocalStudy
from marc_dist.study.plan import Plan
from marc_dist.study.state import Record, is_done, read_record, refuse_changed, write_record
from marc_dist.study.worker import EXIT_UNSOUND
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
        with pytest.raises(ConfigError, match="1 done with other settings"):
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
