"""A flat map of some images' features, for the eye: near in the map means near in the search, as far as that can be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from marc_dist.retrieval.protocols import Int, Protocol

Float32 = NDArray[np.float32]
MAP_POINTS = 1500
PERPLEXITY = 30.0
FEW = 8
"""Up to this number of points the map is the plane of their largest spread: t-SNE has no neighbourhoods to keep."""


def map_samples(protocol: Protocol, num: int = MAP_POINTS) -> tuple[Int, Int]:
    """The images that a map shows: ids of queries and of archive images, ascending, evenly spaced, ``num`` at most.

    Both sides have their share of all images, but the queries no less than a quarter of the map. An image that both
    asks and answers is shown once, as a query.
    """
    queries, archive = protocol.queries.ids, protocol.archive.ids
    if protocol.one_dataset:
        archive = np.setdiff1d(archive, queries)
    share = round(num * len(queries) / (len(queries) + len(archive)))
    asked = _spaced(queries, max(share, num // 4, num - len(archive)))
    return asked, _spaced(archive, num - len(asked))


def _spaced(ids: Int, num: int) -> Int:
    if len(ids) <= num:
        return ids
    return ids[np.arange(num, dtype=np.int64) * len(ids) // num]


def principal_plane(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Coordinates along the two directions of largest variance, (n, 2); zeros where there is none.

    A direction's sign is that which makes its largest weight positive.
    """
    wide = np.asarray(features, dtype=np.float64)
    out = np.zeros((len(wide), 2))
    if len(wide) < 2:
        return out
    wide = wide - wide.mean(axis=0)
    _, _, directions = np.linalg.svd(wide, full_matrices=False)
    for axis, direction in enumerate(directions[:2]):
        out[:, axis] = wide @ direction * np.sign(direction[np.abs(direction).argmax()])
    return out


def embedding_map(features: NDArray[np.floating]) -> Float32:
    """Coordinates of a flat map of unit vectors, (n, d) -> (n, 2): t-SNE, begun at the plane of largest variance.

    The same features give the same map on one machine: fixed seed, one thread. 1,500 points take about four seconds.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):  # sums of several threads come out in any order
        plane = principal_plane(features)
    spread = float(plane[:, 0].std()) if len(plane) else 0.0
    if len(plane) <= FEW or spread < 1e-6:
        return plane.astype(np.float32)
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(plane) - 1) / 3.0)
    with threadpool_limits(limits=1):
        tsne = TSNE(init=(plane * (1e-4 / spread)).astype(np.float32), random_state=0, perplexity=perplexity)
        return np.asarray(tsne.fit_transform(np.asarray(features, dtype=np.float32)), dtype=np.float32)
