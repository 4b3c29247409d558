"""When a trial stops early: asynchronous successive halving, decided by trial numbers instead of by the clock.

Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020), in the stopping form of Ray Tune: at
each rung (an epoch) a trial stops when it is below the best 1/eta of those that it is compared with. Ray compares with
whatever happens to have arrived; the same point stopped at epoch 2 in two runs and went on in three
(``docs/design.md``). Here the caller names those to compare with, so that decisions repeat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def rungs(epochs: int, grace: int, eta: float) -> tuple[int, ...]:
    """The epochs at which trials may stop: grace, grace * eta, ... below ``epochs``, rounded up, ascending.

    Args:
        epochs: of a whole trial.
        grace: no trial stops earlier.
        eta: how many times as long the best 1/eta run on.
    """
    found: list[int] = []
    at = float(grace)
    while at < epochs:
        rung = int(-(-at // 1))
        if not found or rung > found[-1]:
            found.append(rung)
        at *= eta
    return tuple(rung for rung in found if rung < epochs)


def value_at(curve: Mapping[float, float], rung: int) -> float | None:
    """A trial's value at a rung: the first one at or after it; None before that."""
    epochs = [epoch for epoch in curve if epoch >= rung]
    return curve[min(epochs)] if epochs else None


def cutoff(others: Sequence[float], eta: float) -> float | None:
    """The value below which a trial stops: the (1 - 1/eta) quantile, linear between values; None without others."""
    if not others:
        return None
    ordered = sorted(others)
    place = (1.0 - 1.0 / eta) * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def stops_at(
    curve: Mapping[float, float], others: Sequence[Mapping[float, float]], at: Sequence[int], eta: float
) -> int | None:
    """The first rung that a trial does not pass, None when it has passed all that it has reached.

    Args:
        curve: epoch -> value of the trial, higher is better.
        others: curves of those that it is compared with.
        at: rungs.
        eta: see ``rungs``.
    """
    for rung in at:
        mine = value_at(curve, rung)
        if mine is None:
            return None
        theirs = [value for value in (value_at(other, rung) for other in others) if value is not None]
        limit = cutoff(theirs, eta)
        if limit is not None and mine < limit:
            return rung
    return None
