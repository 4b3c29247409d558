"""Completion as a shell does it: bash sources the scripts and is asked for the last word of a line."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from marc_dist.cli import COMMANDS, completion

ASK = r"""
source "$1/$2"
shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
spec=$(complete -p "$1"); function=${spec#* -F }; function=${function%% *}
"$function" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}" || exit
printf '%s\n' "${COMPREPLY[@]}"
"""
bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completions")
    assert completion.main(["bash", str(folder / "bash")]) == 0
    assert completion.main(["zsh", str(folder / "zsh")]) == 0
    return folder


def offered(scripts: Path, line: str, cwd: Path) -> set[str]:
    words = ["bash", "--norc", "-c", ASK, "ask", str(scripts / "bash"), *line.split(" ")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return set(done.stdout.split())


@bash
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("marc-jobs ", {"list", "status", "logs", "cancel", "resume"}),
        ("marc-jobs st", {"status"}),
        ("marc-jobs logs --", {"--help", "--follow", "--rank", "--lines"}),
        ("marc-jobs status --j", {"--json"}),
        ("marc-jobs status ru", {"runs"}),
        ("marc-jobs resume runs cluster.part", {"cluster.partition="}),
        ("marc-train --p", {"--print", "--profile"}),
        ("marc-train run", {"runs", "run.yaml"}),
        ("marc-train run.yaml loss.ta", {"loss.tau="}),
        ("marc-launch --nodes 4 slurm-p", {"slurm-preemptible"}),
        ("marc-launch local tu", {"tune"}),
        ("marc-tune --executor l", {"local"}),
        ("marc-tune surf", {"surface"}),
        ("marc-train head", {"head", "head-then-all"}),
        ("marc-study sm", {"smoke"}),
        ("marc-study smoke --on slurm-p", {"slurm-preemptible"}),
        ("marc-launch local scr", {"scratch"}),
        ("marc-eval runs --protocol tr", {"transfer"}),
        ("marc-eval runs loss.t", set()),
        ("marc-eval --data r", {"runs"}),
        ("marc-search runs --index-o", {"--index-only"}),
        ("marc-shard --dataset whd", {"whdld"}),
        ("marc-shard --labels m", {"masks"}),
    ],
)
def test_bash_completes(line: str, words: set[str], scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "run.yaml").touch()
    assert offered(scripts, line, tmp_path) == words


@bash
@pytest.mark.parametrize(
    ("typed", "word"),
    [("marc-train loss.ta\t0.07\n", "loss.tau=0.07"), ("marc-train runs/i\tx.yaml\n", "runs/inner/x.yaml")],
)
def test_a_person_types_on_after_what_was_completed(typed: str, word: str, scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "inner").mkdir(parents=True)
    terminal, inside = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "--norc", "-i"], stdin=inside, stdout=inside, stderr=inside, cwd=tmp_path, start_new_session=True,
        env={"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(tmp_path)},
    )  # fmt: skip
    os.close(inside)
    show = "marc-train() { printf '<%s>' \"$@\"; }"
    os.write(terminal, f"source {scripts}/bash/marc-train; {show}\n{typed}".encode())
    seen, deadline = "", time.monotonic() + 30
    try:
        while f"<{word}>" not in seen and time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.1)[0]:
                seen += os.read(terminal, 4096).decode(errors="replace")
        assert f"<{word}>" in seen
    finally:
        shell.kill()
        shell.wait()
        os.close(terminal)


def test_every_command_has_a_script_for_each_shell(scripts: Path) -> None:
    assert {path.name for path in (scripts / "bash").iterdir()} == {f"marc-{name}" for name in COMMANDS}
    assert {path.name for path in (scripts / "zsh").iterdir()} == {f"_marc-{name}" for name in COMMANDS}
    for name in COMMANDS:
        assert (scripts / "zsh" / f"_marc-{name}").read_text().startswith(f"#compdef marc-{name}\n")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
@pytest.mark.parametrize("command", COMMANDS)
def test_zsh_can_read_the_scripts(command: str, scripts: Path) -> None:
    subprocess.run(["zsh", "-n", str(scripts / "zsh" / f"_marc-{command}")], check=True)
