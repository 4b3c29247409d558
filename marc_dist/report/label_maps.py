"""The maps of the report: where every image lies, and which of them carry a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from marc_dist.report.example_queries import Galleries
from marc_dist.retrieval.embedding_map import MAP_POINTS
from marc_dist.retrieval.protocols import Bool

MAP_SIZE, MAP_MARGIN = (1000, 750), 24
NUM_MAPS = 6
LEAST_SHARE = 0.01
"""Of a map's images that a label must be on to have a map of its own."""
Places = list[tuple[int, int]]


@dataclass(frozen=True)
class LabelMap:
    """Those images of a map that have something in common.

    Attributes:
        title: what they share.
        places: encoder -> where they lie.
    """

    title: str
    places: dict[str, Places]


def map_sentence(summary: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """How to read the maps."""
    num = sum(row["encoder"] == "trained" for row in rows)
    told = f"All {num:,} images" if num < MAP_POINTS else f"{num:,} images, evenly spaced,"
    return (
        f"{told} of queries and archive, placed by the features of {'each' if len(summary['scores']) > 1 else 'the'} "
        "encoder (t\u2011SNE): what lies together is found together; distances between groups mean little. "
        "Every map shows all of them, and in colour those that carry one label; rare labels first."
    )


def places_on_map(rows: Sequence[dict[str, Any]]) -> Places:
    """Whole places within ``MAP_SIZE`` that hold all points, with the same scale both ways."""
    points = np.array([(row["x"], row["y"]) for row in rows], dtype=np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    size = np.array(MAP_SIZE, dtype=np.float64)
    scale = float(((high - low) / (size - 2 * MAP_MARGIN)).max()) or 1.0
    placed = np.rint(size / 2 + (points - (low + high) / 2) / scale).astype(np.int64)
    return [(x, y) for x, y in placed.tolist()]


def shown_labels(carried: Bool, num: int = NUM_MAPS) -> list[int]:
    """Up to ``num`` labels worth a map, by frequency: half of them the rarest, half the most common.

    Rarer ones than ``LEAST_SHARE`` are passed over; those on most of the images come last, they tell little.

    Args:
        carried: (n, L) labels of the map's images.
        num: of maps.
    """
    counts = carried.sum(axis=0)
    least = max(1.0, LEAST_SHARE * len(carried))
    order = [at for at in np.argsort(counts, kind="stable").tolist() if counts[at] >= least]
    rare = order[: num // 2]
    over = 2 * counts - len(carried)
    common = sorted(order[len(rare) :], key=lambda at: (over[at] > 0, abs(over[at])))
    return sorted([*rare, *common[: num - len(rare)]], key=order.index)


def label_maps(
    summary: dict[str, Any], galleries: Galleries, rows: Sequence[dict[str, Any]]
) -> tuple[dict[str, Places], list[LabelMap]]:
    """Where all images lie for each encoder, and a map for each of a few labels; both empty without ``rows``.

    Args:
        summary: of the evaluation.
        galleries: the pictures of queries and archive, with their labels.
        rows: of ``map.parquet``: encoder, side, id and place of each image.
    """
    if not rows:
        return {}, []
    by_encoder = {name: [row for row in rows if row["encoder"] == name] for name in summary["scores"]}
    first = by_encoder["trained"]
    sides = {"query": galleries.queries.labels, "archive": galleries.archive.labels}
    carried = np.stack([sides[row["side"]][row["id"]] for row in first])
    places = {name: places_on_map(some) for name, some in by_encoder.items()}
    marked = []
    if galleries.queries.dataset.fingerprint != galleries.archive.dataset.fingerprint:
        asked = np.array([row["side"] == "query" for row in first])
        marked.append((f"all images of {galleries.queries.dataset.title}", asked))
    chosen = shown_labels(carried, NUM_MAPS - len(marked))
    marked += [(galleries.classes[at], carried[:, at]) for at in chosen]
    return places, [
        LabelMap(
            title,
            {name: [at for at, mine in zip(all_of, some, strict=True) if mine] for name, all_of in places.items()},
        )
        for title, some in marked
    ]
