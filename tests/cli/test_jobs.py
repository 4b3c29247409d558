"""``marc-jobs`` with real local jobs: small scripts as ranks, and one real training; then folders that are broken."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from marc_dist.cli import jobs
from marc_dist.cli.jobs.listing import ROW, ago, one_line
from marc_dist.cluster import local
from marc_dist.config import Config, build, parse_words
from marc_dist.run.folder import prepare
from marc_dist.run.job import Job, new_job, read_job, write_job
from marc_dist.run.processes import start_ticks
from tests.cli.test_train import SMALL

LAUNCH = """
import sys
from pathlib import Path
from marc_dist.run.job import new_job
from marc_dist.cluster.backends import run_local
run, world, what, *arguments = sys.argv[1:]
preset = {"procs_per_node": int(world), "peer_grace_s": 1.0, "stop_grace_s": 60.0 if what == "train" else 5.0}
job = new_job("local", arguments, what=what, procs_per_node=int(world), preset=preset)
sys.exit(run_local(job, Path(run), sys.stdout.buffer))
"""
RANK = """
import os, sys, time, signal
rank = int(os.environ["RANK"])
def until(name):
    while not os.path.exists(os.path.join(sys.argv[1], name)):
        time.sleep(0.02)
def save(number, frame):
    print("saved", flush=True)
    sys.exit(85)
signal.signal(signal.SIGTERM, save)
print("rank", rank, "of", os.environ["WORLD_SIZE"], "is here", flush=True)
"""


def _soon(condition: Callable[[], bool], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.03)


class Launched:
    """A local job with a launcher process of its own."""

    def __init__(self, run: Path, arguments: list[str], world: int = 2, what: str = "tune") -> None:
        self.run = run
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(run), str(world), what, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def wait_for(self, text: str, world: int = 2) -> None:
        logs = [self.run / f"logs/rank-{rank}.log" for rank in range(world)]
        _soon(lambda: all(log.exists() and text in log.read_text() for log in logs))


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    started: list[Launched] = []

    def start(script: str, name: str = "runs/a", **values: Any) -> Launched:
        run = tmp_path / name
        run.mkdir(parents=True, exist_ok=True)
        (run / "rank.py").write_text(RANK + textwrap.dedent(script))
        started.append(Launched(run, ["-S", str(run / "rank.py"), str(run)], **values))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert jobs.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def _local(run: Path, job_id: str | None = None, **values: Any) -> Job:
    run.mkdir(parents=True, exist_ok=True)
    job = new_job("local", ["-m", "x", str(run)], id=job_id or local.local_id(), **values)
    write_job(run, job)
    return job


@pytest.mark.parametrize("words", [["--help"], ["status", "--help"], ["logs", "-h"], ["resume", "-h"]])
def test_help_needs_nothing(words: list[str]) -> None:
    code = (
        "import sys\n"
        "from marc_dist.cli import jobs\n"
        "try:\n"
        f"    jobs.main({words})\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "ours = {name for name in sys.modules if name.startswith('marc_dist.cli.')}\n"
        "assert ours == {'marc_dist.cli.' + name for name in ('command', 'jobs', 'jobs.words')}, ours\n"
        "assert not {'torch', 'pydantic', 'yaml', 'rich'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("usage: marc-jobs")


def test_asking_needs_no_torch(tmp_path: Path) -> None:
    _local(tmp_path, f"{socket.gethostname()}:99999999:1")
    code = (
        "import sys\n"
        "from marc_dist.cli import jobs\n"
        f"for words in (['list'], ['status'], ['logs'], ['cancel', '--no-wait']):\n"
        f"    assert jobs.main([*words, {str(tmp_path)!r}]) == 0\n"
        "assert not {'torch', 'ray', 'submitit'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["statsu", "RUN"], "statsu: no such folder; did you mean status?"),
        (["status", "none"], "none: no such run folder; marc-jobs list DIR shows"),
        (["status", "."], ".: no job.json; expected the folder of a run that marc-launch has started"),
        (["logs", "RUN", "--rank", "2"], "--rank: expected 0 to 1, or all, got 2"),
        (["logs", "RUN", "--rank", "-1"], "--rank: expected 0 to 1, or all, got -1"),
        (["logs", "RUN", "--lines", "-1"], "--lines: expected 0 or more"),
        (["cancel", "RUN", "--timeout", "-1"], "--timeout: expected seconds"),
        (["cancel", "none"], "none: no such run folder"),
        (["resume", "RUN", "loss.tau=1"], "loss.tau=1: a run goes on with its own settings; expected cluster.key"),
        (["resume", "RUN", "cluster.peer_grace=1"], "cluster.peer_grace: unknown key; did you mean peer_grace_s?"),
        (["resume", "RUN", "--procs-per-node", "0"], "cluster.procs_per_node: expected greater than or equal to 1"),
        (["resume", "RUN", "--nodes", "2"], "--nodes: a local job is this one machine, got 2"),
        (["status", "BROKEN"], "job.json: cannot be read"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    _local(tmp_path / "run", f"{socket.gethostname()}:99999999:1", procs_per_node=2)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "job.json").write_text('{"kind": "local"')
    words = [{"RUN": "run", "BROKEN": "broken"}.get(word, word) for word in arguments]
    assert jobs.main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("marc-jobs: error: ") and message in err and err.count("\n") == 1


def test_nothing_there_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert jobs.main([]) == 0
    out = capsys.readouterr().out
    assert f"no job in {tmp_path}/runs" in out and "marc-launch" in out
    assert _json(capsys) == []


def test_a_job_from_its_start_to_its_end(
    tmp_path: Path, launch: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    job = launch("until('go')\nprint('bye')")
    job.wait_for("is here")
    (row,) = _json(capsys)
    assert list(row) == list(ROW)
    assert (row["run"], row["kind"], row["state"], row["attempt"]) == ("runs/a", "local", "running", 0)
    assert (row["nodes"], row["procs_per_node"], row["step"]) == (1, 2, None)
    assert row["id"] == read_job(job.run).id and f":{job.process.pid}:" in row["id"]
    told = _json(capsys, "status", "runs/a")
    assert told["next"] == "marc-jobs logs -f runs/a" and told["failure"] is None
    assert told["attempts"][0]["hosts"] == [socket.gethostname()] and told["attempts"][0]["ended_at"] is None
    assert jobs.main(["resume", "runs/a"]) == 2
    assert "runs/a: running (process" in capsys.readouterr().err

    watcher = subprocess.Popen(
        [sys.executable, "-m", "marc_dist.cli.jobs", "logs", "-f", "--rank", "all", "runs/a"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watcher.stdout is not None and watcher.stderr is not None
    with watcher:  # closes its pipes
        first = watcher.stdout.readline()
        (job.run / "go").touch()
        out, err = watcher.stdout.read(), watcher.stderr.read()  # communicate() would lose what readline() took along
        assert watcher.wait(timeout=30) == 0, err
    lines = [f"[{rank}] rank {rank} of 2 is here\n" for rank in (0, 1)] + ["[0] bye\n", "[1] bye\n"]
    assert sorted((first + out).splitlines(keepends=True)) == sorted(lines)
    assert err.splitlines()[-1].startswith("runs/a: done")
    assert job.process.wait(timeout=30) == 0

    assert _json(capsys)[0]["state"] == "done"
    told = _json(capsys, "status", "runs/a")
    assert told["attempts"][0]["code"] == 0 and told["state"] == "done"
    assert jobs.main(["cancel", "runs/a"]) == 0
    assert jobs.main(["resume", "runs/a"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "already over: done" in out[0] and "already done" in out[1]
    assert jobs.main(["status", "runs/a"]) == 0
    assert "start 1       " in capsys.readouterr().out


def test_ctrl_c_leaves_the_job_alone_and_cancel_ends_it(tmp_path: Path, launch: Any, capsys: Any) -> None:
    job = launch("until('never')")
    job.wait_for("is here")
    words = [sys.executable, "-m", "marc_dist.cli.jobs", "logs", "-f", str(job.run)]
    watcher = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert watcher.stdout is not None and watcher.stdout.readline() == "rank 0 of 2 is here\n"
    watcher.send_signal(signal.SIGINT)
    _, err = watcher.communicate(timeout=30)
    assert watcher.returncode == 130
    assert err.splitlines()[-1] == f"detached; the job goes on: marc-jobs logs -f {job.run}"
    assert job.process.poll() is None

    assert jobs.main(["cancel", str(job.run), str(tmp_path / "none")]) == 2  # the other is asked all the same
    out, err = capsys.readouterr()
    assert "is asked to save and stop" in out and "stopped (asked to stop, and saved" in out
    assert "none: no such run folder" in err
    assert job.process.wait(timeout=30) == 85
    assert (job.run / "logs/rank-1.log").read_text().endswith("saved\n")
    assert _json(capsys, "status", str(job.run))["next"] == f"marc-jobs resume {job.run}"


def test_cancel_says_when_a_job_does_not_end_in_time(launch: Any, capsys: Any) -> None:
    hears = "signal.signal(signal.SIGTERM, lambda *_: print('hears', flush=True))"
    job = launch(f"{hears}\nprint('listens', flush=True)\nuntil('go')")
    job.wait_for("listens")
    assert jobs.main(["cancel", "--timeout", "0.5", str(job.run)]) == 1
    assert "still running" in capsys.readouterr().out
    job.wait_for("hears")
    assert jobs.main(["cancel", "--no-wait", str(job.run)]) == 0  # again, and it does no harm
    job.wait_for("hears\nhears")  # a signal that meets Python while it ends would end the rank
    (job.run / "go").touch()
    assert job.process.wait(timeout=30) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends ranks with their launcher on Linux")
def test_a_killed_launcher_is_a_failure_and_the_run_goes_on(launch: Any, capsys: Any) -> None:
    job = launch("until('go')")
    job.wait_for("is here")
    job.process.kill()
    job.process.wait()
    told = _json(capsys, "status", str(job.run))
    assert told["state"] == "failed"
    assert (
        f"its launcher, process {job.process.pid} on {socket.gethostname()}, has gone without a word" in told["detail"]
    )
    assert told["next"].endswith(f"then marc-jobs resume {job.run}")
    assert _json(capsys, "list", str(job.run.parent))[0]["state"] == "failed"
    assert jobs.main(["cancel", str(job.run)]) == 0

    (job.run / "go").touch()
    words = ["--procs-per-node", "1", str(job.run), "cluster.threads_per_proc=3"]
    done = subprocess.run(
        [sys.executable, "-m", "marc_dist.cli.jobs", "resume", *words], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "rank 0 of 1 is here\n"), done.stderr
    again = read_job(job.run)
    assert (again.procs_per_node, again.preset["threads_per_proc"], again.preset["peer_grace_s"]) == (1, 3, 1.0)
    told = _json(capsys, "status", str(job.run))
    assert [one["code"] for one in told["attempts"]] == [None, 0]
    assert told["state"] == "done"


def test_a_failure_is_told_with_its_code(launch: Any, capsys: Any) -> None:
    job = launch("sys.exit(7 if rank == 1 else 0)")
    assert job.process.wait(timeout=30) == 1
    told = _json(capsys, "status", str(job.run))
    assert told["state"] == "failed" and told["attempts"][0]["code"] == 1
    assert told["next"].startswith("marc-jobs logs --lines 200 --rank ")
    assert jobs.main(["logs", "--rank", "1", "--lines", "1", str(job.run)]) == 0
    assert capsys.readouterr().out == "rank 1 of 2 is here\n"


def test_a_number_that_another_process_has_now_is_not_the_job(tmp_path: Path, capsys: Any) -> None:
    host, pid, ticks = local.local_id().split(":")
    _local(tmp_path / "mine")
    _local(tmp_path / "reused", f"{host}:{pid}:{int(ticks) - 1}")
    states = {Path(row["run"]).name: row["state"] for row in _json(capsys, "list", str(tmp_path))}
    assert states == {"mine": "pending", "reused": "failed"}
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the wrong process was asked to end"))
    try:
        assert jobs.main(["cancel", str(tmp_path / "reused")]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_dead_process_that_nobody_has_fetched_does_not_run(tmp_path: Path, capsys: Any) -> None:
    child = subprocess.Popen(["sleep", "60"])
    ticks = start_ticks(child.pid)
    _local(tmp_path, f"{socket.gethostname()}:{child.pid}:{ticks}")
    assert _json(capsys, "status", str(tmp_path))["state"] == "pending"
    child.kill()
    _soon(lambda: start_ticks(child.pid) is None)
    assert _json(capsys, "status", str(tmp_path))["state"] == "failed"
    child.wait()


def test_a_job_of_another_machine_is_unknown_with_the_reason(tmp_path: Path, capsys: Any) -> None:
    _local(tmp_path, "elsewhere:123:456")
    told = _json(capsys, "status", str(tmp_path))
    assert told["state"] == "unknown" and "runs on elsewhere" in told["detail"] and "--force" in told["next"]
    assert jobs.main(["cancel", str(tmp_path)]) == 2
    assert f"runs on elsewhere; there, use marc-jobs cancel {tmp_path}" in capsys.readouterr().err
    assert jobs.main(["resume", str(tmp_path)]) == 2
    assert "when it has surely ended, use --force" in capsys.readouterr().err
    assert jobs.main(["logs", str(tmp_path)]) == 0
    assert "rank 0 has not started: unknown (runs on elsewhere" in capsys.readouterr().err


def test_a_list_survives_broken_folders_and_groups_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # no Slurm here
    runs = tmp_path / "runs"
    parts = [runs / "array" / name for name in ("two", "one")]
    array = new_job("slurm", ["-m", "x", "y"], id="7", run_dirs=[str(part) for part in parts])
    for number, folder in enumerate((runs / "array", *parts)):
        folder.mkdir(parents=True)
        update = {"submitted_at": array.submitted_at - 100, "run_dirs": array.run_dirs if number == 0 else []}
        write_job(folder, array.model_copy(update=update))
    _local(runs / "group" / "new")
    (runs / "group" / "deep" / "too").mkdir(parents=True)
    _local(runs / "group" / "deep" / "too" / "far")
    (runs / "bad").mkdir()
    (runs / "bad" / "job.json").write_text("[]\n")
    _local(runs / "odd").model_copy()
    (runs / "odd" / "attempts.jsonl").write_text('{"event": "begin", "time": 9e99, "step": "x"}\n')
    (runs / "stray.txt").touch()
    found = {str(Path(row["run"]).relative_to(runs)): row for row in _json(capsys, "list", str(runs))}
    assert [name for name in found if name.startswith("array")] == ["array", "array/two", "array/one"]
    assert set(found) == {"bad", "odd", "group/new", "array", "array/two", "array/one"}
    assert list(found).index("group/new") < list(found).index("array")  # newest first
    assert found["array/one"]["parent"] == str(runs / "array") and found["array"]["parent"] is None
    assert found["array"]["state"] == "unknown" and "not found on PATH" in found["array"]["detail"]
    assert found["bad"]["state"] == "unknown" and "job.json: cannot be read" in found["bad"]["error"]
    assert found["odd"]["state"] == "unknown" and found["odd"]["detail"]
    assert all(list(row) == list(ROW) for row in found.values())
    assert jobs.main(["list", str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and lines[0].split()[:3] == ["run", "job", "size"]
    assert any(line.startswith(f"  {runs}/array/two") for line in lines)
    assert jobs.main(["logs", str(runs / "array")]) == 2
    assert f"an array of 2 runs; name one, such as {parts[0]}" in capsys.readouterr().err


def test_before_any_rank_the_batch_scripts_words_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    write_job(tmp_path, new_job("slurm", ["-m", "x", "y"], id="7"))
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "7_0_log.out").write_text("one\ntwo\nmodule: command not found\n")
    assert jobs.main(["logs", "--lines", "2", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out == "two\nmodule: command not found\n"
    assert "rank 0 has not started: unknown (" in err and "not found on PATH" in err


def test_names_cannot_steer_a_terminal(tmp_path: Path, capsys: Any) -> None:
    _local(tmp_path / "\x1b[2Jrun [red]")
    assert jobs.main(["list", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\\x1b[2Jrun [red]" in out
    assert one_line("a\n\x07b") == "a \\x07b"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s ago"), (119, "119 s ago"), (120, "2 min ago"), (7200, "2 h ago"), (2e5, "2 d ago")]
)
def test_ages(seconds: float, text: str) -> None:
    assert ago(seconds) == text


@pytest.mark.slow
def test_a_real_training_is_watched_cancelled_and_goes_on_with_fewer_ranks(
    sample_dir: Path, tmp_path: Path, capsys: Any
) -> None:
    run = tmp_path / "run"
    words = [f"data.dir={sample_dir}", f"train.run_dir={run}", "train.epochs=1000", "train.checkpoint_every=5", *SMALL]
    prepare(build(Config, parse_words(words)))
    job = Launched(run, ["-m", "marc_dist.cli.train", str(run)], what="train")
    metrics = run / "metrics.jsonl"

    def reach(step: int) -> None:
        _soon(lambda: metrics.exists() and metrics.read_text().count("\n") >= step, 90)

    try:
        reach(4)
        told = _json(capsys, "status", str(run))
        progress = told["progress"]
        assert told["state"] == "running" and told["late"] is None
        assert [beat["rank"] for beat in told["heartbeat"]] == [0, 1]
        assert progress["step"] >= 4 and progress["total_steps"] > 1000 and progress["loss"] is not None
        assert progress["images_per_s"] > 0 and progress["eta_s"] > 0 and 0 <= progress["loader_wait"] <= 1
        log = (run / "logs/rank-0.log").read_bytes()
        (run / "logs/rank-0.log").write_bytes(b"")  # then settings and data say how many steps there are
        assert _json(capsys, "status", str(run))["progress"]["total_steps"] == progress["total_steps"]
        assert b"/%d  " % progress["total_steps"] in log
        assert jobs.main(["status", str(run)]) == 0
        out = capsys.readouterr().out
        assert "heartbeat     2 of 2 ranks" in out and f"of {progress['total_steps']} (" in out
        assert jobs.main(["cancel", str(run)]) == 0
        assert job.process.wait(timeout=60) == 85
        told = _json(capsys, "status", str(run))
        assert told["state"] == "stopped" and told["heartbeat"] == []
        saved = told["attempts"][0]["last_step"]
        assert saved >= 4
    finally:
        job.process.kill()
        job.process.wait()

    words = [sys.executable, "-m", "marc_dist.cli.jobs", "resume", "--procs-per-node", "1", str(run)]
    again = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        reach(saved + 2)
        (row,) = _json(capsys, "list", str(run))
        assert (row["state"], row["procs_per_node"]) == ("running", 1) and row["step"] > saved
        assert jobs.main(["cancel", str(run)]) == 0
        out, err = again.communicate(timeout=60)
        assert again.returncode == 85, err
        assert f"going on after step {saved}" in out
    finally:
        again.kill()
        again.wait()
