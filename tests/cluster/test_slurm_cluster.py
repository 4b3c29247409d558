"""The Slurm cluster of the tests: what the tests of jobs rely on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.cluster.conftest import require_slurm
from tests.cluster.slurm_cluster import ClusterError, SlurmCluster

LOOP = "while :; do sleep 0.1; done"


def _submit(cluster: SlurmCluster, script: str, *options: str) -> str:
    return cluster.sh("sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={script}").strip()


def _soon(condition: Callable[[], object], limit_s: float = 15) -> bool:
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _mentioned(text: object) -> list[int]:
    """Processes with this in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(text).encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("ci", ["true", "false"])
def test_a_machine_without_slurm_skips_but_fails_in_ci(monkeypatch: pytest.MonkeyPatch, ci: str) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CI", ci)
    with pytest.raises(pytest.fail.Exception if ci == "true" else pytest.skip.Exception) as told:
        require_slurm()
    assert "sbatch" in str(told.value) and "apt-get install munge slurmctld slurmd slurm-client" in str(told.value)


def test_refuses_what_could_not_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require_slurm()
    with pytest.raises(ClusterError, match="too long for unix sockets"):
        SlurmCluster(tmp_path / ("x" * 60)).up()
    assert not list(tmp_path.iterdir())
    with TemporaryDirectory(dir="/tmp") as folder:
        Path(folder, "slurm.conf").touch()
        with pytest.raises(ClusterError, match="of another cluster"):
            SlurmCluster(folder).up()
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    with pytest.raises(ClusterError, match="SLURM_CONF is set"):
        SlurmCluster().up()


def test_up_and_down(slurm: SlurmCluster) -> None:
    """Beside another cluster, which it must leave alone."""
    others = slurm.processes()
    start = time.monotonic()
    with SlurmCluster(nodes=2, gpus=0) as cluster:
        assert time.monotonic() - start < 15
        assert cluster.node_states() == {"127.0.1.1": "idle", "127.0.1.2": "idle"}
        assert len(cluster.processes()) >= 4 and not set(cluster.processes()) & set(others)
        with pytest.raises(ClusterError, match="already"):
            cluster.up()
        job = _submit(cluster, "srun sleep 1000", "--nodes=2")
        cluster.wait_for(job, "RUNNING")
        assert _soon(lambda: len(cluster.job_processes()) >= 4)  # the script, its srun, two sleeps
        pids, folder, conf, guard = cluster.processes(), cluster.folder, cluster.conf, cluster._guard
        assert set(cluster.job_processes()) < set(pids) and folder.is_dir()
    assert not any(_running(pid) for pid in pids) and not folder.exists()
    assert guard is not None and guard.poll() is not None
    assert not _mentioned(conf)
    assert slurm.state(job) == "" and all(daemon.poll() is None for daemon in slurm._daemons.values())


def test_a_failed_start_tells_why_and_leaves_nothing() -> None:
    require_slurm()
    cluster = SlurmCluster(nodes=1, cpus=-1)
    with pytest.raises(ClusterError, match=r"slurmctld.* ended\n") as told:
        cluster.up()
    assert "CPUs value (-1) is less than zero" in str(told.value)  # from the log
    folder = str(told.value).split("Parse error in file ")[1].split("/slurm.conf")[0]
    assert folder.startswith("/tmp/mslurm.") and not Path(folder).exists() and not _mentioned(folder)


@pytest.mark.slow
def test_a_killed_test_process_leaves_nothing() -> None:
    require_slurm()
    script = """
        import sys, time
        from tests.cluster.slurm_cluster import SlurmCluster
        cluster = SlurmCluster(nodes=1).up()
        job = cluster.sh("sbatch", "--parsable", "--output=/dev/null", "--wrap=trap : TERM; sleep 1000").strip()
        cluster.wait_for(job, "RUNNING")
        while len(cluster.job_processes()) < 2:
            time.sleep(0.05)
        print(cluster.folder, cluster._guard.pid, *cluster.processes(), flush=True)
        time.sleep(1000)
    """
    words = [sys.executable, "-c", "\n".join(line[8:] for line in script.splitlines())]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder, *pids = process.stdout.readline().split()
        assert len(pids) >= 7 and all(_running(int(pid)) for pid in pids)  # guard, three daemons, stepd, script, sleep
        process.send_signal(signal.SIGKILL)
    assert _soon(lambda: not any(_running(int(pid)) for pid in pids))
    assert not Path(folder).exists()


def test_a_job_on_four_nodes(slurm: SlurmCluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = "srun bash -c 'echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES'"
    job = _submit(slurm, script, "--nodes=4", "--gpus-per-node=2", f"--output={out}")
    assert slurm.wait_for(job) == "COMPLETED"
    assert sorted(out.read_text().splitlines()) == [f"{node} 0,1" for node in slurm.nodes]
    assert _soon(lambda: not slurm.job_processes())


def test_the_users_environment(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SBATCH_PARTITION", "SQUEUE_FORMAT"):
        monkeypatch.setenv(name, "nonsense")
    assert {name for name in slurm.env if name.startswith(("SLURM", "SBATCH", "SQUEUE"))} == {"SLURM_CONF"}
    assert slurm.env["PATH"].split(":")[0] == str(slurm.folder / "bin")
    with pytest.raises(ClusterError, match="accounting storage is disabled"):
        slurm.sh("sacct")


def test_states_and_limits(slurm: SlurmCluster) -> None:
    job = _submit(slurm, "sleep 1000")
    assert slurm.wait_for(job, "RUNNING") == "RUNNING"
    slurm.end_in(job, 90)
    assert slurm.sh("squeue", "-h", "-j", job, "-o", "%l").strip() in {"1:00", "2:00", "3:00"}
    slurm.restore_limit(job, 10)
    assert slurm.sh("squeue", "-h", "-j", job, "-o", "%l").strip() == "10:00"
    with pytest.raises(ClusterError, match=r"should be PENDING, not within 0\.3 s; seen: RUNNING at 0\.\d s"):
        slurm.wait_for(job, "PENDING", limit_s=0.3)
    slurm.sh("scancel", job)
    with pytest.raises(ClusterError, match="ended otherwise; seen: .*CANCELLED"):
        slurm.wait_for(job, ("COMPLETED", "FAILED"))
    assert slurm.state(1) == ""
    with pytest.raises(ClusterError, match="invalid partition"):
        _submit(slurm, "true", "--partition=nowhere")


@pytest.mark.slow
def test_a_killed_node_requeues_its_job(slurm: SlurmCluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = 'echo "attempt ${SLURM_RESTART_COUNT:-0}"; [ -n "$SLURM_RESTART_COUNT" ] || srun sleep 1000'
    job = _submit(slurm, script, "--nodes=4", "--requeue", f"--output={out}", "--open-mode=append")
    slurm.wait_for(job, "RUNNING")
    victim = slurm.nodes[2]
    assert _soon(lambda: all(slurm.job_processes(node) for node in slurm.nodes))
    with pytest.raises(ClusterError, match="is running"):
        slurm.start_node(victim)
    slurm.kill_node(victim)
    assert not slurm.processes(victim)
    assert all(slurm.job_processes(node) for node in slurm.nodes if node != victim)
    slurm.set_down(victim)  # else 15 s later
    assert slurm.wait_for(job, "PENDING") == "PENDING"  # requeued
    assert slurm.node_states()[victim].startswith("down")
    slurm.start_node(victim)
    assert slurm.wait_for(job) == "COMPLETED"
    assert slurm.restarts(job) == 1
    lines = [line for line in out.read_text().splitlines() if line.startswith("attempt")]
    assert lines == ["attempt 0", "attempt 1"]


@pytest.mark.slow
def test_the_high_partition_preempts_and_tells(slurm: SlurmCluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = f'[ -z "$SLURM_RESTART_COUNT" ] || exit 0; trap "echo told" USR2; {LOOP}'
    options = ("--nodes=4", "--exclusive", "--requeue", "--signal=B:USR2@10", f"--output={out}", "--open-mode=append")
    job = _submit(slurm, script, *options)
    slurm.wait_for(job, "RUNNING")
    assert _soon(out.exists)
    rival = _submit(slurm, "true", "--nodes=4", "--exclusive", "--partition=high")
    assert _soon(lambda: "told" in out.read_text())
    assert slurm.state(rival) == "PENDING"  # the grace of 10 s
    assert slurm.wait_for(rival) == "COMPLETED"
    assert slurm.wait_for(job) == "COMPLETED"
    assert slurm.restarts(job) == 1


@pytest.mark.slow
def test_reset_clears_up(slurm: SlurmCluster) -> None:
    deaf = _submit(slurm, f"srun bash -c 'trap : TERM; {LOOP}'", "--nodes=4")
    assert _soon(lambda: all(slurm.job_processes(node) for node in slurm.nodes))
    waiting = _submit(slurm, "true", "--begin=now+1hour")
    slurm.kill_node(slurm.nodes[1])
    os.kill(slurm._daemons[f"slurmd-{slurm.nodes[2]}"].pid, signal.SIGKILL)  # its part of the job goes on
    assert slurm.job_processes(slurm.nodes[2])
    slurm.sh("scontrol", "update", f"NodeName={slurm.nodes[3]}", "State=DRAIN", "Reason=test")
    slurm.reset()
    assert set(slurm.node_states().values()) == {"idle"} and not slurm.job_processes()
    assert {slurm.state(deaf), slurm.state(waiting)} == {"CANCELLED"}
