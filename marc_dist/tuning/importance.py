"""How much each parameter matters for being among the best, by PED-ANOVA over the settings that were trained in full.

Watanabe et al., "PED-ANOVA" (IJCAI 2023), as in Optuna: how far the distribution of a parameter among the best settings
is from its distribution among all. The best are the best third, not Optuna's tenth: searches leave some 10 to 60
settings trained in full, and a tenth of those is too few to have a distribution.
"""

from __future__ import annotations

import warnings

from marc_dist.tuning.search_space.proposals import new_study
from marc_dist.tuning.state import Search

BEST = 1 / 3  # of the settings
LEAST = 6
"""Settings below which nothing is said."""


def importances(search: Search) -> dict[str, float]:
    """Parameter -> importance for the first objective, together 1, largest first; empty when too little is known."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator

    numbers = search.finished()
    varying = [one.name for one in search.space.parameters if len(one.sampler.values) > 1]
    if len(numbers) < LEAST or not varying:
        return {}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = new_study(search.space, [search.observation(number) for number in sorted(numbers)])
            # given a target, Optuna asks what makes it low
            found = optuna.importance.get_param_importances(
                study, evaluator=PedAnovaImportanceEvaluator(target_quantile=BEST), target=lambda one: -one.values[0]
            )
    except (ValueError, RuntimeError):  # too few of them carry a conditional parameter, or all values are equal
        return {}
    finally:
        optuna.logging.set_verbosity(before)
    return {name: float(value) for name, value in found.items() if name in varying}
