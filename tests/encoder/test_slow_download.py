"""Weights that come slowly from a hub, here a real HTTP server: a run waits as long as something arrives."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import timm
from safetensors.torch import save

pytestmark = pytest.mark.slow
FILE = "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
TIMEOUT_S = 5.0


class SlowHub:
    """A hub that has one file and hands it out in parts.

    Args:
        lasts_s: for the whole file, in seconds.
        stalls: after half of it.
    """

    def __init__(self, lasts_s: float, stalls: bool) -> None:
        data, lasts, over = save(timm.create_model("test_resnet").state_dict()), lasts_s, threading.Event()

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Nothing on the terminal of the tests."""

            def _begin(self) -> bool:
                there = self.path == FILE
                self.send_response(200 if there or self.path == "/" else 404)
                self.send_header("ETag", '"0123456789abcdef"')
                self.send_header("X-Repo-Commit", "c" * 40)
                self.send_header("Content-Length", str(len(data) if there else 0))
                self.end_headers()
                return there

            def do_HEAD(self) -> None:  # noqa: N802 - the library's name
                self._begin()

            def do_GET(self) -> None:  # noqa: N802 - the library's name
                parts = 40 if self._begin() else 0
                for at in range(parts):
                    if stalls and at == parts // 2:
                        over.wait()
                        return
                    self.wfile.write(data[len(data) * at // parts : len(data) * (at + 1) // parts])
                    time.sleep(lasts / parts)

        self.over = over
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


def start(hub: str, folder: Path, data: Path, *command: str) -> subprocess.Popen[str]:
    """A run with a cache of its own."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    words = [
        f"data.dir={data}", "data.image_size=32", "data.num_workers=0", "data.cache=none", "model.backbone=test_resnet",
        "model.pretrained=true", "train.global_batch=8", "train.max_steps=1", "train.device=cpu",
        f"train.run_dir={folder / 'run'}", f"train.timeout_s={TIMEOUT_S:g}",
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", *command, *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_slow_download_is_progress(tiny_dir: Path, tmp_path: Path) -> None:
    """Twice ``train.timeout_s``, for one process and for two; the rank that waits for the other is not hung either."""
    commands = [["marc_dist.cli.train"], ["marc_dist.cli.launch", "--procs-per-node", "2", "local"]]
    with SlowHub(2 * TIMEOUT_S, stalls=False) as hub:
        runs = [start(hub, tmp_path / str(at), tiny_dir, *words) for at, words in enumerate(commands)]
        told = [run.communicate(timeout=120)[0] for run in runs]
    for run, text in zip(runs, told, strict=True):
        assert run.returncode == 0, text
        assert "timm/test_resnet.r160_in1k of the Hugging Face Hub, revision cccccccccccc" in text


def test_a_download_that_stands_still_is_none(tiny_dir: Path, tmp_path: Path) -> None:
    with SlowHub(2.0, stalls=True) as hub:
        run = start(hub, tmp_path, tiny_dir, "marc_dist.cli.train")
        text = run.communicate(timeout=120)[0]
    assert run.returncode == 75, text
    assert "no progress for" in text and "the network, from which weights are fetched" in text
