"""Draws inside the network are a run's own: the same at any number of ranks, resumed or not; else the run says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from timm.models import register_model
from timm.models.swin_transformer import SwinTransformer

from marc_dist import comm
from marc_dist.encoder.draws import Draws
from tests.training.test_trainer import _difference, _state, _train, _words
from tests.worlds import run_in_world

STEPS = 4
RTOL = 1e-12


@register_model
def marc_small_swin(num_classes: int, **of_timm: Any) -> SwinTransformer:
    """timm's Swin, narrow: four windows a picture in its first stage, with stochastic depth 0.1 as it comes."""
    size: dict[str, Any] = {"img_size": 32, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
    return SwinTransformer(num_classes=num_classes, **size)


def _words_of(sample: Path, run: Path, **more: Any) -> dict[str, Any]:
    return _words(sample, run, model__backbone="marc_small_swin", train__max_steps=STEPS, **more)


def _keyed(words: dict[str, Any], **more: Any) -> dict[str, Any]:
    return _train(words, **more)


def _unkeyed(words: dict[str, Any]) -> None:
    """Train with the draws of torch's generator, which every rank seeds by its samples."""
    keyed = Draws.of
    Draws.of = lambda self, keys: keyed(self, None)  # type: ignore[method-assign]
    if comm.world() > 1 and comm.rank() == 0:
        message = r"marc_small_swin: draws random numbers that cannot be keyed by sample, so the result depends on"
        with pytest.warns(UserWarning, match=message) as found:
            _train(words)
        assert len(found) == 1
    else:
        _train(words)


def test_a_swin_is_the_same_at_any_size_and_resumed(small_dir: Path, tmp_path: Path) -> None:
    run_in_world(_keyed, 1, _words_of(small_dir, tmp_path / "one"))
    whole = _state(tmp_path / "one", STEPS)
    run_in_world(_keyed, 3, _words_of(small_dir, tmp_path / "three"), signal_at=(1, 2))  # stopped after two steps
    (result, _) = run_in_world(_keyed, 2, _words_of(small_dir, tmp_path / "three"))
    assert (result["resumed_from"], result["step"]) == (2, STEPS)
    assert _difference(whole, _state(tmp_path / "three", STEPS)) < RTOL
    run_in_world(_keyed, 1, _words_of(small_dir, tmp_path / "again"), signal_at=(1, 0))
    run_in_world(_keyed, 1, _words_of(small_dir, tmp_path / "again"))
    assert _difference(whole, _state(tmp_path / "again", STEPS)) == 0


def test_draws_that_are_not_keyed_differ_and_are_told(small_dir: Path, tmp_path: Path) -> None:
    for size in (1, 2):
        run_in_world(_unkeyed, size, _words_of(small_dir, tmp_path / str(size)))
    assert _difference(_state(tmp_path / "1", STEPS), _state(tmp_path / "2", STEPS)) > 1e-4
