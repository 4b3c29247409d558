"""Pure mathematics: label statistics -> pair weights and temperatures -> losses. No files, no ranks."""

from marc_dist.objective.losses import choose_implementation, objective
from marc_dist.objective.settings import LossParts, ObjectiveSettings
from marc_dist.objective.statistics import LabelStatistics, label_statistics

__all__ = [
    "LabelStatistics",
    "LossParts",
    "ObjectiveSettings",
    "choose_implementation",
    "label_statistics",
    "objective",
]
