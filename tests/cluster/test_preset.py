"""Launcher presets: the shipped ones load, words override, mistakes are one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from marc_dist.cluster.preset import LocalPreset, SlurmPreset, load_preset
from marc_dist.config import ConfigError


def test_the_shipped_preset_says_what_the_schema_says() -> None:
    assert load_preset("local") == LocalPreset()


def test_words_are_stronger_than_the_file_and_options_than_words(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("kind: local\nprocs_per_node: 3\nstop_grace_s: 5\nenv: {A: 1, B: 0.5, C: text}\n")
    preset = load_preset(str(path), ["cluster.procs_per_node=4", "cluster.env.D=x"])
    assert (preset.procs_per_node, preset.stop_grace_s) == (4, 5.0)
    assert preset.env == {"A": "1", "B": "0.5", "C": "text", "D": "x"}
    assert load_preset(str(path), ["cluster.procs_per_node=4"], procs_per_node=5).procs_per_node == 5


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("cluster.procs_per_nod=2", "did you mean procs_per_node"),
        ("cluster.procs_per_node=0", "cluster.*procs_per_node: expected greater than or equal to 1, got 0"),
        ("cluster.procs_per_node=two", "procs_per_node"),
        ("cluster.peer_grace_s=29", "peer_grace_s"),  # with this the others would outlive 30 s
    ],
)
def test_mistakes_name_the_key(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_preset("local", [word])


def test_unknown_presets_kinds_and_keys_in_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean local"):
        load_preset("locl")
    path = tmp_path / "x.yaml"
    path.write_text("kind: cloud\n")
    with pytest.raises(ConfigError, match="kind: expected local, slurm, ray, got 'cloud'"):
        load_preset(str(path))
    path.write_text("procs: 3\n")
    with pytest.raises(ConfigError, match=r"x.yaml: procs: unknown key"):
        load_preset(str(path))


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90), ("2:00:00", 120), ("0:05:00", 5), ("2:00:30", 121),
        ("1-12", 2160), ("1-00:30", 1470), ("2-00:00:00", 2880),
    ],
)  # fmt: skip
def test_a_time_limit_as_sbatch_writes_it(text: str, minutes: int, tmp_path: Path) -> None:
    """YAML 1.1 read 2:00:00 as 7200, which were five days."""
    preset = load_preset("slurm", [f"cluster.time_min={text}"])
    assert isinstance(preset, SlurmPreset) and preset.time_min == minutes
    file = tmp_path / "mine.yaml"
    file.write_text(f"kind: slurm\ntime_min: {text}\n")
    assert load_preset(str(file)) == preset


@pytest.mark.parametrize("text", ["1:30", "16:00", "1:99:00", "-5:00:00", "soon:00:00"])
def test_a_time_that_means_two_things_or_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^cluster\.time_min: expected "):
        load_preset("slurm", [f"cluster.time_min={text}"])


def test_text_in_sbatch_and_env_stays_text() -> None:
    preset = load_preset(
        "slurm", ["cluster.sbatch={begin: 16:00, licenses: 010, bb: no}", "cluster.env={A: 1:30, B: on}"]
    )
    assert isinstance(preset, SlurmPreset)
    assert preset.sbatch == {"begin": "16:00", "licenses": "010", "bb": "no"} and preset.env == {"A": "1:30", "B": "on"}
