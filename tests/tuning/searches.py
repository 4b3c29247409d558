"""What the tests of a search share: a tiny data set, a run file for it, a stand-in for the trainer, ways to look."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from marc_dist.config import Config, build, dump_yaml
from marc_dist.run.run_lock import RUN_LOCK
from marc_dist.tuning.driver import new_plan, open_search
from marc_dist.tuning.journal import Journal, SearchPlan, write_plan
from marc_dist.tuning.local_executor import call_trials
from marc_dist.tuning.search_space.space import Space, parse_space
from marc_dist.tuning.state import Search

SMALL: dict[str, Any] = {
    "data.image_size": 32, "data.num_workers": 0, "data.cache": "none", "data.validation_share": 0.3,
    "model.backbone": "test_resnet", "model.pretrained": False, "model.head_hidden": 8, "model.head_dim": 6,
    "train.global_batch": 4, "train.device": "cpu", "train.epochs": 6,
}  # fmt: skip
NUMBERS: dict[str, Any] = {
    "parameters": {
        "loss.alpha": {"uniform": [0.0, 2.0]},
        "loss.tau": {"loguniform": [0.03, 0.5]},
        "optim.lr": {"loguniform": [1e-4, 1e-2]},
    },
}


def run_file(folder: Path, data: Path, **words: Any) -> Path:
    """A run file for a tiny data set."""
    path = folder / "run.yaml"
    path.write_text(dump_yaml(build(Config, {**SMALL, "data.dir": str(data), **words})))
    return path


def space(source: Mapping[str, Any] = NUMBERS, name: str = "mine") -> Space:
    return parse_space(source, name, name)


def plan(trials: int = 12, source: Mapping[str, Any] = NUMBERS, **values: Any) -> SearchPlan:
    config = build(Config, values.pop("config", {"train.epochs": 9}))
    return new_plan(space(source), config, trials=trials, ahead=values.pop("ahead", 3), **values)


def search(made: SearchPlan, journal: Journal | None = None) -> Search:
    return Search(made, space(made.source), journal or Journal(None))


def peak(settings: Mapping[str, Any]) -> float:
    """A score in closed form, best at tau = 0.1, lr = 1e-3, alpha = 0.5."""
    away = math.log10(settings["loss.tau"] / 0.1) ** 2 + math.log10(settings["optim.lr"] / 1e-3) ** 2
    return math.exp(-away - (settings["loss.alpha"] - 0.5) ** 2)


def trained(settings: Mapping[str, Any], seed: int) -> Iterator[dict[str, float]]:
    """Stands for a training: one row an epoch."""
    epochs = int(settings["train.epochs"])
    for epoch in range(1, epochs + 1):
        value = peak(settings) * epoch / epochs + 0.001 * seed
        yield {"epoch": epoch, "mAP": value, "rare_mAP": 1 - value}


def finished(folder: Path, source: Any = NUMBERS, **values: Any) -> Search:
    """A search in ``folder`` whose every trial has ended."""
    write_plan(folder, plan(source=source, **values))
    found = open_search(folder, Journal(folder))
    call_trials(found, trained, concurrent=3)
    return found


def events(folder: Path) -> list[dict[str, Any]]:
    """The lines of a search's folder."""
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def story(found: Search) -> list[Any]:
    """What a search decided, without times and places."""
    runs = [
        (run.name, run.state, run.reason, sorted((epoch, row["mAP"]) for epoch, row in run.rows.items()))
        for _, run in sorted(found.runs.items())
    ]
    return [found.points, runs]


def kill_elsewhere(run_dir: Path, pid: int, driver: int, gone: Callable[[], bool]) -> bool:
    """Kill a rank of a trial and let its lock look as if it had run on another machine, where nobody sees processes.

    Args:
        run_dir: of the trial.
        pid: of its rank.
        driver: process of the search, which must not start the trial again before the lock is changed.
        gone: whether the rank has gone.

    Returns:
        False, and nothing has happened, when the rank does not hold the folder: it has just begun, or ends.
    """
    lock = run_dir / RUN_LOCK
    os.kill(driver, signal.SIGSTOP)
    try:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        told = _lock_of(run_dir)
        if gone() or told.get("pid") != pid or not told["token"]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            return False
        os.kill(pid, signal.SIGKILL)
        while not gone():
            time.sleep(0.02)
        lock.write_text(json.dumps({**told, "machine": "another", "host": "elsewhere"}))
        return True
    finally:
        os.kill(driver, signal.SIGCONT)


def taken_over(run_dir: Path) -> bool:
    """Whether the trial that ``kill_elsewhere`` has killed runs again: the lock is its own, or it has ended."""
    return _lock_of(run_dir).get("host") != "elsewhere"


def _lock_of(run_dir: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((run_dir / RUN_LOCK).read_text()))
    except (OSError, ValueError):
        return {}
