"""Presets are found from a checkout and from a wheel, and a misspelt one is named with its neighbour."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from marc_dist.config import ConfigError, find_preset, list_presets
from marc_dist.config import presets as presets_module

ROOT = Path(__file__).resolve().parents[2]


def test_a_bare_name_is_a_preset_and_a_path_is_a_file(tmp_path: Path) -> None:
    assert find_preset("shards", "whdld").name == "whdld.yaml"
    mine = tmp_path / "mine.yaml"
    mine.write_text("title: mine\n")
    assert find_preset("shards", str(mine)) == mine
    with pytest.raises(ConfigError, match="no such file"):
        find_preset("shards", str(tmp_path / "none.yaml"))


def test_a_misspelt_preset_is_suggested() -> None:
    with pytest.raises(ConfigError, match="did you mean whdld"):
        find_preset("shards", "whdl")
    with pytest.raises(ConfigError, match="did you mean local"):
        find_preset("launchers", "locl")


def test_the_wheel_carries_presets_templates_and_the_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    subprocess.run([*command, str(ROOT)], check=True, timeout=120)
    (wheel,) = tmp_path.glob("marc_dist-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (licence,) = (tmp_path / "site").glob("marc_dist-*.dist-info/licenses/LICENSE")
    assert licence.read_text() == (ROOT / "LICENSE").read_text()
    for kind in ("launchers", "recipes", "shards", "studies", "tune_spaces"):
        shipped = sorted(path.stem for path in (ROOT / kind).glob("*.yaml"))
        assert shipped == list_presets(kind)  # type: ignore[arg-type]
        code = f"from marc_dist.config import list_presets, find_preset; print(list_presets({kind!r})); "
        code += f"print(find_preset({kind!r}, {shipped[0]!r}))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={"PYTHONPATH": str(tmp_path / "site")},
            capture_output=True,
            text=True,
            check=True,
        )
        names, path = done.stdout.splitlines()
        assert names == str(shipped)
        assert path.startswith(str(tmp_path / "site"))
    code = "from marc_dist.report import page, charts; print(page.__file__); print(charts.palette()['ink']); "
    code += "print(page.templates().list_templates())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    path, ink, names = done.stdout.splitlines()
    assert path.startswith(str(tmp_path / "site")) and ink.startswith("#")
    assert names == str(sorted(path.name for path in (ROOT / "marc_dist/report/templates").iterdir()))


def test_a_missing_preset_folder_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(presets_module.resources, "files", lambda _: tmp_path / "marc_dist")
    with pytest.raises(ConfigError, match="reinstall"):
        list_presets("shards")
