"""How far something long is: a line every ten seconds where nobody watches, a bar where somebody does."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from marc_dist import progress_bar
from marc_dist.progress_bar import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_ten_seconds(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress("packing", 1000) as tell:
        for done in range(0, 1000, 10):
            clock[0] += 0.5
            tell(done, done * 100_000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5  # 50 seconds
    assert lines[0] == "packing: 190 of 1,000 pictures (19%), 19 pictures/s, 1.9 MB/s, 0:00:43 left"


def test_what_is_soon_done_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress("verifying", 10) as tell:
        clock[0] += 9
        tell(10, 0)
    assert capsys.readouterr().err == ""


def test_nothing_done_has_no_end_in_sight(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress("comparing", 10) as tell:
        clock[0] += 11
        tell(0, 0)
    assert capsys.readouterr().err == "comparing: 0 of 10 pictures (0%), 0 pictures/s, unknown left\n"


def test_a_bar_on_a_terminal(sample_dir: Path) -> None:
    """On a real one, of 80 columns: the bar has a total, and goes away."""
    code = "import sys; from marc_dist.cli.shard import main; sys.exit(main(['--verify', sys.argv[1]]))"
    master, terminal = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(sample_dir)]
    shown = b""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=terminal, env=env) as child:
        os.close(terminal)
        with suppress(OSError):  # the end, on Linux
            while more := os.read(master, 1 << 16):
                shown += more
    os.close(master)
    assert child.returncode == 0 and b"verifying" in shown and b"/600" in shown
