"""The batch script of every Slurm preset, against recorded files; what reaches Slurm and the ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from marc_dist.cluster.preset import SlurmPreset, load_preset
from marc_dist.cluster.slurm import render
from marc_dist.cluster.slurm_commands import clean_environment
from marc_dist.cluster.srun_task import task_environment
from marc_dist.config import ConfigError, list_presets
from marc_dist.run.job import Job, new_job

RECORDED = Path(__file__).parent / "scripts"
CASES: dict[str, tuple[str, list[str]]] = {
    "slurm": ("slurm", []),
    "slurm-everything": (
        "slurm",
        ["partition=gpu", "account=earth", "qos=high", "constraint=a100", "exclude=n[3,7]", "gpus_per_node=h100:4",
         "cpus_per_proc=6", "mem=64G", "exclusive=true", "time_min=120", "signal_delay_s=90", "env.NCCL_DEBUG=WARN",
         "setup=[module load cuda, source 'my env/bin/activate']", "sbatch={mail-type: END, no-kill: true, x: false}",
         "srun_args=[--mpi=none]"],
    ),
    "slurm-preemptible": ("slurm-preemptible", ["qos=preemptible"]),
    "slurm-array": ("slurm-array", ["array.parallel=2"]),
    "slurm-container": ("slurm-container", ["gpus_per_node=2", "container.mounts=[/data:/data:ro]"]),
    "slurm-pyxis": ("slurm-container", ["container.runtime=pyxis", "container.image=marc-dist.sqsh"]),
}  # fmt: skip


def _script(name: str) -> str:
    preset_name, words = CASES[name]
    preset = load_preset(preset_name, [f"cluster.{word}" for word in words], nodes=4)
    assert isinstance(preset, SlurmPreset)
    job = Job(
        kind="slurm", arguments=["-m", "marc_dist.cli.train", "/runs/a b"], nodes=preset.nodes, cwd="/home/me",
        procs_per_node=preset.num_procs, preset=preset.model_dump(mode="json"), submitted_at=0.0, host="login",
        user="me", run_dirs=[f"/runs/a b/seed-{seed}" for seed in preset.array.seeds],
    )  # fmt: skip
    return render(job, preset, Path("/runs/a b")).replace(sys.executable, "PYTHON").rstrip() + "\n"


@pytest.mark.parametrize("name", CASES)
def test_the_script_is_the_recorded_one(name: str) -> None:
    """After a wanted change: MARC_RECORD=1 pytest tests/cluster/test_slurm_script.py, and read the difference."""
    path = RECORDED / f"{name}.sh"
    if os.environ.get("MARC_RECORD"):
        path.write_text(_script(name))
    assert _script(name) == path.read_text()
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize(
    ("elements", "parallel", "asked"),
    [([], 2, "0-4%2"), ([], None, "0-4%5"), ([1], 2, "1%1"), ([0, 2, 3, 4], 9, "0,2-4%4"), ([1, 3], None, "1,3%2")],
)
def test_an_array_asks_for_its_elements(elements: list[int], parallel: int | None, asked: str) -> None:
    preset = load_preset("slurm-array", [f"cluster.array.parallel={'null' if parallel is None else parallel}"])
    assert isinstance(preset, SlurmPreset)
    folders = [f"/runs/{number}" for number in range(5)]
    job = new_job("slurm", ["-m", "x", "/runs"], run_dirs=folders, elements=elements)
    script = render(job, preset, Path("/runs"))
    assert f"#SBATCH --array={asked}\n" in script and "%A_%a_0_log.out" in script


def test_every_shipped_preset_loads_and_slurms_are_recorded() -> None:
    names = list_presets("launchers")
    kinds = {name: load_preset(name).kind for name in names}
    assert {name for name, kind in kinds.items() if kind == "slurm"} == {preset for preset, _ in CASES.values()}


def test_an_outer_job_leaves_no_trace_but_the_cluster() -> None:
    env = {
        "SLURM_CONF": "/etc/slurm.conf", "SLURM_JOB_ID": "7", "SBATCH_PARTITION": "x", "SRUN_CPUS_PER_TASK": "2",
        "PMI_RANK": "0", "RANK": "3", "MASTER_PORT": "1", "HOME": "/home/me", "SLURM_CPU_BIND": "quiet",
    }  # fmt: skip
    assert clean_environment(env) == {"SLURM_CONF": "/etc/slurm.conf", "HOME": "/home/me"}


def test_what_ranks_get() -> None:
    preset = SlurmPreset(interface="ib0", cpus_per_proc=6, min_gbps=2.5, env={"NCCL_DEBUG": "INFO"})
    env = task_environment(preset, {"NCCL_DEBUG": "WARN", "CUDA_VISIBLE_DEVICES": "3"})
    assert env["OMP_NUM_THREADS"] == "6" and env["NCCL_SOCKET_IFNAME"] == env["GLOO_SOCKET_IFNAME"] == "ib0"
    assert env["MARC_PREFLIGHT"] == "1" and env["MARC_PREFLIGHT_MIN_GBPS"] == "2.5"
    assert env["NCCL_DEBUG"] == "INFO" and env["CUDA_VISIBLE_DEVICES"] == "3"
    assert task_environment(preset, {"SLURM_CPUS_PER_TASK": "2"})["OMP_NUM_THREADS"] == "2"
    assert "MARC_PREFLIGHT" not in task_environment(SlurmPreset(preflight=False), {})


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("partitio=x", "did you mean partition"),
        ("gpus_per_node=many", "expected a number or TYPE:NUMBER such as h100:4, got 'many'"),
        ("gpus_per_node=-1", "gpus_per_node"),
        ("mem=lots", "mem"),
        ("time_min=0", "time_min: expected greater than or equal to 1, got 0"),
        ('setup=["a\\nb"]', "setup"),
        ("container.runtime=docker", "container.runtime"),
        ("container.runtime=pyxis", "container.image: expected an image for container.runtime=pyxis"),
        ("array.parallel=0", "array.parallel"),
        ('partition="a b"', "partition"),
    ],
)
def test_mistakes_in_presets_name_the_key(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_preset("slurm", [f"cluster.{word}"])
