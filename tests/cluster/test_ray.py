"""Jobs on a real Ray cluster of two nodes: the weights of one process, whatever happens on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from marc_dist.cluster import ray as ray_jobs
from marc_dist.cluster.preset import RayPreset, load_preset
from marc_dist.cluster.ray_ranks import Rank
from marc_dist.config import Config, ConfigError, LaunchError, build
from marc_dist.run.attempts import attempts
from marc_dist.run.folder import checkpoints, prepare
from marc_dist.run.job import Job, State, attempts_of_job, new_job, read_job, write_job
from tests.cluster.ray_cluster import RayCluster, parent_of, pids_that_name

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks through /proc"),
]
STEPS = 24
WORDS: dict[str, Any] = {
    "data.image_size": 32,
    "data.num_workers": 0,
    "data.cache": "none",
    "model.backbone": "test_resnet",
    "model.pretrained": False,
    "model.head_hidden": 8,
    "model.head_dim": 4,
    "optim.name": "sgd",
    "optim.lr": 0.02,
    "train.global_batch": 8,
    "train.max_steps": STEPS,
    "train.epochs": 100,
    "train.device": "cpu",
    "train.precision": "float64",
    "train.checkpoint_every": 2,
    "train.keep_checkpoints": 2,
    "train.log_every": 1,
    "train.timeout_s": 20,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def attached(cluster: RayCluster) -> Iterator[RayCluster]:
    """The same cluster, with this process connected to it until all tests here are over."""
    with ray_jobs.connected(cluster.address, 30):
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Final weights of one process."""
    run = _folder(tmp_path_factory.mktemp("one") / "run", sample_dir)
    subprocess.run([sys.executable, "-m", "marc_dist.cli.train", str(run)], check=True, capture_output=True)
    return _weights(run)


def _folder(run: Path, sample_dir: Path, **words: Any) -> Path:
    return prepare(build(Config, {**WORDS, "data.dir": str(sample_dir), "train.run_dir": str(run), **words}))


def _weights(run: Path) -> dict[str, torch.Tensor]:
    newest = checkpoints(run)[-1]
    assert newest.name == f"step-{STEPS:08d}.pt"
    return dict(torch.load(newest, weights_only=True)["model"])


def _submit(cluster: RayCluster, run: Path, nodes: int = 2, procs: int = 1, **values: Any) -> Job:
    """What marc-launch does."""
    arguments = values.pop("arguments", ["-m", "marc_dist.cli.train", str(run)])
    given = {
        "address": cluster.address,
        "preflight": False,
        "stop_grace_s": 30,
        "max_stalls": 1,
        "connect_timeout_s": 300,
        **values,
    }
    preset = RayPreset(nodes=nodes, procs_per_node=procs, **given)
    settings = {"nodes": nodes, "procs_per_node": procs, "preset": preset.model_dump(mode="json")}
    job = ray_jobs.submit(new_job("ray", arguments, **settings), preset, run)
    write_job(run, job)
    return job


def _soon(true: Callable[[], Any], seconds: float = 300.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(true())


def _over(run: Path, job: Job) -> bool:
    mine = attempts_of_job(job, run)
    return bool(mine) and mine[-1].ended_at is not None and not mine[-1].again


def _trains(run: Path, start: int, steps: int = 2) -> bool:
    """Whether the start of this number is under way and has saved something since."""
    mine = attempts(run)
    return len(mine) == start and mine[-1].ended_at is None and _step(run) >= mine[-1].first_step + steps


def _step(run: Path) -> int:
    found = checkpoints(run)
    return int(found[-1].stem.removeprefix("step-")) if found else 0


def _ranks(run: Path) -> dict[int, int]:
    """Process of each rank."""
    found = {}
    for pid in pids_that_name(str(run)):
        try:
            env = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        found |= {int(word[5:]): pid for word in env if word.startswith(b"RANK=")}
    return found


def _show(run: Path) -> str:
    logs = [path.read_text()[-1500:] for path in sorted((run / "logs").glob("rank-*.log"))]
    return "\n".join([*map(str, attempts(run)), *logs])


def _ended_as(run: Path, job: Job, expected: dict[str, torch.Tensor]) -> None:
    assert _soon(lambda: _over(run, job)), _show(run)
    assert ray_jobs.state(job, run).word == "done", _show(run)
    found = _weights(run)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() < 1e-9, name
    assert not _ranks(run)


def test_the_shipped_preset_says_what_the_schema_says() -> None:
    assert load_preset("ray") == RayPreset()


def test_two_nodes_end_with_the_weights_of_one_process(
    cluster: RayCluster, sample_dir: Path, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    run = _folder(tmp_path / "run", sample_dir)
    before = signal.getsignal(signal.SIGTERM)
    job = _submit(cluster, run)
    assert signal.getsignal(signal.SIGTERM) is before
    assert job.id == str(run)
    with pytest.raises(LaunchError, match=r"run: a job of this run is active on the Ray cluster.*marc-jobs cancel"):
        _submit(cluster, run)
    assert _soon(lambda: len(_ranks(run)) == 2)
    state = ray_jobs.state(read_job(run), run)
    assert state.word == "running"
    assert "on one two" in state.detail or "on two one" in state.detail
    _ended_as(run, job, undisturbed)
    (only,) = attempts(run)
    assert sorted(only.hosts) == ["one", "two"]
    assert (only.code, only.error, only.last_step, only.why) == (0, None, STEPS, "done")


def test_the_commands_with_a_preflight_first(cluster: RayCluster, sample_dir: Path, tmp_path: Path) -> None:
    """What a person types, with the preset as it is shipped."""
    run = tmp_path / "run"
    words = [f"{key}={value}" for key, value in WORDS.items() if key != "train.max_steps"]
    words += ["train.max_steps=4", f"data.dir={sample_dir}", f"train.run_dir={run}"]
    launch = [sys.executable, "-m", "marc_dist.cli.launch", "--nodes", "2", "--wait", "ray"]
    job = {"metadata": {"job_name": "mine"}, "runtime_env": {"env_vars": {"MINE": "1"}}}  # what ray job submit sets
    env = {**os.environ, "RAY_ADDRESS": cluster.address, "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}
    done = subprocess.run([*launch, *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr + _show(run)
    assert "ray job" in done.stdout and f"{run}: done" in done.stdout
    assert "preflight: 2 nodes, 2 ranks" in (run / "logs/rank-0.log").read_text()
    status = [sys.executable, "-m", "marc_dist.cli.jobs", "status", "--json", str(run)]
    told = json.loads(subprocess.run(status, capture_output=True, check=True).stdout)
    assert (told["kind"], told["state"], told["progress"]["step"]) == ("ray", "done", 4)


def test_a_mistake_does_not_start_again(cluster: RayCluster, sample_dir: Path, tmp_path: Path) -> None:
    run = _folder(tmp_path / "run", sample_dir, **{"data.dir": str(tmp_path / "nowhere")})
    job = _submit(cluster, run, nodes=1, address="auto")
    assert job.preset["address"] == cluster.address
    assert _soon(lambda: _over(run, job)), _show(run)
    word, detail, _ = ray_jobs.state(job, run)
    assert word == "failed"
    assert "nowhere" in detail
    assert "exit code 2" in detail
    assert len(attempts(run)) == 1
    assert not _ranks(run)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_out_of_reach_is_told_in_time(cluster: RayCluster, tmp_path: Path, address: str) -> None:
    start = time.monotonic()
    with pytest.raises(
        LaunchError, match=rf"Ray cluster {address}: cluster out of reach \(.*cluster.address=HOST:PORT"
    ):
        _submit(cluster, tmp_path, address=address, connect_timeout_s=2)
    preset = RayPreset(address=address, connect_timeout_s=2).model_dump(mode="json")
    job = new_job("ray", ["-m", "x"], id=str(tmp_path), preset=preset)
    assert ray_jobs.state(job, tmp_path).word == "unknown"
    with pytest.raises(LaunchError, match="out of reach"):
        ray_jobs.cancel(job, tmp_path)
    assert time.monotonic() - start < 12


def test_a_runtime_environment_reaches_every_rank(cluster: RayCluster, tmp_path: Path) -> None:
    run, work = tmp_path / "run", tmp_path / "work"
    for folder in (run, work):
        folder.mkdir()
    (work / "mine.py").write_text("word = 'from the working directory'\n")
    code = "import mine, os, sys; from pathlib import Path\n"
    code += "Path(sys.argv[1], 'seen-' + os.environ['RANK']).write_text(mine.word + os.environ['A'])"
    env = {"working_dir": str(work), "env_vars": {"A": " and B"}}
    job = _submit(cluster, run, runtime_env=env, arguments=["-c", code, str(run)])
    assert _soon(lambda: _over(run, job)), _show(run)
    assert ray_jobs.state(job, run).word == "done", _show(run)
    assert [(run / f"seen-{rank}").read_text() for rank in (0, 1)] == ["from the working directory and B"] * 2
    with pytest.raises(ConfigError, match="cluster.runtime_env: working_dri: not a key of Ray's; did you mean working"):
        load_preset("ray", ["cluster.runtime_env={working_dri: .}"])


def test_the_address_is_that_of_rays_own_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_jobs.cluster_address("auto") == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert ray_jobs.cluster_address("auto") == "ray://head:10001"
    assert ray_jobs.cluster_address("10.0.0.1:6379") == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    with pytest.raises(LaunchError, match="RAY_ADDRESS=http://head:8265: expected HOST:PORT .* ray job submit"):
        ray_jobs.cluster_address("auto")


def test_a_folder_that_a_node_does_not_see_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARC_NODE", "before")
    rank = Rank(1, str(tmp_path / "run"))
    rank.start(["-c", ""], str(tmp_path), "127.0.0.1", {"MARC_NODE": "n1"})
    end = rank.poll()
    assert end is not None
    assert (end.rank, end.code) == (1, 2)
    assert end.error == f"{tmp_path}/run: not seen on node n1; expected a folder that all nodes share"
    assert not list(tmp_path.iterdir())


# From here on this process stays connected: a question to the cluster takes no seconds to connect.


def test_killed_ranks_actors_and_supervisors_come_back(
    attached: RayCluster, sample_dir: Path, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    run = _folder(tmp_path / "run", sample_dir)
    job = _submit(attached, run)
    assert _soon(lambda: _trains(run, 1)), _show(run)
    os.kill(_ranks(run)[1], signal.SIGKILL)
    assert _soon(lambda: attempts(run)[0].ended_at is not None)
    for start, victim in ((2, "Rank"), (3, "Supervisor")):
        assert _soon(lambda start=start: _trains(run, start)), _show(run)
        ranks = _ranks(run)
        os.kill(parent_of(ranks[0]) if victim == "Rank" else attached.actors("Supervisor")[0], signal.SIGKILL)
        assert _soon(lambda ranks=ranks: not Path(f"/proc/{ranks[0]}").exists())  # a rank dies with its actor
    _ended_as(run, job, undisturbed)
    killed, orphaned, alone, last = attempts(run)
    assert "rank 1 of 2 failed first (killed by SIGKILL)" in str(killed.error)
    assert str(run / "logs/rank-1.log") in str(killed.error)
    assert "rank 0 of 2 failed first (lost)" in str(orphaned.error)
    assert "the supervisor or its node was lost" in str(alone.error)
    assert 0 < orphaned.first_step < alone.first_step < last.first_step


def test_a_lost_node_is_waited_for(
    attached: RayCluster, sample_dir: Path, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    run = _folder(tmp_path / "run", sample_dir)
    job = _submit(attached, run)
    assert _soon(lambda: _trains(run, 1)), _show(run)
    attached.kill_node()
    lost = time.monotonic()
    try:
        assert _soon(lambda: not _ranks(run)), _show(run)
        assert time.monotonic() - lost < 30
        assert _soon(lambda: attempts(run)[0].ended_at is not None), _show(run)
        assert _soon(lambda: ray_jobs.state(job, run).word == "pending"), _show(run)
        assert "2 free nodes with 1 CPU each" in ray_jobs.state(job, run).detail
    finally:
        attached.add_node()
    _ended_as(run, job, undisturbed)
    first = attempts(run)[0]
    rank = f"rank {first.hosts.index('two')} of 2 failed first (lost) on two: its node or its actor is gone"
    assert rank in str(first.error) or first.error == "node two was lost, and the supervisor on it"
    assert len(attempts(run)) == 2
    assert attempts(run)[1].first_step > 0


def test_cancelled_then_resumed_at_another_size(
    attached: RayCluster, sample_dir: Path, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    run = _folder(tmp_path / "run", sample_dir, **{"train.checkpoint_every": 1000})
    job = _submit(attached, run)
    metrics = run / "metrics.jsonl"
    assert _soon(lambda: metrics.exists() and metrics.read_text().count("\n") > 3), _show(run)
    ray_jobs.cancel(read_job(run), run)
    assert not _ranks(run)
    (only,) = attempts(run)
    assert (only.code, only.again, only.why, only.error) == (85, False, "cancelled", None)
    assert _step(run) == only.last_step > 3  # saved because it was told to
    assert ray_jobs.state(job, run) == State("cancelled", f"after step {only.last_step}")
    ray_jobs.cancel(job, run)  # nothing to do
    job = _submit(attached, run, nodes=1, procs=2)
    _ended_as(run, job, undisturbed)
    assert attempts(run)[-1].first_step == only.last_step
    assert len(attempts(run)[-1].hosts) == 1


def test_a_cluster_without_room_is_told_in_time(attached: RayCluster, sample_dir: Path, tmp_path: Path) -> None:
    holder = tmp_path / "holder"
    holder.mkdir()
    first = _submit(attached, holder, procs=2, arguments=["-c", "import time; time.sleep(600)", str(holder)])
    assert _soon(lambda: len(_ranks(holder)) == 4), _show(holder)
    run = _folder(tmp_path / "run", sample_dir)
    job = _submit(attached, run, place_timeout_s=2)
    assert _soon(lambda: _over(run, job))
    word, detail, _ = ray_jobs.state(job, run)
    assert word == "failed"
    assert "did not have 2 free nodes with 1 CPU each within cluster.place_timeout_s=2" in detail
    waiting = _submit(attached, run)
    ray_jobs.cancel(waiting, run)
    assert ray_jobs.state(waiting, run).word == "cancelled"
    ray_jobs.cancel(first, holder)
    assert ray_jobs.state(first, holder).word == "cancelled"
    assert not _ranks(holder)


def test_a_cluster_that_grows_is_waited_for(attached: RayCluster, tmp_path: Path) -> None:
    job = _submit(attached, tmp_path, nodes=3, cpus_per_proc=2, autoscale=True, arguments=["-c", "", str(tmp_path)])
    assert _soon(lambda: "waiting for 3 free nodes with 2 CPU each" in ray_jobs.state(job, tmp_path).detail)
    ray_jobs.cancel(job, tmp_path)
    assert ray_jobs.state(job, tmp_path).word == "cancelled"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nodes": 3}, r"cluster.nodes=3: .* with 1 CPU each, the Ray cluster .* has 2 \((one|two): 2 CPU"),
        ({"cpus_per_proc": 3}, r"cluster.nodes=2: .* with 3 CPU each, .* has 0"),
        ({"gpus_per_node": 1}, r"with 1 CPU, 1 GPU each, .* has 0 \((one|two): 2 CPU, 0 GPU"),
        ({"gpus_per_node": 3, "procs": 2}, "cluster.gpus_per_node=3: expected as many for every process"),
    ],
)
def test_impossible_sizes_are_refused(attached: RayCluster, tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        _submit(attached, tmp_path, **values)
    assert not list(tmp_path.iterdir())
