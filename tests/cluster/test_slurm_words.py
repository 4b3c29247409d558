"""Slurm as people use it: words of the shell, hidden partitions, banners, sizes among the options of sbatch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from marc_dist.cluster.preset import SlurmPreset, load_preset
from marc_dist.cluster.sbatch_options import minutes
from marc_dist.cluster.slurm import submit
from marc_dist.cluster.slurm_commands import clean_environment, submit_environment
from marc_dist.config import ConfigError, LaunchError
from marc_dist.run.job import Job, new_job, write_job

SINFO = r"""
case " $* " in *" -a "*) printf 'cpu*|4|64|(null)\nlab|2|64|gpu:a100:4(S:0-1)\nold|2|16+|gpu:4\n';;
*) printf 'cpu*|4|64|(null)\n';; esac
"""
SBATCH = """
env | grep -E '^(SBATCH|SLURM)_' | sort > "$HOME/env"
cp "$1" "$HOME/script"
if [ -n "$NEED_ACCOUNT" ] && [ -z "$SBATCH_ACCOUNT" ] && ! grep -q -- --account "$1"; then
  echo "sbatch: error: Please specify an account" >&2; exit 1; fi
echo "Submitted batch job 42"
"""


class Site(NamedTuple):
    """A cluster that says what a test wants it to: programs on PATH."""

    folder: Path

    def program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def submit(self, *words: str) -> Job:
        preset = load_preset("slurm", [f"cluster.{word}" for word in words])
        assert isinstance(preset, SlurmPreset)
        run = self.folder / "run"
        size = {"nodes": preset.nodes, "procs_per_node": preset.num_procs, "preset": preset.model_dump(mode="json")}
        job = new_job("slurm", ["-m", "marc_dist.cli.train", str(run)], **size)
        write_job(run, job)
        return submit(job, preset, run)

    def seen(self) -> set[str]:
        """Variables of Slurm's that sbatch got."""
        return set((self.folder / "env").read_text().split())


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    made = Site(tmp_path)
    for name, text in {"sinfo": SINFO, "sbatch": SBATCH, "srun": "exit 1", "squeue": "exit 1"}.items():
        made.program(name, text)
    return made


def test_words_of_the_shell_count_as_with_sbatch(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEED_ACCOUNT", "1")
    with pytest.raises(LaunchError, match="sbatch: Please specify an account; .*cluster.KEY=value"):
        site.submit()
    monkeypatch.setenv("SBATCH_ACCOUNT", "proj")
    monkeypatch.setenv("SBATCH_QOS", "high")
    monkeypatch.setenv("SBATCH_PARTITION", "lab")
    monkeypatch.setenv("SBATCH_RESERVATION", "maintenance")
    assert site.submit("gpus_per_node=4", "qos=low").id == "42"  # the default partition has no GPUs
    assert site.seen() == {"SBATCH_ACCOUNT=proj", "SBATCH_PARTITION=lab", "SBATCH_RESERVATION=maintenance"}
    assert "#SBATCH --qos=low" in (site.folder / "script").read_text()
    with pytest.raises(LaunchError, match="no partition 'lba' here, there are cpu, lab, old; did you mean lab"):
        site.submit("partition=lba")


def test_what_sruns_words_say_counts_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEED_ACCOUNT", "1")
    monkeypatch.setenv("SLURM_ACCOUNT", "proj")
    monkeypatch.setenv("SLURM_CLUSTERS", "both")
    site.submit()
    assert site.seen() == {"SBATCH_ACCOUNT=proj", "SLURM_CLUSTERS=both"}
    site.submit("account=mine")
    assert site.seen() == {"SLURM_CLUSTERS=both"}


def test_an_outer_job_reshapes_nothing_and_says_what_to_write(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outer = {"SLURM_JOB_ID": "7", "SBATCH_ACCOUNT": "proj", "SBATCH_PARTITION": "lab", "SLURM_NNODES": "4"}
    for name, value in {**outer, "SBATCH_MEM_BIND": "quiet", "SBATCH_EXPORT": "NONE"}.items():
        monkeypatch.setenv(name, value)
    site.submit("partition=lab")
    assert site.seen() == set()
    assert capsys.readouterr().err == (
        "marc-launch: note: inside Slurm job 7, these words of your shell do not count: SBATCH_ACCOUNT (use "
        "cluster.account)\n"
    )
    assert clean_environment(outer) == {}


@pytest.mark.parametrize("name", ["TIMELIMIT", "GPUS", "GRES", "GPUS_PER_TASK", "ARRAY_INX", "SIGNAL"])
def test_sizes_of_the_shell_never_count(name: str) -> None:
    kept, left = submit_environment({f"SBATCH_{name}": "4", "HOME": "/home/me"}, SlurmPreset())
    assert kept == {"HOME": "/home/me"} and list(left) == [f"SBATCH_{name}"]


def test_hidden_partitions_banners_and_unusual_numbers(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert site.submit("partition=lab", "gpus_per_node=a100:4").id == "42"
    site.program("sinfo", "echo '*** Welcome to X: see https://x | y ***'; printf 'cpu*|1K|64|(null)\\n\\n'")
    assert site.submit("nodes=1000").id == "42"
    with pytest.raises(LaunchError, match="--nodes: partition cpu has 1024 nodes, got 1025; ask for at most 1024"):
        site.submit("nodes=1025")
    assert capsys.readouterr().err == ""
    site.program("sinfo", "echo '*** Welcome ***'")
    assert site.submit("partition=anything").id == "42"
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "sinfo says '*** Welcome ***', expected lines of PARTITION|NODES|" in told
    site.program("sinfo", "printf 'a|2|8|(null)\\nb|4|8|gpu:2\\n'")  # none is the default
    assert site.submit("nodes=4", "gpus_per_node=2").id == "42"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["partition=lab", "gpus_per_node=h100:2"], "a node of partition lab has a100:4, got h100:2"),
        (["partition=lab", "gpus_per_node=A100:2"], "has a100:4, got A100:2; did you mean a100?"),
        (["partition=lab", "gpus_per_node=gpu:a100:8"], "a node of partition lab has 4 GPUs, got a100:8"),
        (["gpus_per_node=gpu:4"], "a node of partition cpu has 0 GPUs, got 4"),
        (["partition=lab", "cpus_per_proc=65"], "has 64"),
    ],
)
def test_gpus_and_sizes_that_are_not_there(site: Site, words: list[str], message: str) -> None:
    with pytest.raises(LaunchError) as told:
        site.submit(*words)
    assert message in str(told.value) and "\n" not in str(told.value)


def test_slurms_programs_without_a_cluster(site: Site) -> None:
    """What Debian's package says after it was installed."""
    site.program("sinfo", "echo 'sinfo: fatal: Could not establish a configuration source' >&2; exit 1")
    with pytest.raises(
        LaunchError, match=r"^Slurm is installed here but not configured: .*--dry-run.*local runs here$"
    ):
        site.submit()


def test_types_that_sinfo_does_not_show_are_for_sbatch_to_judge(site: Site) -> None:
    assert site.submit("partition=old", "gpus_per_node=v100:2", "cpus_per_proc=20").id == "42"  # 16+ is a minimum


@pytest.mark.parametrize(
    ("text", "gpus", "procs"),
    [("gpu:4", 4, 4), ("gpu:a100:4", "a100:4", 4), ("a100:4", "a100:4", 4), ("gpu:1g.10gb:2", "1g.10gb:2", 2)],
)
def test_gpus_as_people_write_them(text: str, gpus: Any, procs: int) -> None:
    preset = SlurmPreset(gpus_per_node=text)
    assert preset.gpus_per_node == gpus and preset.num_procs == procs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{gres: gpu:4}", "gres is an option that the preset gives; use cluster.gpus_per_node=4"),
        ("{gres: 'gpu:a100:2,nvme:1'}", "use cluster.gpus_per_node=a100:2 and leave gres: nvme:1 here"),
        ("{nodes: 3, ntasks-per-node: 4}", "nodes is an option that the preset gives; use cluster.nodes=3"),
        ("{ntasks_per_node: 4}", "ntasks_per_node is an option that the preset gives; use cluster.procs_per_node=4"),
        ("{n: 4}", "n is an option that the preset gives; use cluster.procs_per_node, the processes of a node"),
        ("{gpus: 4}", "use cluster.gpus_per_node, the GPUs of a node; --nodes says how many nodes"),
        ("{gpus-per-task: 1}", "use cluster.gpus_per_node"),
        ("{--gpus-per-node: 'h100:2'}", "use cluster.gpus_per_node=h100:2"),
        ("{cpus-per-task: 8}", "use cluster.cpus_per_proc=8"),
        ("{time: '1-12:00:00'}", "use cluster.time_min=2160"),
        ("{mem: 64G}", "use cluster.mem=64G"),
        ("{partition: gpu}", "use cluster.partition=gpu"),
        ("{exclusive: true}", "use cluster.exclusive=true"),
        ("{array: 0-3}", "use the keys cluster.array.seeds or cluster.array.overrides"),
        ("{no-requeue: true}", "use cluster.max_restarts=0"),
        ("{chdir: /tmp}", "use nothing: a job runs in the folder that it is submitted from"),
        ("{mail-type: END, mail_type: FAIL}", "expected each option once, got mail-type and mail_type"),
    ],
)
def test_sizes_among_the_options_of_sbatch_are_refused_by_name(options: str, message: str) -> None:
    with pytest.raises(ConfigError) as told:
        load_preset("slurm", [f"cluster.sbatch={options}"])
    assert message in str(told.value) and str(told.value).startswith("cluster.sbatch: ")
    assert "\n" not in str(told.value)


def test_plain_keys_of_sbatch(site: Site) -> None:
    words = ["dependency=afterok:7", "mail_type=END,FAIL", "mail_user=me@x.org", "comment=paid by earth", "job_name=b"]
    site.submit(*words, "sbatch={gres: nvme:1, mem_per_cpu: 2G, reservation: night}")
    lines = (site.folder / "script").read_text().splitlines()
    for line in (
        "--dependency=afterok:7", "--mail-type=END,FAIL", "--mail-user=me@x.org", "--job-name=b",
        "--comment='paid by earth'", "--gres=nvme:1", "--mem-per-cpu=2G", "--reservation=night",
    ):  # fmt: skip
        assert f"#SBATCH {line}" in lines
    with pytest.raises(ConfigError, match=r"cluster.sbatch: mail-type is .*; use cluster.mail_type=END"):
        load_preset("slurm", ["cluster.mail_type=FAIL", "cluster.sbatch={mail-type: END}"])


@pytest.mark.parametrize(
    ("text", "limit"),
    [("90", 90), ("1:30", 2), ("1:30:00", 90), ("2-00", 2880), ("1-1:30", 1530), ("soon", None), ("0:0:1", 1)],
)
def test_time_limits_of_slurm(text: str, limit: int | None) -> None:
    assert minutes(text) == limit
