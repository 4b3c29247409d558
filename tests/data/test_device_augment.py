"""Working a batch ahead in a thread: order, errors, and leaving early."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from marc_dist.config import DataError
from marc_dist.data.device_augment import one_ahead


def test_one_item_ahead_in_order_and_in_one_other_thread() -> None:
    begun: list[int] = []
    threads: set[int] = set()
    second = threading.Event()

    def work(item: int) -> Callable[[], int]:
        begun.append(item)
        threads.add(threading.get_ident())
        if item == 1:
            second.set()
        return lambda: item * 10

    results = one_ahead(iter(range(5)), work)
    assert next(results) == 0
    assert second.wait(10), "the next item is worked on while this one is used"
    assert list(results) == [10, 20, 30, 40]
    assert begun == list(range(5))
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_an_error_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise DataError("shard: broken")

    results = one_ahead(items(), lambda item: lambda: item)
    assert next(results) == 1
    with pytest.raises(DataError, match="shard: broken"):
        next(results)


def test_leaving_early_leaves_no_thread() -> None:
    before = threading.active_count()
    results = one_ahead(iter(range(1000)), lambda item: lambda: item)
    assert next(results) == 0
    assert isinstance(results, Iterator)
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
