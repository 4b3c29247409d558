"""One trial on a Ray cluster: the function that Tune runs, inside the placement group that Tune gave the trial.

Every rank is an actor of ours in a bundle of its own, and the training its child process. When Tune stops the trial, or
whoever drives the search goes, the group goes with its actors, and they with their children: nothing is left. Nothing
is uploaded; every node has marc-dist installed and sees the search's folder under the same path.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from marc_dist.cluster.ray_ranks import Ranks
from marc_dist.tuning.trial import arguments, reported

POLL_S = 0.2
GRACE_S = 10.0


def trial(config: dict[str, Any]) -> None:
    """Train in ``config["run_dir"]`` and pass on what the run reports, one result a row.

    Args:
        config: run_dir, procs, cpus and gpus of a rank, cwd, and the variables of the attempt.

    Raises:
        RuntimeError: a rank failed or was lost; the run folder says how.
    """
    import ray
    from ray import tune
    from ray.util import get_current_placement_group

    run_dir, size = Path(config["run_dir"]), {"num_cpus": config["cpus"], "num_gpus": config["gpus"]}
    ranks = Ranks(ray, get_current_placement_group(), range(config["procs"]), run_dir, **size)
    try:
        ranks.find()
        variables = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(config["cpus"]), **config["attempt"]}
        ranks.start(arguments(run_dir), config["cwd"], variables)
        told, over = 0, False
        while not over:
            over = ranks.look(GRACE_S)  # first, so that nothing is written after what is read
            rows = reported(run_dir)
            for row in rows[told:]:
                tune.report({"row": json.dumps({**row, "host": ranks.hosts[0]})})
            told = len(rows)
            if not over:
                time.sleep(POLL_S)
        codes = [None if end is None else end.code for end in ranks.ends]
        if any(code != 0 for code in codes):
            raise RuntimeError(f"{run_dir}: ranks ended with {codes}")
    finally:
        ranks.close()


def quiet_environment() -> None:
    """What Tune reads from the environment: no records, handlers and messages of its own."""
    for name, value in {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_MAX_PENDING_TRIALS_PG": "1",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
        "TUNE_FORCE_TRIAL_CLEANUP_S": "10",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
    }.items():
        os.environ[name] = value
