"""Work that rank 0 does first and that may take long, as a download does: no rank looks hung while it goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from marc_dist import comm
from marc_dist.config import MarcError

T = TypeVar("T")
LOOK_S = 0.5


def fetched_by_rank_0_first(work: Callable[[Callable[[], None]], T], tick: Callable[[], None]) -> T:
    """``rank_0_first`` for work that may take as long as it goes on. A collective.

    Args:
        work: given a function to call, from any thread, whenever something has arrived.
        tick: called on every rank after each look at which a rank had something; those that wait are not hung either.

    Raises:
        MarcError: of the first rank that failed, on every rank.
    """
    turns = [_Turn(work, (comm.rank() == 0) == first) for first in (True, False)]
    for turn in turns:
        turn.start()
        looks: list[_Look] = []
        while not (looks and all(look.over for look in looks)):
            looks = comm.gather_object(turn.look())
            if any(look.moved for look in looks):
                tick()
            for look in looks:
                if look.error is not None:
                    raise look.error
    (result,) = (result for turn in turns for result in turn.results)
    return result


class _Look(NamedTuple):
    """How the work of a rank stands."""

    over: bool
    moved: bool
    error: MarcError | None


class _Turn(Generic[T]):
    """The work of a rank whose turn it is, in a thread, so that it can be looked at."""

    def __init__(self, work: Callable[[Callable[[], None]], T], mine: bool) -> None:
        self.results: list[T] = []
        self._work, self._mine = work, mine
        self._error: BaseException | None = None
        self._arrived = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fetch", daemon=True)

    def _run(self) -> None:
        try:
            self.results.append(self._work(self._arrived.set))
        except BaseException as error:
            self._error = error

    def start(self) -> None:
        if self._mine:
            self._thread.start()

    def look(self) -> _Look:
        """How it stands, at the latest after ``LOOK_S``."""
        if self._mine:
            self._thread.join(LOOK_S)
        over = not self._thread.is_alive()  # first: then error and result are there
        moved = self._arrived.is_set()
        self._arrived.clear()
        if self._error is not None and not isinstance(self._error, MarcError):
            raise self._error
        return _Look(over, moved, self._error)
