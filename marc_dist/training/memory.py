"""Cross-batch memory: embeddings of the last steps as further candidates, equal on every rank and at any world size.

An idea of XBM (Wang et al. 2020) and of the queue of MoCo and MulSupCon; departures: labels are multi-hot, any number
of rows fits (no divisibility), rows are used from the first step on, and there is no momentum encoder.
"""

from __future__ import annotations

import torch
from torch import Tensor


def canonical_order(rows: list[int], views: int) -> Tensor:
    """Places that bring gathered rows into an order free of the number of ranks: by sample, then by view.

    Args:
        rows: samples of each rank; a rank's rows are all of its view 0, then all of its view 1, ...
        views: V.
    """
    parts, start = [], 0
    for num in rows:
        parts.append(torch.arange(start, start + num * views).reshape(views, num).T.reshape(-1))
        start += num * views
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


class Memory:
    """The newest ``size`` rows of (embedding, labels, id), oldest first.

    Args:
        size: rows kept; 0 keeps nothing.
        dim: D.
        num_labels: L.
        dtype: of the embeddings.
        device: where the rows live.
    """

    def __init__(self, size: int, dim: int, num_labels: int, dtype: torch.dtype, device: torch.device) -> None:
        self.size = size
        self.embeddings = torch.zeros(0, dim, dtype=dtype, device=device)
        self.labels = torch.zeros(0, num_labels, dtype=torch.bool, device=device)
        self.ids = torch.zeros(0, dtype=torch.int64, device=device)

    def add(self, embeddings: Tensor, labels: Tensor, ids: Tensor) -> None:
        """Append rows and drop the oldest beyond ``size``; nothing is tracked by autograd.

        Args:
            embeddings: (n, D) of all ranks, in an order that does not depend on their number.
            labels: (n, L) multi-hot.
            ids: (n,) int64 sample ids.
        """
        if self.size:
            self.embeddings = torch.cat([self.embeddings, embeddings.detach()])[-self.size :]
            self.labels = torch.cat([self.labels, labels])[-self.size :]
            self.ids = torch.cat([self.ids, ids])[-self.size :]

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        parts = {"embeddings": self.embeddings, "labels": self.labels, "ids": self.ids}
        return {name: part.clone() for name, part in parts.items()}  # not the storage of the rows that were cut off

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on with the rows of a checkpoint."""
        self.embeddings = state["embeddings"].to(self.embeddings)
        self.labels = state["labels"].to(self.labels)
        self.ids = state["ids"].to(self.ids)
