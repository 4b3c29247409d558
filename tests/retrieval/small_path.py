"""Whole rankings and what they score, by one sort of float64 scores a query: the path of small archives, as it was.

Nothing here knows blocks, ranks, distinct label sets or a radix sort. Sums run as documented: numpy's, over the
relevant items in rank order; curves over the queries in their order, 64 at a time.
"""

from __future__ import annotations

import numpy as np

from marc_dist import metrics as m

LEVELS = 101
BLOCK = 64


def order_of(queries: np.ndarray, archive: np.ndarray, own: np.ndarray) -> np.ndarray:
    """(Q, N) positions by (score descending, position ascending), the own item last, as -1."""
    scores = queries.astype(np.float64) @ archive.astype(np.float64).T
    inside = np.flatnonzero(own >= 0)
    scores[inside, own[inside]] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")
    order[inside, -1] = -1
    return order


def ranks_of(order: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """Ranks from 1 of the items that ``hit`` (N,) says yes to."""
    return np.array([at + 1.0 for at, item in enumerate(order.tolist()) if item >= 0 and hit[item]])


def ap(ranks: np.ndarray) -> float:
    return float((np.arange(1.0, len(ranks) + 1) / ranks).sum() / len(ranks)) if len(ranks) else 0.0


def trapezoids(ranks: np.ndarray) -> float:
    if not len(ranks):
        return 0.0
    upto = np.arange(1.0, len(ranks) + 1)
    before = np.array([1.0 if rank == 1 else (j - 1.0) / (rank - 1.0) for j, rank in zip(upto, ranks, strict=True)])
    return float((before + upto / ranks).sum() / (2.0 * len(ranks)))


def nmrr(ranks: np.ndarray, most: float, *, mpeg7: bool) -> float:
    if not len(ranks):
        return 1.0
    num = float(len(ranks))
    depth = min(4.0 * num, 2.0 * most)
    near = ranks[ranks <= depth]
    beyond = 1.25 * depth if mpeg7 else depth + 1.0
    mean = (near.sum() + (num - len(near)) * beyond) / num
    return float((mean - 0.5 * (1.0 + num)) / (beyond - 0.5 * (1.0 + num)))


def curve(ranks: np.ndarray) -> np.ndarray:
    """Best precision at recall i / 100 or more."""
    num = len(ranks)
    exact = [(j + 1.0) / rank for j, rank in enumerate(ranks.tolist())]
    out = np.zeros(LEVELS)
    for level in range(LEVELS if num else 0):
        first = max(-(-level * num // 100), 1)  # the first hit with recall level / 100
        out[level] = max(exact[first - 1 :])
    return out


def scored(
    order: np.ndarray, asked: np.ndarray, labels: np.ndarray, own: np.ndarray, rule: m.Relevance, *, extra: bool
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Metrics without a cut-off, label AP, and curves: mean over queries, sums of the labels, numbers of queries."""
    hits = m.relevant(asked, labels, rule)
    rows = np.arange(len(order))
    hits[rows[own >= 0], own[own >= 0]] = False
    ranks = [ranks_of(one, hit) for one, hit in zip(order, hits, strict=True)]
    out = {"num_relevant": hits.sum(axis=1).astype(float), "mAP": np.array([ap(one) for one in ranks])}
    if extra:
        least = {"easy": 0.4, "medium": 0.6, "hard": 0.8}
        for name, value in least.items():
            level = m.relevant(asked, labels, value)
            level[rows[own >= 0], own[own >= 0]] = False
            out[f"mAP_{name}"] = np.array(
                [trapezoids(ranks_of(one, hit)) for one, hit in zip(order, level, strict=True)]
            )
        for name in least:
            out[f"mAP_{name}_oml"] = np.where(level.any(axis=1), out[f"mAP_{name}"], np.nan)
        out["MRR"] = np.array([1.0 / one[0] if len(one) else 0.0 for one in ranks])
        out["R_precision"] = np.array([(one <= len(one)).sum() / len(one) if len(one) else 0.0 for one in ranks])
        most = float(hits.sum(axis=1).max())
        out["ANMRR"] = np.array([nmrr(one, most, mpeg7=False) for one in ranks])
        out["ANMRR_mpeg7"] = np.array([nmrr(one, most, mpeg7=True) for one in ranks])
    num_labels = labels.shape[1]
    label_ap = np.full(asked.shape, np.nan)
    sums, num = np.zeros((num_labels, LEVELS)), np.zeros(num_labels, dtype=np.int64)
    every = np.zeros(LEVELS)
    for start in range(0, len(order), BLOCK):
        some, part = np.zeros(LEVELS), np.zeros((num_labels, LEVELS))
        for row in range(start, min(start + BLOCK, len(order))):
            some += curve(ranks[row])
            for label in np.flatnonzero(asked[row]).tolist():
                hit = labels[:, label].copy()
                if own[row] >= 0:
                    hit[own[row]] = False
                if hit.any():
                    found = ranks_of(order[row], hit)
                    label_ap[row, label] = ap(found)
                    part[label] += curve(found)
                    num[label] += 1
        every, sums = every + some, sums + part
    return out, label_ap, every / len(order), sums, num
