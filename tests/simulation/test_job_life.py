"""Stories of a job's life keep all promises; stories with a planted mistake do not."""

from __future__ import annotations

import time

import pytest

from tests.simulation.job_life import play
from tests.simulation.job_life_bugs import BUGS

NUM = 500
MOST = 200
"""Stories of its theme that may be told until a planted mistake is found; the rarest is in one of thirty."""


def test_all_promises_are_kept() -> None:
    began = time.process_time()
    broken = {told.seed: told.broken for told in map(play, range(NUM)) if told.broken}
    print(f"{NUM} stories in {time.process_time() - began:.1f} s of CPU time")
    assert not broken


def test_a_seed_tells_the_same_story_again() -> None:
    assert [play(seed).lines for seed in range(20, 30)] == [play(seed).lines for seed in range(20, 30)]


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_mistake_is_found(name: str) -> None:
    theme, plant = BUGS[name]
    with plant():
        assert any(play(seed, theme).broken for seed in range(MOST)), f"not found in {MOST} stories"
