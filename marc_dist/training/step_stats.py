"""What a log line says of a step and of the time since the last line."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Window:
    """What happened since the last log line."""

    started: float
    waited: float = 0.0
    wait_from: float = 0.0
    images: int = 0


def describe(figures: dict[str, float]) -> dict[str, float]:
    """Means and ranges over the global batch.

    Args:
        figures: ``LossParts.stats`` added up, and ``LossParts.highest`` maximised, over ranks.

    Returns:
        positives_per_anchor; anchors_without_partner, the share of anchors without a positive; label_coverage, the
        share of labels that some candidate carries; and over the positive pairs temperature and weight as _mean, _min
        and _max, 0 where there is no pair.
    """
    anchors, pairs = max(figures["anchors"], 1.0), max(figures["positives"], 1.0)
    described = {
        "positives_per_anchor": figures["positives"] / anchors,
        "anchors_without_partner": figures["anchors_without_partner"] / anchors,
        "label_coverage": figures["label_coverage"],
    }
    for name in ("temperature", "weight"):
        some = math.isfinite(figures[f"{name}_max"])
        described[f"{name}_mean"] = figures[f"{name}_sum"] / pairs
        described[f"{name}_min"] = -figures[f"{name}_min"] if some else 0.0
        described[f"{name}_max"] = figures[f"{name}_max"] if some else 0.0
    return described
