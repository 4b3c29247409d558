"""How long a study takes and how much it holds: from its own done tasks, or a guess that says what it is."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from marc_dist.study.plan import Plan, Task
from marc_dist.study.state import Record, is_done, read_record

HEAD_S = 10.0
"""A head on kept features, trained and scored once, on one CPU core."""
IMAGES_S = 40.0
"""Views of 224 px that a whole small encoder trains on in a second, on one CPU core."""
FORWARD_S = 100.0
"""Pictures of 224 px that it embeds in a second."""
CELL_BYTES = 30_000_000
LIGHT_BYTES = 300_000
SIDE = 224


@dataclass(frozen=True)
class Estimate:
    """What is left to do.

    Attributes:
        left: tasks by kind.
        done: likewise.
        seconds: of one worker for all that is left.
        size: bytes that will have been added.
        measured: done tasks that the figures stand on; 0 = they are guesses.
    """

    left: dict[str, int]
    done: dict[str, int]
    seconds: float
    size: int
    measured: int


def estimate(plan: Plan, records: dict[str, Record] | None = None) -> Estimate:
    """What is left of a study.

    Args:
        plan: of the study.
        records: of its tasks, by name; None = read now.
    """
    if records is None:
        records = {name: read_record(plan.folder(task)) for name, task in plan.tasks.items()}
    over = {name for name, task in plan.tasks.items() if is_done(plan, task, records[name])}
    kinds = ("search", "floors", "cell")
    left = {kind: sum(task.kind == kind and name not in over for name, task in plan.tasks.items()) for kind in kinds}
    done = {kind: sum(task.kind == kind and name in over for name, task in plan.tasks.items()) for kind in kinds}
    known: dict[tuple[str, str, str], list[Record]] = {}
    for name in over:
        task = plan.tasks[name]
        known.setdefault((task.kind, task.dataset, task.encoder), []).append(records[name])
    guesses: dict[tuple[str, str, str], float] = {}
    seconds, size = 0.0, 0
    for name, task in plan.tasks.items():
        if name in over:
            continue
        key = task.kind, task.dataset, task.encoder
        if key in known:
            seconds += statistics.median(sum(one.seconds.values()) for one in known[key])
            size += int(statistics.median(one.size for one in known[key]))
            continue
        if key not in guesses:
            guesses[key] = _guess_s(plan, task)
        seconds += guesses[key]
        size += _guess_size(plan, task)
    return Estimate(left, done, seconds, size, len(over))


def _guess_s(plan: Plan, task: Task) -> float:
    config = plan.config(task)
    dataset = plan.datasets[task.dataset]
    scale = (config.data.image_size / SIDE) ** 2
    num = len(dataset.train_rows(config.data))
    evaluations = max(1, len(plan.evaluations(task.dataset)))
    whole = num * config.data.num_views * config.train.epochs * scale / IMAGES_S
    embedding = len(dataset) * scale / FORWARD_S
    training = HEAD_S if config.model.head_only else whole
    if task.kind == "floors":
        return 2 * embedding + HEAD_S * evaluations
    if task.kind == "search":
        tune = plan.study.tune
        assert tune is not None
        epochs = (tune.epochs or config.train.epochs) / config.train.epochs
        return tune.trials * tune.seeds * training * epochs
    return training + HEAD_S / 2 * (evaluations - 1) + (0.0 if config.model.head_only else embedding)


def _guess_size(plan: Plan, task: Task) -> int:
    if task.kind == "floors":
        return LIGHT_BYTES
    one = LIGHT_BYTES if plan.study.keep == "scores" else CELL_BYTES
    tune = plan.study.tune
    return one * tune.trials * tune.seeds if task.kind == "search" and tune is not None else one
