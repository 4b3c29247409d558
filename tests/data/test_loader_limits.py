"""Loader processes that get no memory, or lose their server: one line with what helps, in processes of their own."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys, time
import torch
from marc_dist.config import LaunchError
from marc_dist.data.loader_pool import Pool, Tasks, forkserver

class Sized(Tasks):
    def build(self, *task):
        time.sleep(0.05)
        return torch.zeros(task[0])

if __name__ == "__main__":
    what, numbers = sys.argv[1], int(sys.argv[2])
    pool = Pool(Sized(), 1)
    try:
        for number, _ in enumerate(pool.run([(numbers,)] * 100_000)):
            if number == 2 and what == "kill":
                os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    except LaunchError as error:
        print("told:", error)
    pool.close()
"""
NAMESPACE = ["unshare", "-rm"]
SMALL_SHM = "mount -t tmpfs -o size=2m tmpfs /dev/shm && exec "


def allowed() -> bool:
    """Whether this user may have a mount of its own."""
    if shutil.which("unshare") is None:
        return False
    words = [*NAMESPACE, "sh", "-c", SMALL_SHM + "true"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def run(tmp_path: object, *words: str, before: tuple[str, ...] = ()) -> str:
    script = f"{tmp_path}/script.py"
    with open(script, "w") as file:  # noqa: PTH123
        file.write(SCRIPT)
    command = [sys.executable, script, *words]
    if before:
        command = [*before, "sh", "-c", SMALL_SHM + '"$@"', "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return line


@pytest.mark.skipif(sys.platform != "linux" or not allowed(), reason="needs a mount of its own")
def test_a_small_shm_is_named_with_its_size(tmp_path: object) -> None:
    told = run(tmp_path, "shm", "1000000", before=tuple(NAMESPACE))
    assert told.startswith("told: /dev/shm holds 2 MB, too little for the batches") and "--shm-size" in told
    assert "data.num_workers=0" in told


def test_a_killed_server_of_the_loader_is_named(tmp_path: object) -> None:
    told = run(tmp_path, "kill", "10")
    assert told.startswith("told: the server of the loader processes") and "start the same command again" in told
