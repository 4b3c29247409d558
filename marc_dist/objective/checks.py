"""What the objective refuses: numbers that would give a loss, but not the one that was meant."""

from __future__ import annotations

import torch
from torch import Tensor

SLACK = 0.01  # of a unit vector's length; bfloat16 rounds it by up to 0.004


def check_shapes(
    anchors: Tensor, candidates: Tensor, anchor_labels: Tensor, candidate_labels: Tensor, first: int
) -> None:
    """Refuse labels other than 0 and 1, and tensors that do not belong together.

    Args:
        anchors: (A, D).
        candidates: (C, D).
        anchor_labels: (A, L), of the type of ``candidate_labels``.
        candidate_labels: (C, L).
        first: position of anchor 0 among the candidates, 0 to C - A.

    Raises:
        ValueError: dimensions, types, numbers of rows, labels, or the place of the anchors among the candidates.
    """
    for name, vectors, labels in (("anchor", anchors, anchor_labels), ("candidate", candidates, candidate_labels)):
        check_kind(f"{name}s", vectors, f"{name}_labels", labels)
    check_device("candidates", candidates, "anchors", anchors)
    if anchors.shape[1] != candidates.shape[1]:
        raise ValueError(f"candidates: expected {anchors.shape[1]} columns like the anchors, got {candidates.shape[1]}")
    if len(anchor_labels) != len(anchors) or len(candidate_labels) != len(candidates):
        raise ValueError(
            f"labels: expected {len(anchors)} anchor and {len(candidates)} candidate rows, "
            f"got {len(anchor_labels)} and {len(candidate_labels)}"
        )
    if anchor_labels.dtype != candidate_labels.dtype:
        raise ValueError(f"labels: expected one type, got {anchor_labels.dtype} and {candidate_labels.dtype}")
    check_labels("candidate_labels", candidate_labels)
    own = slice(first, first + len(anchors))
    if not 0 <= first <= len(candidates) - len(anchors) or not torch.equal(anchor_labels, candidate_labels[own]):
        raise ValueError(f"first: expected anchor 0 to be candidate {first}; their labels or counts differ")


def check_tensor(name: str, x: object) -> None:
    """Refuse what is no dense torch tensor with numbers in it.

    Raises:
        ValueError: names it by ``name``.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"{name}: expected a torch tensor, got {type(x).__name__}; use torch.as_tensor")
    if x.is_nested:
        raise ValueError(f"{name}: expected a dense tensor, got a nested one; use {name}.to_padded_tensor(0)")
    if x.layout != torch.strided:
        raise ValueError(f"{name}: expected a dense tensor, got {x.layout}; use {name}.to_dense()")
    if x.is_meta:
        raise ValueError(f"{name}: expected a tensor with numbers in it, got one on the device meta")


def check_kind(name: str, vectors: Tensor, labels_name: str = "", labels: Tensor | None = None) -> None:
    """Refuse what is no matrix of real vectors or, where labels are given, no matrix of labels.

    Args:
        name: of ``vectors``, for the message.
        vectors: expected to be (rows, D) floats, D of 1 or more.
        labels_name: of ``labels``, for the message.
        labels: expected to be (rows, L), not complex; None = not looked at.

    Raises:
        ValueError: names the tensor by ``name`` or ``labels_name``.
    """
    check_tensor(name, vectors)
    if vectors.ndim != 2 or not vectors.is_floating_point():
        raise ValueError(f"{name}: expected a (rows, width) tensor of floats, {got(vectors)}")
    if not vectors.shape[1]:
        raise ValueError(f"{name}: expected one column or more, got shape {tuple(vectors.shape)}")
    if labels is not None:
        check_label_kind(labels_name, labels)
        check_device(labels_name, labels, name, vectors)


def check_label_kind(name: str, labels: Tensor) -> None:
    """Refuse what is no matrix of real numbers.

    Raises:
        ValueError: names it by ``name``.
    """
    check_tensor(name, labels)
    if labels.ndim != 2 or labels.is_complex():
        remedy = "; class numbers become rows by torch.nn.functional.one_hot" if labels.ndim == 1 else ""
        raise ValueError(f"{name}: expected a (rows, labels) tensor of 0 and 1, {got(labels)}{remedy}")


def check_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse two tensors on two devices.

    Args:
        name: of ``x``.
        x: expected where ``other`` is.
        other_name: of ``other``.
        other: a tensor.

    Raises:
        ValueError: names both.
    """
    if x.device != other.device:
        raise ValueError(f"{name}: expected on {other.device} like the {other_name}, got {x.device}")


def check_columns(name: str, labels: Tensor) -> None:
    """Refuse labels without a column.

    Raises:
        ValueError: the shape.
    """
    if not labels.shape[1]:
        raise ValueError(f"{name}: expected one column or more, got shape {tuple(labels.shape)}")


def check_ids(name: str, ids: Tensor) -> None:
    """Refuse what does not say by whole numbers which sample each row shows.

    Raises:
        ValueError: names it by ``name``.
    """
    check_tensor(name, ids)
    if ids.ndim != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name}: expected (rows,) whole numbers, the image of each row, {got(ids)}")


def check_single(name: str, labels: Tensor) -> None:
    """Refuse rows with several labels, as SupCon with one label an image does.

    Raises:
        ValueError: names the first row.
    """
    sizes = labels.to(torch.bool).sum(dim=1)
    if bool((sizes > 1).any()):
        row = int((sizes > 1).nonzero()[0])
        raise ValueError(
            f"{name}: expected at most one label a row, got {int(sizes[row])} in row {row}; "
            "supcon_any and supcon_all take several"
        )


def got(x: Tensor) -> str:
    """The kind of a tensor, for an error."""
    return f"got shape {tuple(x.shape)}, {x.dtype}"


def check_lengths(anchors: Tensor, candidates: Tensor, prototypes: Tensor | None) -> None:
    """Refuse vectors that were not normalised; rows of zeros and rows that are not finite pass.

    Args:
        anchors: (A, D).
        candidates: (C, D).
        prototypes: (L, D), or None.

    Raises:
        ValueError: names the first row.
    """
    named = {"anchors": anchors, "candidates": candidates}
    if prototypes is not None:
        named["prototypes"] = prototypes
    with torch.no_grad():
        lengths = {name: _length(vectors) for name, vectors in named.items()}
        wrong = {
            name: (length - 1).abs().gt(SLACK) & length.isfinite() & (length > 0) for name, length in lengths.items()
        }
        found = torch.stack([rows.any() for rows in wrong.values()]).tolist()
    for name, bad in zip(named, found, strict=True):
        if bad:
            row = int(wrong[name].nonzero()[0])
            raise ValueError(
                f"{name}: expected unit vectors, got length {float(lengths[name][row]):.4g} in row {row}; "
                "divide by it with torch.nn.functional.normalize(x, dim=1)"
            )


def _length(vectors: Tensor) -> Tensor:
    dtype = torch.float64 if vectors.dtype == torch.float64 else torch.float32
    length: Tensor = torch.linalg.vector_norm(vectors, dim=1, dtype=dtype)
    return length


def check_labels(name: str, labels: Tensor) -> None:
    """Refuse labels other than 0 and 1; floats that hold nothing else pass, because other losses ask for floats.

    Raises:
        ValueError: names the first place.
    """
    if labels.dtype == torch.bool:
        return
    wrong = (labels != 0) & (labels != 1)
    if bool(wrong.any()):
        row, label = wrong.nonzero()[0].tolist()
        raise ValueError(f"{name}: expected 0 or 1, got {labels[row, label].item():g} in row {row}, label {label}")
