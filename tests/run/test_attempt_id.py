"""Records are matched by token and attempt, whatever the clocks of the machines say."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from marc_dist.run import attempts as attempts_module
from marc_dist.run import job as job_module
from marc_dist.run.attempt_id import AttemptId, attempt_from_env
from marc_dist.run.attempts import attempts, attempts_in, begin_attempt, end_attempt
from marc_dist.run.heartbeats import beat_path, late_ranks, read_beats
from marc_dist.run.job import Job, attempts_of_job, ended, new_job
from marc_dist.run.progress import first_failure
from marc_dist.run.rank_ends import FAILURE_FILE, end_path, make_room, note_end, note_failure, read_end

FIRST, SECOND = AttemptId("a1", 0), AttemptId("a1", 1)


class _Clock:
    """The module ``time`` of a machine whose clock is off by so many seconds."""

    def __init__(self, ahead_s: float) -> None:
        self.ahead_s = ahead_s

    def time(self) -> float:
        return time.time() + self.ahead_s


def test_a_login_node_whose_clock_is_ahead_loses_no_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "time", _Clock(600.0))
    job = new_job("slurm", ["-m", "x", "run"], id="7")
    assert job.token and job.token != new_job("slurm", []).token
    for number in range(3):
        begin_attempt(tmp_path, job.attempt(number), ["n1"])
        end_attempt(tmp_path, job.attempt(number), 1, "crashed", number < 2, "")
    assert [one.number for one in attempts_of_job(job, tmp_path)] == [0, 1, 2]
    state = ended(job, tmp_path)
    assert state is not None and state.word == "failed"


def test_a_clock_behind_takes_no_attempt_of_an_earlier_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = new_job("slurm", [], id="6")
    begin_attempt(tmp_path, earlier.attempt(0), ["n1"])
    end_attempt(tmp_path, earlier.attempt(0), 0, None, False, "done")
    monkeypatch.setattr(job_module, "time", _Clock(-600.0))
    job = new_job("slurm", [], id="7")
    assert attempts_of_job(job, tmp_path) == [] and ended(job, tmp_path) is None
    monkeypatch.setattr(attempts_module, "time", _Clock(-3000.0))
    begin_attempt(tmp_path, job.attempt(0), ["n1"])
    assert len(attempts(tmp_path)) == 2 and len(attempts_of_job(job, tmp_path)) == 1


def test_an_end_belongs_to_its_own_attempt() -> None:
    """The batch script of a killed attempt may write after the next one has begun."""
    begin = {"event": "begin", "token": "a1", "time": 1.0, "step": 0, "hosts": []}
    end = {"event": "end", "token": "a1", "time": 2.0, "step": 5, "code": 1, "again": True}
    first, second = attempts_in([begin | {"number": 0}, begin | {"number": 1}, end | {"number": 0}])
    assert (first.code, first.last_step, second.code) == (1, 5, None)
    (only,) = attempts_in([begin | {"number": 0}, end | {"number": 0, "token": "b2"}])
    assert only.ended_at is None


def test_folders_older_than_tokens_are_read(tmp_path: Path) -> None:
    lines = [
        {"event": "begin", "number": 0, "time": 10.0, "step": 0, "hosts": ["n1"]},
        {"event": "end", "time": 20.0, "step": 4, "code": 0, "error": None, "again": False, "why": "done"},
        {"event": "begin", "number": 0, "time": 30.0, "step": 4, "hosts": ["n1"]},
    ]
    (tmp_path / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = new_job("slurm", ["x"], id="7").model_dump(exclude={"token"}) | {"submitted_at": 25.0}
    old = Job.model_validate(told)
    assert old.token == ""
    assert [one.code for one in attempts(tmp_path)] == [0, None]
    assert [one.started_at for one in attempts_of_job(old, tmp_path)] == [30.0]
    new = new_job("slurm", ["x"], id="8")
    assert attempts_of_job(new, tmp_path) == []  # whatever the clocks say
    end_path(tmp_path, 0).write_text(json.dumps({"time": 1.0, "code": 1, "error": "x", "host": "n1"}))
    assert read_end(tmp_path, 0, old.attempt(0)) is not None and read_end(tmp_path, 0, new.attempt(0)) is None


def test_an_end_of_an_earlier_attempt_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = end_path(tmp_path / "logs", 0)
    path.parent.mkdir()
    make_room(path, FIRST)
    note_end(path, 1, 5.0, FIRST)
    assert read_end(path.parent, 0, FIRST) is not None and read_end(path.parent, 0, SECOND) is None
    assert first_failure(tmp_path, 1, SECOND) is None
    make_room(path, SECOND)
    monkeypatch.setenv(FAILURE_FILE, str(path))
    for name, value in FIRST.variables().items():
        monkeypatch.setenv(name, value)
    note_failure("a straggler")  # of the first attempt, on a node that Slurm had lost
    note_end(path, -9, 6.0, FIRST)
    assert read_end(path.parent, 0) is None
    for name, value in SECOND.variables().items():
        monkeypatch.setenv(name, value)
    note_failure("the cause")
    note_end(path, 1, 7.0, SECOND)
    found = read_end(path.parent, 0, SECOND)
    assert found is not None and (found.error, found.code) == ("the cause", 1)


def _beat(run: Path, rank: int, mine: AttemptId, *, clock_s: float = 0.0, age_s: float = 0.0) -> None:
    path = beat_path(run, rank)
    path.parent.mkdir(exist_ok=True)
    told = {"step": 5, "phase": 2, "host": f"n{rank}", "pid": 7, "time": time.time() + clock_s}
    path.write_text(json.dumps(told | mine.record()))
    os.utime(path, (time.time() - age_s,) * 2)


def test_a_heartbeat_of_an_earlier_attempt_does_not_count(tmp_path: Path) -> None:
    _beat(tmp_path, 0, SECOND)
    _beat(tmp_path, 1, FIRST)
    beats = read_beats(tmp_path, 2, SECOND)
    assert beats[0] is not None and beats[1] is None
    assert late_ranks(beats, 60.0) == "rank 1 never started"
    assert all(read_beats(tmp_path, 2))


def test_a_rank_whose_clock_is_off_is_not_late(tmp_path: Path) -> None:
    _beat(tmp_path, 0, FIRST, age_s=100.0, clock_s=0.0)
    _beat(tmp_path, 1, FIRST, clock_s=-900.0)
    assert late_ranks(read_beats(tmp_path, 2, FIRST), 60.0).startswith("rank 0 (n0, process 7) stopped answering 100 s")


def test_the_environment_hands_the_attempt_on() -> None:
    assert attempt_from_env(SECOND.variables()) == SECOND
    assert attempt_from_env({}) == AttemptId() and attempt_from_env({"MARC_ATTEMPT": "x"}) == AttemptId()
