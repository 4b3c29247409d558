"""The best encoder of a run so far by a validation score, and whether waiting for a better one has an end."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from marc_dist.config import Config, EvalConfig, TrainConfig


@dataclass
class Best:
    """What was best before a step was scored; it lies in that step's checkpoint, so that no crash can part the two.

    Attributes:
        metric: ``train.keep_best``.
        rule: what else the score depends on: ``eval.features`` and ``eval.relevance``.
        score: of the best encoder; higher is better.
        step: global steps done when it was scored.
        epoch: the same in epochs.
        waited: validations since then.
        seen: step of the newest validation.
        weights: of what learns (all of the encoder, or its head), on the CPU; on rank 0 only.
    """

    metric: str
    rule: list[str]
    score: float
    step: int
    epoch: float
    waited: int
    seen: int
    weights: dict[str, Tensor]


def rule_of(config: EvalConfig) -> list[str]:
    """See ``Best.rule``."""
    return [config.features, str(config.relevance)]


def take_in(
    best: Best | None,
    metric: str,
    rule: list[str],
    figures: dict[str, float],
    step: int,
    epoch: float,
    weights: dict[str, Tensor],
) -> Best:
    """The best after one more validation; the earlier of two equal ones stays.

    Args:
        best: so far, or None before the first.
        metric: ``train.keep_best``.
        rule: see ``Best``.
        figures: of this validation; a score that is missing counts as 0.
        step: global steps done.
        epoch: the same in epochs.
        weights: of what learns; copied when they are better.
    """
    score = figures.get(metric, 0.0)
    if best is not None and not score > best.score:
        best.waited, best.seen = best.waited + 1, step
        return best
    kept = {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}
    return Best(metric, rule, score, step, epoch, 0, step, kept)


def give_up(best: Best | None, config: TrainConfig) -> bool:
    """Whether ``train.patience`` validations have passed without a better score."""
    return best is not None and config.patience is not None and best.waited >= config.patience


def to_payload(best: Best | None) -> dict[str, Any] | None:
    """What a checkpoint keeps."""
    return None if best is None else {field.name: getattr(best, field.name) for field in fields(best)}


def from_payload(payload: dict[str, Any] | None, config: Config) -> Best | None:
    """What a checkpoint kept; None when there was none, or when another score is asked for now."""
    found = None if payload is None else payload.get("best")
    if found is None or [found["metric"], found["rule"]] != [config.train.keep_best, rule_of(config.eval)]:
        return None
    return Best(**{field.name: found[field.name] for field in fields(Best)})
