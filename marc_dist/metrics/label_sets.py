"""Label sets of queries and archive: gain, relevance, and an archive stored as its distinct label sets; pure.

Real archives hold far fewer distinct label sets than items. Gain and relevance are therefore worked out once per
distinct set, and an item stands in a ranking as the small number of its set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marc_dist.metrics.arguments import Bool, Int, as_labels, as_self_positions, check_ranking, check_rows
from marc_dist.metrics.conventions import Gain, Relevance, as_relevance, check_gain

Float = NDArray[np.float64]
Byte = NDArray[np.uint8]
Count = NDArray[Any]
"""Whole numbers or floats."""
WORD = 32


@dataclass(frozen=True)
class DistinctSets:
    """An archive as its distinct label sets. Made by ``distinct_sets``.

    Attributes:
        sets: (S, L) the distinct label sets.
        code: (N + 1,) which of them each item has; the last entry is S, "no item", which -1 in a ranking reaches.
        counts: (S,) how many items have each.
    """

    sets: Bool
    code: Int
    counts: Int


def distinct_sets(labels: Bool) -> DistinctSets:
    """The distinct rows of (N, L) labels. Takes a sort of N numbers for every 32 labels: make it once per archive.

    Raises:
        ValueError: not multi-hot.
    """
    labels = as_labels("archive_labels", labels)
    code = np.zeros(len(labels), dtype=np.int64)
    for start in range(0, labels.shape[1], WORD):
        part = labels[:, start : start + WORD].astype(np.int64) << np.arange(min(WORD, labels.shape[1] - start))
        code = np.unique((code << WORD) | part.sum(axis=1), return_inverse=True)[1].reshape(-1)
    _, first, counts = np.unique(code, return_index=True, return_counts=True)
    return DistinctSets(np.asarray(labels[first], dtype=np.bool_), np.append(code, len(first)), counts.astype(np.int64))


def sets_of(archive_labels: Bool | DistinctSets) -> DistinctSets:
    """The archive's distinct sets, from its labels if they were not made yet."""
    return archive_labels if isinstance(archive_labels, DistinctSets) else distinct_sets(archive_labels)


def checked_block(
    ranking: Int, query_labels: Bool, archive_labels: Bool | DistinctSets, self_position: Int, *, checked: bool
) -> tuple[Int, Bool, DistinctSets, Int]:
    """The arguments of a function that scores a block of rankings, as it needs them.

    Args:
        ranking: (B, K) archive positions, -1 for none.
        query_labels: (B, L).
        archive_labels: (N, L), or ``distinct_sets`` of it.
        self_position: (B,), -1 for none.
        checked: the ranking was checked before, by ``check_ranking``, or is of one's own making.

    Raises:
        ValueError: anything that does not fit; says what was expected.
    """
    archive = sets_of(archive_labels)
    num = len(archive.code) - 1
    query_labels = as_labels("query_labels", query_labels, width=archive.sets.shape[1])
    if not checked:
        ranking = check_ranking(ranking, num)
    check_rows(ranking, query_labels)
    return ranking, query_labels, archive, as_self_positions(self_position, len(query_labels), num)


def overlap(query_labels: Bool, archive_labels: Bool) -> Count:
    """(B, L), (N, L) -> (B, N) number of shared labels, in the shortest type that holds L."""
    archive_labels = as_labels("archive_labels", archive_labels)
    query_labels = as_labels("query_labels", query_labels, width=archive_labels.shape[1])
    # label by label in bytes: faster than a matrix product of so few columns, and it wakes no threads
    shared = np.zeros((len(query_labels), len(archive_labels)), dtype=np.min_scalar_type(query_labels.shape[1]))
    for ours, theirs in zip(query_labels.T, np.ascontiguousarray(archive_labels.T), strict=True):
        shared += ours[:, None] & theirs
    return shared


def sizes(labels: Bool) -> Float:
    """(B, L) -> (B,) number of labels."""
    return np.asarray(labels.sum(axis=1), dtype=np.float64)


def gains(query_labels: Bool, archive_labels: Bool, kind: Gain, shared: Count | None = None) -> Float:
    """Graded relevance of every item to every query, (B, N).

    count: |Y_q & Y_r|. jaccard: |Y_q & Y_r| / |Y_q | Y_r|. cosine: |Y_q & Y_r| / sqrt(|Y_q| |Y_r|). An empty label set
    shares nothing: gain 0, also with another empty one.

    Args:
        query_labels: (B, L).
        archive_labels: (N, L).
        kind: which of the three.
        shared: (B, N) the ``overlap``, where it is known already.

    Raises:
        ValueError: no such kind, or labels that are not multi-hot.
    """
    check_gain(kind)
    shared = overlap(query_labels, archive_labels) if shared is None else shared
    if kind == "count":
        return shared.astype(np.float64)
    ours, theirs = sizes(query_labels)[:, None], sizes(archive_labels)[None, :]
    below = ours + theirs - shared if kind == "jaccard" else np.sqrt(ours * theirs)
    return np.asarray(np.divide(shared, below, out=np.zeros(shared.shape), where=below > 0))


def relevant(query_labels: Bool, archive_labels: Bool, rule: Relevance, shared: Count | None = None) -> Bool:
    """Whether every item is relevant to every query, (B, N).

    any: at least one shared label. exact: equal label sets. subset: Y_r inside Y_q (CV4RS's strict MAP@R). A number t:
    Jaccard >= t; the source (OML) writes distance <= 1 - t. An item or a query without labels is never relevant (in
    OML's code two empty sets are at distance 0 and match).

    Args:
        query_labels: (B, L).
        archive_labels: (N, L).
        rule: one of these words, or t, above 0 and at most 1.
        shared: (B, N) the ``overlap``, where it is known already.

    Raises:
        ValueError: no such rule, or labels that are not multi-hot.
    """
    rule = as_relevance(rule)
    shared = overlap(query_labels, archive_labels) if shared is None else shared
    ours, theirs = sizes(query_labels)[:, None], sizes(archive_labels)[None, :]
    if rule == "any":
        return np.asarray(shared > 0)
    if rule == "subset":
        return np.asarray((shared == theirs) & (theirs > 0))
    if rule == "exact":
        return np.asarray((shared == theirs) & (shared == ours) & (shared > 0))
    return np.asarray((shared >= rule * (ours + theirs - shared) - 1e-9) & (shared > 0))  # 1e-9: t = 0.6 of 5


def table(values: NDArray[np.generic]) -> NDArray[Any]:
    """(B, S) values of the distinct sets -> (B, S + 1), with 0 for "no item"."""
    return np.pad(values, ((0, 0), (0, 1)))


def bit_table(*rules: Bool) -> Byte:
    """Up to eight (B, S) yes-or-no tables as bits of one, (B, S + 1): one look-up answers all."""
    bits = np.zeros((len(rules[0]), rules[0].shape[1] + 1), dtype=np.uint8)
    for at, rule in enumerate(rules):
        bits[:, :-1] |= rule.view(np.uint8) << np.uint8(at)
    return bits


def in_order(archive: DistinctSets, row: Byte, order: Int, own: int) -> Byte:
    """One query's row of ``bit_table`` -> the bits of every item in rank order, (K,); 0 for the query's own item.

    In archive order first: that reads one item after the other, and the jumps that follow stay within N bytes.

    Args:
        archive: N items.
        row: (S + 1,) bits of each distinct set.
        order: (K,) archive positions, best first; -1 = no item.
        own: archive position of the query itself, or -1.
    """
    items = row.take(archive.code)
    items[own] = 0  # own = -1: "no item", which has 0 anyway
    return items.take(order)


def first_codes(archive: DistinctSets, ranking: Int, self_position: Int) -> Int:
    """(B, k) number of the distinct set at each rank; the query's own item reads "no item".

    Args:
        archive: N items.
        ranking: (B, k) archive positions, best first; -1 = no item.
        self_position: (B,) the query's own archive position, or -1.
    """
    own = (ranking == self_position[:, None]) & (ranking >= 0)
    return np.where(own, archive.code[-1], archive.code[ranking])


def looked_up(values: NDArray[Any], codes: Int) -> NDArray[Any]:
    """(B, S + 1) values of the distinct sets, (B, k) codes in rank order -> (B, k) values in rank order."""
    return np.take_along_axis(values, codes, axis=1)


def num_hits(hit: NDArray[Any], archive: DistinctSets, self_position: Int) -> Float:
    """How many items of the archive say yes to each query, (B,); the query's own is left out.

    Args:
        hit: (B, S + 1) 1 or True where a distinct set says yes; the last column ("no item") is 0.
        archive: how many items have each set.
        self_position: (B,) the query's own archive position, or -1.
    """
    own = hit[np.arange(len(hit)), archive.code[self_position]]
    return np.asarray(hit[:, :-1].astype(np.float64) @ archive.counts.astype(np.float64) - own)


def best_gains(gain: Float, archive: DistinctSets, self_position: Int, k: int) -> Float:
    """The k largest gains of the archive for each query, (B, k) descending; 0 where it has fewer items.

    Args:
        gain: (B, S + 1) gain of each distinct set, 0 or more; the last column ("no item") is 0.
        archive: how many items have each set.
        self_position: (B,) the query's own archive position, which is left out, or -1.
        k: wanted.
    """
    best = np.zeros((len(gain), k))
    num = min(k + 1, len(archive.counts))  # each set gives one item or more, but for the query's own
    if num:
        place = np.argpartition(-gain[:, :-1], num - 1, axis=1)[:, :num]
        values = np.take_along_axis(gain, place, axis=1)
        copies = np.minimum(archive.counts[place] - (place == archive.code[self_position][:, None]), k)
        order = np.argsort(-values, axis=1, kind="stable")
        for row, at in enumerate(order):
            top = np.repeat(values[row, at], copies[row, at])[:k]
            best[row, : len(top)] = top
    return best
