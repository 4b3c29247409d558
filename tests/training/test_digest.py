"""Ranks that do not hold the same numbers any more: found, named, repeated once; nothing of it is ever saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from marc_dist import comm
from marc_dist.config import Config, LaunchError, build
from marc_dist.run.folder import checkpoints
from marc_dist.training import trainer
from marc_dist.training.digest import odd_ones, sums
from marc_dist.training.step import Stepper
from tests.training.test_trainer import _difference, _metrics, _state, _words
from tests.worlds import run_in_world

WEIGHT = "head.0.weight"
BOTH = f"{WEIGHT}, average of {WEIGHT}"


def flip(weight: torch.Tensor) -> None:
    """One bit of one number of 32 bits."""
    weight.data.view(torch.int32).view(-1)[3] ^= 1 << 7


def _train(words: dict[str, Any], rank: int, flips: set[int], times: int = 1, late: bool = False) -> tuple[str, Any]:
    """Train while one rank's memory is faulty.

    Args:
        words: settings.
        rank: the faulty one.
        flips: steps, from 1, whose update ends with a flipped bit there.
        times: how often that happens to a step that is repeated.
        late: the bit flips after the step instead, when nobody looks.
    """
    apply, take = Stepper._apply, Stepper.take
    hits: dict[int, int] = {}
    number = 0

    def broken(self: Stepper, step: int) -> None:
        hits[step] = hits.get(step, 0) + 1
        if comm.rank() == rank and step in flips and hits[step] <= times:
            flip(self._learner.get_parameter(f"encoder.{WEIGHT}"))

    def applying(self: Stepper, *given: Any) -> None:
        apply(self, *given)
        if not late:
            broken(self, number)

    def taking(self: Stepper, batch: Any, step: int, *given: Any) -> Any:
        nonlocal number
        if late:
            broken(self, step)  # before this step, that is after the one before
        number = step + 1
        return take(self, batch, step, *given)

    Stepper._apply, Stepper.take = applying, taking  # type: ignore[method-assign,assignment]
    said: list[str] = []
    trainer.RunLog.say = lambda self, message: said.append(message)  # type: ignore[method-assign,assignment]
    try:
        result: Any = trainer.train(build(Config, words)).step
    except LaunchError as error:
        result = str(error)
    return " | ".join(line for line in said if "repeated" in line), result


def words_of(small_dir: Path, run: Path, **more: Any) -> dict[str, Any]:
    more = {"train__precision": "float32", "train__max_steps": 6, "train__digest_every": 2, **more}
    return _words(small_dir, run, optim__name="adamw", train__ema=0.9, loss__memory=20, **more)


def test_a_flipped_bit_that_does_not_return_costs_one_step(small_dir: Path, tmp_path: Path) -> None:
    """One bit of one weight on one rank of three; the run then ends in the bits of one without the fault."""
    sound = run_in_world(_train, 3, words_of(small_dir, tmp_path / "sound"), 1, set())
    assert [result for _, result in sound] == [6, 6, 6] and sound[0][0] == ""
    faulty = run_in_world(_train, 3, words_of(small_dir, tmp_path / "faulty"), 1, {4})
    assert [result for _, result in faulty] == [6, 6, 6]
    assert "step 4: rank 1 (" in faulty[0][0]
    assert f"holds other numbers than the other ranks in {BOTH}; repeated, from the state before it" in faulty[0][0]
    assert _difference(_state(tmp_path / "sound", 6), _state(tmp_path / "faulty", 6)) == 0
    one, other = ([line["loss"] for line in _metrics(tmp_path / name)] for name in ("sound", "faulty"))
    assert one == other and len(one) == 6


def test_one_that_returns_ends_the_run_and_is_not_saved(small_dir: Path, tmp_path: Path) -> None:
    words = words_of(small_dir, tmp_path / "run", train__checkpoint_every=2, train__keep_checkpoints=9)
    for said, told in run_in_world(_train, 3, words, 2, {4}, 9):
        assert "repeated, from the state before it" in said
        assert "after step 4 rank 2 (" in told and f"than the other ranks in {BOTH}; the step was repeated" in told
        assert "start again without that node, to go on from the newest checkpoint" in told
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000002.pt"]


def test_one_between_comparisons_ends_the_run_at_the_next(small_dir: Path, tmp_path: Path) -> None:
    """Nothing is repeated: what the other ranks have learnt since then may be wrong, too."""
    words = words_of(small_dir, tmp_path / "run", train__digest_every=3)
    for said, told in run_in_world(_train, 3, words, 0, {1}, late=True):
        assert not said and "after step 2 rank 0 (" in told and "average of head.0.weight" in told
    words = words_of(small_dir, tmp_path / "saving", train__digest_every=100, train__checkpoint_every=2)
    for _, told in run_in_world(_train, 3, words, 0, {3}):  # a checkpoint is compared, too
        assert "after step 4 rank 0 (" in told
    assert [path.name for path in checkpoints(tmp_path / "saving")] == ["step-00000002.pt"]


def test_of_two_ranks_both_are_named_and_without_it_nobody_looks(small_dir: Path, tmp_path: Path) -> None:
    for said, told in run_in_world(_train, 2, words_of(small_dir, tmp_path / "run"), 1, {2}, 9):
        assert said and "after step 2 rank 0 (" in told and ", rank 1 (" in told
        assert f"hold different numbers in {BOTH}, and no majority tells which is right" in told
    quiet = words_of(small_dir, tmp_path / "quiet", train__digest_every=0)
    assert [result for _, result in run_in_world(_train, 2, quiet, 1, {2}, 9)] == [6, 6]


def test_who_is_odd() -> None:
    assert odd_ones([(1, 2), (1, 3), (1, 2)]) == [1]
    assert odd_ones([(1,), (2,)]) == [0, 1]
    assert odd_ones([(1,), (1,), (2,), (2,)]) == [0, 1, 2, 3]
    assert odd_ones([(5,), (1,), (1,), (2,), (1,)]) == [0, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_every_bit_counts(dtype: torch.dtype) -> None:
    values = torch.arange(6).reshape(2, 3).to(dtype)
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    here = torch.device("cpu")
    before = sums({"a": values, "none": values[:0], "one": values[0, 0], "turned": values.T}, here)
    assert before[0] == before[3]
    for bit in range(8 * values.element_size() - (dtype != torch.bool) if dtype != torch.bool else 1):
        changed = values.clone()
        changed.view(words)[1, 2] ^= 1 << bit
        assert sums({"a": changed}, here)[0] != before[0]
