"""What every command shares: help that fits a terminal, the version, entry points, and names that saved jobs call."""

from __future__ import annotations

import os
import re
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
