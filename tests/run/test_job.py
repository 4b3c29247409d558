"""What a run folder knows about its job, and the rule by which it starts again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from marc_dist.config import LaunchError
from marc_dist.run.attempt_id import AttemptId
from marc_dist.run.attempts import Attempt, attempts, begin_attempt, end_attempt, first_steps, newest_step
from marc_dist.run.job import (
    Job,
    State,
    array_state,
    element_dir,
    ended,
    new_job,
    note_cancel,
    read_job,
    start_again,
    write_job,
)
from marc_dist.run.rank_ends import RankEnd, end_path, job_end, make_room, note_end, read_end

MINE = AttemptId("a1b2", 0)


@pytest.mark.parametrize(
    ("code", "lost", "first_steps", "step", "again"),
    [
        (0, False, [0], 9, False),
        (2, False, [0], 9, False),  # a person has to mend it
        (85, False, [0], 0, True),  # stopped before anything could be saved
        (85, False, [0, 0], 0, True),
        (85, False, [0, 0, 0], 0, False),  # three in a row: max_stalls=2
        (85, False, [0, 0, 3, 3], 3, True),
        (1, False, [0], 3, True),  # crashed, but had moved on
        (1, False, [0], 0, False),  # would crash alike
        (1, False, [0, 3], 3, False),
        (1, True, [0, 3], 3, True),  # its peer's machine went
        (137, True, [0], 0, True),
        (75, False, [0], 0, True),  # a late rank
        (85, False, list(range(10)), 10, True),
        (85, False, list(range(11)), 11, False),  # max_restarts=10
    ],
)
def test_when_a_job_starts_again(code: int, lost: bool, first_steps: list[int], step: int, again: bool) -> None:
    assert start_again(code, lost, first_steps, step, max_restarts=10, max_stalls=2)[0] is again


def test_the_reason_says_which_setting_ended_it() -> None:
    assert "cluster.max_restarts=0" in start_again(85, False, [0], 5, 0, 2)[1]
    assert "2 attempts in a row (cluster.max_stalls=1)" in start_again(85, False, [5, 5], 5, 9, 1)[1]


def _end(rank: int, time: float, code: int | None, error: str | None = None, asked: bool = False) -> RankEnd:
    return RankEnd(rank, time, code, error, f"node{rank}", asked)


def test_of_many_dead_ranks_the_first_is_the_cause(tmp_path: Path) -> None:
    ends = [_end(0, 9.0, 1, "lost peer"), _end(1, 4.0, 3, "ValueError: x"), _end(2, 5.0, 143, asked=True)]
    found = job_end(ends, 143, tmp_path)
    assert (found.code, found.rank, found.lost) == (3, 1, False)
    assert found.error == f"rank 1 of 3 failed first (exit code 3) on node1: ValueError: x; log: {tmp_path}/rank-1.log"


@pytest.mark.parametrize(
    ("ends", "srun", "code", "lost", "error"),
    [
        ([_end(0, 1, 0), _end(1, 1, 0)], 0, 0, False, None),
        ([_end(0, 1, 85), _end(1, 1, 85)], 0, 85, False, None),
        ([_end(0, 1, 85), _end(1, 1, -15, asked=True)], 143, 85, False, None),  # told before it could listen
        ([_end(0, 5, 1, "peer"), _end(1, 3, -9)], 137, 137, True, "killed by SIGKILL"),
        ([_end(0, 5, 1, "peer closed"), None], 1, 1, True, "peer closed"),  # its machine went: worth another start
        ([None, _end(1, 5, 1, "peer closed")], 1, 1, True, "peer closed"),
        ([None, None], 1, 1, True, "rank 0, 1 of 2 vanished without a word"),
        ([_end(0, 1, 2, "no such file", asked=True), _end(1, 1, 85)], 2, 2, False, "no such file"),
        ([_end(0, 1, 1, "peer", asked=True), _end(1, 1, 85, asked=True)], 0, 85, False, None),
    ],
)
def test_verdicts(
    ends: list[RankEnd | None], srun: int, code: int, lost: bool, error: str | None, tmp_path: Path
) -> None:
    found = job_end(ends, srun, tmp_path)
    assert (found.code, found.lost) == (code, lost)
    assert (found.error is None) if error is None else error in str(found.error)


def test_a_failing_job_is_never_done(tmp_path: Path) -> None:
    assert job_end([_end(0, 1, 0)], 1, tmp_path).code == 1
    assert job_end([None], 137, tmp_path).code == 137


def test_an_end_keeps_the_ranks_own_words(tmp_path: Path) -> None:
    path = end_path(tmp_path, 3)
    make_room(path, MINE)
    assert read_end(tmp_path, 3) is None
    told = {"time": 5.0, "error": "DataError: torn", "host": "n7", **MINE.record()}
    path.write_text(json.dumps(told).ljust(100))
    note_end(path, 1, 9.0, MINE)
    assert read_end(tmp_path, 3) == RankEnd(3, 5.0, 1, "DataError: torn", "n7", False)
    note_end(path, -9, 11.0, MINE, asked=True)
    assert read_end(tmp_path, 3) == RankEnd(3, 5.0, -9, "DataError: torn", "n7", True)


def test_attempts_are_read_back_and_torn_lines_left_out(tmp_path: Path) -> None:
    assert attempts(tmp_path) == []
    begin_attempt(tmp_path, MINE, ["a", "b"])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step-00000012.pt").touch()
    end_attempt(tmp_path, MINE, 137, "rank 1 ...", True, "to go on")
    begin_attempt(tmp_path, MINE._replace(number=1), ["b"])
    with (tmp_path / "attempts.jsonl").open("a") as file:
        file.write('{"event": "end", "ti')
    first, second = attempts(tmp_path)
    assert (first.hosts, first.first_step, first.last_step, first.code, first.again) == (["a", "b"], 0, 12, 137, True)
    assert (second.number, second.first_step, second.ended_at, second.code) == (1, 12, None, None)
    assert newest_step(tmp_path) == 12


def test_jobs_are_written_and_read(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="expected the folder of a run that marc-launch has started"):
        read_job(tmp_path)
    job = new_job("slurm", ["-m", "x", "run"], nodes=2, procs_per_node=3, run_dirs=[str(tmp_path / "a"), "b"])
    write_job(tmp_path, job)
    assert read_job(tmp_path) == job and job.world == 6
    assert element_dir(tmp_path, {"SLURM_ARRAY_TASK_ID": "1"}) == Path("b")
    write_job(tmp_path, job.model_copy(update={"run_dirs": []}))
    assert element_dir(tmp_path, {"SLURM_ARRAY_TASK_ID": "1"}) == tmp_path  # of somebody else's array
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(LaunchError, match="job.json: cannot be read"):
        read_job(tmp_path)


def _ends(path: Path, **end: Any) -> Job:
    """A job that has begun, and ended so."""
    job = new_job("slurm", ["-m", "x", str(path)], id="7")
    write_job(path, job)
    begin_attempt(path, job.attempt(0), ["a"])
    if end:
        end_attempt(path, job.attempt(0), **{"error": None, "again": False, "why": "", **end})
    return job


def test_a_cancel_is_written_down_and_the_jobs_own_word_stays(tmp_path: Path) -> None:
    quiet, done, failed, back = (_ends(tmp_path / name, **end) for name, end in (
        ("quiet", {}), ("done", {"code": 0}), ("failed", {"code": 3}), ("back", {"code": 85, "again": True}),
    ))  # fmt: skip
    assert [ended(job, tmp_path / name) for job, name in ((quiet, "quiet"), (back, "back"))] == [None, None]
    for job, name, word in (
        (quiet, "quiet", "cancelled"), (done, "done", "done"),
        (failed, "failed", "failed"), (back, "back", "cancelled"),
    ):  # fmt: skip
        lines = (tmp_path / name / "attempts.jsonl").read_text()
        note_cancel(job, tmp_path / name)
        state = ended(read_job(tmp_path / name), tmp_path / name)
        assert state is not None and state.word == word
        assert (tmp_path / name / "attempts.jsonl").read_text() == lines
    note_cancel(quiet, tmp_path / "gone")  # no trouble, and nothing made
    assert not (tmp_path / "gone").exists()


def test_a_cancel_of_an_array_is_written_down_in_the_elements_that_it_runs(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    job = new_job("slurm", ["-m", "x", "y"], id="7", run_dirs=[str(folder) for folder in folders], elements=[1, 2])
    write_job(tmp_path, job)
    for folder, name in zip(folders, ("6_0", "7_1", "8"), strict=True):  # the last one was started by itself since
        write_job(folder, new_job("slurm", ["-m", "x", "y"], id=name))
    note_cancel(job, tmp_path)
    assert [read_job(folder).cancelled_at is not None for folder in (tmp_path, *folders)] == [True, False, True, False]


def test_an_attempt_never_began_before_the_end_of_an_earlier_one() -> None:
    """Found by the simulator: a machine that saw the folder late made a start without progress look like progress."""
    began = [Attempt(0, 1.0, 0, ["a"], 2.0, last_step=5), Attempt(1, 3.0, 0, ["b"], 4.0, last_step=5)]
    assert first_steps(began) == [0, 5]
    assert first_steps([*began, Attempt(2, 5.0, 9, ["c"])]) == [0, 5, 9]
    assert not start_again(137, True, first_steps(began), 5, max_restarts=9, max_stalls=0)[0]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["done", "done"], ("done", "")),
        (["done", "failed", "done"], ("failed", "elements: 2 done, 1 failed")),
        (["cancelled", "running", "failed"], ("running", "elements: 1 cancelled, 1 failed, 1 running")),
        (["stopped", "cancelled"], ("cancelled", "elements: 1 stopped, 1 cancelled")),
        (["done", "unknown"], ("unknown", "elements: 1 done, 1 unknown")),
        ([], ("unknown", "no elements")),
    ],
)
def test_an_array_is_what_its_elements_are(words: list[Any], found: tuple[str, str]) -> None:
    assert array_state([State(word) for word in words])[:2] == found


def test_a_rank_that_is_killed_while_it_saves_is_named_not_those_that_lose_it(tmp_path: Path) -> None:
    """Slurm asks all to save, ahead of the time limit; then one is killed, and a peer hears of it."""
    killed = RankEnd(2, 10.0, -9, None, "n2", True)
    told = RankEnd(0, 10.2, 1, "connection closed by peer", "n0", False)
    found = job_end([told, RankEnd(1, 10.3, 1, "connection closed by peer", "n1", True), killed], 137, tmp_path)
    assert (found.rank, found.lost) == (2, True)
    late = job_end([told, None, killed._replace(time=41.0)], 137, tmp_path)  # by whoever ended the others
    assert late.rank == 0
