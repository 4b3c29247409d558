"""What importance says, on functions whose answer is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from marc_dist.tuning.importance import LEAST, importances
from marc_dist.tuning.local_executor import call_trials
from tests.tuning.searches import plan, search


def importance_of(value: Any, trials: int = 60) -> dict[str, float]:
    def train(settings: Mapping[str, Any], seed: int) -> Iterator[dict[str, float]]:
        yield {"epoch": 9, "mAP": value(settings)}

    found = search(plan(trials, how="random", early_stopping=False))
    call_trials(found, train)
    return importances(found)


def test_what_makes_a_setting_good_is_important_not_what_makes_it_bad() -> None:
    """alpha alone decides among good settings; tau alone which ones are hopeless."""
    told = importance_of(lambda s: -10.0 if s["loss.tau"] > 0.35 else 1.0 - abs(s["loss.alpha"] - 1.0))
    assert next(iter(told)) == "loss.alpha", told
    assert told["loss.alpha"] > 2 * told["loss.tau"]
    assert sum(told.values()) == pytest.approx(1.0)


def test_little_is_said_of_little() -> None:
    assert importance_of(lambda s: s["loss.tau"], trials=LEAST - 1) == {}
    assert set(importance_of(lambda s: s["loss.tau"], trials=LEAST)) == {"loss.alpha", "loss.tau", "optim.lr"}
