"""Cross-batch memory: order free of ranks, any size, what a checkpoint keeps."""

from __future__ import annotations

import pytest
import torch

from marc_dist.training.memory import Memory, canonical_order


def make(size: int) -> Memory:
    return Memory(size, 2, 3, torch.float32, torch.device("cpu"))


def add(memory: Memory, ids: list[int]) -> None:
    rows = torch.tensor(ids)
    memory.add(rows[:, None].float().repeat(1, 2).requires_grad_(), rows[:, None] % torch.tensor([2, 3, 5]) == 0, rows)


def test_the_newest_rows_stay_in_order_whatever_the_size() -> None:
    memory = make(5)
    add(memory, [1, 2, 3])
    assert memory.ids.tolist() == [1, 2, 3]
    add(memory, [4, 5, 6, 7])
    assert memory.ids.tolist() == [3, 4, 5, 6, 7]
    assert memory.embeddings[:, 1].tolist() == [3, 4, 5, 6, 7]
    assert memory.labels[0].tolist() == [False, True, False]
    assert not memory.embeddings.requires_grad
    add(memory, list(range(10, 22)))
    assert memory.ids.tolist() == list(range(17, 22))


def test_no_memory_keeps_nothing() -> None:
    memory = make(0)
    add(memory, [1, 2])
    assert len(memory.ids) == len(memory.embeddings) == 0


def test_a_checkpoint_holds_the_rows_and_nothing_else() -> None:
    memory, other = make(4), make(4)
    add(memory, list(range(9)))
    state = memory.state()
    assert all(part.untyped_storage().nbytes() == part.numel() * part.element_size() for part in state.values())
    other.load(state)
    for name in ("embeddings", "labels", "ids"):
        assert torch.equal(getattr(memory, name), getattr(other, name))


@pytest.mark.parametrize("layout", [[5], [2, 3], [0, 5], [1, 0, 4], [1, 1, 1, 1, 1]], ids=str)
def test_canonical_order_is_by_sample_then_view(layout: list[int]) -> None:
    views, start, gathered = 3, 0, []
    for num in layout:  # as ranks send them: all of view 0, then all of view 1, ...
        gathered += [(sample, view) for view in range(views) for sample in range(start, start + num)]
        start += num
    order = canonical_order(layout, views).tolist()
    assert [gathered[place] for place in order] == [(sample, view) for sample in range(5) for view in range(views)]
