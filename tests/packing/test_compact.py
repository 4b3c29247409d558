"""A compact sequence is a list that takes less memory."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marc_dist.packing.compact import BLOCK, Compact


@given(
    st.sampled_from([0, 1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK]),
    st.sampled_from([0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1]),
    st.slices(2 * BLOCK),
)
def test_it_has_what_a_list_has(first: int, added: int, some: slice) -> None:
    compact = Compact((("a", number) for number in range(first)), lambda plain: plain[1])
    for number in range(first, first + added):
        compact.append(("a", number))
    every = list(range(first + added))
    assert list(compact) == every and len(compact) == len(every) and compact[some] == every[some]
    assert [compact[place] for place in (0, -1, len(every) // 2) if every] == [
        every[place] for place in (0, -1, len(every) // 2) if every
    ]
    assert list(compact.take(reversed(every))) == every[::-1]
    with pytest.raises(IndexError):
        compact[len(every)]


def test_a_sequence_shorter_than_a_block_takes_little_memory_too() -> None:
    """A shard has 1000 rows, and there are many shards."""

    def rows() -> list[tuple[str, int, str]]:
        return [(f"tile_{number:07d}", number << 40, f"{number:016x}") for number in range(1000)]

    def taken(*, compact: bool) -> int:
        tracemalloc.start()
        held = [Compact(rows()) if compact else rows() for _ in range(4)]
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(held) == 4
        return size

    assert taken(compact=True) < taken(compact=False) / 3
