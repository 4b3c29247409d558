"""What the searches of a study have chosen, with how many of their trials were lost to losses that were not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from marc_dist.config import MarcError
from marc_dist.study.plan import Plan
from marc_dist.study.state import is_done
from marc_dist.study.tables.text import as_csv
from marc_dist.tuning.driver import open_search
from marc_dist.tuning.journal import Journal


@dataclass(frozen=True)
class Chosen:
    """The result of one search.

    Attributes:
        dataset: of the study file.
        encoder: likewise.
        loss: likewise.
        settings: dotted keys of what varied.
        metric: validation score that decided.
        score: of the chosen setting; NaN for none.
        trials: settings that were tried.
        failed: those of them whose loss or weights were not finite.
    """

    dataset: str
    encoder: str
    loss: str
    settings: dict[str, Any]
    metric: str
    score: float
    trials: int
    failed: int


def chosen_settings(plan: Plan) -> list[Chosen]:
    """The results of all searches that are done, in the order of the plan; one that cannot be read is left out."""
    found = []
    for task in plan.tasks.values():
        if task.kind != "search" or not is_done(plan, task) or task.method is None:
            continue
        try:
            search = open_search(plan.folder(task), Journal(plan.folder(task)))
        except MarcError:
            continue
        metric = search.plan.objectives[0]
        failed = sum(all(run.state == "failed" for run in search.of(at)) for at in range(len(search.points)))
        for best in search.finished()[:1]:
            values = search.values(best, metric)
            score = sum(values) / len(values) if values else math.nan
            settings = search.space.settings(search.points[best])
            place = task.dataset, task.encoder, task.method.loss
            found.append(Chosen(*place, settings, metric, score, len(search.points), failed))
    return found


def chosen_csv(found: Sequence[Chosen]) -> str:
    """One line a search and setting."""
    heads = ["dataset", "encoder", "loss", "setting", "value", "metric", "validation", "trials", "failed"]
    return as_csv(
        heads,
        (
            [one.dataset, one.encoder, one.loss, key, value, one.metric, one.score, one.trials, one.failed]
            for one in found
            for key, value in one.settings.items()
        ),
    )
