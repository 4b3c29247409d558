"""What every command shares: help that fits a terminal, the version, entry points, and names that saved jobs call."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from marc_dist import __version__
from marc_dist.cli import COMMANDS
from marc_dist.cli.jobs.words import ACTIONS

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = [[command] for command in COMMANDS] + [["jobs", action] for action in ACTIONS]


def answer(words: list[str], last: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        import_module(f"marc_dist.cli.{words[0]}").main([*words[1:], last])
    assert stop.value.code in (0, None)
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", ["80", "200"])
@pytest.mark.parametrize("words", ANSWERS, ids=" ".join)
def test_help_fits_80_columns(
    words: list[str], columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = answer(words, "--help", capsys)
    assert text.startswith(f"usage: marc-{' '.join(words)}")
    assert not [line for line in text.splitlines() if len(line) > 80]
    assert not [line for line in text.splitlines() if line != line.rstrip() or "\t" in line]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_the_command_does(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = answer([command], "--help", capsys)
    assert COMMANDS[command] in text and "\nexamples:\n  marc-" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_words_that_the_commands_take(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = answer([command], "--help", capsys).partition("\nexamples:\n")[2].replace("\\\n", " ")
    shown = {
        word for line in text.splitlines() if line.startswith("  marc-") for word in re.findall(r" (--[\w-]+)", line)
    }
    known = {word for name in COMMANDS for word in re.findall(r"--[\w-]+", answer([name], "--help", capsys))}
    known |= {
        word for action in ACTIONS for word in re.findall(r"--[\w-]+", answer(["jobs", action], "--help", capsys))
    }
    assert shown <= known


@pytest.mark.parametrize("command", COMMANDS)
def test_version(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer([command], "--version", capsys) == f"marc-dist {__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_the_version_and_the_commands_are_written_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "marc_dist/__init__.py"
    assert project["project"]["scripts"] == {f"marc-{name}": f"marc_dist.cli.{name}:main" for name in COMMANDS}


@pytest.mark.parametrize("module", [*COMMANDS, "evaluate"])
def test_saved_jobs_find_the_command_by_its_module(module: str) -> None:
    words = [sys.executable, "-m", f"marc_dist.cli.{module}", "--no-such-option"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"})
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: marc-{'eval' if module == 'evaluate' else module} "), done.stderr


JOB = """
import sys
from pathlib import Path
from marc_dist.cli.command import run_command
from marc_dist.cluster.local import LocalJob
from marc_dist.cluster.preset import LocalPreset
rank = [
    sys.executable, "-S", "-c",
    "import sys, time; [(print(i, flush=True), time.sleep(0.01)) for i in range(100)];"
    "open(sys.argv[1], 'w'); sys.exit(int(sys.argv[2]))",
]
def body():
    log_dir = Path(sys.argv[1])
    return LocalJob([*rank, str(log_dir / "done"), sys.argv[2]], log_dir, LocalPreset(), 1, sys.stdout.buffer).run()
sys.exit(run_command("marc-launch", body))
"""


@pytest.mark.parametrize(("code", "both"), [(0, ""), (0, "2>&1"), (3, "")])
def test_a_job_whose_reader_has_left_goes_on_and_ends_quietly(code: int, both: str, tmp_path: Path) -> None:
    """``marc-launch local ... | head -1``."""
    line = f'"$0" -c "$1" "$2" {code} {both} | head -1; echo "${{PIPESTATUS[0]}}"'
    words = ["bash", "-c", line, sys.executable, JOB, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"0\n{1 if code else 0}\n"
    assert (tmp_path / "done").exists() and (tmp_path / "rank-0.log").read_text().endswith("99\n")
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert ("rank 0 of 1 failed first" in done.stderr) == bool(code)


@pytest.mark.parametrize("words", ["train --schema", "launch local --print", "train --print"])
def test_a_reader_may_leave_after_one_line(words: str) -> None:
    line = f"{sys.executable} -m marc_dist.cli.{words} | head -1 > /dev/null; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "says", ["raise", "raise ImportError('initialization failed')", "raise SystemError('x') from None"]
)
def test_ctrl_c_while_torch_is_loaded_is_one_line(says: str, tmp_path: Path) -> None:
    """A torch that takes its time; its C parts make other errors of Ctrl-C."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(
        f"import time\nprint('loading', flush=True)\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    {says}\n"
    )
    words = [sys.executable, "-m", "marc_dist.cli.train", f"data.dir={tmp_path}", f"train.run_dir={tmp_path}/run"]
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None and process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "marc-train: interrupted\n")
