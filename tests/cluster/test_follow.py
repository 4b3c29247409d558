"""Logs that are followed while they are written, what a terminal gets of them, and how far a run is by its files."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from marc_dist.cluster import follow as module
from marc_dist.cluster.follow import follow, follow_job, for_terminal, last_lines
from marc_dist.run import progress
from marc_dist.run.heartbeats import PHASES, beat_path, read_beats
from marc_dist.run.job import State, new_job
from marc_dist.run.progress import life_age_s, read_progress, who_is_late


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.02)
    monkeypatch.setattr(module, "ASK_S", {"local": 0.02, "slurm": 0.02, "ray": 0.02})


def _log(run: Path, rank: int = 0) -> Path:
    path = run / "logs" / f"rank-{rank}.log"
    path.parent.mkdir(exist_ok=True)
    return path


def _shown_at_once(run: Path, ranks: list[int] | None = None, lines: int = 50) -> str:
    out = io.BytesIO()
    follow(run, out, ranks=ranks, over=lambda: True, lines=lines)
    return out.getvalue().decode()


@pytest.mark.parametrize("text", ["", "a", "a\n", "a\nb", "a\nb\n", "\n", "\n\n", "a\n\nb\n", "one\ntwo\nthree\n" * 9])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("chunk", [1, 2, 3, 1000])
def test_last_lines_begin_where_a_naive_reader_says(
    text: str, count: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    start = last_lines(io.BytesIO(text.encode()), count)
    assert text[start:] == "".join(text.splitlines(keepends=True)[-count:] if count else [])


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"plain \xc3\xa9\ttab", "plain é\ttab"),
        (b"\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m\x1b[0m"),
        (b"\x1b[2J\x1b[Hcleared", "cleared"),
        (b"\x1b]0;title\x07text", "text"),
        (b"\x1b]52;c;Zm9v\x1b\\text", "text"),
        (b"\x1bP+q\x1b\\dcs\x1bc", "dcs"),
        (b"10 %\r20 %\r", "20 %"),
        (b"bell\x07 \xc2\x9b31mC1", "bell 31mC1"),
        (b"\xff", "\ufffd"),
    ],
)
def test_a_log_cannot_steer_a_terminal(line: bytes, shown: str) -> None:
    assert for_terminal(line).decode() == shown


def test_a_file_gets_the_log_as_it_is(tmp_path: Path) -> None:
    _log(tmp_path).write_bytes(b"\x1b[2Ja\r\xff\nb")
    out = io.BytesIO()
    follow(tmp_path, out, ranks=[0], over=lambda: True)
    assert out.getvalue() == b"\x1b[2Ja\r\xff\nb\n"


def test_last_lines_of_every_rank_in_order(tmp_path: Path) -> None:
    for rank in (10, 2, 0):
        _log(tmp_path, rank).write_text("".join(f"r{rank} l{line}\n" for line in range(5)))
    (tmp_path / "logs" / "rank-x.log").write_text("no rank\n")
    assert _shown_at_once(tmp_path, lines=2).splitlines() == [
        f"[{rank}] r{rank} l{line}" for rank in (0, 2, 10) for line in (3, 4)
    ]
    assert _shown_at_once(tmp_path, [2], lines=1) == "r2 l4\n"
    assert _shown_at_once(tmp_path, [2, 0], lines=1) == "[0] r0 l4\n[2] r2 l4\n"
    assert _shown_at_once(tmp_path, [7]) == ""


class _Out(io.BytesIO):
    def wait_for(self, text: bytes) -> None:
        deadline = time.monotonic() + 10
        while text not in self.getvalue():
            assert time.monotonic() < deadline, self.getvalue()
            time.sleep(0.005)


def _followed(run: Path, steps: Callable[[_Out], None], ranks: list[int] | None = None) -> str:
    out, done = _Out(), threading.Event()
    thread = threading.Thread(target=lambda: follow(run, out, ranks=ranks, over=done.is_set, lines=1))
    thread.start()
    try:
        steps(out)
    finally:
        done.set()
        thread.join()
    return out.getvalue().decode()


def test_logs_are_followed_while_they_are_written_and_ranks_that_come_later_are_seen(tmp_path: Path) -> None:
    log = _log(tmp_path)
    log.write_text("old\nlast\n")

    def steps(out: _Out) -> None:
        out.wait_for(b"[0] last\n")
        with log.open("a") as file:
            file.write("half")
            file.flush()
            time.sleep(0.1)
            file.write(" and half\n")
            file.flush()
            out.wait_for(b"[0] half and half\n")
            _log(tmp_path, 1).write_text("first\nsecond\n")
            out.wait_for(b"[1] second\n")
            file.write("no end")

    assert _followed(tmp_path, steps) == "[0] last\n[0] half and half\n[1] first\n[1] second\n[0] no end\n"


def test_a_log_that_begins_anew_is_read_anew(tmp_path: Path) -> None:
    log = _log(tmp_path)
    log.write_text("a long first line\n")

    def steps(out: _Out) -> None:
        out.wait_for(b"first")
        log.write_text("short\n")
        out.wait_for(b"short")
        log.rename(log.with_suffix(".old"))
        log.write_text("another file that is longer\n")
        out.wait_for(b"longer")

    assert _followed(tmp_path, steps, [0]) == "a long first line\nshort\nanother file that is longer\n"


@pytest.fixture
def terminal() -> Iterator[tuple[io.BufferedWriter, Callable[[], bytes]]]:
    master, slave = os.openpty()
    out = os.fdopen(slave, "wb")

    def shown() -> bytes:
        out.flush()
        os.set_blocking(master, False)
        data = b""
        try:
            while piece := os.read(master, 1 << 16):
                data += piece
        except BlockingIOError:
            pass
        return data.replace(b"\r\n", b"\n")

    yield out, shown
    out.close()
    os.close(master)


def test_a_terminal_shows_progress_and_is_left_clean(
    tmp_path: Path, terminal: tuple[io.BufferedWriter, Callable[[], bytes]]
) -> None:
    out, shown = terminal
    _log(tmp_path).write_text("step 1/10  epoch 0  loss 3\n\x1b[2Jsteers\n")
    record = {"step": 4, "loss": 1.5, "images_per_s": 20.4, "time": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    looks = iter([False, False, True])
    follow(tmp_path, out, ranks=[0], over=lambda: next(looks))
    line = b"\r\x1b[Kstep 4/10  loss 1.5000  20 images/s"
    assert shown() == b"step 1/10  epoch 0  loss 3\nsteers\n" + line + b"\r\x1b[K"


def test_a_job_is_followed_until_it_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, out = new_job("slurm", []), io.BytesIO()
    states = [
        State("pending", "Resources"),
        State("pending", "Resources"),
        State("running"),
        State("done", "COMPLETED"),
    ]
    left = iter(states)

    def ask() -> State:
        now = next(left)
        with _log(tmp_path).open("a") as file:
            file.write(f"while {now.word}\n" if now.word != "pending" else "")
        return now

    assert follow_job(tmp_path, job, out, ask) == states[-1]
    assert out.getvalue() == b"while running\nwhile done\n"
    assert capsys.readouterr().err == f"{tmp_path}: pending (Resources)\n{tmp_path}: running\n"


def test_a_job_that_nobody_knows_is_over_when_its_folder_is_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, asked = new_job("slurm", []), []
    _log(tmp_path).write_text("")

    def ask() -> State:
        asked.append(1)
        if len(asked) == 3:
            monkeypatch.setattr(module, "FORGOTTEN_S", -1.0)
        return State("unknown", "forgotten")

    assert follow_job(tmp_path, job, io.BytesIO(), ask).word == "unknown"
    assert len(asked) == 3


def _metrics(run: Path, *records: tuple[int, float]) -> None:
    lines = [json.dumps({"step": step, "time": at, "loss": None, "lr": 0.1}) + "\n" for step, at in records]
    (run / "metrics.jsonl").write_text("".join(lines) + '{"step": 99, "ti')


def test_time_left_is_that_of_this_attempt(tmp_path: Path) -> None:
    assert read_progress(tmp_path) == (0, None, None, None, None, None, None, None)
    _log(tmp_path).write_text("step 2/30  epoch 0\nsaid step 3/4  \nstep 12/40  epoch 0\n")
    _metrics(tmp_path, (10, 100.0), (20, 1000.0), (30, 1020.0))
    told = read_progress(tmp_path, after_step=15)
    assert (told.step, told.total_steps, told.loss, told.lr, told.time) == (30, 40, None, 0.1, 1020.0)
    assert told.eta_s == pytest.approx(20.0)  # 2 s a step
    assert read_progress(tmp_path, after_step=25).eta_s is None


def test_only_the_end_of_long_files_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress._end_of, "__defaults__", (40,))
    (tmp_path / "metrics.jsonl").write_text("x" * 5000 + "\n" + '{"step": 7, "time": 1.0}\n')
    assert read_progress(tmp_path).step == 7


def _beat(run: Path, rank: int, step: int, phase: int, age_s: float) -> None:
    path = beat_path(run, rank)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"step": step, "phase": phase, "host": f"n{rank}", "pid": 7}))
    os.utime(path, (time.time() - age_s,) * 2)


def test_late_ranks_are_named_and_only_they(tmp_path: Path) -> None:
    assert who_is_late(tmp_path, read_beats(tmp_path, 2), quiet_s=1e6) is None  # one rank alone does not beat
    _beat(tmp_path, 0, 5, 3, 1.0)
    assert who_is_late(tmp_path, read_beats(tmp_path, 2), quiet_s=1.0) is None  # it may still start
    assert who_is_late(tmp_path, read_beats(tmp_path, 2), quiet_s=1000.0) == "rank 1 never started"
    _beat(tmp_path, 1, 5, PHASES.index("loading"), 1000.0)
    late = who_is_late(tmp_path, read_beats(tmp_path, 2), quiet_s=1.0)
    assert late == "rank 1 (n1, process 7) stopped answering 1000 s ago, loading in step 5"
    (tmp_path / "config.yaml").write_text("train: {timeout_s: 8000}\n")
    assert who_is_late(tmp_path, read_beats(tmp_path, 2), quiet_s=1.0) is None
    beat_path(tmp_path, 1).write_text("torn")
    assert read_beats(tmp_path, 2)[1] is None


def test_age_of_the_last_sign_of_life(tmp_path: Path) -> None:
    assert life_age_s(tmp_path) is None
    log = _log(tmp_path)
    log.write_text("")
    (tmp_path / "metrics.jsonl").write_text("")
    for path, age_s in ((log, 500), (tmp_path / "metrics.jsonl", 100)):
        os.utime(path, (time.time() - age_s, time.time() - age_s))
    age = life_age_s(tmp_path)
    assert age is not None and 100 <= age < 110


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (State("pending", "PENDING (Resources)"), "pending (Resources)"),
        (State("pending", "PENDING"), "pending"),
        (State("failed", "FAILED (NonZeroExitCode): rank 1"), "failed ((NonZeroExitCode): rank 1)"),
        (State("failed", "TIMEOUT (TimeLimit)"), "failed (TIMEOUT (TimeLimit))"),
        (State("done"), "done"),
    ],
)
def test_states_in_words(state: State, text: str) -> None:
    assert str(state) == text
