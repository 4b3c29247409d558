"""Triton kernels: everything that happens to a tile of similarities between two matrix products, in one pass over it.

Imported only where Triton is. Pointers end in ``_ptr``; a tile is row-major and contiguous. 1 / T is worked out from
the two label sets on the spot: their overlap is a small product of multi-hot rows in half precision, exact because it
counts to at most 512 in float32. Constants come as a tensor, because Triton passes Python floats in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

OVERLAPS = {"jaccard": 0, "anchor_recall": 1, "dice": 2, "cosine": 3, "count_over_labels": 4}
FORMS = {"sharpen": 0, "soften": 1, "multiplicative": 2, "soften_sharpen": 3}
POSITIVES = {"every": 0, "any": 1, "all": 2}


@triton.jit
def _one_over(o, rho, tau, alpha, beta, t_min, FORM: tl.constexpr):
    """1 / T from overlap and rarity, one of ``FORMS``."""
    if FORM == 0:
        inverse = tl.minimum((1 + beta * rho + alpha * o) / tau, 1 / t_min)
    elif FORM == 1:
        inverse = 1 / tl.maximum(tau * (1 + beta * rho + alpha * o), t_min)
    elif FORM == 2:
        inverse = 1 / tl.maximum(tau * (1 - beta * rho) * (1 - alpha * o), t_min)
    else:
        inverse = 1 / tl.maximum(tau * (1 + alpha * o) / (1 + beta * rho), t_min)
    return inverse


@triton.jit
def _inverse(
    row_kind, column_kind, columns_in, table_ptr, sizes_ptr, rho_ptr, constants_ptr,
    WIDTH: tl.constexpr, BLOCK_L: tl.constexpr, OVERLAP: tl.constexpr, FORM: tl.constexpr, DYNAMIC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """(BLOCK_R, BLOCK_C) 1 / T between label sets; ``DYNAMIC``: which pairs have a temperature of their own."""
    shared = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for start in range(0, WIDTH, BLOCK_L):
        label = start + tl.arange(0, BLOCK_L)
        a = tl.load(table_ptr + row_kind[:, None] * WIDTH + label[None, :])
        b = tl.load(table_ptr + column_kind[None, :] * WIDTH + label[:, None])
        shared += tl.dot(a, b, out_dtype=tl.float32)
    row_size = tl.load(sizes_ptr + row_kind)[:, None]
    column_size = tl.load(sizes_ptr + column_kind)[None, :]
    rho = tl.load(rho_ptr + row_kind)[:, None]
    tau = tl.load(constants_ptr)
    alpha = tl.load(constants_ptr + 1)
    beta = tl.load(constants_ptr + 2)
    t_min = tl.load(constants_ptr + 3)
    labels = tl.load(constants_ptr + 4)
    shared = shared.to(row_size.dtype)
    if OVERLAP == 0:
        o = shared / tl.maximum(row_size + column_size - shared, 1.0)
    elif OVERLAP == 1:
        o = shared / tl.maximum(row_size, 1.0)
    elif OVERLAP == 2:
        o = 2 * shared / tl.maximum(row_size + column_size, 1.0)
    elif OVERLAP == 3:
        o = shared / tl.sqrt(tl.maximum(row_size * column_size, 1.0))
    else:
        o = shared / labels
    inverse = _one_over(o, rho, tau, alpha, beta, t_min, FORM)
    if DYNAMIC == 1:
        inverse = tl.where(shared > 0, inverse, 1 / tl.maximum(tau, t_min))
    elif DYNAMIC == 2:
        same = (shared > 0) & (shared == row_size) & (shared == column_size)
        inverse = tl.where(same, inverse, 1 / tl.maximum(tau, t_min))
    return inverse


@triton.jit
def _logits(
    x, row, column, in_rows, in_columns, own_ptr, row_kinds_ptr, column_kinds_ptr, bias_ptr, first_column,
    table_ptr, sizes_ptr, rho_ptr, constants_ptr,
    LABELS: tl.constexpr, BIAS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_L: tl.constexpr, OVERLAP: tl.constexpr,
    FORM: tl.constexpr, DYNAMIC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Similarities -> logits with -inf on self pairs and outside the tile; and 1 / T."""
    inverse = tl.full((BLOCK_R, BLOCK_C), 1.0, dtype=x.dtype)
    if LABELS:
        row_kind = tl.load(row_kinds_ptr + row, mask=in_rows, other=0)
        column_kind = tl.load(column_kinds_ptr + column, mask=in_columns, other=0)
        inverse = _inverse(
            row_kind, column_kind, in_columns, table_ptr, sizes_ptr, rho_ptr, constants_ptr,
            WIDTH, BLOCK_L, OVERLAP, FORM, DYNAMIC, BLOCK_R, BLOCK_C,
        )  # fmt: skip
        x = x * inverse
    if BIAS:
        x += tl.load(bias_ptr + column, mask=in_columns, other=0.0)[None, :]
    own = tl.load(own_ptr + row, mask=in_rows, other=-1)
    hidden = (own[:, None] == (column + first_column)[None, :]) | ~in_columns[None, :]
    return tl.where(hidden, float("-inf"), x), inverse


@triton.jit
def reduce_tile(
    x_ptr, top_ptr, total_ptr, num_rows, num_columns, own_ptr, row_kinds_ptr, column_kinds_ptr, bias_ptr, first_column,
    table_ptr, sizes_ptr, rho_ptr, constants_ptr,
    LABELS: tl.constexpr, BIAS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_L: tl.constexpr, OVERLAP: tl.constexpr,
    FORM: tl.constexpr, DYNAMIC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Add a tile to the running maximum ``top`` and sum ``total`` of exp(logit - top); a program owns BLOCK_R rows.

    Args:
        x_ptr: (num_rows, num_columns) similarities.
        top_ptr: (num_rows,) the running maximum, finite; updated.
        total_ptr: (num_rows,) the running sum; updated.
        num_rows: of the tile.
        num_columns: of the tile.
        own_ptr: (num_rows,) position of each row's own anchor among all candidates.
        row_kinds_ptr: (num_rows,) int32 number of each row's label set.
        column_kinds_ptr: (num_columns,) int32 number of each column's label set.
        bias_ptr: (num_columns,) added to the logits; read with BIAS only.
        first_column: position of column 0 among all candidates.
        table_ptr: (sets, WIDTH) float16 multi-hot label sets, padded with zeros; this and the next three are read with
            LABELS only.
        sizes_ptr: (sets,) labels of each set.
        rho_ptr: (sets,) rarity of each set.
        constants_ptr: (5,) tau, alpha, beta, t_min and L.
        LABELS: T follows from the two label sets; else the similarities are logits already.
        BIAS: there is a bias.
        WIDTH: L, rounded up to a multiple of BLOCK_L.
        BLOCK_L: labels that are multiplied at a time.
        OVERLAP: one of ``OVERLAPS``.
        FORM: one of ``FORMS``.
        DYNAMIC: one of ``POSITIVES``: the pairs that have a temperature of their own.
        BLOCK_R: rows of a program.
        BLOCK_C: columns that a program works on at a time.
    """
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    in_rows = row < num_rows
    top = tl.load(top_ptr + row, mask=in_rows, other=0.0)
    total = tl.load(total_ptr + row, mask=in_rows, other=0.0)
    for start in range(0, num_columns, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        in_columns = column < num_columns
        inside = in_rows[:, None] & in_columns[None, :]
        place = row[:, None].to(tl.int64) * num_columns + column[None, :]
        x = tl.load(x_ptr + place, mask=inside, other=0.0)
        x, _ = _logits(
            x, row, column, in_rows, in_columns, own_ptr, row_kinds_ptr, column_kinds_ptr, bias_ptr, first_column,
            table_ptr, sizes_ptr, rho_ptr, constants_ptr,
            LABELS, BIAS, WIDTH, BLOCK_L, OVERLAP, FORM, DYNAMIC, BLOCK_R, BLOCK_C,
        )  # fmt: skip
        higher = tl.maximum(top, tl.max(x, axis=1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher[:, None]), axis=1)
        top = higher
    tl.store(top_ptr + row, top, mask=in_rows)
    tl.store(total_ptr + row, total, mask=in_rows)


@triton.jit
def slope_tile(
    x_ptr, lse_ptr, weight_ptr, num_rows, num_columns, own_ptr, row_kinds_ptr, column_kinds_ptr, bias_ptr, first_column,
    table_ptr, sizes_ptr, rho_ptr, constants_ptr,
    LABELS: tl.constexpr, BIAS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_L: tl.constexpr, OVERLAP: tl.constexpr,
    FORM: tl.constexpr, DYNAMIC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Similarities <- weight * exp(logit - lse) / T, in place; a program owns BLOCK_R x BLOCK_C of them.

    Args:
        x_ptr: (num_rows, num_columns) similarities; overwritten.
        lse_ptr: (num_rows,) log-sum-exp over all candidates.
        weight_ptr: (num_rows,) weight of each row.
        num_rows: of the tile.
        num_columns: of the tile.
        own_ptr: as in ``reduce_tile``.
        row_kinds_ptr: as in ``reduce_tile``.
        column_kinds_ptr: as in ``reduce_tile``.
        bias_ptr: as in ``reduce_tile``.
        first_column: as in ``reduce_tile``.
        table_ptr: as in ``reduce_tile``.
        sizes_ptr: as in ``reduce_tile``.
        rho_ptr: as in ``reduce_tile``.
        constants_ptr: as in ``reduce_tile``.
        LABELS: as in ``reduce_tile``.
        BIAS: as in ``reduce_tile``.
        WIDTH: as in ``reduce_tile``.
        BLOCK_L: as in ``reduce_tile``.
        OVERLAP: as in ``reduce_tile``.
        FORM: as in ``reduce_tile``.
        DYNAMIC: as in ``reduce_tile``.
        BLOCK_R: rows of a program.
        BLOCK_C: columns of a program.
    """
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_rows = row < num_rows
    in_columns = column < num_columns
    inside = in_rows[:, None] & in_columns[None, :]
    place = row[:, None].to(tl.int64) * num_columns + column[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0)
    x, inverse = _logits(
        x, row, column, in_rows, in_columns, own_ptr, row_kinds_ptr, column_kinds_ptr, bias_ptr, first_column,
        table_ptr, sizes_ptr, rho_ptr, constants_ptr,
        LABELS, BIAS, WIDTH, BLOCK_L, OVERLAP, FORM, DYNAMIC, BLOCK_R, BLOCK_C,
    )  # fmt: skip
    lse = tl.load(lse_ptr + row, mask=in_rows, other=0.0)
    weight = tl.load(weight_ptr + row, mask=in_rows, other=0.0)
    tl.store(x_ptr + place, weight[:, None] * tl.exp(x - lse[:, None]) * inverse, mask=inside)


INTERPRETED = type(reduce_tile).__name__ == "InterpretedFunction"
