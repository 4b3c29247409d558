"""Candidates by torch: the same as FAISS's flat search, for a GPU where FAISS has no GPU build."""

from __future__ import annotations

import torch

from marc_dist.retrieval.exact import Float32, Int, Rows

BLOCK = 1 << 16


class TorchSearch:
    """An archive on a device, block by block; called like the search of a FAISS index.

    Args:
        archive: (n, d).
        device: where it lies and where the products are taken.
        dtype: float32, or float16 in half the memory. Products are of float32 either way, and TF32 is never used: what
            half precision costs is the rounding of the archive, and that has a bound.
    """

    def __init__(self, archive: Rows, device: torch.device, dtype: torch.dtype) -> None:
        parts = [torch.from_numpy(archive[at : at + BLOCK].copy()) for at in range(0, len(archive), BLOCK)]
        self._blocks = [part.to(device, dtype) for part in parts]

    def __call__(self, queries: Float32, num: int) -> tuple[Float32, Int]:
        """The ``num`` largest inner products, (B, num) descending, and the rows they belong to."""
        asked = torch.from_numpy(queries).to(self._blocks[0].device)
        scores = torch.empty((len(queries), 0), device=asked.device)
        places = torch.empty((len(queries), 0), dtype=torch.int64, device=asked.device)
        tf32, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
        try:
            for number, block in enumerate(self._blocks):
                top, at = (asked @ block.float().T).topk(min(num, len(block)), dim=1)
                scores, places = torch.cat([scores, top], 1), torch.cat([places, at + number * BLOCK], 1)
                scores, kept = scores.topk(min(num, scores.shape[1]), dim=1)
                places = places.gather(1, kept)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = tf32
        return scores.cpu().numpy(), places.cpu().numpy()
