"""Pictures of one split that look like those of another: by their pixels, and by what a pretrained backbone sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from marc_dist.data.dataset import Dataset
from marc_dist.packing.leaks import find_leaks, pictures_of_dataset
from marc_dist.packing.look_alikes import EQUAL

Bool = NDArray[np.bool_]
Int = NDArray[np.int64]
Float = NDArray[np.float64]
RULES = ("pixels", "pixels_or_neighbours", "scene")
"""What makes a query a leaked one; ``scene``: a picture of its scene lies in another split."""
MIRROR_QUANTILE = 0.05
"""Of the cosines of pictures with their own mirror images: two pictures that are more alike than this are suspects."""


class Pair(NamedTuple):
    """Two pictures of different splits.

    Attributes:
        kind: equal (files), near (pixels), neighbour (features).
        value: bits of the hashes that differ; of a neighbour the cosine; 0 for equal files.
        row: of the one that is asked with, or of the first split.
        other: of its partner.
    """

    kind: str
    value: float
    row: int
    other: int


@dataclass(frozen=True)
class Leaks:
    """What was found in a data set.

    Attributes:
        pairs: across splits, equal files first.
        leaked: rule -> (n,) pictures that have a partner in another split; ``scene`` only where the data names scenes.
        threshold: cosine from which a neighbour is a suspect; NaN when nobody looked.
    """

    pairs: list[Pair]
    leaked: dict[str, Bool]
    threshold: float


def pixel_pairs(dataset: Dataset, workers: int, tell: Callable[[int, int], None]) -> list[Pair]:
    """Equal and nearly equal pictures of different splits.

    Args:
        dataset: an opened shard folder.
        workers: processes that read pictures.
        tell: called with pictures and bytes looked at so far.
    """
    found = find_leaks(pictures_of_dataset(dataset), workers, tell)
    pairs = [pair for pair in found.pairs if found.of[pair.one] != found.of[pair.two]]
    kinds = [("equal", 0.0) if pair.bits == EQUAL else ("near", float(pair.bits)) for pair in pairs]
    return sorted(Pair(*kind, pair.one, pair.two) for kind, pair in zip(kinds, pairs, strict=True))


def neighbour_pairs(
    dataset: Dataset, features: NDArray[np.floating], mirrored: tuple[Int, NDArray[np.floating]], asking: str
) -> tuple[list[Pair], float]:
    """Pictures of a split whose nearest picture of another split is about as near as a picture is to its mirror image.

    The bound comes from the data and the backbone, because cosines of one backbone say nothing about another. With
    ImageNet's EfficientNet-Lite0 and the 3,000 pictures of ML-AID it is 0.848: 66 of them come to it with another one,
    and 44 % of the copies do that were cut by 5 % on each side, made 10 % brighter and saved as JPEG of quality 60
    (``benchmarks/audit_suspects.py``).

    Args:
        dataset: an opened shard folder.
        features: (n, F) of all its pictures.
        mirrored: rows of some pictures, and (m, F) features of their mirror images.
        asking: the split.

    Returns:
        Pairs, the nearest first, and the bound.
    """
    from marc_dist.api.search import search  # torch

    rows, images = mirrored
    bound = bound_of(features, rows, images)
    asked = dataset.rows(asking)
    others = np.flatnonzero(~(dataset.split == asking))
    if not len(others):
        return [], bound
    found = search(features[asked], features[others], 1)
    near = np.flatnonzero(found.scores[:, 0] >= bound)
    pairs = [
        Pair("neighbour", float(found.scores[at, 0]), int(asked[at]), int(others[found.positions[at, 0]]))
        for at in near.tolist()
    ]
    return sorted(pairs, key=lambda pair: (-pair.value, pair.row)), bound


def bound_of(features: NDArray[np.floating], rows: Int, images: NDArray[np.floating]) -> float:
    """The cosine from which two pictures are suspects.

    Args:
        features: (n, F) of all pictures.
        rows: m of them.
        images: (m, F) of their mirror images.
    """
    return float(np.quantile(_cosines(features[rows], images), MIRROR_QUANTILE))


def _cosines(one: NDArray[np.floating], other: NDArray[np.floating]) -> Float:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray(np.einsum("ij,ij->i", one, other) / np.maximum(lengths, 1e-12), dtype=np.float64)


def put_together(dataset: Dataset, pixels: list[Pair], neighbours: list[Pair], bound: float) -> Leaks:
    """Which pictures leak, by every rule.

    Args:
        dataset: an opened shard folder.
        pixels: of ``pixel_pairs``.
        neighbours: of ``neighbour_pairs``; pairs that pixels have shown are left out.
        bound: of ``neighbour_pairs``.
    """
    known = {frozenset((pair.row, pair.other)) for pair in pixels}
    more = [pair for pair in neighbours if frozenset((pair.row, pair.other)) not in known]
    by_pixels = np.zeros(len(dataset), dtype=np.bool_)
    for pair in pixels:
        by_pixels[[pair.row, pair.other]] = True
    by_both = by_pixels.copy()
    by_both[[pair.row for pair in more]] = True
    leaked = {"pixels": by_pixels, "pixels_or_neighbours": by_both}
    scenes = scenes_shared(dataset)
    if scenes is not None:
        leaked["scene"] = scenes
    return Leaks([*pixels, *more], leaked, bound)


def scenes_shared(dataset: Dataset) -> Bool | None:
    """(n,) whether a picture of the same scene lies in another split; None where the data names no scenes."""
    scene, split = np.asarray(dataset.scene[:]), np.asarray(dataset.split[:])
    if not any(scene):
        return None
    splits: dict[str, set[str]] = {}
    for name, where in zip(scene.tolist(), split.tolist(), strict=True):
        splits.setdefault(name, set()).add(where)
    return np.array([bool(name) and len(splits[name]) > 1 for name in scene.tolist()], dtype=np.bool_)
