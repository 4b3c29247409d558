"""A real Ray cluster of two nodes on this machine: one head, one more raylet, in a folder of its own.

    with RayCluster() as cluster:
        cluster.address             # HOST:PORT
        cluster.kill_node()         # the second node, without a word
        cluster.add_node()          # and it is back

Nothing phones home, nothing is shared with another Ray on the machine, and nothing is left.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

try:
    import ray  # noqa: F401
except ImportError:
    if os.environ.get("CI"):
        raise
    pytest.skip("needs Ray: pip install ray", allow_module_level=True)

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_enable_metrics_collection": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
OBJECT_STORE = 80_000_000  # bytes, of /dev/shm; the smallest that Ray takes
GONE_S = 15.0


def pids_that_name(text: str) -> list[int]:
    """Processes, zombies aside, with ``text`` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in command:
                found.append(int(entry.name))
    return found


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def parent_of(pid: int) -> int:
    """The process that has started this one; 0 when it has gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


class RayCluster:
    """A cluster, up inside ``with``.

    Args:
        cpus: of each node; as many as you say, whatever the machine has.
    """

    def __init__(self, cpus: int = 2) -> None:
        self.cpus = cpus
        self.folder = Path(tempfile.mkdtemp(prefix="mray-", dir="/tmp"))  # short: it holds Unix sockets
        self._patch = pytest.MonkeyPatch()
        self._cluster: Any = None
        self._second: Any = None

    @property
    def address(self) -> str:
        """Of its head."""
        return str(self._cluster.address)

    def __enter__(self) -> RayCluster:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            self._patch.delenv(name)
        for name, value in {**SETTINGS, "RAY_TMPDIR": str(self.folder)}.items():
            self._patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        head = {"num_cpus": self.cpus, "node_name": "one", "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args={**head, "object_store_memory": OBJECT_STORE})
        self.add_node()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cluster.shutdown()
        self._patch.undo()
        deadline = time.monotonic() + GONE_S
        while (left := pids_that_name(str(self.folder))) and time.monotonic() < deadline:
            time.sleep(0.1)
        shutil.rmtree(self.folder, ignore_errors=True)
        assert not left, f"Ray left processes behind: {left}"

    def actors(self, name: str) -> list[int]:
        """Processes of this cluster's actors of a class: their names say nothing of the cluster, their raylets do."""
        raylets = pids_that_name(str(self.folder))
        return [pid for pid in pids_that_name(f"ray::{name}") if parent_of(pid) in raylets]

    def add_node(self) -> None:
        """The second node, ``two``."""
        self._second = self._cluster.add_node(
            num_cpus=self.cpus, node_name="two", object_store_memory=OBJECT_STORE, wait=False
        )

    def kill_node(self) -> None:
        """Kill the second node's raylet; Ray is not told."""
        self._cluster.remove_node(self._second, allow_graceful=False)
