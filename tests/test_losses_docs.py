"""The section on losses of docs/python.md: its sessions and its script run, its table is the code's."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

from marc_dist import losses
from marc_dist.config.loss import READS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"
SECTION = re.split(r"^## ", PAGE.read_text().split("## Losses\n")[1], flags=re.M)[0]


def test_the_sessions_run() -> None:
    sessions = "\n".join(re.findall(r"```python\n(>>> .*?)```", SECTION, re.S))
    test = doctest.DocTestParser().get_doctest(sessions, {}, PAGE.name, str(PAGE), 0)
    assert len(test.examples) >= 10
    assert doctest.DocTestRunner().run(test).failed == 0


def test_the_script_for_several_ranks_runs(tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(# train.py.*?)```", SECTION, re.S)
    (tmp_path / "train.py").write_text(script)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(torchrun, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    values = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("step")]
    assert len(values) == 5 and values[-1] < values[0]


def test_the_table_of_settings_is_the_codes() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.*) \|$", SECTION, re.M)
    found = {name: (kind, tuple(re.findall(r"`(\w+)`", told))) for kind, name, told in rows}
    classes = {getattr(losses, kind).name: getattr(losses, kind) for kind in losses.__all__}
    assert found == {
        name: (classes[name].__name__, tuple(key for key in keys if key != "counts")) for name, keys in READS.items()
    }
