"""Ray as others run it: its Jobs API, packages that it installs, and a cluster that grows from nothing."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from marc_dist.run.attempts import attempts
from tests.cluster.ray_cluster import GONE_S, OBJECT_STORE, SETTINGS, pids_that_name

pytestmark = [
    pytest.mark.slow,
    pytest.mark.campaign,  # copies of the virtual environment; the port that Ray's fake provider always takes
    pytest.mark.skipif(sys.platform != "linux", reason="finds Ray's processes through /proc"),
]
RAY = ("-m", "ray.scripts.scripts")
LAUNCH = ("-m", "marc_dist.cli.launch")
WORDS = (
    "data.image_size=32", "data.num_workers=0", "data.cache=none", "model.backbone=test_resnet",
    "model.pretrained=false", "train.global_batch=8", "train.max_steps=2", "train.device=cpu",
)  # fmt: skip


def _free_ports(count: int) -> list[int]:
    """Below those that Ray gives to its workers."""
    found: list[int] = []
    for port in range(9200, 9900):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


def _soon(true: Callable[[], Any], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.2)
    return bool(true())


class Head:
    """A head that ``ray start`` has started, with a folder of its own.

    Attributes:
        env: for whatever talks to it.
    """

    def __init__(self, python: str, env: dict[str, str]) -> None:
        self.python, self.env = python, env

    def run(self, *words: str, limit_s: float = 150.0) -> subprocess.CompletedProcess[str]:
        """Python with these words."""
        command = [self.python, *words]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=limit_s)


@contextmanager
def head(python: str, port: int, *words: str, **env: str) -> Iterator[Head]:
    """A head on this port, gone after the block with all that it has started."""
    folder = Path(tempfile.mkdtemp(prefix="mray-", dir="/tmp"))  # short: it holds Unix sockets
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    full = {**kept, **SETTINGS, "RAY_TMPDIR": str(folder), "OMP_NUM_THREADS": "1", **env}
    agent, client = _free_ports(5)[3:]  # after those that a test may have taken for itself
    command = [
        python, *RAY, "start", "--head", f"--port={port}", f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}", f"--object-store-memory={OBJECT_STORE}",
        "--disable-usage-stats", "--block", *words,
    ]  # fmt: skip
    log = folder / "head.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=full, stdout=out, stderr=out, start_new_session=True)
    try:
        begun = _soon(lambda: "Ray runtime started" in log.read_text() or process.poll() is not None, 60)
        assert begun and process.poll() is None, log.read_text()
        yield Head(python, full)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GONE_S)
        process.kill()
        process.wait()
        for pid in pids_that_name(str(folder)):  # nodes that an autoscaler has started
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert _soon(lambda: not pids_that_name(str(folder)), GONE_S), "Ray left processes behind"
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.skipif(importlib.util.find_spec("aiohttp") is None, reason="Ray's dashboard: pip install 'ray[default]'")
@pytest.mark.parametrize("wait", [True, False])
def test_a_job_of_rays_jobs_api_hands_a_training_over(wait: bool, sample_dir: Path, tmp_path: Path) -> None:
    """``ray job submit`` knows the dashboard alone; the training goes on when that job is over."""
    run, (port, dashboard) = tmp_path / "run", _free_ports(2)
    words = ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    with head(sys.executable, port, "--node-ip-address=127.0.0.1", *words) as ray:
        api = f"http://127.0.0.1:{dashboard}"
        assert _soon(lambda: ray.run(*RAY, "job", "list", "--address", api).returncode == 0, 60)
        launch = [sys.executable, *LAUNCH, *(["--wait"] if wait else []), "--nodes", "1", "ray", *WORDS]
        launch += [f"data.dir={sample_dir}", f"train.run_dir={run}", "cluster.preflight=false"]
        done = ray.run(*RAY, "job", "submit", "--address", api, "--", *launch)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not wait or f"{run}: done" in done.stdout
        assert _soon(lambda: attempts(run) and attempts(run)[-1].code == 0, 60)


def _wheel(folder: Path) -> Path:
    """A package of one module, as pip wants it."""
    name = "marc_probe-1.0"
    files = {
        "marc_probe.py": b"word = 'from a wheel'\n",
        f"{name}.dist-info/METADATA": b"Metadata-Version: 2.1\nName: marc-probe\nVersion: 1.0\n",
        f"{name}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    sums = {key: base64.urlsafe_b64encode(hashlib.sha256(value).digest()).rstrip(b"=") for key, value in files.items()}
    lines = [f"{key},sha256={sums[key].decode()},{len(value)}" for key, value in files.items()]
    files[f"{name}.dist-info/RECORD"] = "\n".join([*lines, f"{name}.dist-info/RECORD,,\n"]).encode()
    path = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for key, value in files.items():
            archive.writestr(key, value)
    return path


@pytest.mark.skipif(
    importlib.util.find_spec("virtualenv") is None, reason="Ray's pip environments: pip install virtualenv"
)
def test_packages_of_a_runtime_environment_reach_a_rank(sample_dir: Path, tmp_path: Path) -> None:
    """``pip`` with a wheel that lies on the shared disk: no network. Ray copies the environment, so ours is small."""
    venv.create(tmp_path / "venv", symlinks=True)
    place = next((tmp_path / "venv/lib").glob("python3.*/site-packages"))
    (place / "all.pth").write_text(f"import site; site.addsitedir({site.getsitepackages()[0]!r})\n")
    code = "import marc_probe, sys; from pathlib import Path; Path(sys.argv[1], 'seen').write_text(marc_probe.word)"
    (port,) = _free_ports(1)
    with head(str(tmp_path / "venv/bin/python"), port, "--node-ip-address=127.0.0.1", "--num-cpus=2") as ray:
        driver = f"""
            import sys
            from pathlib import Path
            from marc_dist.cluster import ray
            from marc_dist.cluster.preset import RayPreset
            from marc_dist.run.job import new_job
            preset = RayPreset(nodes=1, procs_per_node=1, address="127.0.0.1:{port}", preflight=False,
                connect_timeout_s=90, runtime_env={{"pip": [{str(_wheel(tmp_path))!r}]}})
            job = new_job("ray", ["-c", {code!r}, {str(tmp_path)!r}], preset=preset.model_dump(mode="json"))
            ray.submit(job, preset, Path({str(tmp_path)!r}))
        """
        done = ray.run("-c", "\n".join(line[12:] for line in driver.splitlines()))
        assert done.returncode == 0, done.stdout + done.stderr
        assert _soon((tmp_path / "seen").exists, 60), [*tmp_path.glob("logs/*")]
        assert _soon(lambda: attempts(tmp_path) and attempts(tmp_path)[-1].code == 0, 30)
    assert (tmp_path / "seen").read_text() == "from a wheel"


def _address() -> str:
    """Of this machine, as Ray's stand-in for a cloud wants it."""
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())


def test_a_cluster_grows_from_nothing(sample_dir: Path, tmp_path: Path) -> None:
    """Ray's own autoscaler, with processes for machines: no node but a head without CPUs, then the two of the job.

    Ray's stand-in for a cloud looks for the head at port 6379 of this machine, whatever the port is.
    """
    with suppress(OSError), socket.create_connection((_address(), 6379), 1.0):
        pytest.skip("another Ray has port 6379 here")
    worker = {"resources": {"CPU": 1, "object_store_memory": OBJECT_STORE}, "node_config": {}, "max_workers": 2}
    provider = {key: True for key in ("use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check")}
    config: dict[str, Any] = {
        "cluster_name": "grows",
        "max_workers": 2,
        "provider": {"type": "fake_multinode", **provider},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {**worker, "min_workers": 0},
        },
        "head_node_type": "ray.head.default",
        "idle_timeout_minutes": 5,
    }
    keys = "auth docker file_mounts"
    config |= {key: {} for key in keys.split()}
    lists = "initialization setup head_setup worker_setup head_start_ray worker_start_ray"
    config |= {f"{key}_commands": [] for key in lists.split()}
    config |= {"cluster_synced_files": [], "rsync_exclude": [], "rsync_filter": []}
    (tmp_path / "cluster.json").write_text(json.dumps(config))
    run = tmp_path / "run"
    words = [f"--autoscaling-config={tmp_path / 'cluster.json'}", "--num-cpus=0", "--include-dashboard=false"]
    env = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    with head(sys.executable, 6379, *words, **env) as ray:
        launch = [*LAUNCH, "--nodes", "2", "ray", *WORDS, f"data.dir={sample_dir}", f"train.run_dir={run}"]
        launch += [f"cluster.address={_address()}:6379", "cluster.preflight=false"]
        refused = ray.run(*launch)
        assert refused.returncode == 2 and "or cluster.autoscale=true where it adds them itself" in refused.stderr
        done = ray.run(*launch[:1], launch[1], "--wait", *launch[2:], "cluster.autoscale=true")
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(attempts(run)) == 1 and attempts(run)[0].code == 0
