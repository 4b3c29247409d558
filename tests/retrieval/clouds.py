"""Random unit vectors, and lists by sorting everything: what the tests of the search share."""

from __future__ import annotations

import numpy as np

from marc_dist.retrieval.exact import exact_unit


def cloud(num: int, dim: int, seed: int, copies: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num, dim)).astype(np.float32)
    for _ in range(copies):
        x[rng.integers(num)] = x[rng.integers(num)]
    return exact_unit(x)


def naive(queries: np.ndarray, ids: np.ndarray, features: np.ndarray, own: np.ndarray, k: int) -> list[list[int]]:
    """Whole-archive lists by Python's sort of float64 scores."""
    out = []
    for query, self_id in zip(queries.astype(np.float64), own, strict=True):
        pairs = [
            (-float(query @ x), int(i)) for x, i in zip(features.astype(np.float64), ids, strict=True) if i != self_id
        ]
        lst = [i for _, i in sorted(pairs)][:k]
        out.append(lst + [-1] * (k - len(lst)))
    return out


def naive_hamming(codes: np.ndarray, ids: np.ndarray, archive: np.ndarray, own: np.ndarray, k: int) -> list[list[int]]:
    """The same by the number of differing bits; codes and archive are boolean."""
    out = []
    for query, self_id in zip(codes, own, strict=True):
        pairs = [(int((query != x).sum()), int(i)) for x, i in zip(archive, ids, strict=True) if i != self_id]
        lst = [i for _, i in sorted(pairs)][:k]
        out.append(lst + [-1] * (k - len(lst)))
    return out
