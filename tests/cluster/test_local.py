"""The local launcher with small scripts as ranks: environment, exit codes, whose error is shown, nobody left behind."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marc_dist.cluster.local import LocalJob, process_count, rank_environment, visible_gpus
from marc_dist.cluster.preset import LocalPreset
from marc_dist.config import LaunchError

PRESET = LocalPreset(peer_grace_s=1.0, stop_grace_s=5.0)
HEAD = "import os, sys, time, signal, subprocess\nrank = int(os.environ['RANK'])\n"


def _job(folder: Path, script: str, world: int = 2, preset: LocalPreset = PRESET) -> LocalJob:
    path = folder / "rank.py"
    path.write_text(HEAD + textwrap.dedent(script))
    return LocalJob([sys.executable, "-S", str(path)], folder / "logs", preset, world, io.BytesIO())


def _shown(job: LocalJob) -> str:
    assert isinstance(job.out, io.BytesIO)
    return job.out.getvalue().decode()


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _soon(condition: object, limit_s: float = 10.0) -> bool:
    assert callable(condition)
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(autouse=True)
def clean_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before


def test_ranks_get_torchruns_variables_on_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "17")  # of an outer job
    job = _job(
        tmp_path,
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "OMP_NUM_THREADS", "EXTRA")
        print(*(os.environ[name] for name in names), os.environ.get("MARC_MASTER_FD") is not None)
        """,
        preset=PRESET.model_copy(update={"env": {"EXTRA": "yes"}, "threads_per_proc": 3}),
    )
    assert job.run() == 0
    assert (tmp_path / "logs/rank-0.log").read_text() == "0 2 0 127.0.0.1 3 yes True\n"
    assert (tmp_path / "logs/rank-1.log").read_text() == "1 2 1 127.0.0.1 3 yes False\n"
    assert _shown(job) == "0 2 0 127.0.0.1 3 yes True\n"  # rank 0, and only rank 0
    assert job.run.__self__ is job and not list((tmp_path / "logs").glob(".end*"))


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marc_dist.cluster.local.num_cores", lambda: 10)
    assert rank_environment(LocalPreset(), 0, 3, 1)["OMP_NUM_THREADS"] == "3"
    assert rank_environment(LocalPreset(), 0, 30, 1)["OMP_NUM_THREADS"] == "1"


def test_logs_are_appended_and_only_the_new_part_is_shown(tmp_path: Path) -> None:
    _job(tmp_path, "print('first')").run()
    job = _job(tmp_path, "print('second')")
    assert job.run() == 0
    assert _shown(job) == "second\n"
    assert (tmp_path / "logs/rank-0.log").read_text() == "first\nsecond\n"


def test_storage_that_fails_for_a_moment_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that cannot be read, a note of an end that cannot be removed: the ranks' work is not thrown away for it."""
    real, looks = Path.open, iter(range(10**6))

    def fails(path: Path, mode: str = "r", *words: Any, **rest: Any) -> Any:
        if path.name == "rank-0.log" and mode == "rb" and next(looks) < 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, mode, *words, **rest)

    def stays(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(Path, "open", fails)
    monkeypatch.setattr(Path, "unlink", stays)
    job = _job(tmp_path, "print('worked'); time.sleep(0.5)")
    assert job.run() == 0 and _shown(job) == "worked\n"


def test_one_process_per_gpu_or_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus({}, tmp_path) == 2
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3,5,7"}, tmp_path) == 3
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == 0
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}, tmp_path) == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert process_count(LocalPreset(), "auto") == 3
    assert process_count(LocalPreset(), "cpu") == 1
    assert process_count(LocalPreset(procs_per_node=7), "cpu") == 7


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(85)", 85),
        ("sys.exit(85 if rank else 0)", 85),
        ("sys.exit(3)", 1),
        ("sys.exit(2)", 2),
    ],
)
def test_exit_codes(script: str, code: int, tmp_path: Path) -> None:
    assert _job(tmp_path, script).run() == code


def test_a_persons_mistake_is_told_once_and_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = """
    import json
    text = json.dumps({"time": time.time(), "error": "loss.tau: out of range"})
    open(os.environ["MARC_FAILURE_FILE"], "w").write(text)
    sys.exit(2)
    """
    with pytest.raises(LaunchError, match=r"^loss.tau: out of range$"):
        _job(tmp_path, script).run()


def test_the_first_failure_is_shown_not_its_echo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = """
    import json
    mine = os.environ["MARC_FAILURE_FILE"]
    while rank == 0 and "the cause" not in open(mine.replace("-0.json", "-1.json")).read():
        time.sleep(0.02)
    time.sleep(0.1)
    kind = "RuntimeError: lost rank 1" if rank == 0 else "ValueError: the cause"
    text = json.dumps({"time": time.time(), "error": kind})
    open(mine, "w").write(text)
    print("says", kind, file=sys.stderr)
    if rank == 1:
        time.sleep(0.6)  # it takes longer to go than the one that it broke
    sys.exit(1)
    """
    assert _job(tmp_path, script).run() == 1
    err = capsys.readouterr().err
    assert f"rank 1 of 2 failed first (exit code 1): ValueError: the cause; log: {tmp_path}/logs/rank-1.log" in err
    assert "says ValueError: the cause" in err
    assert "lost rank 1" not in err


def test_a_killed_rank_is_the_cause_even_without_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = """
    import json
    note = os.path.join(os.path.dirname(os.environ["MARC_FAILURE_FILE"]), "pid-of-1")
    if rank == 1:
        open(note + ".new", "w").write(str(os.getpid()))
        os.rename(note + ".new", note)
        os.kill(os.getpid(), signal.SIGKILL)
    while not os.path.exists(note):
        time.sleep(0.02)
    stat = "/proc/" + open(note).read() + "/stat"
    while os.path.exists(stat) and open(stat).read().rsplit(")", 1)[1].split()[0] != "Z":
        time.sleep(0.02)
    time.sleep(0.1)
    text = json.dumps({"time": time.time(), "error": "RuntimeError: connection closed"})
    open(os.environ["MARC_FAILURE_FILE"], "w").write(text)
    sys.exit(1)
    """
    assert _job(tmp_path, script).run() == 1
    assert "rank 1 of 2 failed first (killed by SIGKILL)" in capsys.readouterr().err


def test_a_dead_rank_ends_the_others_even_stubborn_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = """
    if rank == 1:
        time.sleep(0.5)
        sys.exit(7)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "60"])  # a loader worker
    print(os.getpid(), child.pid, flush=True)
    time.sleep(60)
    """
    job = _job(tmp_path, script)
    start = time.monotonic()
    assert job.run() == 1
    assert time.monotonic() - start < 15
    assert "rank 1 of 2 failed first (exit code 7)" in capsys.readouterr().err
    pids = [int(word) for word in _shown(job).split()]
    assert len(pids) == 2 and all(_soon(lambda pid=pid: _gone(pid)) for pid in pids)


def test_what_a_rank_leaves_behind_is_ended(tmp_path: Path) -> None:
    job = _job(tmp_path, "print(subprocess.Popen(['sleep', '60']).pid, flush=True)")
    assert job.run() == 0
    assert _soon(lambda: _gone(int(_shown(job))))


SAVER = """
import time
def save(number, frame):
    print("asked by", signal.Signals(number).name, flush=True)
    time.sleep(0.5)
    sys.exit(85)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, save)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGINT, "SIGTERM"),
        (signal.SIGHUP, "SIGTERM"),
        (signal.SIGUSR1, "SIGUSR1"),
        (signal.SIGUSR2, "SIGUSR2"),
    ],
)
def test_signals_reach_every_rank_and_the_job_says_85(sent: signal.Signals, seen: str, tmp_path: Path) -> None:
    job = _job(tmp_path, SAVER)
    logs = [tmp_path / f"logs/rank-{rank}.log" for rank in range(2)]

    def ask() -> None:
        _soon(lambda: all(log.exists() and "ready" in log.read_text() for log in logs))
        os.kill(os.getpid(), sent)

    thread = threading.Thread(target=ask)
    thread.start()
    assert job.run() == 85
    thread.join()
    assert all(f"asked by {seen}" in log.read_text() for log in logs)


def test_a_job_outlives_the_reader_of_its_output(tmp_path: Path) -> None:
    class Closed(io.BytesIO):
        def write(self, data: object) -> int:
            raise BrokenPipeError

    job = _job(tmp_path, "print('one', flush=True)\ntime.sleep(0.5)\nprint('two')")
    job.out = Closed()
    assert job.run() == 0
    assert (tmp_path / "logs/rank-0.log").read_text() == "one\ntwo\n"


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    job = _job(tmp_path, SAVER.replace("time.sleep(0.5)", "time.sleep(50)"))

    def ask() -> None:
        _soon(lambda: "ready" in _shown(job))
        os.kill(os.getpid(), signal.SIGINT)
        _soon(lambda: "asked" in _shown(job))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=ask)
    thread.start()
    start = time.monotonic()
    assert job.run() == 130
    assert time.monotonic() - start < 10
    thread.join()


def test_ranks_that_do_not_save_in_time_are_killed_and_told(tmp_path: Path) -> None:
    script = SAVER.replace("time.sleep(0.5)", "time.sleep(50)")
    job = _job(tmp_path, script, preset=PRESET.model_copy(update={"stop_grace_s": 0.5}))

    def ask() -> None:
        _soon(lambda: "ready" in _shown(job))
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    with pytest.raises(LaunchError, match="stop_grace_s=0.5"):
        job.run()
    thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word that a parent has gone exists on Linux")
def test_ranks_die_with_a_killed_launcher(tmp_path: Path) -> None:
    code = f"""
import io, sys
from pathlib import Path
from marc_dist.cluster.local import LocalJob
from marc_dist.cluster.preset import LocalPreset
LocalJob([sys.executable, "-S", {str(tmp_path / "rank.py")!r}], Path({str(tmp_path / "logs")!r}), LocalPreset(), 2,
         sys.stdout.buffer).run()
"""
    (tmp_path / "rank.py").write_text(HEAD + "print(os.getpid(), flush=True)\ntime.sleep(60)\n")
    launcher = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    logs = [tmp_path / f"logs/rank-{rank}.log" for rank in range(2)]
    assert _soon(lambda: all(log.exists() and log.read_text().strip() for log in logs))
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    for log in logs:
        pid = int(log.read_text())
        assert _soon(lambda pid=pid: _gone(pid))
