"""``python -m marc_dist.tuning.allocation JOB_DIR WORD ...``: one task a node of a Slurm allocation that tunes.

On one node it runs ``marc-tune WORD ...``, whose trials are processes of that node and start sooner than on Ray. On
several the first task starts a Ray head, waits until every node has joined, and runs ``marc-tune WORD ... --address
HEAD``; the others lend their node until the first one is done. Ray's own way (``ray symmetric-run``) refuses a node
where another Ray runs, waits 30 s and no longer, and hides workers that fail (``docs/design.md``).

Nobody else may use this Ray: the nodes share a token, which only the job's owner can read. A start that Slurm ends
(preemption, time limit) ends with code 85, and the next one goes on with the same search.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from marc_dist.cluster.local import visible_gpus
from marc_dist.cluster.rank_process import num_cores
from marc_dist.config import EXIT_USER, LaunchError
from marc_dist.files import write_atomic
from marc_dist.place import candidates, place_from_env
from marc_dist.run.exit_codes import EXIT_INTERRUPTED, EXIT_REQUEUE
from marc_dist.run.rank_ends import failures_noted

JOIN_S = 180.0
"""Longest wait for the nodes of an allocation; a busy file system takes a minute to load Ray."""
LEAVE_S = 20.0
POLL_S = 0.5
OBJECT_STORE = 80_000_000  # bytes; nothing of ours passes through it


class _Asked(Exception):  # noqa: N818 - it is a request, not an error
    """Slurm wants this task to end."""


def _raise(number: int, frame: FrameType | None) -> None:
    raise _Asked


class Allocation:
    """This task's part.

    Args:
        job_dir: shared by all nodes.
        env: Slurm's variables.
    """

    def __init__(self, job_dir: Path, env: Mapping[str, str]) -> None:
        self.job_dir = job_dir
        here = place_from_env(env)
        self.rank, self.world = here.rank, here.world
        job = env.get("SLURM_JOB_ID", os.getpid())
        start = f"{job}-{env.get('SLURM_RESTART_COUNT') or 0}"
        self.file = job_dir / "logs" / f".ray-{start}.json"
        self.over = job_dir / "logs" / f".ray-{start}.over"
        self.token = job_dir / "logs" / f".ray-{start}.token"
        folder = Path(tempfile.gettempdir())
        self.temporary = folder / f"marc-ray-{os.getuid()}-{start}"
        self.left = [path for path in folder.glob(f"marc-ray-{os.getuid()}-{job}-*") if path != self.temporary]
        if self.rank == 0:
            self.left += (job_dir / "logs").glob(f".ray-{job}-*")
        self.ray: subprocess.Popen[bytes] | None = None
        self.env = {
            **{key: value for key, value in env.items() if not key.startswith("RAY_")},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_enable_metrics_collection": "0",
        }
        self.cpus = int(env.get("SLURM_CPUS_PER_TASK") or num_cores())
        self.gpus = visible_gpus(env)

    def sweep(self) -> None:
        """Remove what an earlier start has left that was killed before it could: tokens, Ray's own files."""
        for path in self.left:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def lead(self, words: Sequence[str]) -> int:
        """Tune, on several nodes once they have joined a Ray; the exit code of ``marc-tune``."""
        if self.world == 1:
            return self._tune(words)
        address = self._head()
        try:
            self._wait_for_nodes(address)
            return self._tune([*words, "--address", address])
        finally:
            self.over.touch()

    def _tune(self, words: Sequence[str]) -> int:
        tuning = subprocess.Popen([sys.executable, "-u", "-m", "marc_dist.cli.tune", *words], env=self.env)
        try:
            while (code := tuning.poll()) is None:
                self._see_that_ray_runs()
                time.sleep(POLL_S)
            return code
        finally:
            if tuning.poll() is None:
                tuning.terminate()
                with suppress(subprocess.TimeoutExpired):
                    tuning.wait(LEAVE_S)
                tuning.kill()

    def _head(self) -> str:
        self.token.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(self.token, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:  # noqa: PTH123
            file.write(secrets.token_hex(32))
        host = (candidates(self.env) or [socket.gethostbyname(socket.gethostname())])[0]
        with socket.create_server(("", 0)) as free:
            port = free.getsockname()[1]
        own = ["--head", f"--port={port}", f"--node-ip-address={host}", "--include-dashboard=false"]
        self._start(*own, f"--temp-dir={self.temporary}")
        address = f"{host}:{port}"
        deadline = time.monotonic() + JOIN_S
        while not self._health(address):
            self._see_that_ray_runs()
            if time.monotonic() > deadline:
                raise LaunchError(f"the Ray head on {host} does not answer within {JOIN_S:g} s; see {self._log()}")
        write_atomic(self.file, json.dumps({"address": address}).encode())
        return address

    def follow(self) -> int:
        """Lend this node until the search is over."""
        deadline = time.monotonic() + JOIN_S
        address = ""
        while not address:
            with suppress(OSError, ValueError, KeyError):
                address = str(json.loads(self.file.read_text())["address"])
            if self.over.exists():
                return 0
            if time.monotonic() > deadline:
                raise LaunchError(f"{self.file}: not there within {JOIN_S:g} s; the first node did not start Ray")
            time.sleep(POLL_S)
        self._start(f"--address={address}")
        while not self.over.exists():
            self._see_that_ray_runs()
            time.sleep(POLL_S)
        return 0

    def _start(self, *words: str) -> None:
        size = [f"--num-cpus={self.cpus}", f"--num-gpus={self.gpus}", f"--object-store-memory={OBJECT_STORE}"]
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            *words,
            *size,
            "--disable-usage-stats",
            "--block",
        ]
        with self._log().open("ab") as log:
            self.ray = subprocess.Popen(
                command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _log(self) -> Path:
        return self.job_dir / "logs" / f"ray-{self.rank}.log"

    def _health(self, address: str) -> bool:
        words = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
        with suppress(subprocess.TimeoutExpired):
            done = subprocess.run(words, env=self.env, capture_output=True, timeout=30, check=False)
            return done.returncode == 0
        return False

    def _wait_for_nodes(self, address: str) -> None:
        os.environ.update(self.env)
        from marc_dist.cluster.ray import connected

        with connected(address, JOIN_S) as ray:
            deadline = time.monotonic() + JOIN_S
            while (there := sum(node["Alive"] for node in ray.nodes())) < self.world:
                self._see_that_ray_runs()
                if time.monotonic() > deadline:
                    raise LaunchError(
                        f"{there} of {self.world} nodes joined Ray within {JOIN_S:g} s; see {self.job_dir}/logs"
                    )
                time.sleep(POLL_S)

    def _see_that_ray_runs(self) -> None:
        if self.ray is not None and self.ray.poll() is not None:
            raise LaunchError(f"Ray on {socket.gethostname()} ended with code {self.ray.returncode}; see {self._log()}")

    def close(self) -> None:
        """End all of this node's Ray and remove its files; the token first: there may be little time."""
        if self.rank == 0:
            self.token.unlink(missing_ok=True)
        if self.ray is not None:
            self.ray.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.ray.wait(LEAVE_S)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.ray.pid, signal.SIGKILL)
        shutil.rmtree(self.temporary, ignore_errors=True)  # Ray uses the head's path on every node


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code of this task."""
    job_dir, *words = sys.argv[1:] if argv is None else argv
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, _raise)
    allocation: Any = None
    try:
        with failures_noted():
            allocation = Allocation(Path(job_dir), os.environ)
            allocation.sweep()
            code = allocation.lead(words) if allocation.rank == 0 else allocation.follow()
            return EXIT_REQUEUE if code == EXIT_INTERRUPTED else code
    except _Asked:
        return EXIT_REQUEUE
    except LaunchError as error:
        print(f"marc-tune: error: {error}", file=sys.stderr, flush=True)
        return 1
    except OSError as error:
        print(f"marc-tune: error: {error}", file=sys.stderr, flush=True)
        return EXIT_USER
    finally:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        if allocation is not None:
            allocation.close()


if __name__ == "__main__":
    sys.exit(main())
