"""Pure mathematics: label statistics -> pair weights and temperatures -> losses. No files, no ranks.

The settings of a loss are ``config.loss.LossConfig``, the one definition of them: it imports no torch and stands on the
lowest floor, so the command line reads it without torch, and the objective reads it without a second copy.
"""

from marc_dist.objective.global_objective import choose_implementation, objective
from marc_dist.objective.parts import LossParts
from marc_dist.objective.statistics import LabelStatistics, label_statistics

__all__ = [
    "LabelStatistics",
    "LossParts",
    "choose_implementation",
    "label_statistics",
    "objective",
]
