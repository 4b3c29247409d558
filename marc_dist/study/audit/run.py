"""``marc-study --audit``: look for leaks and doubtful labels in every data set of a study, and write what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from marc_dist.cluster.rank_process import num_cores
from marc_dist.config import Config, EvalConfig
from marc_dist.data.dataset import Dataset
from marc_dist.files import write_atomic
from marc_dist.study.audit import text
from marc_dist.study.audit.label_suspects import Doubt, doubtful, neighbour_share, probe_probabilities
from marc_dist.study.audit.leaks import Leaks, neighbour_pairs, pixel_pairs, put_together
from marc_dist.study.audit.rescored import Rescored, rescored
from marc_dist.study.plan import Plan, Task
from marc_dist.study.study_file import FLOORS_DIR
from marc_dist.study.tables.collected import collect
from marc_dist.study.tables.report import REPORT

MIRRORED = 256
"""Pictures whose mirror images tell how alike two pictures must be; evenly spaced over the data set."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Audited:
    """What was found in one data set.

    Attributes:
        name: of the study file.
        dataset: itself.
        encoder: of the study file, whose backbone looked at it.
        asking: split that queries come from.
        leaks: pictures that lie in two splits.
        probabilities: (n, L) of the probes; NaN for labels with too few pictures.
        doubts: labels that look wrong.
        shares: (doubts,) share of the ten nearest pictures that carry the doubted label.
        scores: with and without leaked queries.
    """

    name: str
    dataset: Dataset
    encoder: str
    asking: str
    leaks: Leaks
    probabilities: NDArray[np.float64]
    doubts: list[Doubt]
    shares: list[float]
    scores: list[Rescored] = field(default_factory=list)


def audit(plan: Plan, say: Say) -> list[str]:
    """Write ``audit.md`` and ``audit-*.csv`` into the report's folder; their names.

    Nothing else changes: neither scores nor labels.

    Args:
        plan: of the study; its cells need not be done.
        say: takes one line for people.

    Raises:
        DataError: a picture that cannot be read, or a damaged evaluation.
    """
    findings = collect(plan)
    found = []
    for name in plan.study.datasets:
        one = _audited(plan, name, say)
        for block in findings.blocks:
            if block.dataset == name:
                one.scores.extend(rescored(plan, block, one.leaks))
        found.append(one)
    files = text.files(plan, found)
    for name, content in files.items():
        write_atomic(plan.out / REPORT / name, content.encode())
    return list(files)


def _audited(plan: Plan, name: str, say: Say) -> Audited:
    from marc_dist.study.floors import backbone_features, mirror_features  # torch

    dataset, encoder = plan.datasets[name], next(iter(plan.study.encoders))
    config = plan.config(Task("floors", f"{name}/{encoder}/{FLOORS_DIR}", name, encoder))
    asking = _asking(plan, name, config)
    say(f"{name}: comparing the pixels of {len(dataset)} pictures")
    pixels = pixel_pairs(dataset, num_cores(), lambda *_: None)
    say(f"{name}: comparing what the backbone of {encoder} sees in them")
    features = backbone_features(dataset, config, say)
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(MIRRORED, len(dataset))).astype(np.int64))
    neighbours, bound = neighbour_pairs(dataset, features, (rows, mirror_features(dataset, config, rows, say)), asking)
    leaks = put_together(dataset, pixels, neighbours, bound)
    say(f"{name}: asking a probe about each of {len(dataset.classes)} labels")
    probabilities = probe_probabilities(features, dataset.labels)
    doubts = doubtful(dataset.labels, probabilities)
    pictures = sorted({doubt.row for doubt in doubts})
    near = neighbour_share(features, dataset.labels, pictures)
    place = {row: at for at, row in enumerate(pictures)}
    shares = [float(near[place[doubt.row], doubt.label]) for doubt in doubts]
    return Audited(name, dataset, encoder, asking, leaks, probabilities, doubts, shares)


def _asking(plan: Plan, name: str, config: Config) -> str:
    """The split that queries of a data set come from: that of its first evaluation."""
    for evaluation in plan.evaluations(name):
        if evaluation.target is None:
            return plan.eval_config(config, evaluation).eval.query_split
    return EvalConfig().query_split
