"""Who asks and who answers: the query and archive samples of each protocol."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from marc_dist.config import DataError, EvalConfig
from marc_dist.data.dataset import Dataset

Int = NDArray[np.int64]
OML_SHARE = 0.2


@dataclass(frozen=True)
class Protocol:
    """Query and archive sample ids, both ascending, and one sentence that says how they were chosen."""

    queries: Int
    archive: Int
    sentence: str

    def self_positions(self, queries: Int) -> Int:
        """Archive position of each query itself, -1 where it is not part of the archive."""
        place = np.searchsorted(self.archive, queries)
        inside = place < len(self.archive)
        inside[inside] = self.archive[place[inside]] == queries[inside]
        return np.where(inside, place, -1)


def _draw(dataset: Dataset, rows: Int, seed: int) -> Int:
    """The rows in an order that depends on the seed and each sample's key alone, not on numpy or on the packing."""
    order = sorted(
        rows.tolist(), key=lambda row: (hashlib.sha256(f"{seed}:{dataset.keys[row]}".encode()).digest(), row)
    )
    return np.array(order, dtype=np.int64)


def choose(dataset: Dataset, config: EvalConfig) -> Protocol:
    """The queries and the archive that ``eval.protocol`` means.

    test_vs_train: all of ``query_split`` against all of ``archive_split``. oml: a fifth of ``query_split``, drawn by
    ``eval.seed``, against the rest of it (RImbriaco/OML draws with Python's ``random``, seed 24; ours is a hash of seed
    and key, so the sets differ from theirs). leave_one_out: each of ``query_split`` against all others of it.

    Raises:
        DataError: a split does not exist, or holds too few samples.
    """
    rows = dataset.rows(config.query_split)
    split = config.query_split
    if config.protocol == "test_vs_train":
        archive = dataset.rows(config.archive_split)
        return Protocol(rows, archive, f"every image of {split} asks, every image of {config.archive_split} may answer")
    if len(rows) < 2:
        raise DataError(f"{dataset.root}: split {split!r} has 1 image; eval.protocol={config.protocol} needs 2 or more")
    if config.protocol == "leave_one_out":
        return Protocol(rows, rows, f"every image of {split} asks, all others of {split} may answer")
    order = _draw(dataset, rows, config.seed)
    num = max(1, round(OML_SHARE * len(rows)))
    return Protocol(
        np.sort(order[:num]),
        np.sort(order[num:]),
        f"{num} images of {split}, drawn with seed {config.seed}, ask; the other {len(rows) - num} may answer",
    )
