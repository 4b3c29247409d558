"""What people hand over, NumPy arrays, torch tensors or lists, as the arrays that the rooms below expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from marc_dist.metrics import Int, as_self_positions
from marc_dist.retrieval.exact import Float32, exact_unit

if TYPE_CHECKING:
    import torch

    Array = ArrayLike | torch.Tensor

ROWS = 1 << 16
"""Vectors that are held in float64 at a time."""


def plain(name: str, array: Any) -> NDArray[Any]:
    """A NumPy array, from a tensor of any device and type, too.

    Args:
        name: of the argument.
        array: an array, a dense tensor, or lists of one length.

    Raises:
        ValueError: a sparse tensor or matrix, or lists of different lengths.
    """
    if hasattr(array, "detach"):
        array = array.detach()
        if str(array.layout) != "torch.strided":
            raise ValueError(f"{name}: expected a dense tensor, got {array.layout}; use {name}.to_dense()")
        if array.is_nested or array.is_meta:
            kind = "nested tensor" if array.is_nested else "tensor on the device meta"
            raise ValueError(f"{name}: expected a dense tensor with numbers in it, got a {kind}")
        array = array.cpu().resolve_conj().resolve_neg()
        array = array.float() if array.is_floating_point() and array.dtype.itemsize < 4 else array  # bfloat16
    elif hasattr(array, "toarray"):  # SciPy's; NumPy would make an object of it
        raise ValueError(f"{name}: expected a dense array, got {type(array).__name__}; use {name}.toarray()")
    try:
        return np.asarray(array)
    except ValueError:
        raise ValueError(f"{name}: expected numbers in rows of one length, got rows that differ") from None


def check_path(path: object) -> None:
    """Refuse what names no file and no folder."""
    if not isinstance(path, str | PathLike):
        raise ValueError(f"path: expected a text or a pathlib.Path, got {type(path).__name__}")


def unit_vectors(name: str, vectors: Any, *, width: int | None = None) -> Float32:
    """(n, d) vectors scaled to length 1, as ``exact_unit`` does; zeros stay zeros.

    Args:
        name: of the argument.
        vectors: (n, d) numbers.
        width: d that they must have; None = any.

    Raises:
        ValueError: another shape or width, NaN or infinity.
    """
    array = plain(name, vectors)
    if array.ndim != 2 or not array.shape[1] or array.dtype.kind not in "biuf":
        raise ValueError(f"{name}: expected vectors (n, d) of numbers, got {array.dtype} {array.shape}")
    if width is not None and array.shape[1] != width:
        raise ValueError(f"{name}: expected {width} numbers a vector as on the other side, got {array.shape[1]}")
    out = np.empty(array.shape, dtype=np.float32)
    for start in range(0, len(array), ROWS):
        block = array[start : start + ROWS].astype(np.float64)
        wrong = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(wrong):
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinity in row {start + wrong[0]}")
        out[start : start + ROWS] = exact_unit(block)
    return out


def refuse_empty_archive(name: str, num: int) -> None:
    """Refuse an archive without items."""
    if not num:
        raise ValueError(f"{name}: expected an archive of one item or more, got none")


def own_positions(self_positions: Any, query_ids: Any, archive_ids: Any, num_queries: int, num_archive: int) -> Int:
    """(Q,) each query's own place in the archive, -1 for none, from places or from ids.

    Args:
        self_positions: (Q,) places; None = look at the ids.
        query_ids: Q ids, numbers or texts; None = no query lies in the archive.
        archive_ids: N different ids.
        num_queries: Q.
        num_archive: N.

    Raises:
        ValueError: places beside ids, one side of ids alone, wrong numbers of them, an archive id twice,
            numbers on one side and texts on the other, which cannot be equal.
    """
    if query_ids is None and archive_ids is None:
        given = None if self_positions is None else plain("self_positions", self_positions)
        return as_self_positions(given, num_queries, num_archive)
    if self_positions is not None or query_ids is None or archive_ids is None:
        raise ValueError("query_ids: expected both query_ids and archive_ids, or self_positions alone")
    asking = _ids("query_ids", query_ids, num_queries)
    answering = _ids("archive_ids", archive_ids, num_archive)
    known = dict.fromkeys(map(_kind, answering))
    strange = [one for one in asking if _kind(one) not in known]
    if known and strange:
        kinds, kind = ", ".join(known), _kind(strange[0])
        raise ValueError(f"query_ids: expected the kind of archive_ids ({kinds}), got {kind}: {strange[0]!r:.60}")
    places = {one: at for at, one in enumerate(answering)}
    if len(places) < len(answering):
        twice = next(one for at, one in enumerate(answering) if places[one] != at)
        raise ValueError(f"archive_ids: expected different ids, got {twice!r:.60} twice")
    return np.array([places.get(one, -1) for one in asking], dtype=np.int64)


def _ids(name: str, ids: Any, num: int) -> list[Any]:
    """Ids as Python's own numbers and texts, which compare by value: a tensor's element equals itself alone."""
    if isinstance(ids, str | bytes | set | frozenset | Mapping):
        raise ValueError(f"{name}: expected a list of {num} ids, got {type(ids).__name__}: {ids!r:.60}")
    if not isinstance(ids, list | tuple):
        array = plain(name, ids)
        if array.ndim != 1:
            raise ValueError(f"{name}: expected a list of {num} ids, got {array.dtype} {array.shape}")
        ids = array.tolist()
    if len(ids) != num:
        raise ValueError(f"{name}: expected {num}, one an item, got {len(ids)}")
    try:
        found = [one.item() if hasattr(one, "item") else one for one in ids]
        hash(tuple(found))
    except (TypeError, ValueError, RuntimeError):  # lists, and tensors of several numbers
        raise ValueError(f"{name}: expected numbers or texts, got lists or the like") from None
    unequal = next((at for at, one in enumerate(found) if one != one), None)  # noqa: PLR0124 - NaN
    if unequal is not None:
        raise ValueError(f"{name}: expected numbers or texts, got {found[unequal]!r} at place {unequal}")
    return found


def _kind(one: Any) -> str:
    """The type of an id; whole numbers and floats are one kind, because 1 and 1.0 are equal."""
    return "number" if isinstance(one, int | float) and not isinstance(one, bool) else type(one).__name__


def padded_ranking(ranking: Any) -> NDArray[Any]:
    """Rankings as one array (Q, K); lists of different lengths are filled up with -1."""
    if not isinstance(ranking, Sequence):
        return plain("ranking", ranking)
    rows = [plain("ranking", row) for row in ranking]
    wrong = [row for row in rows if row.ndim != 1 or (row.dtype.kind not in "iu" and row.size)]
    if wrong:
        got = f"{wrong[0].dtype} {wrong[0].shape}"
        raise ValueError(f"ranking: expected a list of archive positions a query, got {got} for one of them")
    out = np.full((len(rows), max(map(len, rows), default=0)), -1, dtype=np.int64)
    for row, order in zip(out, rows, strict=True):
        row[: len(order)] = order
    return out
