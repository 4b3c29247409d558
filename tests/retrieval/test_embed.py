"""Which rank embeds what."""

from __future__ import annotations

import numpy as np
import pytest

from marc_dist import comm
from marc_dist.retrieval.vectors.embed import rank_ids


@pytest.mark.parametrize("num", [0, 1, 7, 8, 21])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_ranks_take_whole_batches_of_the_one_process_run(num: int, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.arange(num) * 10
    batches = {tuple(ids[at : at + 4].tolist()) for at in range(0, num, 4)}
    parts = []
    for rank in range(world):
        monkeypatch.setattr(comm, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(comm, "world", lambda: world)
        part = rank_ids(ids, 4)
        assert {tuple(part[at : at + 4].tolist()) for at in range(0, len(part), 4)} <= batches
        parts.append(part)
    assert np.concatenate(parts).tolist() == ids.tolist()
