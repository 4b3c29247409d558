"""Stories of a job's life keep all promises; stories with a planted mistake do not."""

from __future__ import annotations

import time

import pytest

from tests.simulation.job_life import play
from tests.simulation.job_life_bugs import BUGS

NUM = 500
MOST = {
    "stopped and saved is not started again": 300,
    "age of a heartbeat by the own clock": 300,
    "tasks of failed ranks do not wait": 300,
    "cancel not written down": 300,
}
"""Stories that may be told until a mistake is found; 150 for the others."""


def test_all_promises_are_kept() -> None:
    began = time.process_time()
    broken = {told.seed: told.broken for told in map(play, range(NUM)) if told.broken}
    print(f"{NUM} stories in {time.process_time() - began:.1f} s of CPU time")
    assert not broken


def test_a_seed_tells_the_same_story_again() -> None:
    assert [play(seed).lines for seed in range(20, 30)] == [play(seed).lines for seed in range(20, 30)]


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_mistake_is_found(name: str) -> None:
    most = MOST.get(name, 150)
    with BUGS[name]():
        assert any(play(seed).broken for seed in range(most)), f"not found in {most} stories"
