"""Mirrors in W&B and MLflow: their real libraries without network, one run through every resume, and faults that no
training notices."""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from marc_dist.cli import launch
from marc_dist.config import Config, ConfigError, build, flatten
from marc_dist.run.folder import read_lines, write_config
from marc_dist.training import trainer
from marc_dist.training.trackers import mirrors, process
from marc_dist.training.trackers.mirrors import Mirrors
from marc_dist.training.trackers.process import Mirroring, Mlflow
from tests.training.test_trainer import _words

NOBODY = "http://127.0.0.1:9"  # the port of a service that nobody runs


def _config(run: Path, *names: str, **more: Any) -> Config:
    config = build(Config, {"train.run_dir": str(run), "train.trackers": list(names), **more})
    write_config(config)
    return config


def _figures(step: int) -> str:
    return json.dumps({"step": step, "at": time.time(), "figures": {"train/loss": 0.5}})


def test_a_run_is_mirrored_and_keeps_its_ids(
    small_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_BASE_URL", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(mirrors, "END_S", 120.0)  # MLflow makes its database, which takes long on a busy machine
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    (tmp_path / "settings").write_text(f"[default]\nbase_url = {NOBODY}\n")  # as wandb login --host writes it
    run = tmp_path / "run"
    words = _words(small_dir, run, train__max_steps=2, data__validation_share=0.3)
    trainer.train(build(Config, words | {"train.trackers": ["wandb", "mlflow"]}))
    trainer.train(build(Config, words | {"train.trackers": ["wandb"], "train.max_steps": 4}))
    err = capfd.readouterr().err
    assert f"wandb: offline ({NOBODY} does not answer" in err
    assert f"to upload later: wandb sync {run}/wandb/offline-run-*\n" in err
    assert "mlflow: " not in err

    name = json.loads((run / "trackers/wandb.json").read_text())["id"]
    files = sorted(run.glob(f"wandb/offline-run-*-{name}/run-{name}.wandb"))
    assert len(files) == len(list(run.glob("wandb/offline-run-*"))) == 2
    for file in files:
        data = file.read_bytes()
        assert all(key in data for key in (b"train/loss", b"validation/nDCG@10", b"loss.tau"))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SQLAlchemy, about MLflow
        import mlflow

        client = mlflow.MlflowClient(f"sqlite:///{run}/mlruns/mlflow.db")
        (found,) = client.search_runs([client.get_experiment_by_name("marc-dist").experiment_id])
        assert found.info.run_id == json.loads((run / "trackers/mlflow.json").read_text())["id"]
        assert found.info.status == "FINISHED"
        config = build(Config, words | {"train.trackers": ["wandb", "mlflow"]})
        plain = json.loads(json.dumps(flatten(config)))
        assert found.data.params == {key: str(value) for key, value in plain.items()}
        logged = [line for line in read_lines(run / "metrics.jsonl") if line["step"] <= 2]
        there = client.get_metric_history(found.info.run_id, "train/loss")
        assert [(point.step, point.value) for point in there] == [(line["step"], line["loss"]) for line in logged]
        assert [point.timestamp for point in there] == [round(1000 * line["time"]) for line in logged]
        scores = read_lines(run / "validation.jsonl")[0]
        assert found.data.metrics["validation/nDCG_at_10"] == scores["nDCG@10"]
        # the same run again, in this process
        said: list[str] = []
        Mirroring(Mlflow(run, config, said.append), said.append).follow([_figures(3), '{"done": false}'])
        (found,) = client.search_runs([found.info.experiment_id])
        assert [point.step for point in client.get_metric_history(found.info.run_id, "train/loss")] == [1, 2, 3]
        assert (found.info.status, said) == ("KILLED", [])

        # a full pipe loses log lines, never the end
        monkeypatch.setattr(mirrors, "QUEUE_BYTES", 4096)
        mirror = Mirrors(_config(run, "mlflow"), said.append)
        for step in range(500):  # its process still starts
            mirror.send(step, 1.0, {})
        mirror.close(done=True)
        assert len(said) == 1 and "log lines were not mirrored" in said.pop()
        assert client.get_run(found.info.run_id).info.status == "FINISHED"

        # a first start whose settings could not be logged: the next one goes on with its run
        monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "false")
        (run / "trackers/mlflow.json").unlink()
        for share in ("x" * 7000, config.data.dir):
            changed = build(Config, words | {"data.dir": share, "train.trackers": ["mlflow"]})
            Mirroring(Mlflow(run, changed, said.append), said.append).follow(['{"done": true}'])
        assert len(said) == 1 and said[0].startswith("not mirrored: ")
        both = client.search_runs([found.info.experiment_id])
        (second,) = (one for one in both if one.info.run_id != found.info.run_id)
        assert second.data.params["loss.tau"] == found.data.params["loss.tau"]
        assert (second.data.params["data.dir"], second.info.status) == (config.data.dir, "FINISHED")
        said.clear()

        # and a server that nobody runs: one line, what was lost, and no exception
        monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        gone = _config(tmp_path / "gone", "mlflow")
        Mirroring(Mlflow(tmp_path / "gone", gone, said.append), said.append).follow([_figures(1), '{"done": true}'])
        assert len(said) == 2 and said[0].startswith("not mirrored: ") and "\n" not in said[0]
        assert said[1] == "1 log lines were not mirrored"


class _Moody:
    """A tracker whose methods fail as often as told."""

    def __init__(self, **faults: int) -> None:
        self.faults, self.steps, self.done = faults, list[int](), list[bool]()

    def _fail(self, name: str) -> None:
        if self.faults.get(name, 0):
            self.faults[name] -= 1
            raise RuntimeError(f"{name} failed\nat length")

    def open(self) -> None:
        self._fail("open")

    def log(self, step: int, at: float, figures: dict[str, float]) -> None:
        self._fail("log")
        self.steps.append(step)

    def close(self, done: bool) -> None:
        self._fail("close")
        self.done.append(done)


def test_a_fault_is_told_once_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, said = _Moody(open=1, log=1), list[str]()
    messages = [*map(_figures, range(1, 5)), '{"done": true}']
    Mirroring(tracker, said.append).follow(messages)
    assert tracker.steps == [] and tracker.done == []  # the next try comes after a minute
    assert said == [
        "not mirrored: open failed; the run goes on, and this is tried again",
        "4 log lines were not mirrored",
    ]
    monkeypatch.setattr(process, "RETRY_S", 0.0)
    tracker = _Moody(open=2, log=1, close=1)
    Mirroring(tracker, said.append).follow(messages)
    assert tracker.steps == [3, 4]
    assert said[2:] == [said[0], "2 log lines were not mirrored"]


@pytest.mark.alone
def test_a_run_waits_for_no_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server never answers; at the end it has half of ``train.timeout_s``, before the watchdog ends the run."""
    monkeypatch.setattr(mirrors, "QUEUE_BYTES", 4096)
    said: list[str] = []
    server = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
    found = Mirrors(_config(tmp_path, "mlflow", **{"train.timeout_s": 2.0}), said.append)
    started = time.monotonic()
    for step in range(500):
        found.send(step, 1.0, {f"train/{name}": math.pi for name in range(20)})
    assert time.monotonic() - started < 0.5
    found.close(done=True)
    found.close(done=False)
    server.close()
    assert 1 <= time.monotonic() - started < 2
    killed, lost = said
    assert killed == f"mlflow: does not end, so it was killed; see {tmp_path}/logs/mlflow.log"
    assert lost.endswith(" log lines were not mirrored, its process was too slow or has ended")
    assert 480 < int(lost.split()[1]) < 500


def test_a_process_without_its_run_ends() -> None:
    """Its parent ends at once; what it would wait for is longer than this test waits for its output to end."""
    program = """
import os, threading, time
from marc_dist.training.trackers import process
process.LEFT_S, run = 0.1, os.getpid()
if os.fork() == 0:
    threading.Thread(target=process.leave_in_time, args=(run, threading.Event()), daemon=True).start()
    print("hangs", flush=True)
    time.sleep(60)
time.sleep(0.2)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("hangs\n", "")


def test_a_process_that_cannot_be_started(tmp_path: Path) -> None:
    said: list[str] = []
    log = tmp_path / "logs/wandb.log"
    log.mkdir(parents=True)
    found = Mirrors(_config(tmp_path, "wandb"), said.append)
    found.send(1, 1.0, {})
    found.close(done=True)
    reason = f"[Errno {errno.EISDIR}] {os.strerror(errno.EISDIR)}: '{log}'"
    assert said == [f"wandb: its process cannot be started ({reason}); the run goes on without it"]


def test_a_process_that_has_died_is_told_once(tmp_path: Path) -> None:
    said: list[str] = []
    found = Mirrors(_config(tmp_path, "wandb"), said.append)
    (tmp_path / "config.yaml").write_text("loss: {tua: 1}\n")  # so it ends at once
    found._mirrors[0]._process.wait(60)
    for step in (1, 2):
        found.send(step, 1.0, {})
    found.close(done=True)
    assert said[0].startswith("wandb: its process has ended, see ") and len(said) == 2
    assert said[1] == "wandb: 2 log lines were not mirrored, its process was too slow or has ended"


def test_a_tracker_that_is_not_installed(
    small_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(mirrors.PACKAGES, "wandb", "no-such-package-of-ours")
    words = {"data.dir": str(small_dir), "train.run_dir": str(tmp_path / "run"), "train.trackers": ["wandb"]}
    message = "train.trackers: wandb is not installed; pip install 'marc-dist[wandb]', or leave it out"
    with pytest.raises(ConfigError) as caught:
        trainer.run_rank(build(Config, words))
    assert str(caught.value) == message
    arguments = [f"data.dir={small_dir}", f"train.run_dir={tmp_path}/run", "train.trackers=[wandb]"]
    assert launch.main(["local", *arguments]) == 2
    assert capsys.readouterr().err == f"marc-launch: error: {message}\n"
    assert not list(tmp_path.iterdir())
