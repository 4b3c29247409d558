"""``marc-launch PRESET tune``: queue a search of settings as one job of a Slurm cluster."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from marc_dist.cli.launch.run import hand_over, slurm_is_here
from marc_dist.cli.tune.plan import checked_words, folder_and_words
from marc_dist.cluster.preset import PREFIX, SlurmPreset, load_preset
from marc_dist.cluster.slurm import render
from marc_dist.config import LaunchError
from marc_dist.run.job import new_job


def launch(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Queue a search: one task a node; several bring up Ray there, see ``marc_dist.tuning.allocation``.

    Args:
        options: those of ``marc-launch``.
        words: those of ``marc-tune``, and ``cluster.key=value``.

    Raises:
        ConfigError: a fault in the words.
        LaunchError: not a Slurm preset, or one with containers or arrays.
    """
    given = list(words)
    cluster = [word for word in words if word.startswith(PREFIX)]
    words = [word for word in words if not word.startswith(PREFIX)]
    preset = load_preset(options.preset, cluster, nodes=options.nodes, procs_per_node=options.procs_per_node)
    if not isinstance(preset, SlurmPreset):
        where = "marc-tune itself" if preset.kind == "local" else "marc-tune --address HOST:PORT"
        raise LaunchError(f"tune: expected a slurm preset, got kind {preset.kind}; use {where}")
    if preset.container.runtime != "none" or preset.array.seeds or preset.array.overrides:
        raise LaunchError("tune: runs without containers and arrays; leave cluster.container and cluster.array away")
    checked_words(words)
    if not (options.show or options.dry_run):
        slurm_is_here(options, "tune", *given)
    folder, words = folder_and_words(words)
    cpus = (preset.cpus_per_proc or 1) * preset.num_procs
    preset = preset.model_copy(update={"procs_per_node": 1, "cpus_per_proc": cpus, "preflight": False})
    arguments = ["-m", "marc_dist.tuning.allocation", str(folder), *words]
    values = {"nodes": preset.nodes, "procs_per_node": 1, "preset": preset.model_dump(mode="json")}
    job = new_job(preset.kind, arguments, what="tune", **values)
    if options.show or options.dry_run:
        print(render(job, preset, folder))
        return 0
    return hand_over(job, folder, options)
