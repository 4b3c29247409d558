"""``marc-launch slurm`` on a real cluster of four nodes: same weights as one process, whatever happens to the job."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from marc_dist.cluster.slurm import state
from marc_dist.config import load_config, load_yaml
from marc_dist.run.attempts import attempts, newest_step
from marc_dist.run.folder import checkpoints, write_config
from marc_dist.run.job import read_job
from marc_dist.training.checkpoint import load_checkpoint
from tests.cluster.slurm_cluster import ClusterError, SlurmCluster

pytestmark = pytest.mark.slow
TINY = [
    "data.image_size=32", "data.num_workers=0", "data.cache=none", "model.backbone=test_resnet",
    "model.pretrained=false",
    "model.head_hidden=16", "model.head_dim=8", "optim.name=sgd", "optim.lr=0.02", "train.epochs=1000",
    "train.global_batch=16", "train.device=cpu", "train.precision=float64", "train.checkpoint_every=3",
    "train.keep_checkpoints=2", "train.log_every=1",
]  # fmt: skip
EXACT = 1e-9


class Said(NamedTuple):
    code: int
    out: str
    err: str


def launch(cluster: SlurmCluster, *words: str, env: dict[str, str] | None = None) -> Said:
    """The real command, as a user of the cluster."""
    done = subprocess.run(
        [sys.executable, "-m", "marc_dist.cli.launch", *words],
        env=cluster.env | {"OMP_NUM_THREADS": "1"} | (env or {}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def submit(cluster: SlurmCluster, run: Path, *words: str) -> str:
    said = launch(cluster, *words, f"train.run_dir={run}")
    assert said.code == 0, said.err
    job_id = read_job(run).id
    assert job_id is not None and f"slurm job {job_id}" in said.out
    return job_id


def until(condition: Callable[[], bool], limit_s: float, run: Path) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, logs(run)
        time.sleep(0.1)


def logs(run: Path) -> str:
    """What a failing test has to say."""
    paths = [*run.glob("slurm/*.out"), *run.glob("logs/rank-*.log"), run / "attempts.jsonl"]
    return "\n".join(f"== {path}\n{path.read_text(errors='replace')[-2000:]}" for path in paths if path.exists())


def trained(run: Path, steps: int) -> Callable[[], bool]:
    """Whether the run has logged a step beyond."""
    path = run / "metrics.jsonl"

    def beyond() -> bool:
        lines = path.read_text().splitlines() if path.exists() else []
        return bool(lines) and json.loads(lines[-1])["step"] >= steps

    return beyond


def last_step(run: Path) -> int:
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def stop_soon(run: Path, more: int = 4) -> int:
    """While a run waits to start again: let it end a few steps later; the step."""
    last = newest_step(run) + more
    write_config(load_config(run / "config.yaml", [f"train.max_steps={last}"], moved={"train.run_dir": str(run)}))
    return last


def weights(run: Path) -> dict[str, torch.Tensor]:
    payload = load_checkpoint(checkpoints(run)[-1])
    model: dict[str, torch.Tensor] = payload["model"]
    return model


def assert_as_one_process(run: Path, folder: Path) -> None:
    """The same settings in one undisturbed process end with the same weights."""
    plain = folder / "plain"
    config = load_config(run / "config.yaml", [f"train.run_dir={plain}", "train.checkpoint_every=1000000"])
    write_config(config)
    subprocess.run(
        [sys.executable, "-m", "marc_dist.cli.train", str(plain)],
        check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    mine, theirs = weights(run), weights(plain)
    assert mine.keys() == theirs.keys() and newest_step(run) == newest_step(plain) == config.train.max_steps
    for name, value in theirs.items():
        assert torch.allclose(mine[name].double(), value.double(), rtol=0, atol=EXACT), name


def jobs(cluster: SlurmCluster, *words: str | Path, path: str | None = None) -> str:
    """What ``marc-jobs`` says; with another PATH, on a machine without this Slurm."""
    env = cluster.env if path is None else {**cluster.env, "PATH": path}
    command = [sys.executable, "-m", "marc_dist.cli.jobs", *map(str, words)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ranks_of(cluster: SlurmCluster, node: str) -> list[int]:
    """The training processes on a node, not their guards."""
    found = []
    for pid in cluster.job_processes(node):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"marc_dist.cli.train" in words:
            found.append(pid)
    return found


def test_four_nodes_train_as_one_process_does(slurm: SlurmCluster, sample_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [f"data.dir={sample_dir}", *TINY, "train.max_steps=6", f"train.run_dir={run}"]
    said = launch(slurm, "--nodes", "4", "--follow", "slurm", *words)
    assert said.code == 0, said.out + said.err + logs(run)
    assert "preflight: 4 nodes" in said.out and "step 6 of" in said.out
    found = attempts(run)
    assert len(found) == 1 and found[0].hosts == slurm.nodes and found[0].code == 0
    job = read_job(run)
    assert state(job, run).word == "done" if shutil.which("squeue") else True
    assert {path.name for path in (run / "logs").glob("rank-*.log")} == {f"rank-{rank}.log" for rank in range(4)}
    assert_as_one_process(run, tmp_path)
    scored = launch(slurm, "--nodes", "2", "--wait", "slurm", "eval", str(run), "eval.baseline=false")
    assert scored.code == 0, scored.out + scored.err + logs(run / "eval")
    assert json.loads((run / "eval/test_vs_train/metrics.json").read_text())["scores"]["trained"]["mAP"] > 0
    assert (run / "report.html").exists() and read_job(run / "eval").what == "eval" and read_job(run).what == "train"


def test_a_job_survives_the_night(slurm: SlurmCluster, sample_dir: Path, tmp_path: Path) -> None:
    """Two jobs, hit by one thing after the other; each comes back by itself and ends as if nothing had happened."""
    run, timed = tmp_path / "run", tmp_path / "timed"
    common = [f"data.dir={sample_dir}", *TINY, "cluster.partition=main", "cluster.max_stalls=5"]
    late = submit(slurm, timed, "slurm", *common, "cluster.signal_delay_s=5", "cluster.nodelist=127.0.1.4")
    job = submit(slurm, run, "--nodes", "2", "slurm", *common, "cluster.exclude=127.0.1.4")
    until(trained(timed, 2), 120, timed)
    slurm.end_in(late, 36)

    def hit(what: Callable[[], object], limit_s: float = 120) -> None:
        """Something happens to the running job; it starts again and goes on."""
        number = len(attempts(run))
        until(trained(run, newest_step(run) + 4), 120, run)
        what()
        until(lambda: len(attempts(run)) > number, limit_s, run)

    def on(index: int) -> str:
        return attempts(run)[-1].hosts[index]

    killed: list[float] = []

    def kill_rank() -> None:
        (pid,) = ranks_of(slurm, on(1))
        killed.append(time.time())
        os.kill(pid, signal.SIGKILL)

    hit(kill_rank)
    first = attempts(run)[0]
    assert first.error is not None and "rank 1 of 2 failed first (killed by SIGKILL)" in first.error
    assert f"log: {run}/logs/rank-1.log" in first.error and first.hosts[1] in first.error
    assert first.ended_at is not None and first.ended_at - killed[0] < 30

    hit(lambda: slurm.sh("scancel", "--signal=USR2", job))
    assert attempts(run)[1].code == 85 and attempts(run)[1].again

    hit(lambda: slurm.sh("scontrol", "requeue", job))

    down = on(1)
    hit(lambda: slurm.set_down(down))
    with suppress(ClusterError):  # it may have come back by itself
        slurm.resume_node(down)

    dead = on(1)
    hit(lambda: slurm.kill_node(dead))
    slurm.start_node(dead)

    def preempt() -> None:
        slurm.sh("sbatch", "--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")

    slurm.wait_for(late, "PENDING", 120)  # the time limit has come, and the job with it
    slurm.restore_limit(late, 10)
    ended = stop_soon(timed)
    until(trained(run, newest_step(run) + 4), 120, run)
    number = len(attempts(run))
    preempt()
    slurm.wait_for(job, "PENDING", 60)
    stop_soon(run)
    assert slurm.wait_for(job, limit_s=120) == "COMPLETED", logs(run)
    assert attempts(run)[number - 1].code == 85 and len(attempts(run)) > number  # or twice, before the other one fits
    assert slurm.wait_for(late, limit_s=120) == "COMPLETED", logs(timed)
    assert attempts(timed)[0].code == 85 and last_step(timed) == ended
    assert_as_one_process(run, tmp_path / "a")
    assert_as_one_process(timed, tmp_path / "b")
    until(lambda: not slurm.job_processes(), 90, run)


def test_elements_of_an_array_survive_and_are_resumed_alone(
    slurm: SlurmCluster, sample_dir: Path, tmp_path: Path
) -> None:
    """One rank is killed; three elements are cancelled, one of them resumed by itself, then the array."""
    run = tmp_path / "seeds"
    first, middle, alone, last = folders = [run / f"seed-{seed}" for seed in (3, 4, 5, 6)]
    words = [f"data.dir={sample_dir}", *TINY, "train.max_steps=9", "cluster.array.seeds=[3, 4, 5, 6]"]
    slurm.sh("scontrol", "update", "PartitionName=main", "State=DOWN")
    job = submit(slurm, run, "slurm-array", *words)
    jobs(slurm, "cancel", first, alone, last)
    slurm.sh("scontrol", "update", "PartitionName=main", "State=UP")
    until(trained(middle, 4), 120, middle)
    pids = [pid for node in slurm.nodes for pid in ranks_of(slurm, node)]
    (mine,) = (pid for pid in pids if str(middle).encode() in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(mine, signal.SIGKILL)
    assert slurm.wait_for(f"{job}_1", limit_s=120) == "COMPLETED", logs(middle)
    told = json.loads(jobs(slurm, "list", "--json", run, path="/nowhere"))  # another day: Slurm has forgotten all of it
    assert [row["state"] for row in told] == ["cancelled", "cancelled", "done", "cancelled", "cancelled"]

    slurm.sh("scontrol", "update", "PartitionName=main", "State=DOWN")
    jobs(slurm, "resume", alone)
    said = jobs(slurm, "resume", run)
    again = str(read_job(run).id)
    assert f"{alone}: left out, it is pending as slurm job {read_job(alone).id}\n" in said
    assert f"slurm job {again}, elements 0,3 of 4 (seed-3, seed-6), 1 x 1 processes each" in said
    assert slurm.sh("squeue", "-h", "-r", "-t", "all", "-j", again, "-o", "%K").split() == ["0", "3"]
    slurm.sh("scontrol", "update", "PartitionName=main", "State=UP")
    for name, folder in ((f"{again}_0", first), (f"{again}_3", last), (str(read_job(alone).id), alone)):
        assert slurm.wait_for(name, limit_s=120) == "COMPLETED", logs(folder)
        assert read_job(folder).id == name
    queue = slurm.sh("squeue", "-h", "-r", "-t", "all")
    assert jobs(slurm, "resume", run) == f"{run}: 4 of 4 elements are done; nothing to hand in\n"
    assert slurm.sh("squeue", "-h", "-r", "-t", "all") == queue and read_job(run).id == again
    assert [len(attempts(folder)) for folder in folders] == [1, 2, 1, 1]
    assert [load_yaml(folder / "config.yaml")["train"]["seed"] for folder in folders] == [3, 4, 5, 6]
    assert read_job(middle).id == f"{job}_1" and len(read_job(run).run_dirs) == 4
    assert_as_one_process(middle, tmp_path)


def test_detach_then_cancel_leaves_no_process_behind(slurm: SlurmCluster, sample_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny = [word for word in TINY if not word.startswith("train.checkpoint_every=")]
    tiny.append("train.checkpoint_every=1000")  # what is saved is saved because it was told to
    words = ["--nodes", "2", "slurm", f"data.dir={sample_dir}", *tiny, f"train.run_dir={run}"]
    follower = subprocess.Popen(
        [sys.executable, "-m", "marc_dist.cli.launch", "--follow", *words],
        env=slurm.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(trained(run, 2), 120, run)
    time.sleep(1.0)
    follower.send_signal(signal.SIGINT)
    try:
        out, err = follower.communicate(timeout=30)
    finally:
        follower.kill()
    assert follower.returncode == 0, err
    assert "step 1/" in out and f"the job goes on: marc-jobs logs -f {run}" in out + err
    job = str(read_job(run).id)
    assert slurm.state(job) == "RUNNING"
    again = launch(slurm, *words)
    assert again.code == 2 and f"slurm job {job} of this run is running" in again.err
    said = jobs(slurm, "cancel", run)
    assert f"{run}: cancelled (after step {newest_step(run)})" in said and newest_step(run) == last_step(run) > 1
    assert slurm.wait_for(job, "CANCELLED", 30)
    until(lambda: not slurm.job_processes(), 90, run)
    for path in (None, "/nowhere"):  # today, and on a day when Slurm has forgotten the job
        told = json.loads(jobs(slurm, "status", run, "--json", path=path))
        assert told["state"] == "cancelled" and told["attempts"][0]["code"] == 85, told
    assert f"state         cancelled (after step {newest_step(run)})" in jobs(slurm, "status", run, path="/nowhere")
    assert ": stopped and saved; cancelled" in jobs(slurm, "status", run)
    jobs(slurm, "resume", run, "--nodes", "3")
    assert read_job(run).cancelled_at is None
    step = last_step(run)
    until(trained(run, step + 2), 120, run)
    assert read_job(run).nodes == 3 and attempts(run)[-1].first_step > 0 and len(attempts(run)[-1].hosts) == 3
    slurm.sh("scancel", str(read_job(run).id))


def test_check_looks_at_every_node_and_trains_nothing(slurm: SlurmCluster, sample_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = launch(
        slurm, "--nodes", "3", "--check", "slurm", f"data.dir={sample_dir}", *TINY, f"train.run_dir={run}"
    )  # fmt: skip
    assert said.code == 0, said.out + said.err + logs(run / "check")
    assert all(node in said.out for node in slurm.nodes[:3]) and "all-reduce" in said.out
    assert not checkpoints(run) and not (run / "job.json").exists()


def test_a_mistake_is_not_tried_again(slurm: SlurmCluster, sample_dir: Path, tmp_path: Path) -> None:
    """What only the ranks can find: the shards are gone when they start."""
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(sample_dir, data)
    slurm.sh("scontrol", "update", "PartitionName=main", "State=DOWN")
    job = submit(slurm, run, "--nodes", "2", "slurm", f"data.dir={data}", *TINY, "cluster.preflight=false")
    shutil.rmtree(data)
    slurm.sh("scontrol", "update", "PartitionName=main", "State=UP")
    assert slurm.wait_for(job, {"FAILED"}, 120)
    (only,) = attempts(run)
    assert only.code == 2 and not only.again and only.error is not None and str(data) in only.error
    assert slurm.restarts(job) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["slurm", "cluster.partition=mian"], "no partition 'mian' here, there are main, high; did you mean main?"),
        (["--nodes", "5", "slurm"], "--nodes: partition main has 4 nodes, got 5"),
        (["slurm", "cluster.gpus_per_node=3"], "a node of partition main has 2 GPUs, got 3"),
        (["--procs-per-node", "9", "slurm", "cluster.cpus_per_proc=2"], "need 18, but a node of partition main has 16"),
        (["slurm", "cluster.partion=main"], "cluster.partion: unknown key; did you mean partition?"),
        (["slurm", "cluster.constraint=a100"], "sbatch: "),
    ],
)
def test_what_the_cluster_cannot_do_is_told_before_it_is_queued(
    words: list[str], message: str, slurm: SlurmCluster, sample_dir: Path, tmp_path: Path
) -> None:
    said = launch(slurm, *words, f"data.dir={sample_dir}", *TINY, f"train.run_dir={tmp_path / 'run'}")
    assert said.code == 2
    assert said.err.startswith("marc-launch: error: ") and said.err.count("\n") == 1 and message in said.err
    assert not slurm.sh("squeue", "-h")


def test_without_slurm_or_a_folder_it_says_so(slurm: SlurmCluster, sample_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    common = ["slurm", f"data.dir={sample_dir}", *TINY]
    said = launch(slurm, *common, f"train.run_dir={tmp_path / 'run'}", env={"PATH": str(tmp_path / "bin")})
    assert said.code == 2 and said.err.startswith("marc-launch: error: sbatch: not found on PATH")
    (tmp_path / "file").write_text("")
    said = launch(slurm, *common, f"train.run_dir={tmp_path / 'file' / 'run'}")
    assert said.code == 2 and said.err.count("\n") == 1 and "cannot be written" in said.err
    assert not slurm.sh("squeue", "-h")
