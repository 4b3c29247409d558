"""Checks of what people hand to the metrics: each raises one ``ValueError`` with place, expected, got; pure.

Everything is checked once and cheaply. Rankings alone cost a pass over their items: see ``check_ranking``.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]
Int = NDArray[np.int64]


def check_choice(name: str, value: object, known: Sequence[str], *, also: str = "") -> None:
    """Refuse a word that is none of ``known``, and name the nearest one.

    Args:
        name: of the argument.
        value: what was given.
        known: the words that there are.
        also: what else would be right, for the message.
    """
    if isinstance(value, str) and value in known:
        return
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.5) if isinstance(value, str) else []
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"{name}: expected one of {', '.join(known)}{also}, got {value!r:.60}{hint}")


def check_k(k: object, name: str = "k") -> int:
    """A cut-off as a whole number of 1 or more."""
    try:
        number = operator.index(k)  # type: ignore[arg-type]
    except TypeError:
        number = 0
    if number < 1 or isinstance(k, bool | np.bool_):
        raise ValueError(f"{name}: expected a whole number of 1 or more, got {k!r:.60}")
    return number


def as_labels(name: str, labels: Any, *, width: int | None = None) -> Bool:
    """Multi-hot label sets as (n, L) bool: of bool, or of numbers that are all 0 or 1.

    Args:
        name: of the argument.
        labels: (n, L).
        width: L that it must have; None = any.
    """
    array = np.asarray(labels)
    if array.ndim != 2 or not array.shape[1]:
        hint = "; of class numbers c make np.eye(num_classes, dtype=bool)[c]" if array.ndim == 1 else ""
        raise ValueError(f"{name}: expected multi-hot rows (n, labels), got shape {array.shape}{hint}")
    if width is not None and array.shape[1] != width:
        raise ValueError(f"{name}: expected {width} labels as on the other side, got {array.shape[1]}")
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name}: expected bool, or numbers 0 and 1, got {array.dtype}")
    wrong = (array != 0) & (array != 1)  # NaN, too
    if wrong.any():
        row, label = np.argwhere(wrong)[0].tolist()
        raise ValueError(f"{name}: expected 0 or 1, got {array[row, label]} in row {row}, label {label}")
    return np.asarray(array != 0)


def as_self_positions(positions: Any, num_queries: int, num_archive: int) -> Int:
    """Each query's own place in the archive as (B,) int64, -1 for none.

    Args:
        positions: (B,) whole numbers from -1 to N - 1; None = no query lies in the archive.
        num_queries: B.
        num_archive: N, items of the archive.

    Raises:
        ValueError: another shape or type, or a place that the archive does not have.
    """
    if positions is None:
        return np.full(num_queries, -1, dtype=np.int64)
    array = np.asarray(positions)
    if array.shape != (num_queries,) or (array.dtype.kind not in "iu" and array.size):
        raise ValueError(
            f"self_positions: expected {num_queries} whole numbers, one a query, got {array.dtype} {array.shape}"
        )
    wrong = array[(array < -1) | (array >= num_archive)]
    if wrong.size:
        raise ValueError(f"self_positions: expected -1 (none) to {num_archive - 1}, got {wrong[0]}")
    return array.astype(np.int64, copy=False)


def check_ranking(ranking: Any, num_archive: int) -> Int:
    """Rankings as (B, K) int64: every item of the archive at most once a row, -1 where there is none.

    A pass over all items. Functions that score rankings call it, unless they are told ``checked=True``.

    Args:
        ranking: (B, K) archive positions, best first.
        num_archive: N, items of the archive.
    """
    array = np.asarray(ranking)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ValueError(
            f"ranking: expected whole numbers (queries, ranks), archive positions, got {array.dtype} {array.shape}"
        )
    array = array.astype(np.int64, copy=False)
    seen = np.empty(num_archive + 1, dtype=np.bool_)
    for row, order in enumerate(array):
        least, most = order.min(initial=-1), order.max(initial=-1)
        if least < -1 or most >= num_archive:
            got = least if least < -1 else most
            raise ValueError(f"ranking: expected -1 (none) to {num_archive - 1}, got {got} in row {row}")
        seen[:] = False
        seen[order] = True
        if np.count_nonzero(seen[:num_archive]) != np.count_nonzero(order >= 0):
            items, times = np.unique(order[order >= 0], return_counts=True)
            raise ValueError(f"ranking: expected each item once, got {items[times > 1][0]} twice or more in row {row}")
    return array


def check_rows(ranking: Int, query_labels: Bool) -> None:
    """Refuse rankings of more or fewer queries than there are."""
    if len(ranking) != len(query_labels):
        raise ValueError(
            f"ranking: expected one row a query, got {len(ranking)} rows for {len(query_labels)} rows of query_labels"
        )
