"""One job in a folder at a time: whoever comes second is refused, and has changed nothing there."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from marc_dist.cli import jobs, launch, train
from marc_dist.cluster.backends import run_local
from marc_dist.config import load_config
from marc_dist.run.attempts import begin_attempt, end_attempt
from marc_dist.run.job import new_job, note_cancel, read_job
from marc_dist.run.lock_file import RUN_LOCK
from marc_dist.run.run_lock import removal
from tests.cli.test_train import SMALL

SBATCH = """#!/bin/sh
sleep 0.2
number=$(mktemp -p "$FAKE" job-XXXXXX)
wc -l < "$FAKE/ids" > /dev/null 2>&1
id=$(( $(ls "$FAKE" | grep -c job-) + 6 ))
echo PENDING > "$FAKE/state-$id"
echo "Submitted batch job $id"
"""
SQUEUE = """#!/bin/sh
for word; do case "$before" in -j) id=${word%%_*};; esac; before=$word; done
[ -f "$FAKE/state-$id" ] || exit 1
echo "$(cat "$FAKE/state-$id")|Priority|"
"""
SINFO = '#!/bin/sh\necho "cpu*|4|64|(null)"\n'


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs that answer as a busy cluster's: every job waits. The real one cannot be made to answer slowly."""
    fake = tmp_path / "fake"
    fake.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("sinfo", SINFO), ("srun", "#!/bin/sh\n")):
        (fake / name).write_text(text)
        (fake / name).chmod(0o755)
    monkeypatch.setenv("FAKE", str(fake))
    monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
    return fake


def _words(sample_dir: Path, run: Path, *more: str) -> list[str]:
    return [f"data.dir={sample_dir}", f"train.run_dir={run}", *SMALL, *more]


def _all_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_refused_launch_and_a_check_change_nothing(
    sample_dir: Path, tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert launch.main(["slurm", *_words(sample_dir, run, "loss.tau=0.07")]) == 0
    before = _all_files(run)
    capsys.readouterr()
    assert launch.main(["slurm", *_words(sample_dir, run, "loss.tau=0.5")]) == 2
    assert "slurm job 7 of this run is pending; wait for it" in capsys.readouterr().err
    assert launch.main(["local", *_words(sample_dir, run, "loss.tau=0.5")]) == 2
    assert jobs.main(["resume", str(run)]) == 2
    assert _all_files(run) == before
    (slurm / "state-8").write_text("x")  # the check is job 8 by now; its end is not waited for
    watch = subprocess.Popen(
        [sys.executable, "-m", "marc_dist.cli.launch", "--check", "slurm", *_words(sample_dir, run, "loss.tau=0.5")],
        stdout=subprocess.DEVNULL,
    )
    try:
        _soon(lambda: (run / "check/job.json").exists() and read_job(run / "check").id == "8")
    finally:
        watch.kill()
        watch.wait()
    after = _all_files(run)
    assert {name: after[name] for name in before} == before
    assert load_config(run / "config.yaml").loss.tau == 0.07
    arguments = read_job(run / "check").arguments
    assert arguments[2:] == ["--check", str(run / "check/config.yaml")]
    checked = load_config(Path(arguments[3]))
    assert checked.loss.tau == 0.5 and checked.train.run_dir == str(run)


def test_an_array_changes_no_element_of_another_job(
    sample_dir: Path, tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    array = ["slurm", "cluster.array.seeds=[1,2]"]
    assert launch.main(["slurm", *_words(sample_dir, run / "seed-2", "loss.tau=0.07")]) == 0
    before = _all_files(run)
    assert launch.main([*array, *_words(sample_dir, run, "loss.tau=0.5")]) == 2
    assert f"{run}/seed-2: slurm job 7 of this run is pending" in capsys.readouterr().err
    after = _all_files(run)
    assert {name: after[name] for name in after if not name.endswith(".launch.lock")} == {
        name: before[name] for name in before if not name.endswith(".launch.lock")
    }
    (slurm / "state-7").write_text("COMPLETED")
    assert launch.main([*array, *_words(sample_dir, run, "loss.tau=0.5")]) == 0
    before = _all_files(run)
    assert launch.main([*array, *_words(sample_dir, run, "loss.tau=0.9")]) == 2
    assert launch.main(["slurm", *_words(sample_dir, run / "seed-1", "loss.tau=0.9")]) == 2
    assert _all_files(run) == before
    first, second = (read_job(run / name) for name in ("seed-1", "seed-2"))
    assert first.token == second.token == read_job(run).token != ""


def test_of_four_at_once_one_gets_an_id(sample_dir: Path, tmp_path: Path, slurm: Path) -> None:
    run = tmp_path / "run"
    taus = [0.1, 0.2, 0.3, 0.4]
    command = [sys.executable, "-m", "marc_dist.cli.launch", "slurm"]
    started = [
        subprocess.Popen(
            [*command, *_words(sample_dir, run, f"loss.tau={tau}")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for tau in taus
    ]
    told = [process.communicate(timeout=120) for process in started]
    codes = [process.returncode for process in started]
    assert sorted(codes) == [0, 2, 2, 2], told
    assert all("slurm job 7 of this run is pending" in err for (_, err), code in zip(told, codes, strict=True) if code)
    assert len(list(slurm.glob("job-*"))) == 1 and read_job(run).id == "7"
    assert load_config(run / "config.yaml").loss.tau == taus[codes.index(0)]


def _soon(condition: Callable[[], bool], limit_s: float = 90.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def _training(run: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """``marc-train`` in a process of its own, once it has taken some steps."""
    process = subprocess.Popen(
        [sys.executable, "-m", "marc_dist.cli.train", *words, "train.epochs=1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        _soon(lambda: process.poll() is not None or (run / "metrics.jsonl").exists())
        assert process.poll() is None, process.communicate()
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_training_is_refused_until_the_first_has_gone(
    sample_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with _training(run, *_words(sample_dir, run)) as first:
        settings = (run / "config.yaml").read_bytes()
        refusal = f"error: {run}: a run is live there, process {first.pid} on "
        assert train.main([str(run), "loss.tau=0.5"]) == 2
        assert refusal in (told := capsys.readouterr().err) and told.count("\n") == 1
        assert launch.main(["local", *_words(sample_dir, run)]) == 2
        assert refusal in capsys.readouterr().err
        assert first.poll() is None and (run / "config.yaml").read_bytes() == settings
        assert not (run / "job.json").exists()
    assert (run / RUN_LOCK).exists()  # it was killed
    assert train.main([*_words(sample_dir, run), "train.max_steps=1"]) == 0
    assert not (run / RUN_LOCK).exists()


def test_a_run_whose_folder_is_removed_ends_with_one_line(sample_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with _training(run, *_words(sample_dir, run, "train.checkpoint_every=1")) as process:
        (run / ".gone").touch()
        shutil.rmtree(run, ignore_errors=True)  # it writes meanwhile
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2
    assert err.endswith(f"marc-train: error: {removal(run)}\n") and "Traceback" not in err
    assert not (run / "encoder.safetensors").exists()


def test_records_and_ranks_of_a_local_job_have_its_token(tmp_path: Path) -> None:
    says = "import os; print(os.environ['MARC_JOB_TOKEN'], os.environ['MARC_ATTEMPT'])"
    job = new_job("local", ["-S", "-c", says], procs_per_node=2, preset={"procs_per_node": 2})
    assert run_local(job, tmp_path, io.BytesIO()) == 0
    token = read_job(tmp_path).token
    lines = [json.loads(line) for line in (tmp_path / "attempts.jsonl").read_text().splitlines()]
    assert [(line["event"], line["token"], line["number"]) for line in lines] == [
        ("begin", token, 0),
        ("end", token, 0),
    ]
    assert all((tmp_path / f"logs/rank-{rank}.log").read_text() == f"{token} 0\n" for rank in range(2))
    assert not (tmp_path / RUN_LOCK).exists()


def test_an_array_stands_as_its_elements_do(
    sample_dir: Path, tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The array was cancelled, its elements were resumed by themselves since, and are done."""
    run = tmp_path / "run"
    words = ["slurm", "cluster.array.seeds=[1,2,3]", *_words(sample_dir, run)]
    assert launch.main(words) == 0
    note_cancel(read_job(run), run)
    (slurm / "state-7").write_text("CANCELLED")

    def told() -> tuple[str, str]:
        capsys.readouterr()
        assert jobs.main(["list", "--json", str(run)]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert jobs.main(["status", "--json", str(run)]) == 0
        assert json.loads(capsys.readouterr().out)["state"] == rows[0]["state"]
        return rows[0]["state"], rows[0]["detail"]

    assert told()[0] == "cancelled"
    for number, name in enumerate(("seed-1", "seed-2", "seed-3")):
        folder = run / name
        assert jobs.main(["resume", str(folder)]) == 0
        assert told()[0] == "pending"
        job = read_job(folder)
        begin_attempt(folder, job.attempt(0), ["n1"])
        end_attempt(folder, job.attempt(0), 0, None, False, "done")
        (slurm / f"state-{job.id}").write_text("COMPLETED")
        if number < 2:
            assert told() == ("cancelled", f"elements: {number + 1} done, {2 - number} cancelled")
    assert told() == ("done", "")
    assert jobs.main(["resume", str(run)]) == 0
    assert "3 of 3 elements are done; nothing to hand in" in capsys.readouterr().out
