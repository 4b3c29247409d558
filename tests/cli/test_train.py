"""``marc-train`` as a person meets it: help, settings, mistakes, a run, a stop."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from marc_dist.cli import launch, train, tune
from marc_dist.config import Config, build, dump_yaml, list_presets, load_config, load_yaml

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "data.image_size=32",
    "data.num_workers=0",
    "model.backbone=test_resnet",
    "model.pretrained=false",
    "model.head_hidden=8",
    "model.head_dim=4",
    "train.global_batch=4",
    "train.device=cpu",
    "train.log_every=1",
]


def test_print_and_schema_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from marc_dist.cli import train, launch\n"
        "assert train.main(['--schema']) == 0 and train.main(['--print']) == 0\n"
        "assert launch.main(['local', '--print']) == 0\n"
        "heavy = {'torch', 'timm', 'numpy', 'rich', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("command", ["train", "launch"])
def test_help_needs_nothing(command: str) -> None:
    code = (
        "import sys\n"
        f"from marc_dist.cli import {command}\n"
        "try:\n"
        f"    {command}.main(['--help'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "assert not {'torch', 'pydantic', 'yaml', 'rich'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_print_is_a_run_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["loss.tau=0.07", "--print", "train.run_dir=runs/x"]) == 0
    path = tmp_path / "run.yaml"
    path.write_text(capsys.readouterr().out)
    assert build(Config, load_yaml(path)) == build(Config, {"loss.tau": 0.07, "train.run_dir": "runs/x"})
    assert train.main([str(path), "--print", "loss.alpha=0"]) == 0
    again = capsys.readouterr().out
    assert "tau: 0.07" in again
    assert "alpha: 0.0" in again


@pytest.mark.parametrize("name", list_presets("recipes"))
def test_a_bare_name_is_a_recipe(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = ROOT / "recipes" / f"{name}.yaml"
    config = load_config(recipe, ["loss.tau=0.2"])
    assert not [key for key in config.unread() if key != "loss.tau"]
    head = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
    assert any(line.startswith("# For: ") for line in head) and any(
        line.startswith("# Cost and gain: ") for line in head
    )
    assert any(line.startswith(f"#   marc-train {name} ") for line in head)
    assert re.search(rf"^recipes.*\n.*\b{name}\b", train.words.EPILOG, re.M)
    for main, words in ((train.main, [name]), (launch.main, ["local", "train", name]), (launch.main, ["local", name])):
        assert main([*words, "loss.tau=0.2", "--print"]) == 0
        assert dump_yaml(config, comments=True) in capsys.readouterr().out
    assert tune.main(["macl", name, "loss.tau=0.2", "--print"]) == 0
    first = capsys.readouterr().out
    assert tune.main([name, "loss.tau=0.2", "--print"]) == 0
    assert capsys.readouterr().out == first
    assert f"freeze: {config.model.freeze}\n" in first and f"epochs: {config.train.epochs}\n" in first
    (tmp_path / name).write_text("loss: {tau: 0.3}\n")  # a file goes before
    assert train.main([name, "--print"]) == 0
    assert "tau: 0.3 " in capsys.readouterr().out


def test_schema_knows_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$defs"]["LossConfig"]["properties"]["tau"]["exclusiveMinimum"] == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss.tua=1"], "loss.tua: unknown key; did you mean loss.tau?"),
        (["loss.tau=0"], "loss.tau: expected greater than 0, got 0"),
        (["loss.tau=-1", "optim.lr=x"], "optim.lr: expected a valid number"),
        (["none.yaml"], "none.yaml: no such file"),
        (["haed"], "haed: no such run folder, run file or recipe; did you mean head?; recipes: head, head-then-all, "),
        (["runs/head"], "runs/head: no such file"),
        (["data.dir=nowhere"], "nowhere"),
        (["a", "b"], "expected one run folder or file"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert train.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("marc-train: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("env", "message"),
    [({"WORLD_SIZE": "0", "RANK": "0"}, "WORLD_SIZE: expected at least 1"), ({"RANK": "1"}, "WORLD_SIZE is not")],
)
def test_a_broken_environment_is_one_line(
    env: dict[str, str], message: str, sample_dir: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert train.main([f"data.dir={sample_dir}", f"train.run_dir={tmp_path}/run"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_unknown_backbone_is_one_line_and_leaves_nothing(
    sample_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MARC_FAILURE_FILE", str(tmp_path / "failure"))  # a launcher listens
    words = [f"data.dir={sample_dir}", f"train.run_dir={tmp_path}/run", *SMALL]
    words[words.index("model.backbone=test_resnet")] = "model.backbone=resnet81"
    assert train.main(words) == 2
    text = "model.backbone: timm has no model named 'resnet81'; did you mean resnet18?"
    assert capsys.readouterr().err == f"marc-train: error: {text}\n"
    assert json.loads((tmp_path / "failure").read_text())["error"] == text
    assert not (tmp_path / "run").exists()


def test_a_run_stops_at_a_signal_and_goes_on_from_its_folder(
    sample_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    metrics = run / "metrics.jsonl"

    def ask() -> None:
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.read_text().count("\n") > 2) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        thread = threading.Thread(target=ask)
        thread.start()
        code = train.main([f"data.dir={sample_dir}", f"train.run_dir={run}", "train.epochs=1000", *SMALL])
        thread.join()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 85
    assert "asked to stop (SIGTERM): saved after step" in capfd.readouterr().err
    step = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert (run / "checkpoints" / f"step-{step:08d}.pt").is_file()
    assert not (run / "encoder.safetensors").exists()

    assert train.main([str(run), "optim.lr=0.5"]) == 2
    assert "optim.lr was 0.001, now 0.5" in capfd.readouterr().err
    assert train.main([str(run), f"train.max_steps={step + 2}"]) == 0
    assert f"going on after step {step}" in capfd.readouterr().err
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, step + 3))
    assert (run / "encoder.safetensors").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("out", ["stderr", "both"])
def test_a_full_disk_of_the_log_keeps_the_exit_code(out: str) -> None:
    command = [sys.executable, "-m", "marc_dist.cli.train", "loss.tua=1"]
    with Path("/dev/full").open("w") as full:
        streams = {"stderr": full} | ({"stdout": full} if out == "both" else {})
        assert subprocess.run(command, check=False, timeout=60, **streams).returncode == 2  # type: ignore[call-overload]
