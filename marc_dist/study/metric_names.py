"""Which metrics an evaluation gives: learned from the scorer itself, so that no list grows old."""

from __future__ import annotations

import numpy as np

from marc_dist import metrics
from marc_dist.config import Config, ConfigError
from marc_dist.config.suggest import suggestion
from marc_dist.metrics.conventions import Scoring

LABEL_METRICS = {"label_mAP": "all", "rare_mAP": "rare", "medium_mAP": "medium", "common_mAP": "common"}
"""Mean over labels of their average precision, by the group of labels in ``metrics.json``; names as in training."""
USUAL = ("mAP", "nDCG@10", "wAP@10", "label_mAP", "rare_mAP", "medium_mAP", "common_mAP")


def given(config: Config, *, extra: bool | None = None) -> list[str]:
    """Names of all metrics of an evaluation.

    Args:
        config: ``eval``.
        extra: in place of ``eval.extra``.
    """
    one = config.eval
    scoring = Scoring(one.ks, one.gain, one.relevance, one.denominator, one.ideal, one.ndcg_form, one.without_relevant)
    flat = one.index == "flat" or one.index.startswith(("sign", "itq"))
    found = metrics.score_queries(
        np.arange(10, dtype=np.int64)[None],
        np.ones((1, 1), dtype=np.bool_),
        np.ones((10, 1), dtype=np.bool_),
        np.array([-1], dtype=np.int64),
        scoring,
        complete=flat,
        extra=one.extra if extra is None else extra,
        most=10,
        cosine=np.ones((1, 10)) if one.index == "flat" else None,
    )
    return [*(name for name in found if name != "num_relevant"), *LABEL_METRICS]


def check_metrics(wanted: list[str], config: Config, place: str) -> None:
    """Refuse a metric that an evaluation does not give.

    Args:
        wanted: names.
        config: ``eval``.
        place: put before the message.

    Raises:
        ConfigError: names the metric and what would give it.
    """
    have = given(config)
    for name in wanted:
        if name in have:
            continue
        stem, at, k = name.rpartition("@")
        if at and k.isdigit() and any(other.startswith(f"{stem}@") for other in have):
            remedy = f"; its cut-offs are {', '.join(map(str, config.eval.ks))}: add {k} to eval.ks"
        elif name in given(config, extra=True):
            remedy = "; it is one of the further metrics: set eval.extra: true"
        elif name in ("mAP", "MRR", "R_precision") or name.startswith("mAP_"):
            remedy = (
                f"; it needs the complete ranking, which eval.index={config.eval.index} does not give: "
                f"use mAP@{config.eval.ks[0]}, or eval.index=flat"
            )
        else:
            remedy = suggestion(name, have)
        raise ConfigError(f"{place}{name}: protocol {config.eval.protocol} does not give this metric{remedy}")
